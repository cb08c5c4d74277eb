"""Bind and inspect a sharded cache of very many rows, without a forward pass.

Synthetic shards are written as extraction writes them (contents are random bytes, as digests are),
then a process of its own opens, plans and binds them, and another inspects what was bound; each
tells its seconds and its peak of memory. The features are narrow: the bind of a sharded cache reads
none of them. ``--rows 100000000 --shards 10000`` is the full size; it needs some 12 GB of disk and
13 GB of memory with ``--no-rebind``; a second bind, onto what is bound already, takes some 31 GB.
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

import numpy as np
from harness import Report, arguments
from numpy.typing import NDArray

from data_cache.inspection import inspect
from data_cache.layout import Storage, parts_folder
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import Manifest, Rows
from data_cache.shards import write_shard
from data_cache.update import CacheUpdate, UpdateOptions

RECIPE = Recipe("synthetic", "ab" * 32, 96, "none/1", "rgb8/1")
PROVENANCE = Provenance("synthetic", "none", "", "none", "2026-01-01T00:00:00+00:00", {})
N_CLASSES = 1000
_DIGITS = 12


def main() -> None:
    """Run every step; report."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100)
    parser.add_argument("--features", type=int, default=4, help="width of the synthetic features")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    parser.add_argument("--no-rebind", action="store_true", help="bind once only")
    parser.add_argument("--step", choices=["bind", "rebind", "inspect"], help="for the script")
    chosen = parser.parse_args()
    if chosen.step:
        print(json.dumps({"bind": bind, "rebind": bind, "inspect": look}[chosen.step](chosen)))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        simulate(chosen, Path(folder))


def simulate(chosen: Namespace, folder: Path) -> None:
    """Write the shards, then run each step in a process of its own."""
    report = Report(f"{chosen.rows:,} rows in {chosen.shards:,} shards")
    print(report.title)
    started = time.perf_counter()
    write_shards(folder / "c.h5", chosen)
    report.add("write shards", time.perf_counter() - started, "s")
    for step in ("bind", *([] if chosen.no_rebind else ["rebind"]), "inspect"):
        for name, value in json.loads(_run(step, chosen, folder)).items():
            report.add(f"{step}: {name}", value, "GB" if name.startswith("peak") else "s")
    report.add("index on disk", (folder / "c.h5").stat().st_size / 1e9, "GB")
    report.write(chosen.json)


def _run(step: str, chosen: Namespace, folder: Path) -> str:
    """Run this script for one step; return the last line it prints."""
    options = [f"--{one}={getattr(chosen, one)}" for one in ("rows", "shards", "features")]
    command = [sys.executable, __file__, *options, "--step", step, f"--folder={folder}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.splitlines()[-1]


def write_shards(path: Path, chosen: Namespace) -> None:
    """Write every shard, rows of random contents."""
    folder = parts_folder(path)
    folder.mkdir()
    for number, n in enumerate(shard_sizes(chosen)):
        features = np.random.default_rng(number).random((n, chosen.features), np.float32)
        write_shard(folder, RECIPE, contents(number, n), features, Storage(sharded=True))


def shard_sizes(chosen: Namespace) -> list[int]:
    """Return how many rows each shard has."""
    edges = np.linspace(0, chosen.rows, chosen.shards + 1).astype(int)
    return np.diff(edges).tolist()


def contents(number: int, n: int) -> NDArray[np.uint8]:
    """Return the digests of a shard's rows, (n, 32)."""
    return np.random.default_rng([number, 1]).integers(0, 256, (n, 32), np.uint8)


def manifest(chosen: Namespace) -> Manifest:
    """Return every row: ids such as ``images/000000000017``, labels, contents."""
    n = chosen.rows
    digits = np.empty((n, _DIGITS), np.uint8)
    rest = np.arange(n)
    for place in reversed(range(_DIGITS)):
        rest, digits[:, place] = rest // 10, rest % 10 + ord("0")
    ids = np.empty(n, f"S{7 + _DIGITS}")
    cells = ids.view(np.uint8).reshape(n, 7 + _DIGITS)
    cells[:, :7], cells[:, 7:] = np.frombuffer(b"images/", np.uint8), digits
    del digits, rest
    content, start = np.empty((n, 32), np.uint8), 0
    for number, size in enumerate(shard_sizes(chosen)):
        content[start : start + size] = contents(number, size)
        start += size
    labels = np.random.default_rng(0).integers(0, N_CLASSES, n)
    return Manifest(
        tuple(f"class {one:04d}" for one in range(N_CLASSES)), {"train": Rows(ids, labels, content)}
    )


def bind(chosen: Namespace) -> dict[str, float]:
    """Bind the shards into an index; return seconds and the peak of memory."""
    told: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        started, before = time.perf_counter(), time.process_time()
        done = work()
        told[name] = time.perf_counter() - started
        told[f"{name}, of the processor"] = time.process_time() - before
        return done

    rows = timed("make the manifest", lambda: manifest(chosen))
    before = peak()
    options = UpdateOptions(sharded=True)
    path = chosen.folder / "c.h5"
    update = timed("open", lambda: CacheUpdate.begin(path, RECIPE, PROVENANCE, options=options))
    with update:
        timed("plan", lambda: update.plan(rows))
        timed("bind", lambda: update.bind(rows))
    return told | {"peak of the manifest": before, "peak": peak()}


def look(chosen: Namespace) -> dict[str, float]:
    """Inspect the index; return seconds and the peak of memory."""
    started = time.perf_counter()
    found = inspect(chosen.folder / "c.h5")
    assert found.splits["train"].n_rows == chosen.rows
    assert found.n_shards == chosen.shards
    return {"inspect": time.perf_counter() - started, "peak": peak()}


def peak() -> float:
    """Return the most memory that this process had resident, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
