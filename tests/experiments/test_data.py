"""Data modules: real files, deterministic splits, an order that depends on seed and epoch alone."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.data import CIFAR10, CIFAR100, Digits, FashionMNIST, GeneratedImages, Loader, MNIST5k
from experiments.data.augment import random_flip, random_shift


def identity(images, generator):
    return images


def loader(n=20, batch_size=4, **options):
    return Loader(torch.arange(n).float(), torch.arange(n), batch_size, identity, shuffle=True, **options)


def labels(batches) -> list[list[int]]:
    return [y.tolist() for _, y in batches]


# --- loader


def test_order_depends_on_seed_and_epoch_alone():
    a, b = loader(seed=3), loader(seed=3)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = labels(a)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    assert labels(b) == first
    assert labels(a) == first  # again, the same epoch
    b.set_epoch(1)
    assert labels(b) != first
    assert labels(loader(seed=4)) != first


def test_an_epoch_has_each_sample_at_most_once_and_full_batches_only():
    batches = labels(loader(n=22, batch_size=4))
    assert [len(b) for b in batches] == [4] * 5
    assert len({i for b in batches for i in b}) == 20


def test_evaluation_keeps_the_order_and_all_samples():
    batches = labels(Loader(torch.arange(10.0), torch.arange(10), 4, identity))
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_processes_share_an_epoch_without_overlap():
    parts = [labels(loader(n=24, batch_size=3, rank=rank, world_size=2)) for rank in range(2)]
    assert all(len(part) == 4 for part in parts)
    assert sorted(i for part in parts for batch in part for i in batch) == list(range(24))


def test_state_resumes_within_the_epoch_and_starts_the_next_one_afresh():
    whole = loader(seed=1)
    whole.set_epoch(2)
    expected = labels(whole)
    stopped = loader(seed=1)
    stopped.set_epoch(2)
    iterator = iter(stopped)
    head = labels([next(iterator), next(iterator)])
    resumed = loader(seed=9)  # the checkpoint's seed wins
    resumed.load_state_dict(stopped.state_dict())
    resumed.set_epoch(2)
    assert head + labels(resumed) == expected
    assert labels(resumed) == expected  # only the first iteration goes on in the middle
    later = loader(seed=1)
    later.load_state_dict(stopped.state_dict())
    later.set_epoch(3)
    assert len(labels(later)) == 5


@pytest.mark.parametrize("batch_size", [0, 21])
def test_wrong_batch_size_is_named(batch_size):
    with pytest.raises(ValueError, match="batch_size must be"):
        loader(n=20, batch_size=batch_size)


# --- augmentation


def test_random_shift_moves_each_image_as_a_whole():
    images = torch.rand(16, 3, 8, 8) + 1  # no zeros, so that the padding shows
    shifted = random_shift(images, 2, torch.Generator().manual_seed(0))
    offsets = set()
    for image, result in zip(images, shifted, strict=True):
        padded = torch.nn.functional.pad(image, (2,) * 4)
        hits = [(i, j) for i in range(5) for j in range(5) if torch.equal(padded[:, i : i + 8, j : j + 8], result)]
        assert len(hits) == 1
        offsets.add(hits[0])
    assert len(offsets) > 4


def test_random_flip_mirrors_about_half():
    images = torch.rand(200, 1, 4, 4)
    flipped = random_flip(images, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(a.flip(2), b) for a, b in zip(images, flipped, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(images, flipped, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 70 < sum(mirrored) < 130


def test_augmented_batches_repeat_with_the_epoch():
    data = GeneratedImages(size=8, train_size=64, test_size=8, batch_size=16, augment=True, seed=0)
    data.setup()
    first = [x for x, _ in data.train_dataloader()]
    again = [x for x, _ in data.train_dataloader()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# --- real data


def check_splits(data, train, val, test, shape):
    data.setup()
    assert (len(data.train.labels), len(data.val.labels), len(data.test.labels)) == (train, val, test)
    images, classes = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32 and images.shape == (data.batch_size, *shape)
    assert classes.dtype == torch.int64 and classes.min() >= 0 and classes.max() < data.num_classes
    everything = torch.cat([x for x, _ in data.train_dataloader()])
    assert everything.mean().abs() < 0.1 and (everything.std() - 1).abs() < 0.1
    return data


def test_digits():
    data = check_splits(Digits(size=16), 1293, 144, 360, (1, 16, 16))
    from sklearn.datasets import load_digits

    # At the original size the pixels are the bundled ones, and every sample is in exactly one part.
    plain = Digits(size=8)
    plain.setup()
    parts = torch.cat([plain.train.images, plain.val.images, plain.test.images]).flatten(1)
    original = torch.from_numpy(load_digits().images).float().flatten(1) / 16
    assert torch.equal(parts.sum(0), original.sum(0))
    assert torch.equal(torch.unique(parts, dim=0), torch.unique(original, dim=0))
    again = Digits(size=16, seed=5)
    again.setup()
    assert torch.equal(again.test.images, data.test.images) and torch.equal(again.val.labels, data.val.labels)


def test_mnist5k():
    data = check_splits(MNIST5k(), 3600, 400, 1000, (1, 28, 28))
    labels_ = torch.cat([data.train.labels, data.val.labels, data.test.labels])
    assert torch.bincount(labels_).tolist() == [500] * 10
    padded = MNIST5k(pad=2).load()[1].images
    assert torch.equal(padded[..., 2:-2, 2:-2], data.test.images) and padded.sum() == data.test.images.sum()
    # The mean image of each class, learned on the training part, names most test images.
    means = torch.stack([data.train.images[data.train.labels == c].float().mean(0) for c in range(10)])
    guess = torch.cdist(data.test.images.float().flatten(1), means.flatten(1)).argmin(1)
    assert (guess == data.test.labels).float().mean() > 0.75
    with pytest.raises(ValueError, match="pad must be at least 0, got -1"):
        MNIST5k(pad=-1)


def write_idx(path: Path, values: np.ndarray, compress: bool) -> None:
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_reads_idx_files(tmp_path, compress):
    rng = np.random.default_rng(0)
    suffix = ".gz" if compress else ""
    parts = {name: rng.integers(0, 256, (n, 28, 28), dtype=np.uint8) for name, n in (("train", 40), ("t10k", 10))}
    for name, images in parts.items():
        write_idx(tmp_path / f"{name}-images-idx3-ubyte{suffix}", images, compress)
        write_idx(tmp_path / f"{name}-labels-idx1-ubyte{suffix}", images[:, 0, 0] % 10, compress)
    data = FashionMNIST(root=str(tmp_path), batch_size=8)
    data.setup()
    assert data.is_there() and FashionMNIST(root=str(tmp_path), pad=0).load()[1].images.shape == (10, 1, 28, 28)
    assert data.test.images.shape == (10, 1, 32, 32)
    assert np.array_equal(data.test.images[:, 0, 2:-2, 2:-2].numpy(), parts["t10k"])
    assert not data.test.images[:, :, :2].any() and not data.test.images[..., -2:].any()
    assert np.array_equal(data.test.labels.numpy(), parts["t10k"][:, 0, 0] % 10)


def test_missing_fashion_mnist_says_what_to_install(tmp_path):
    assert not FashionMNIST(root=str(tmp_path)).is_there()
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist") as error:
        FashionMNIST(root=str(tmp_path)).setup()
    assert "\n" not in str(error.value)


def test_fashion_mnist_truncated_file_is_refused(tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((3, 28, 28), np.uint8), False)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="announces"):
        FashionMNIST(root=str(tmp_path)).setup()


RNG = np.random.default_rng(1)
IMAGES = RNG.integers(0, 256, (60, 3072), dtype=np.uint8)
CLASSES = RNG.integers(0, 10, 60)


def python2_pickle(content: dict) -> bytes:
    """As in the original archives: protocol 2, and numpy's modules by their old names."""
    return pickle.dumps(content, protocol=2).replace(b"numpy._core.", b"numpy.core.")


def write_cifar10(folder: Path, binary: bool) -> None:
    folder.mkdir()
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for name, images, classes in zip(names, IMAGES.reshape(6, 10, -1), CLASSES.reshape(6, 10), strict=True):
        if binary:
            records = np.concatenate([classes[:, None].astype(np.uint8), images], axis=1)
            (folder / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {b"batch_label": b"", b"labels": classes.tolist(), b"data": images, b"filenames": []}
            (folder / name).write_bytes(python2_pickle(content))


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar10_reads_both_formats(tmp_path, binary, inside):
    folder = tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    write_cifar10(folder, binary)
    data = CIFAR10(root=str(folder if inside else tmp_path), batch_size=8)
    data.setup()
    assert np.array_equal(data.test.images.numpy(), IMAGES[50:].reshape(10, 3, 32, 32))
    assert np.array_equal(data.test.labels.numpy(), CLASSES[50:])
    assert len(data.train.labels) == 45 and len(data.val.labels) == 5


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_takes_the_fine_labels(tmp_path, binary):
    fine, coarse = CLASSES + 80, CLASSES + 5
    for name, part in (("train", slice(50)), ("test", slice(50, None))):
        if binary:
            tags = np.stack([coarse[part], fine[part]], axis=1).astype(np.uint8)
            (tmp_path / f"{name}.bin").write_bytes(np.concatenate([tags, IMAGES[part]], axis=1).tobytes())
        else:
            content = {
                b"data": IMAGES[part],
                b"fine_labels": fine[part].tolist(),
                b"coarse_labels": coarse[part].tolist(),
            }
            (tmp_path / name).write_bytes(python2_pickle(content))
    data = CIFAR100(root=str(tmp_path), batch_size=8)
    data.setup()
    assert np.array_equal(data.test.labels.numpy(), fine[50:])
    assert np.array_equal(data.test.images.numpy(), IMAGES[50:].reshape(10, 3, 32, 32))


def test_cifar_files_cannot_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "pwned",))

    write_cifar10(tmp_path / "cifar-10-batches-py", binary=False)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(pickle.UnpicklingError, match="arrays only"):
        CIFAR10(root=str(tmp_path)).setup()
    assert not (tmp_path / "pwned").exists()


def test_cifar_reads_a_dataset_in_the_hubs_format(tmp_path):
    import datasets

    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    for name, part in (("train", slice(50)), ("test", slice(50, None))):
        images = IMAGES[part].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        columns = {"img": list(images), "label": CLASSES[part].tolist()}
        datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / f"{name}.parquet")
    data = CIFAR10(root=str(tmp_path / "nowhere"), hub=str(tmp_path), batch_size=8)
    data.setup()
    assert np.array_equal(data.test.images.numpy(), IMAGES[50:].reshape(10, 3, 32, 32))
    assert np.array_equal(data.test.labels.numpy(), CLASSES[50:])


def test_missing_cifar_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 files in .*cifar-10-batches-py"):
        CIFAR10(root=str(tmp_path), hub=None).setup()


def test_generated_images_depend_on_their_seed_and_can_be_told_apart():
    data = check_splits(GeneratedImages(num_classes=4, train_size=512), 461, 51, 512, (3, 32, 32))
    again = GeneratedImages(num_classes=4, train_size=512)
    again.setup()
    assert torch.equal(again.test.images, data.test.images)
    other = GeneratedImages(num_classes=4, train_size=512, image_seed=1)
    other.setup()
    assert not torch.equal(other.test.images, data.test.images)
    # Nearest class mean, learned on the training part, names the class of almost every test image.
    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(4)])
    guess = torch.cdist(data.test.images.flatten(1), means.flatten(1)).argmin(1)
    assert (guess == data.test.labels).float().mean() > 0.95
