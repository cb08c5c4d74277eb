"""Train beyond memory: the peak of memory of a streamed epoch, and its rate against memory.

First one epoch of the Dense head on a cache of ``--rows`` rows of ``--features``, in a process of
its own, streamed within ``--memory-limit``; the process's peak of resident memory is reported.
``--rows 1000000`` makes a cache of 5 GB. Then, in turn and in one process, epochs on ``--fitting``
rows that do fit, streamed and in memory, in the same order; their weights are compared before any
rate is told.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from harness import Report, alternate, arguments, ratio
from numpy.typing import NDArray

from classify.heads.dense import DenseHead
from classify.streams import Budget, StreamedFeatures
from data_cache.cache import FeatureCache
from data_cache.memory import parse_size
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import Manifest, Rows
from data_cache.update import CacheUpdate

RECIPE = Recipe("synthetic", "ab" * 32, 96, "none/1", "rgb8/1")
PROVENANCE = Provenance("synthetic", "none", "", "none", "2026-01-01T00:00:00+00:00", {})
N_CLASSES, N_AT_ONCE = 10, 10_000


def main() -> None:
    """Write the caches, train, report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--fitting", type=int, default=50_000, help="rows that fit in memory")
    parser.add_argument("--memory-limit", default="1GB")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--train", type=Path, help="for the script: train one epoch on a cache")
    chosen = parser.parse_args()
    if chosen.train:
        print(json.dumps(train_once(chosen.train, chosen)))
        return
    report = Report(f"one epoch on {chosen.rows:,} x {chosen.features} rows, streamed")
    print(report.title)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        write_cache(Path(folder) / "large.h5", chosen.rows, chosen.features)
        for name, value in _in_a_process(Path(folder) / "large.h5", chosen).items():
            report.add(*name.split(" / ")[:1], value, name.split(" / ")[1])
        (Path(folder) / "large.h5").unlink()
        write_cache(Path(folder) / "small.h5", chosen.fitting, chosen.features)
        compare(Path(folder) / "small.h5", chosen, report)
    report.write(chosen.json)


def write_cache(path: Path, n: int, n_features: int) -> None:
    """Write a cache of rows around the means of classes, a block at a time."""
    content = np.random.default_rng(1).integers(0, 256, (n, 32), np.uint8)
    ids = np.char.mod("%d", np.arange(n)).astype("S")
    classes = tuple(map(str, range(N_CLASSES)))
    with CacheUpdate.begin(path, RECIPE, PROVENANCE) as update:
        for start in range(0, n, N_AT_ONCE):
            block = features(start, min(N_AT_ONCE, n - start), n_features)
            update.append(content[start : start + len(block)], block)
        update.bind(Manifest(classes, {"train": Rows(ids, labels(n), content)}))


def labels(n: int) -> NDArray[np.int64]:
    """Return the labels of n rows."""
    return np.arange(n) % N_CLASSES


def features(start: int, n: int, n_features: int) -> NDArray[np.float32]:
    """Return the features of n rows from ``start`` on."""
    means = np.random.default_rng(0).standard_normal((N_CLASSES, n_features), np.float32)
    noise = np.random.default_rng([start, 2]).standard_normal((n, n_features), np.float32)
    return 3 * noise + means[(start + np.arange(n)) % N_CLASSES]


def _in_a_process(cache: Path, chosen: Namespace) -> dict[str, float]:
    """Train on a cache in a process of its own; return what it tells."""
    options = ["--memory-limit", chosen.memory_limit, "--batch-size", str(chosen.batch_size)]
    command = [sys.executable, __file__, "--train", str(cache), *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def train_once(path: Path, chosen: Namespace) -> dict[str, float]:
    """Train one epoch, streamed; return the rate and the peak of memory."""
    with FeatureCache.open(path, check="never") as cache:
        rows = StreamedFeatures.of(cache, "train", _budget(chosen))
        head = DenseHead(epochs=1, batch_size=chosen.batch_size)
        started = time.perf_counter()
        head.fit(rows, cache.labels("train"))
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {
        "seconds of the epoch / s": seconds,
        "rate / rows/s": len(rows) / seconds,
        "accuracy in the epoch / ": head.history_["accuracy"][0],
        "peak of resident memory / GB": peak,
    }


def _budget(chosen: Namespace) -> Budget:
    """Return what ``train-head --memory-limit`` makes of the limit."""
    return Budget(parse_size(chosen.memory_limit) // 2)


def compare(path: Path, chosen: Namespace, report: Report) -> None:
    """Train on rows in memory and streamed, in the same order, in turn; report both rates."""
    with FeatureCache.open(path, check="never") as cache:
        streamed = StreamedFeatures.of(cache, "train", _budget(chosen))
        y, in_memory = cache.labels("train"), cache.features("train")
        heads: dict[str, DenseHead] = {}

        def fit(name: str, rows: object) -> Callable[[], None]:
            def train() -> None:
                shuffle = streamed.budget.shuffle(chosen.features)
                head = DenseHead(epochs=1, batch_size=chosen.batch_size)
                heads[name] = head.fit(rows, y, shuffle=shuffle)

            return train

        sides = {"in memory": fit("in memory", in_memory), "streamed": fit("streamed", streamed)}
        seconds = alternate(sides, chosen.rounds)
    pairs = zip(*(heads[name].model_.get_weights() for name in sides), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)
    for name, taken in seconds.items():
        report.add(f"{name}, {chosen.fitting:,} rows", chosen.fitting / median(taken), "rows/s")
    report.add("streamed over in memory", ratio(seconds["in memory"], seconds["streamed"]))


if __name__ == "__main__":
    main()
