"""When the digests of whole files are checked: always, or the first time, remembered by stat."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Literal

from data_cache.seal import check_seal
from data_cache.stat_index import StatIndex, memory_folder

Checking = Literal["once", "always", "never"]
"""``once`` is the first time that a file is seen in its present state, as its stat tells it."""


def check_whole(paths: Sequence[Path], check: Checking) -> None:
    """Check the seals of files as often as ``check`` says.

    Raises
    ------
    CacheCorruptError
        A file is not what was written.
    """
    if check == "never":
        return
    with closing(StatIndex.load(memory_folder() / "sealed.sqlite")) as index:
        for path in paths:
            stat = path.stat()
            if check == "always" or index.lookup(path, stat) is None:
                index.remember(path, stat, bytes.fromhex(check_seal(path).digest))
        index.save()
