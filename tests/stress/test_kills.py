"""SIGKILL at random instants of real updates: nothing finished is lost, nothing is half there.

A run extracts a source that grows with every run that finishes, so that kills fall on the first
binding as on later ones, in shards, in the flush, in the binding and in the clearing up after it.
The engine alone is a fake, and cheap: its features depend on nothing but the content.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from cache_tools import N_FEATURES, PROVENANCE, RECIPE, contents_of, fake_engine, make_rows

from data_cache import update as update_module
from data_cache.cache import FeatureCache
from data_cache.files import TEMPORARY_MARK
from data_cache.layout import SHARD_PATTERN, Storage, parts_folder
from data_cache.rows import Manifest
from data_cache.update import CacheUpdate, UpdateOptions
from data_cache.verify import verify

SHARD_ROWS = 50
BATCH_ROWS = 16
GROWTH = 400
N_GENERATIONS = 6
N_TEST = 60
CONTENTS = contents_of([str(k) for k in range(50 * GROWTH)])
PHASES = ("starting", "appending", "writing a shard", "binding", "clearing up", "done")

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


def manifest_of(generation: int) -> Manifest:
    """Return the source as it is after so many runs that finished: 400 rows more each time."""
    train = CONTENTS[N_TEST : N_TEST + GROWTH * (generation + 1)]
    splits = {"train": train, "test": CONTENTS[:N_TEST]}
    rows = {
        split: make_rows(split, content, np.arange(len(content)) % 3)
        for split, content in splits.items()
    }
    return Manifest(("ant", "bee", "cat"), rows)


class Run:
    """A real update in a process of its own, which can be killed, and says how far it got."""

    def __init__(self, path: Path, generation: int, storage: Storage) -> None:
        self._phase = mmap.mmap(-1, 1)
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._work(path, generation, storage)
            finally:
                os._exit(1)

    def kill(self) -> str:
        """Kill the process, and return what it was at."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        return PHASES[self._phase[0]]

    def wait(self) -> bool:
        """Wait for the end of the process, and return whether it finished its work."""
        _, status = os.waitpid(self._pid, 0)
        return status == 0

    def _work(self, path: Path, generation: int, storage: Storage) -> None:
        """Bring the cache up to date, as ``extract-features`` does."""
        self._mark_phases()
        manifest = manifest_of(generation)
        options = UpdateOptions(shard_rows=SHARD_ROWS, **asdict(storage))
        with CacheUpdate.begin(path, RECIPE, PROVENANCE, options=options) as update:
            plan = update.plan(manifest)
            self._phase[0] = PHASES.index("appending")
            for split, rows in plan.missing.items():
                for start in range(0, len(rows), BATCH_ROWS):
                    batch = manifest.splits[split].content[rows[start : start + BATCH_ROWS]]
                    update.append(batch, fake_engine(batch))
            update.checkpoint()
            self._phase[0] = PHASES.index("binding")
            update.bind(manifest)
        self._phase[0] = PHASES.index("done")
        os._exit(0)

    def _mark_phases(self) -> None:
        """Have the phases noted that lie inside of calls."""
        parts = update_module.Parts
        for name, during, after in [
            ("write", "writing a shard", "appending"),
            ("drop", "clearing up", "done"),
        ]:
            self._mark(parts, name, during, after)

    def _mark(self, owner: type, name: str, during: str, after: str) -> None:
        """Note a phase while a method runs."""
        method = getattr(owner, name)

        def marked(*args: object, **options: object) -> object:
            self._phase[0] = PHASES.index(during)
            result = method(*args, **options)
            self._phase[0] = PHASES.index(after)
            return result

        setattr(owner, name, marked)


def n_finished(path: Path) -> int:
    """Return how many rows are in the shards."""
    return SHARD_ROWS * len(list(parts_folder(path).glob(SHARD_PATTERN)))


def assert_sound(path: Path, generation: int) -> None:
    """See that nothing looks complete that is not: the cache of this generation, or the last."""
    if path.exists() or n_finished(path):
        assert verify(path).faults == ()
    if not path.exists():
        return
    with FeatureCache.open(path, check="always") as cache:
        n_rows = cache.n_rows("train")
        assert n_rows in {GROWTH * generation, GROWTH * (generation + 1)}
        content = manifest_of(generation).splits["train"].content[:n_rows]
        np.testing.assert_array_equal(cache.features("train"), fake_engine(content))


def assert_equal(path: Path, reference: Path) -> None:
    """See that two caches have the same ids and labels, and features within 1e-5 of the largest."""
    with FeatureCache.open(path) as found, FeatureCache.open(reference) as expected:
        assert found.split_names == expected.split_names
        for split in expected.split_names:
            rows, wanted = found.rows(split), expected.rows(split)
            np.testing.assert_array_equal(rows.ids, wanted.ids)
            np.testing.assert_array_equal(rows.labels, wanted.labels)
            features = expected.features(split)
            assert features.shape[1] == N_FEATURES
            largest = float(np.abs(features).max())
            np.testing.assert_allclose(found.features(split), features, atol=1e-5 * largest, rtol=0)


def finish(path: Path, generation: int, storage: Storage) -> None:
    """Let a run end, and hold the cache against one of a run that was never interrupted."""
    reference = path.with_name("reference.h5")
    assert Run(path, generation, storage).wait()
    assert Run(reference, generation, storage).wait()
    assert_equal(path, reference)
    assert not [one for one in path.parent.iterdir() if TEMPORARY_MARK in one.name]
    reference.unlink()
    shutil.rmtree(parts_folder(reference), ignore_errors=True)


@pytest.mark.parametrize(
    ("n_kills", "storage"),
    [
        (10, Storage()),
        (8, Storage(sharded=True)),
        pytest.param(200, Storage(), marks=[pytest.mark.stress, pytest.mark.timeout(900)]),
        pytest.param(
            200, Storage(sharded=True), marks=[pytest.mark.stress, pytest.mark.timeout(900)]
        ),
    ],
    ids=["10", "8-sharded", "200", "200-sharded"],
)
def test_a_cache_survives_kills_at_random_instants(tmp_path, n_kills, storage):
    rng = np.random.default_rng(n_kills)
    path, generation = tmp_path / "0.h5", 0
    phases: Counter[str] = Counter()
    longest = 0.2
    while sum(phases.values()) < n_kills:
        finished = n_finished(path)
        run = Run(path, generation, storage)
        time.sleep(rng.uniform(0, longest))
        phase = run.kill()
        longest *= 0.8 if phase == "done" else 1.05
        phases[phase] += 1
        assert_sound(path, generation)
        if not path.exists():
            assert n_finished(path) >= finished, "a kill lost finished shards"
        generation += phase == "done"
        if generation == N_GENERATIONS:
            finish(path, generation, storage)
            path, generation = tmp_path / f"{sum(phases.values())}.h5", 0
    sys.stdout.write(f"\n{n_kills} kills, at: {dict(phases)}\n")
    finish(path, generation, storage)
