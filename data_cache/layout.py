"""Names and numbers of format version 1, in one place. ``FORMAT.md`` is the same in prose."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FORMAT = "headstart-feature-cache"
"""The root attribute ``format`` of every file of a cache, and the first word of its seal."""

VERSION = 1
"""The root attribute ``format_version``; a reader refuses any other."""

SEAL_BYTES = 512
"""Length of the HDF5 user block, which holds the digest of every byte after it."""

DIGEST_BYTES = 32
"""Length of a SHA-256."""

UNLABELED = -1
"""The label of a row whose class is not known."""

SHARD_PATTERN = "shard-*.h5"

RECORD_PATTERN = "part-*.h5"
"""What the job of one part of a source leaves beside the shards."""

RESERVED = frozenset({"classes", "bad_images", "shards"})
"""Names at the root that no split can have."""

_CHUNK_BYTES = 1 << 19
_MAX_CHUNK_ROWS = 1024


@dataclass(frozen=True)
class Storage:
    """How features are kept on the disk; reading always gives float32.

    Attributes
    ----------
    dtype : ``float32``, or ``float16`` at half the size and about 3 significant digits
    compression : the level of gzip, 0 (none) to 9; the bytes are shuffled first
    sharded : keep the shards and bind them with a small index, in place of one file
    """

    dtype: str = "float32"
    compression: int = 0
    sharded: bool = False


def parts_folder(path: Path) -> Path:
    """Return the folder beside a cache that holds its shards."""
    return path.with_name(path.name + ".parts")


def lock_file(path: Path) -> Path:
    """Return the file beside a cache that its one writer locks."""
    return path.with_name(f".{path.name}.lock")


def chunk_rows(n_features: int) -> int:
    """Return how many feature rows make one HDF5 chunk, and one digest: about half a MiB."""
    return max(1, min(_MAX_CHUNK_ROWS, _CHUNK_BYTES // (4 * max(1, n_features))))
