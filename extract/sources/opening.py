"""From what the user writes to a source."""

from __future__ import annotations

import re
from pathlib import Path

from data_cache.errors import SourceError, UnknownSourceError
from extract.datasets import DATASETS
from extract.sources.array_files import HDF5_SUFFIXES, open_array_file, open_images
from extract.sources.arrays import ArraySource, Images, Origin
from extract.sources.base import Source, SourceOptions
from extract.sources.folders import open_folder
from extract.sources.tables import open_table

_FOLDER_FORMATS = ("class-folders", "split-folders")
_TABLE_FORMATS = ("csv", "tsv")
_HUBS = ("tfds", "hf")
_BUILT_IN = "built-in"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def open_source(text: str, options: SourceOptions | None = None) -> Source:
    """List the images of a source that the user names.

    Parameters
    ----------
    text : a built-in set (``fashion_mnist``), a folder, a CSV or TSV, an array file, ``tfds:NAME``
        or ``hf:NAME``
    options : see :class:`SourceOptions`; None takes the defaults

    Raises
    ------
    UnknownSourceError
        There is nothing of that name.
    SourceError
        It cannot be understood as labeled images.
    """
    options = options or SourceOptions()
    _check(options)
    if _URL.match(text):
        raise SourceError(
            f"{text} is a URL: images are read as files, by every process that works on them; copy "
            "or mount them, and give the path"
        )
    path = Path(text)
    if text in DATASETS and not path.exists():
        return _open_built_in(text, options)
    hub, colon, name = text.partition(":")
    if colon and hub in _HUBS and name:
        from extract.sources.hubs import open_hub

        return open_hub(hub, name, options)
    if not path.exists():
        raise UnknownSourceError(
            f"no source {text!r}: it is neither a file or folder nor one of {', '.join(DATASETS)}"
        )
    return _open_path(path, text, options)


def _open_built_in(name: str, options: SourceOptions) -> Source:
    """Read a built-in set; a limit keeps its first rows, as everyone does with these."""
    limits = {"train": options.train_limit, "test": options.test_limit}
    given = {split: limit for split, limit in limits.items() if limit is not None}
    loaded = DATASETS[name].load(given)
    origin = Origin(name, _BUILT_IN, tuple(given.items()))
    return ArraySource(loaded.name, loaded.splits, loaded.classes, options, origin=origin)


def reopen_images(origin: Origin) -> list[Images]:
    """Open again, in another process, the images of arrays: one array a split, in order."""
    if origin.kind != _BUILT_IN:
        return open_images(Path(origin.name), origin.kind)
    loaded = DATASETS[origin.name].load(dict(origin.limits))
    return [images for images, _labels in loaded.splits.values()]


def _open_path(path: Path, text: str, options: SourceOptions) -> Source:
    """Open a file or a folder as what it is, or as the format that is forced."""
    source_format = options.format if options.format != "auto" else _guess_format(path)
    if (source_format in _FOLDER_FORMATS or source_format == "auto") != path.is_dir():
        kind = "folder" if path.is_dir() else "file"
        raise SourceError(f"{text} is a {kind}: --format {source_format} does not go with it")
    if path.is_dir():
        return open_folder(text, options)
    if source_format in _TABLE_FORMATS:
        return open_table(text, options)
    return open_array_file(text, options, source_format)


def _guess_format(path: Path) -> str:
    """Tell the format of a file by its suffix; a folder looks for itself."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return "auto"
    if suffix in HDF5_SUFFIXES:
        return "hdf5"
    if suffix in (".csv", ".tsv", ".npz", ".npy"):
        return suffix[1:]
    raise SourceError(
        f"{path} is a {suffix or 'file without a suffix'}: a folder, .csv, .tsv, .npz, .npy or "
        ".h5 is expected; say which it is with --format"
    )


def _check(options: SourceOptions) -> None:
    """Raise :class:`SourceError` for a limit that keeps nothing."""
    for name, limit in (
        ("--train-limit", options.train_limit),
        ("--test-limit", options.test_limit),
    ):
        if limit is not None and limit < 1:
            raise SourceError(f"{name} {limit}: at least 1 is expected")
