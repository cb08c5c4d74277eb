"""Files of arrays: ``.npz`` and ``.npy`` of NumPy, and HDF5."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.errors import SourceError
from extract.sources.arrays import ALL, ArraySource, Images, Origin, one_label_each
from extract.sources.base import SourceOptions
from extract.sources.listing import SPLIT_NAMES

HDF5_SUFFIXES = frozenset({".h5", ".hdf5", ".hdf", ".he5"})

# What the parts of a name such as x_train, train/images or test_labels stand for.
_KINDS = {
    "x": "images",
    "image": "images",
    "images": "images",
    "data": "images",
    "y": "labels",
    "label": "labels",
    "labels": "labels",
    "target": "labels",
    "targets": "labels",
    "group": "groups",
    "groups": "groups",
}
_CLASSES = ("classes", "class_names", "label_names")
_EXPECTED = (
    "images and labels, or such for each split (x_train and y_train, train/images and "
    "train/labels), are expected"
)


@dataclass
class _Parts:
    """The arrays of one file, by split and kind."""

    splits: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: list[str] | None = None


def open_array_file(text: str, options: SourceOptions, file_format: str) -> ArraySource:
    """List the images of a ``.npz``, ``.npy`` or HDF5 file.

    Raises
    ------
    SourceError
        It cannot be read, would have to be unpickled, or has no images and labels by such names.
    """
    path = Path(text)
    parts = _read_parts(path, file_format)
    classes, labels = _count_labels(parts)
    splits = {split: (kinds["images"], labels[split]) for split, kinds in parts.splits.items()}
    origin = Origin(str(path.absolute()), file_format)
    return ArraySource(text, splits, classes, options, _groups(path, parts), origin)


def open_images(path: Path, file_format: str) -> list[Images]:
    """Open just the images of a file, one array a split; raises as :func:`open_array_file`."""
    return [kinds["images"] for kinds in _read_parts(path, file_format).splits.values()]


def _read_parts(path: Path, file_format: str) -> _Parts:
    """Read the arrays of a file, sorted by what they are."""
    try:
        arrays = _READERS[file_format](path)
    except SourceError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SourceError(f"{path} cannot be read as {file_format}: {_words(error)}") from error
    return _sort_by_name(path, arrays)


def _words(error: Exception) -> str:
    """Say why NumPy or HDF5 failed, in one line and without advice that no option here follows."""
    if "allow_pickle" in str(error):
        return "it holds Python objects, which are never unpickled here: save plain arrays"
    return " ".join(str(error).split())


def _read_npz(path: Path) -> Mapping[str, Images]:
    """Read every array of a ``.npz``; nothing is unpickled."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_npy(path: Path) -> Mapping[str, Images]:
    """Map the images of a ``.npy``, and read its labels from a file beside it."""
    stem = path.stem
    names = [f"{stem}_labels", stem.replace("images", "labels"), stem.replace("x", "y", 1)]
    names += [stem.replace("X", "y", 1), "labels", "y"]
    beside = [path.with_name(f"{name}.npy") for name in dict.fromkeys(names) if name != stem]
    found = next((candidate for candidate in beside if candidate.is_file()), None)
    if found is None:
        raise SourceError(f"{path} has no labels beside it: {beside[0].name} is expected")
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    return {"images": images, "labels": np.load(found, allow_pickle=False)}


def _read_hdf5(path: Path) -> Mapping[str, Images]:
    """Open every data set of an HDF5 file; images are read when they are needed."""
    stream = h5py.File(path, "r")
    found: dict[str, Images] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item

    stream.visititems(visit)
    if any(name.rpartition("/")[2] == "features" for name in found):
        raise SourceError(f"{path} holds features, not images: give it to train-head")
    return found


_READERS = {"npz": _read_npz, "npy": _read_npy, "hdf5": _read_hdf5}


def _sort_by_name(path: Path, arrays: Mapping[str, Images]) -> _Parts:
    """Find the images, labels and groups of each split by the names of the arrays."""
    parts = _Parts()
    for name, array in arrays.items():
        words = name.lower().replace("/", "_").replace("-", "_").split("_")
        kinds = {_KINDS[word] for word in words if word in _KINDS}
        splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
        if name.lower() in _CLASSES:
            parts.classes = _texts(array[:])
        elif len(kinds) == 1 and len(words) == 1 + len(splits):
            split = splits.pop() if splits else ALL
            parts.splits.setdefault(split, {})[kinds.pop()] = array
    whole = all({"images", "labels"} <= set(kinds) for kinds in parts.splits.values())
    if not parts.splits or not whole or (ALL in parts.splits and len(parts.splits) > 1):
        raise SourceError(f"{path} has the arrays {', '.join(arrays) or '(none)'}: {_EXPECTED}")
    return parts


def _count_labels(parts: _Parts) -> tuple[Sequence[str], dict[str, NDArray[np.int64]]]:
    """Return the classes, and each split's labels as positions in them.

    Where the file does not name the classes they are the labels that there are: whole numbers in
    their order, texts sorted.
    """
    given = {
        split: one_label_each(_plain(kinds["labels"][:]), kinds["images"].shape[0])
        for split, kinds in parts.splits.items()
    }
    if parts.classes is not None and all(labels.dtype.kind in "iu" for labels in given.values()):
        return parts.classes, given
    values = np.unique(np.concatenate(list(given.values())))
    if values.dtype.kind in "iu" and (values < 0).any():
        raise SourceError(f"label {values[0]}: images without a label are not supported yet")
    if values.dtype.kind not in "iuU":
        raise SourceError(f"labels of type {values.dtype}, where whole numbers or text is expected")
    positions = {split: np.searchsorted(values, labels) for split, labels in given.items()}
    return [str(value) for value in values.tolist()], positions


def _groups(path: Path, parts: _Parts) -> dict[str, list[str]] | None:
    """Return each split's groups, or None where the file names none."""
    with_groups = [kinds for kinds in parts.splits.values() if "groups" in kinds]
    if not with_groups:
        return None
    groups = {}
    for split, kinds in parts.splits.items():
        if "groups" not in kinds or len(kinds["groups"]) != kinds["images"].shape[0]:
            raise SourceError(f"{path}: split {split} lacks a group for each image")
        groups[split] = _texts(kinds["groups"][:])
    return groups


def _plain(values: NDArray) -> NDArray:
    """Return labels as numbers or as text: HDF5 and NumPy may hold text as bytes or objects."""
    if values.dtype.kind in "SO":
        return np.array(_texts(values.reshape(-1)), dtype=np.str_).reshape(values.shape)
    return values


def _texts(values: NDArray) -> list[str]:
    """Return values as text, UTF-8 bytes decoded."""
    return [v.decode() if isinstance(v, bytes) else str(v) for v in values.tolist()]
