"""Where a benchmark's tensors lie, and of which type they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Place:
    """A device and a data type."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @contextmanager
    def tensors(self) -> Iterator[None]:
        """Within, PyTorch makes new tensors here."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                yield
        finally:
            torch.set_default_dtype(before)

    @property
    def suffix(self) -> str:
        """Tells files of other places apart from those of the processor in single precision."""
        device = "" if self.device == "cpu" else f"-{self.device}"
        return device + ("" if self.dtype == torch.float32 else f"-{str(self.dtype).removeprefix('torch.')}")
