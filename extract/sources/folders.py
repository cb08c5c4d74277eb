"""A folder of image files: one folder for each class, with or without splits above them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from data_cache.errors import SourceError
from extract.sources.base import SourceOptions
from extract.sources.files import FileSource, ImageFile
from extract.sources.listing import SPLIT_NAMES
from extract.splitting import TRAIN

# Left behind by file managers and tools; hidden names, which start with a dot, come on top.
_CLUTTER = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "__macosx", "@eadir", "icon\r"})

# Suffixes of what lies beside images; an unknown suffix, or none, may be an image.
_TEXTS = {"txt", "md", "rst", "csv", "tsv", "json", "jsonl", "xml", "yaml", "yml", "html", "htm"}
_DOCUMENTS = {"pdf", "doc", "docx", "xls", "xlsx", "log", "toml", "cfg", "url", "lnk"}
_PROGRAMS = {"py", "ipynb", "sh", "bat", "exe", "dll", "so"}
_ARCHIVES = {"zip", "tar", "gz", "tgz", "bz2", "xz", "7z", "rar"}
_ARRAYS = {"npy", "npz", "h5", "hdf5", "mat", "pkl", "pt", "pth", "onnx", "keras", "sqlite"}
_FILMS = {"mp3", "wav", "mp4", "avi", "mov", "mkv", "webm"}
_NOT_IMAGES = frozenset(_TEXTS | _DOCUMENTS | _PROGRAMS | _ARCHIVES | _ARRAYS | _FILMS)

_N_NAMED = 3
_HIDDEN, _OTHER_KIND = "hidden or left by the system", "of other kinds"


@dataclass
class Tree:
    """What a folder holds, at any depth: files and folders as paths relative to it, sorted.

    ``passed_over`` counts what was left out, by reason.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def open_folder(text: str, options: SourceOptions) -> FileSource:
    """List a folder: ``CLASS/...`` or ``SPLIT/CLASS/...``, told apart by the names of the folders.

    Raises
    ------
    SourceError
        It cannot be read, or is laid out in neither way.
    """
    tree = read_tree(text)
    layout = options.format if options.format != "auto" else _layout(text, tree)
    files = _with_splits(text, tree) if layout == "split-folders" else _with_classes(text, tree)
    _check_classes(text, tree, files)
    return FileSource(text, files, options, _notes(tree, files, layout))


def read_tree(root: str) -> Tree:
    """List a folder at any depth; links are followed, except to a folder that they lie within.

    Raises
    ------
    SourceError
        A folder cannot be read.
    """
    tree = Tree()
    pending = [("", frozenset[tuple[int, int]]())]
    try:
        while pending:
            folder, above = pending.pop()
            stat = Path(root, folder).stat()
            identity = (stat.st_dev, stat.st_ino)
            if identity in above:
                tree.passed_over["links to a folder above them"] += 1
                continue
            pending += [(inner, above | {identity}) for inner in read_folder(root, folder, tree)]
    except OSError as error:
        raise SourceError(f"{error.filename or root} cannot be read: {error.strerror}") from error
    tree.files.sort()
    tree.folders.sort()
    return tree


def read_folder(root: str, folder: str, tree: Tree) -> list[str]:
    """Add the files of one folder, relative to ``root``, to the tree; return the folders in it."""
    inner = []
    with os.scandir(Path(root, folder)) as entries:
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            is_folder, is_file = _kind(entry)
            if entry.name.startswith(".") or entry.name.lower() in _CLUTTER:
                tree.passed_over[_HIDDEN] += 1
            elif is_folder:
                inner.append(relative)
            elif entry.name.rpartition(".")[2].lower() in _NOT_IMAGES:
                tree.passed_over[_OTHER_KIND] += 1
            elif is_file:
                tree.files.append(relative)
            else:
                tree.passed_over["broken links or devices"] += 1
    tree.folders += inner
    return inner


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Tell whether an entry is a folder, and whether a file; a link to itself is neither."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:
        return False, False


def _layout(text: str, tree: Tree) -> str:
    """Tell ``split-folders`` from ``class-folders`` by the outermost folders."""
    outermost = [folder for folder in tree.folders if "/" not in folder]
    splits = [folder for folder in outermost if folder.lower() in SPLIT_NAMES]
    others = [folder for folder in outermost if folder.lower() not in SPLIT_NAMES]
    if not splits:
        return "class-folders"
    if not others:
        return "split-folders"
    training = [folder for folder in splits if SPLIT_NAMES[folder.lower()] == TRAIN]
    if not any(_has_inner(folder, tree) for folder in training):
        return "class-folders"  # CIFAR-100 has a class called train
    raise SourceError(
        f"{text} has {_some(splits)}, which name splits, beside {_some(others)}, which do not: "
        "move the others away, or say which it is with --format split-folders or class-folders"
    )


def _with_classes(text: str, tree: Tree) -> list[ImageFile]:
    """Label every file by the outermost folder that it is in."""
    return [
        _image_file(text, relative, parts[0])
        for relative in tree.files
        if len(parts := relative.split("/")) > 1
    ]


def _with_splits(text: str, tree: Tree) -> list[ImageFile]:
    """Label every file by the second folder of its path; the outermost is its split."""
    files, loose = [], []
    for relative in tree.files:
        split, *inner = relative.split("/")
        if split.lower() not in SPLIT_NAMES:
            continue
        if inner[1:]:
            files.append(_image_file(text, relative, inner[0], SPLIT_NAMES[split.lower()]))
        else:
            loose.append(relative)
    if loose:
        raise SourceError(
            f"{text}: {len(loose)} images, such as {loose[0]}, lie in a split but in no class: a "
            "folder for each class is expected there"
        )
    return files


def _image_file(root: str, relative: str, label: str, split: str | None = None) -> ImageFile:
    """Name a file; class names that only differ in how accents are encoded are one."""
    return ImageFile(
        path=Path(f"{root}/{relative}"),
        id=as_text(relative),
        label=unicodedata.normalize("NFC", as_text(label)),
        split=split,
    )


def as_text(name: str) -> str:
    """Return a name that UTF-8 can hold: a byte that is not UTF-8 is written in hexadecimal."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _check_classes(text: str, tree: Tree, files: list[ImageFile]) -> None:
    """Raise :class:`SourceError` unless there are images of two classes; guess what was meant."""
    labels = {file.label for file in files}
    if len(labels) > 1:
        return
    if not tree.files:
        passed = _passed_over(tree)
        raise SourceError(
            f"{text}: no images in it" + (f"; passed over: {passed}" if passed else "")
        )
    if not labels:
        raise SourceError(
            f"{text}: {len(tree.files)} images without a class: a folder for each class is "
            "expected, or a CSV with the columns path and label"
        )
    label = next(iter(labels))
    hint = f": did you mean {Path(text) / label}?" if _has_inner(label, tree) else ""
    raise SourceError(f"{text}: one class only ({label!r}), where two or more are expected{hint}")


def _has_inner(folder: str, tree: Tree) -> bool:
    """Return whether a folder has folders in it."""
    return any(inner.startswith(f"{folder}/") for inner in tree.folders)


def _notes(tree: Tree, files: list[ImageFile], layout: str) -> list[str]:
    """Say what was passed over, and what is empty or deeper than expected."""
    notes = []
    if passed := _passed_over(tree):
        notes.append(f"passed over: {passed}")
    if loose := [path for path in tree.files if "/" not in path]:
        notes.append(f"{len(loose)} images beside the folders, such as {loose[0]}, have no class")
    depth = 2 if layout == "split-folders" else 1
    if deeper := sum(file.id.count("/") > depth for file in files):
        notes.append(f"{deeper} images lie deeper: they belong to the class of the outer folder")
    if empty := _empty_classes(tree, depth):
        notes.append(f"no images in {_some(empty)}")
    return notes


def _empty_classes(tree: Tree, depth: int) -> list[str]:
    """Return the folders of classes that have no files, at any depth."""
    filled = {"/".join(path.split("/")[:depth]) for path in tree.files}
    return [
        folder for folder in tree.folders if folder.count("/") == depth - 1 and folder not in filled
    ]


def _passed_over(tree: Tree) -> str:
    """Say how much was left out, and why."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(tree.passed_over.items()))


def _some(names: Iterable[str]) -> str:
    """Name up to three."""
    listed = list(names)
    more = len(listed) - _N_NAMED
    named = ", ".join(repr(name) for name in listed[:_N_NAMED])
    return f"{named} and {more} more" if more > 0 else named
