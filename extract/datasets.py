"""The built-in sets: Fashion-MNIST, MNIST, CIFAR-10 and CIFAR-100, read from their own files.

Each is looked for as :mod:`extract.assets` says. Nothing is unpickled: CIFAR is read from its
binary archive, not from the pickled one that ``keras.datasets`` uses.
"""

from __future__ import annotations

import gzip
import math
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import AssetError, DataUnavailableError, SourceError, UnknownSourceError
from extract.assets import RemoteFile, find

Images = NDArray[np.uint8]
"""(n, height, width) gray or (n, height, width, 3) RGB, values 0 to 255."""

Splits = dict[str, tuple[Images, NDArray[np.int64]]]
"""For each split its images and its labels (n,)."""

_GZIP_MAGIC = b"\x1f\x8b"
_IDX_MAGIC = b"\x00\x00\x08"
_CIFAR_SIDE = 32


@dataclass(frozen=True)
class CifarLayout:
    """Where a CIFAR archive keeps what; a record's last label byte is the one that counts."""

    members: Mapping[str, tuple[str, ...]]
    class_names: str
    n_label_bytes: int


@dataclass(frozen=True)
class LoadedSet:
    """A built-in set in memory: its splits ``train`` and ``test``, and its classes."""

    name: str
    splits: Splits
    classes: tuple[str, ...]


@dataclass(frozen=True)
class BuiltInSet:
    """A set that can be had by name: the files it is in, and how they are read."""

    name: str
    files: tuple[RemoteFile, ...]
    read: Callable[[Mapping[str, Path]], tuple[Splits, tuple[str, ...]]]
    read_images: Callable[[Mapping[str, Path], str], Images] | None = None
    """Reads the images of one split alone, where the files let it."""

    def load(self, limits: Mapping[str, int] | None = None) -> LoadedSet:
        """Find and read the set; ``limits`` keeps the first so many rows of the splits it names.

        Raises
        ------
        DataUnavailableError
            A file is nowhere and could not be downloaded.
        SourceError
            A file is damaged, or is not what its name says.
        """
        splits, classes = self.read(self._find_files())
        _check_rows(self.name, splits, len(classes))
        limits = limits or {}
        kept = {
            split: (images[: limits.get(split)], labels[: limits.get(split)])
            for split, (images, labels) in splits.items()
        }
        return LoadedSet(self.name, kept, classes)

    def images(self, split: str) -> Images:
        """Find and read the images of a split, and as little else as the files let it.

        Raises
        ------
        LookupError
            There is no such split.
        DataUnavailableError, SourceError
            See :meth:`load`.
        """
        if self.read_images is None:
            return self.load().splits[split][0]
        return self.read_images(self._find_files(), split)

    def _find_files(self) -> dict[str, Path]:
        """Return where each file is, by its official name."""
        try:
            return {file.name: find(file).path for file in self.files}
        except AssetError as error:
            raise DataUnavailableError(
                f"no {self.name} on this machine: {error}; fill a folder on a machine with a "
                f"network (headstart-assets fetch --dataset {self.name} --to DIR) and set "
                "HEADSTART_ASSETS to it"
            ) from error


def get_dataset(name: str) -> BuiltInSet:
    """Return the built-in set called ``name``; raise :class:`UnknownSourceError` for another."""
    try:
        return DATASETS[name]
    except KeyError:
        raise UnknownSourceError(
            f"unknown built-in set {name!r}: there are {', '.join(DATASETS)}"
        ) from None


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read an IDX file of bytes, plain or gzipped.

    The format: two zeros, type 8, the number of dimensions, each dimension as a big-endian 32-bit
    number, then the values, the last dimension fastest.

    Raises
    ------
    SourceError
        The file does not start so, or has more or fewer values than its header says.
    """
    try:
        with _open_maybe_gzip(path) as stream:
            return _read_idx_stream(stream)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise _damaged(path, error) from error


def _open_maybe_gzip(path: Path) -> BinaryIO | gzip.GzipFile:
    """Open a file for reading, unpacked if it is gzipped."""
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if is_gzip else path.open("rb")


def _read_idx_stream(stream: BinaryIO | gzip.GzipFile) -> NDArray[np.uint8]:
    """Read IDX from a stream; raise ValueError where it is not what its header says."""
    magic = stream.read(len(_IDX_MAGIC))
    n_dimensions = int.from_bytes(stream.read(1))
    if magic != _IDX_MAGIC or not n_dimensions:
        raise ValueError(f"it starts with {magic.hex() or 'nothing'}, not {_IDX_MAGIC.hex()}")
    shape = tuple(int.from_bytes(stream.read(4), "big") for _ in range(n_dimensions))
    expected = math.prod(shape)
    values = stream.read(expected + 1)
    if len(values) != expected:
        more = " or more" if len(values) > expected else ""
        raise ValueError(f"it has {len(values)}{more} values, its header says {expected}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _read_fashion_mnist(paths: Mapping[str, Path]) -> tuple[Splits, tuple[str, ...]]:
    """Read the four IDX files."""
    splits: Splits = {}
    for split, prefix in _FASHION_SPLITS.items():
        labels = read_idx(paths[f"fashion-mnist/{prefix}-labels-idx1-ubyte.gz"])
        splits[split] = _read_fashion_images(paths, split), labels.astype(np.int64)
    return splits, _FASHION_CLASSES


def _read_fashion_images(paths: Mapping[str, Path], split: str) -> Images:
    """Read the images of a split."""
    return read_idx(paths[f"fashion-mnist/{_FASHION_SPLITS[split]}-images-idx3-ubyte.gz"])


def _read_mnist(paths: Mapping[str, Path]) -> tuple[Splits, tuple[str, ...]]:
    """Read Keras's ``mnist.npz``."""
    (path,) = paths.values()
    try:
        with path.open("rb") as stream:
            arrays = np.load(stream, allow_pickle=False)
            splits: Splits = {
                split: (arrays[f"x_{split}"], arrays[f"y_{split}"].astype(np.int64))
                for split in ("train", "test")
            }
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    return splits, tuple("0123456789")


def _read_cifar(paths: Mapping[str, Path], layout: CifarLayout) -> tuple[Splits, tuple[str, ...]]:
    """Read a CIFAR binary archive, without unpacking it on disk."""
    (path,) = paths.values()
    try:
        with tarfile.open(path) as archive:
            splits: Splits = {
                split: _cifar_rows([_member(archive, name) for name in names], layout)
                for split, names in layout.members.items()
            }
            names = _member(archive, layout.class_names).decode().split()
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error) as error:
        raise _damaged(path, error) from error
    return splits, tuple(names)


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    """Return the bytes of a plain file in an archive; raise ValueError where there is none."""
    try:
        stream = archive.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise ValueError(f"it has no file {name}")
    return stream.read()


def _cifar_rows(parts: list[bytes], layout: CifarLayout) -> tuple[Images, NDArray[np.int64]]:
    """Turn records (label bytes, then the red, green and blue planes) into images and labels."""
    n_pixels = 3 * _CIFAR_SIDE**2
    records = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, layout.n_label_bytes + n_pixels)
    planes = records[:, layout.n_label_bytes :].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    images = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    return images, records[:, layout.n_label_bytes - 1].astype(np.int64)


def _check_rows(path: str, splits: Splits, n_classes: int) -> None:
    """Refuse a set whose images and labels do not go together."""
    for split, (images, labels) in splits.items():
        if labels.shape != images.shape[:1]:
            raise SourceError(
                f"{path}: split {split} has {len(images)} images and {len(labels)} labels, "
                "expected as many of each: remove its files to have them fetched again"
            )
        if len(labels) and labels.max() >= n_classes:
            raise SourceError(
                f"{path}: split {split} has the label {labels.max()}, expected 0 to "
                f"{n_classes - 1}: remove its files to have them fetched again"
            )


def _damaged(path: Path, error: Exception) -> SourceError:
    """Say that a file of a built-in set cannot be read."""
    return SourceError(f"{path} is damaged ({error}): remove it to have it fetched again")


_FASHION_SPLITS = {"train": "train", "test": "t10k"}

_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

_TENSORFLOW_DATASETS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets/"
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/"
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")

_CIFAR_10 = CifarLayout(
    {
        "train": tuple(f"cifar-10-batches-bin/data_batch_{part}.bin" for part in range(1, 6)),
        "test": ("cifar-10-batches-bin/test_batch.bin",),
    },
    class_names="cifar-10-batches-bin/batches.meta.txt",
    n_label_bytes=1,
)
_CIFAR_100 = CifarLayout(
    {"train": ("cifar-100-binary/train.bin",), "test": ("cifar-100-binary/test.bin",)},
    class_names="cifar-100-binary/fine_label_names.txt",
    n_label_bytes=2,
)


def _fashion_file(name: str) -> RemoteFile:
    """Name one of Fashion-MNIST's four files; Debian's package may hold it gzipped or plain."""
    return RemoteFile(
        f"fashion-mnist/{name}.gz",
        f"{_TENSORFLOW_DATASETS}{name}.gz",
        aliases=(f"fashion-mnist/{name}",),
        folder="datasets",
        places=(_DEBIAN_FASHION_MNIST / f"{name}.gz", _DEBIAN_FASHION_MNIST / name),
    )


def _cifar_file(name: str, md5: str) -> RemoteFile:
    """Name a CIFAR binary archive."""
    return RemoteFile(name, _CIFAR_URL + name, md5, folder="datasets")


DATASETS: dict[str, BuiltInSet] = {
    dataset.name: dataset
    for dataset in (
        BuiltInSet(
            "fashion_mnist",
            tuple(
                _fashion_file(f"{prefix}-{kind}-ubyte")
                for prefix in _FASHION_SPLITS.values()
                for kind in ("images-idx3", "labels-idx1")
            ),
            _read_fashion_mnist,
            _read_fashion_images,
        ),
        BuiltInSet(
            "mnist",
            (
                RemoteFile(
                    "mnist.npz",
                    f"{_TENSORFLOW_DATASETS}mnist.npz",
                    "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
                    folder="datasets",
                ),
            ),
            _read_mnist,
        ),
        BuiltInSet(
            "cifar10",
            (_cifar_file("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),),
            partial(_read_cifar, layout=_CIFAR_10),
        ),
        BuiltInSet(
            "cifar100",
            (_cifar_file("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),),
            partial(_read_cifar, layout=_CIFAR_100),
        ),
    )
}
"""Every built-in set by name."""
