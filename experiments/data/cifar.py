"""CIFAR-10 and CIFAR-100, from disk or from the Hugging Face hub."""

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.data.images import ImageData, Samples

IMAGE_SHAPE = (3, 32, 32)


class _CIFAR(ImageData):
    """60,000 colour images of 32x32 pixels; 10,000 are for testing.

    Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Args:
        root: folder that has the unpacked archive (or is it), in the pickled "python" or in the "binary" format.
        hub: name of the dataset on the Hugging Face hub (or a folder in one of its formats), used when ``root``
            has no such files; ``null`` never goes there.
        kwargs: what :class:`ImageData` takes.
    """

    name: str
    label: str  # of the pickled files and of the hub's columns
    label_bytes: int  # per record of the binary files; the last of them is the fine label
    folders: Sequence[str]
    files: dict[str, Sequence[str]]

    def __init__(self, root: str, hub: str | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.hub = root, hub

    def load(self) -> tuple[Samples, Samples]:
        """Read the files, or else ask the hub."""
        for folder in (Path(self.root), *(Path(self.root, name) for name in self.folders)):
            for suffix, read in (("", self._read_pickle), (".bin", self._read_binary)):
                train = [folder / (name + suffix) for name in self.files["train"]]
                test = [folder / (name + suffix) for name in self.files["test"]]
                if all(path.is_file() for path in (*train, *test)):
                    return _join([read(path) for path in train]), _join([read(path) for path in test])
        if self.hub is None:
            raise FileNotFoundError(f"no {self.name} files in {self.root} ({' or '.join(self.folders)})")
        return self._read_hub()

    def _read_pickle(self, path: Path) -> Samples:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        images = np.asarray(content[b"data"], np.uint8).reshape(-1, *IMAGE_SHAPE)
        labels = np.asarray(content[self.label.encode()], np.int64)
        return Samples(torch.from_numpy(images.copy()), torch.from_numpy(labels))

    def _read_binary(self, path: Path) -> Samples:
        values = np.frombuffer(path.read_bytes(), np.uint8)
        record = self.label_bytes + int(np.prod(IMAGE_SHAPE))
        if values.size == 0 or values.size % record:
            raise ValueError(f"{path} has {values.size} bytes, which is not a multiple of {record}")
        values = values.reshape(-1, record)
        images = values[:, self.label_bytes :].reshape(-1, *IMAGE_SHAPE).copy()
        return Samples(torch.from_numpy(images), torch.from_numpy(values[:, self.label_bytes - 1].copy()).long())

    def _read_hub(self) -> tuple[Samples, Samples]:
        from datasets import load_dataset

        try:
            parts = load_dataset(self.hub)
        except Exception as error:
            raise FileNotFoundError(
                f"no {self.name} files in {self.root} ({' or '.join(self.folders)}), "
                f"and {self.hub!r} cannot be loaded from the Hugging Face hub: {error}"
            ) from error
        return self._from_hub(parts["train"]), self._from_hub(parts["test"])

    def _from_hub(self, part: Any) -> Samples:
        label = "label" if "label" in part.column_names else "fine_label"
        images = np.stack([np.asarray(image.convert("RGB")) for image in part["img"]])
        labels = torch.tensor(part[label], dtype=torch.int64)
        return Samples(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


class CIFAR10(_CIFAR):
    __doc__ = "CIFAR-10: " + (_CIFAR.__doc__ or "")

    name, label, label_bytes, num_classes = "CIFAR-10", "labels", 1, 10
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    folders = ("cifar-10-batches-py", "cifar-10-batches-bin")
    files = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}  # noqa: RUF012

    def __init__(self, root: str = "data", hub: str | None = "uoft-cs/cifar10", **kwargs: Any) -> None:
        super().__init__(root, hub, **kwargs)


class CIFAR100(_CIFAR):
    __doc__ = "CIFAR-100: " + (_CIFAR.__doc__ or "")

    name, label, label_bytes, num_classes = "CIFAR-100", "fine_labels", 2, 100
    mean, std = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)
    folders = ("cifar-100-python", "cifar-100-binary")
    files = {"train": ["train"], "test": ["test"]}  # noqa: RUF012

    def __init__(self, root: str = "data", hub: str | None = "uoft-cs/cifar100", **kwargs: Any) -> None:
        super().__init__(root, hub, **kwargs)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays only, so that a downloaded file cannot run code."""

    ALLOWED = frozenset(
        {
            *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
            ("__builtin__", "bytes"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"CIFAR's files hold arrays only, this one asks for {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _join(parts: list[Samples]) -> Samples:
    return Samples(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
