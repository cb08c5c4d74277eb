"""Streaming a cache, against a bare h5py loop over a plain file with the same chunks and filter.

Both sides read every feature in blocks of the same length, after it was seen that they read the
same. The reader's first opening, which reads the whole file once to check its digest, is reported
apart.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import starmap
from pathlib import Path
from statistics import median

import h5py
import numpy as np
from harness import Report, alternate, arguments, ratio

from data_cache.cache import FeatureCache
from data_cache.inspection import inspect
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import Manifest, Rows
from data_cache.update import CacheUpdate

RECIPE = Recipe("none", "", 0, "none", "none")
PROVENANCE = Provenance("made up", "none", "", "none", "")
BLOCK_ROWS = 8192
BATCH_ROWS = 4096
STREAM = """
import sys
from pathlib import Path
from data_cache.cache import FeatureCache
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
with FeatureCache.open(sys.argv[1]) as cache:
    before = peak()
    for block, _ in cache.blocks("train", int(sys.argv[2])):
        pass
print((peak() - before) / 1024)
"""


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000, help="(default 200,000)")
    parser.add_argument("--features", type=int, default=1280, help="(default 1,280)")
    options = parser.parse_args()
    report = Report(f"streaming {options.rows:,} x {options.features:,} cached features")
    print(report.title)
    with tempfile.TemporaryDirectory() as name:
        os.environ["HEADSTART_MEMORY"] = name
        folder = Path(name)
        compare_readers(report, folder, options.rows, options.features, options.rounds)
    report.write(options.json)


def compare_readers(
    report: Report, folder: Path, n_rows: int, n_features: int, rounds: int
) -> None:
    cached = write_cache(folder / "cache.h5", n_rows, n_features)
    plain = write_plain(folder / "plain.h5", cached)
    time.sleep(2.0)  # a file that was written this moment is not remembered by its stat
    start = time.perf_counter()
    FeatureCache.open(cached).close()
    report.add("first opening, with the digest", time.perf_counter() - start, "s")
    start = time.perf_counter()
    inspect(cached)
    report.add("inspect", time.perf_counter() - start, "s")
    if not all(starmap(np.array_equal, zip(read_cache(cached), read_plain(plain), strict=True))):
        sys.exit("the two sides do not read the same")
    sides = {
        "headstart": lambda: exhaust(read_cache(cached)),
        "bare h5py": lambda: exhaust(read_plain(plain)),
    }
    seconds = alternate(sides, rounds)
    for side, taken in seconds.items():
        report.add(f"{side}, rows", n_rows / median(taken), "rows/s")
    both = ratio(seconds["headstart"], seconds["bare h5py"])
    report.add("headstart / bare h5py, time", both)
    if sys.platform == "linux":
        words = [sys.executable, "-c", STREAM, str(cached), str(BLOCK_ROWS)]
        grown = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        report.add("memory that streaming adds", float(grown), "MiB")


def write_cache(path: Path, n_rows: int, n_features: int) -> Path:
    """Write features like those of a network that ends in ReLU6: 4 in 10 are zero."""
    rng = np.random.default_rng(0)
    content = rng.integers(0, 256, (n_rows, 32), np.uint8)
    ids = np.char.add(b"train/", np.arange(n_rows).astype("S9"))
    manifest = Manifest(("one",), {"train": Rows(ids, np.zeros(n_rows, np.int64), content)})
    with CacheUpdate.begin(path, RECIPE, PROVENANCE) as update:
        for start in range(0, n_rows, BATCH_ROWS):
            batch = content[start : start + BATCH_ROWS]
            features = rng.normal(0.2, 0.8, (len(batch), n_features)).clip(0, 6)
            update.append(batch, features.astype(np.float32))
        update.bind(manifest)
    return path


def write_plain(path: Path, cached: Path) -> Path:
    """Write the same features with h5py alone, with the same chunks and filter."""
    with h5py.File(cached) as source, h5py.File(path, "w") as target:
        features = source["train/features"]
        copy = target.create_dataset(
            "features", features.shape, features.dtype, chunks=features.chunks, fletcher32=True
        )
        for start in range(0, len(features), BATCH_ROWS):
            copy[start : start + BATCH_ROWS] = features[start : start + BATCH_ROWS]
    return path


def read_cache(path: Path) -> Iterator[np.ndarray]:
    """Yield the features block by block, as this project's reader does."""
    with FeatureCache.open(path) as cache:
        for block, _ in cache.blocks("train", BLOCK_ROWS):
            yield block


def read_plain(path: Path) -> Iterator[np.ndarray]:
    """Yield the features block by block, as h5py does."""
    with h5py.File(path) as file:
        features = file["features"]
        for start in range(0, len(features), BLOCK_ROWS):
            yield features[start : start + BLOCK_ROWS]


def exhaust(blocks: Iterator[np.ndarray]) -> None:
    """Read every block, and keep none."""
    deque(blocks, maxlen=0)


if __name__ == "__main__":
    main()
