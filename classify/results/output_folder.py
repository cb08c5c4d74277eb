"""Folders of results that are written whole, and replaced by nothing but their like."""

from __future__ import annotations

from pathlib import Path

from data_cache.errors import OutputExistsError
from data_cache.files import check_creatable, refuse_existing


def check_output_folder(path: Path, files: frozenset[str], *, overwrite: bool) -> None:
    """See that a folder that holds nothing but ``files`` may be written to ``path``.

    Raises
    ------
    OutputExistsError
        Something is there, and ``overwrite`` is false, or it holds something else.
    OutputError
        Nothing can be created there.
    """
    refuse_existing(path, overwrite=overwrite)
    check_creatable(path.resolve())
    if not path.exists():
        return
    foreign = sorted({one.name for one in path.iterdir()} - files) if path.is_dir() else [path.name]
    if foreign:
        raise OutputExistsError(
            f"--overwrite replaces a folder of results whole, and {path} is or holds something "
            f"else ({foreign[0]}): choose another --output"
        )
