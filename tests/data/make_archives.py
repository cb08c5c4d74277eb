"""Write the archived caches of format version 1 into this folder.

They were made once, with headstart 0.1.0, by::

    python tests/data/make_archives.py

and are never made again: a test reads them for ever.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cache_tools import PROVENANCE, RECIPE, contents_of  # noqa: E402

from data_cache.layout import Storage  # noqa: E402
from data_cache.rows import BadImage, Manifest, Rows  # noqa: E402
from data_cache.update import CacheUpdate, UpdateOptions  # noqa: E402

CLASSES = ("ant", "Bär", "kôala")
N_FEATURES = 6
SPLITS = {"train": 11, "val": 3, "test": 4}
STORAGES = {
    "v1.h5": Storage(),
    "v1-float16-gzip.h5": Storage("float16", compression=4),
    "v1-sharded.h5": Storage(sharded=True),
}
BAD_IMAGE = BadImage("train", "kôala/torn.jpg", "truncated after 17 of 40 rows")


def features_of(split: str) -> np.ndarray:
    """Return row r, feature f as r + f / 8, and 100 more for each split after the first."""
    rows, columns = np.ogrid[: SPLITS[split], :N_FEATURES]
    return (100 * list(SPLITS).index(split) + rows + columns / 8).astype(np.float32)


def rows_of(split: str) -> Rows:
    """Return rows of classes in turn, two to a group."""
    n_rows = SPLITS[split]
    labels = np.arange(n_rows) % len(CLASSES)
    ids = [f"{CLASSES[label]}/{split}-{row}.jpg".encode() for row, label in enumerate(labels)]
    content = contents_of([f"{split} {row}" for row in range(n_rows)])
    groups = [f"group {row // 2}".encode() for row in range(n_rows)]
    return Rows(np.array(ids), labels, content, np.array(groups))


def main() -> None:
    splits = {split: rows_of(split) for split in SPLITS}
    for name, storage in STORAGES.items():
        options = UpdateOptions(**asdict(storage), shard_rows=8)
        with CacheUpdate.begin(HERE / name, RECIPE, PROVENANCE, options=options) as update:
            for split, rows in splits.items():
                update.append(rows.content, features_of(split))
            update.bind(Manifest(CLASSES, splits), [BAD_IMAGE])


if __name__ == "__main__":
    main()
