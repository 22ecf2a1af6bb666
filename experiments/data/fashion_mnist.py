"""Fashion-MNIST from its original files."""

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.data.images import ImageData, Samples

ROOT = "/usr/share/datasets/fashion-mnist"

FILES = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))


class FashionMNIST(ImageData):
    """70,000 grey images of clothing in ten classes, 28x28 pixels, padded (to 32x32); 10,000 are for testing.

    Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms" (https://arxiv.org/abs/1708.07747).

    Args:
        root: folder with the four IDX files, compressed or not; the default is where Debian's package
            ``dataset-fashion-mnist`` puts them.
        pad: pixels of zeros added on each side.
        kwargs: what :class:`ImageData` takes.
    """

    num_classes = 10
    mean, std = (0.2190,), (0.3318,)

    def __init__(self, root: str = ROOT, pad: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if pad < 0:
            raise ValueError(f"pad must be at least 0, got {pad}")
        self.root, self.pad = root, pad

    def is_there(self) -> bool:
        """Whether the files are."""
        try:
            return all([self._find(name) for name in FILES])
        except FileNotFoundError:
            return False

    def load(self) -> tuple[Samples, Samples]:
        """Read the four files."""
        return self._read("train"), self._read("t10k")

    def _read(self, part: str) -> Samples:
        images = read_idx(self._find(f"{part}-images-idx3-ubyte"))[:, None]
        labels = read_idx(self._find(f"{part}-labels-idx1-ubyte"))
        return Samples(functional.pad(images, (self.pad,) * 4), labels.long())

    def _find(self, name: str) -> Path:
        for path in (Path(self.root, name), Path(self.root, name + ".gz")):
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"no Fashion-MNIST file {name}[.gz] in {self.root}: apt-get install dataset-fashion-mnist, "
            "or set data.init_args.root to the folder that has it"
        )


def read_idx(path: Path) -> Tensor:
    """Read a file in LeCun's IDX format with unsigned bytes: magic number, sizes, then the values row by row."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    zeros, kind, ndim = struct.unpack(">HBB", data[:4])
    if zeros != 0 or kind != 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{ndim}I", data[4 : 4 + 4 * ndim])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * ndim)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} announces {shape} values but holds {values.size}")
    return torch.from_numpy(values.reshape(shape).copy())
