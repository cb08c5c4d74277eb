"""Probes on disk: arrays in one ``.npz`` that says what it is; nothing in it is ever unpickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from classify.stored.damage import SIGNS_OF_DAMAGE, words_of
from data_cache.errors import RunError

FORMAT_VERSION = 1
_LONGEST_KIND = 64

Shapes = Mapping[str, tuple[str, ...]]
"""The shape of each array, its lengths by name; lengths of one name are equal, none is 0."""


@dataclass(frozen=True)
class RowsToWrite:
    """An array (n, d) float32 that is written as its rows come, some at a time."""

    shape: tuple[int, int]
    blocks: Iterable[NDArray[np.float32]]


def save_arrays(path: Path, kind: str, arrays: Mapping[str, NDArray | RowsToWrite]) -> None:
    """Write arrays to ``path``, with the kind of probe and the version of the format."""
    header = {"kind": np.array(kind), "version": np.array(FORMAT_VERSION)}
    with path.open("wb") as stream, ZipFile(stream, "w") as archive:
        for name, array in {**header, **arrays}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_array(member, array)


def _write_array(member: IO[bytes], array: NDArray | RowsToWrite) -> None:
    """Write an array as NumPy's own format has it."""
    if not isinstance(array, RowsToWrite):
        np.lib.format.write_array(member, array, allow_pickle=False)
        return
    header = {"descr": "<f4", "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(member, header)
    for block in array.blocks:
        member.write(block.astype("<f4").tobytes())


def load_arrays(
    path: Path,
    kind: str,
    shapes: Shapes,
    *,
    check: Callable[[dict[str, NDArray]], None] | None = None,
) -> dict[str, NDArray]:
    """Read the arrays named in ``shapes`` from what :func:`save_arrays` wrote.

    ``check`` may look at them more closely, and raise ``ValueError``.

    Raises
    ------
    RunError
        The file is missing, of another kind or version, or its arrays are not of these shapes, or
        not numbers, or not finite; labels, ``classes``, may also be text.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            _check_header(_kind(arrays), int(arrays["version"].item()), kind)
            loaded = {name: arrays[name] for name in shapes}
        _check_shapes(loaded, shapes)
        _check_numbers(loaded)
        if check:
            check(loaded)
    except SIGNS_OF_DAMAGE as error:
        raise RunError(f"{path} holds no {kind.replace('_', ' ')}: {words_of(error)}") from error
    return loaded


def kind_of(path: Path) -> str:
    """Return the kind of probe that a file holds.

    Raises
    ------
    RunError
        The file is missing, or holds no probe.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            return _kind(arrays)
    except SIGNS_OF_DAMAGE as error:
        raise RunError(f"{path} holds no probe: {words_of(error)}") from error


def _kind(arrays: Mapping[str, NDArray]) -> str:
    """Return what a file says it is; raise ``ValueError`` where that is not one short text."""
    kind = arrays["kind"]
    if kind.shape != () or kind.dtype.kind != "U" or len(name := str(kind)) > _LONGEST_KIND:
        raise ValueError("it does not say of what kind it is")
    return name


def _check_header(found: str, version: int, kind: str) -> None:
    """Raise ``ValueError`` unless a file is of a kind, and of the version that is read here."""
    if found != kind:
        raise ValueError(f"it is of the kind {found!r}")
    if version != FORMAT_VERSION:
        raise ValueError(f"format version {version} where {FORMAT_VERSION} is expected")


def _check_shapes(arrays: Mapping[str, NDArray], shapes: Shapes) -> None:
    """Raise ``ValueError`` unless the arrays fit each other."""
    lengths: dict[str, int] = {}
    for name, letters in shapes.items():
        shape = arrays[name].shape
        expected = tuple(lengths.setdefault(*one) for one in zip(letters, shape, strict=False))
        if shape != expected or len(shape) != len(letters) or 0 in shape:
            raise ValueError(f"{name} has the shape {shape}: expected ({', '.join(letters)})")


def _check_numbers(arrays: Mapping[str, NDArray]) -> None:
    """Raise ``ValueError`` unless every array but the labels is of finite numbers."""
    for name, array in arrays.items():
        if name != "classes" and not (array.dtype.kind in "fiu" and np.isfinite(array).all()):
            raise ValueError(f"{name} is not all finite numbers")
