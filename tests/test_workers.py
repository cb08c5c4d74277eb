"""Worker processes: the same cache as by threads, whatever happens to a worker or to its parent."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from cache_tools import assert_same_cache
from extraction_process import WITH_WORKERS, extract, start
from image_files import png_bytes, write_ants_and_bees, write_images
from numpy.typing import NDArray
from tiny_onnx import write_tiny_onnx

from data_cache.bad_images import bad_images_file
from extract.extraction import ExtractionOptions, decide
from extract.pipeline import Pipeline, Position, Worked
from extract.sources import ArraySource, Source, open_source
from extract.sources.arrays import Origin
from extract.workers import pool
from extract.workers.images import Opening
from extract.workers.pool import WorkerProcesses, worker_processes
from extract.workers.process import Stages

N_IMAGES = 60
N_CORES = 2


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "n_cores", lambda: N_CORES)
    monkeypatch.setattr(pool, "FEWEST_CORES", N_CORES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, one of them bad, and a small backbone."""
    root = tmp_path_factory.mktemp("workers")
    photos = write_ants_and_bees(root / "photos", N_IMAGES)
    (photos / "bee" / "bad.png").write_bytes(b"no image")
    write_tiny_onnx(root)
    return root


@pytest.fixture
def source(folder: Path) -> Source:
    return open_source(str(folder / "photos"))


def pipeline(folder: Path, source: Source) -> Pipeline:
    chosen = ExtractionOptions(
        backbone=f"onnx:{folder / 'tiny.onnx'}", preprocess=folder / "tiny.json", batch_size=8
    )
    return decide(source, chosen).pipeline()


def stages(one: Pipeline, **more: Any) -> Stages:
    return replace(Stages(Opening(), one.decoding, one.preprocessing, one.engine), **more)


def positions(source: Source) -> list[Position]:
    return [(s, row) for s, part in source.manifest.splits.items() for row in range(len(part))]


@pytest.fixture
def started() -> Iterator[Callable[..., WorkerProcesses]]:
    """Starts workers, and ends them after the test."""
    every: list[WorkerProcesses] = []

    def start(*arguments: Any) -> WorkerProcesses:
        every.append(WorkerProcesses(*arguments))
        return every[-1]

    yield start
    for one in every:
        one.close()


def patiently(
    extract: Callable[[Sequence[Position]], Worked | None], chunk: Sequence[Position]
) -> Worked:
    """Have a worker extract a chunk, once one is ready."""
    while (worked := extract(chunk)) is None:
        time.sleep(0.01)
    return worked


def processes() -> list[psutil.Process]:
    """Return the workers of this process."""
    return workers_of(psutil.Process())


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for one in process.children():
        with suppress(psutil.NoSuchProcess):  # it ended since it was listed
            found += [one] if any("extract.workers" in word for word in one.cmdline()) else []
    return found


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_workers_make_the_cache_that_threads_make(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    alone = WorkerProcesses.extract

    def counted(self: WorkerProcesses, chunk: Sequence[Position]) -> Worked:
        worked = patiently(partial(alone, self), chunk)
        counts.append(len(worked.extracted))
        return worked

    monkeypatch.setattr(WorkerProcesses, "extract", counted)
    extract(folder / "photos", tmp_path / "w.h5", folder, cluster=WITH_WORKERS)
    assert sum(counts) == 2 * N_IMAGES + 1
    monkeypatch.setattr(pool, "FEWEST_IMAGES", 10**9)
    extract(folder / "photos", tmp_path / "t.h5", folder)
    assert_same_cache(tmp_path / "w.h5", tmp_path / "t.h5")
    found, expected = (bad_images_file(tmp_path / name).read_text() for name in ("w.h5", "t.h5"))
    assert "bad.png" in found
    assert found == expected
    assert not processes()


def test_profile_counts_what_the_workers_did(
    folder: Path, source: Source, started: Callable[..., WorkerProcesses]
) -> None:
    one = pipeline(folder, source)
    workers = started(source, stages(one), 1)
    patiently(workers.extract, positions(source)[:8])
    chunks = list(replace(one, workers=workers, n_workers=1).run(iter(positions(source))))
    assert sum(map(len, chunks)) == 2 * N_IMAGES + 1
    assert set(one.profile.seconds) == {"read", "hash", "decode", "resize", "forward"}


def test_image_that_changed_after_it_was_listed_is_refused(
    folder: Path, tmp_path: Path, started: Callable[..., WorkerProcesses]
) -> None:
    paths = [*write_images(tmp_path / "x" / "a", 4), *write_images(tmp_path / "x" / "b", 4, 50)]
    source = open_source(str(tmp_path / "x"))
    one = pipeline(folder, source)
    for path in paths:
        path.write_bytes(png_bytes(99))
    worked = patiently(started(source, stages(one), 1).extract, positions(source))
    assert not worked.extracted.kept.any()
    assert "changed after it was listed" in worked.extracted.bad_images[0].reason


def test_loss_of_a_worker_costs_no_row(
    folder: Path,
    source: Source,
    started: Callable[..., WorkerProcesses],
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = pipeline(folder, source)
    expected = np.concatenate([chunk.features for chunk in one.run(iter(positions(source)))])
    workers = started(source, stages(one), 1)
    patiently(workers.extract, positions(source)[:8])
    for process in processes():
        process.kill()
    chunks = list(replace(one, workers=workers).run(iter(positions(source))))
    np.testing.assert_array_equal(np.concatenate([one.features for one in chunks]), expected)
    assert capsys.readouterr().err.count("a worker process is lost") == 1


class Shifted:
    """An engine whose twin in another process gives other features."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.name, self.n_concurrent = engine.name, engine.n_concurrent
        self.n_features = engine.n_features

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        features: NDArray[np.float32] = self._engine(batch) * np.float32(1.001)
        return features

    def __reduce__(self) -> Any:
        return self._engine.__reduce__()


def test_worker_with_other_features_is_not_used(
    folder: Path,
    source: Source,
    started: Callable[..., WorkerProcesses],
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = pipeline(folder, source)
    workers = started(source, stages(one, engine=Shifted(one.engine)), 1)
    wait_for(lambda: workers.extract(positions(source)[:8]) is None and not processes())
    assert "its features are not those of this process" in capsys.readouterr().err


def test_worker_that_cannot_begin_says_why(
    folder: Path,
    source: Source,
    started: Callable[..., WorkerProcesses],
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = pipeline(folder, source)
    nowhere = Opening(Origin(str(folder / "none.npz"), "npz"))
    workers = started(source, stages(one, opening=nowhere), 1)
    wait_for(lambda: workers.extract(positions(source)[:8]) is None and not processes())
    assert "none.npz" in capsys.readouterr().err


def test_extraction_goes_on_where_no_process_can_be_started(
    folder: Path,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise BlockingIOError("too many processes")

    one = pipeline(folder, source)
    monkeypatch.setattr(pool.subprocess, "Popen", refuse)
    with worker_processes(source, one, 10**6) as workers:
        chunks = list(replace(one, workers=workers).run(iter(positions(source))))
    assert sum(map(len, chunks)) == 2 * N_IMAGES + 1
    assert "0 of 2 worker processes were started (too many processes)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["extract", "numpy", "random", "sitecustomize"])
def test_worker_imports_what_this_process_would(
    name: str,
    folder: Path,
    source: Source,
    started: Callable[..., WorkerProcesses],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not what lies in the folder it is started in, or at the end of the path."""
    (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of somebody else')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*filter(None, sys.path), str(tmp_path), tmp_path])
    one = pipeline(folder, source)
    assert (
        len(patiently(started(source, stages(one), 1).extract, positions(source)[:8]).extracted)
        == 8
    )


def test_worker_finds_modules_in_folders_with_colons(
    folder: Path,
    source: Source,
    started: Callable[..., WorkerProcesses],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "shifted.py").write_text(
        "class Noted:\n"
        "    def __reduce__(self): return tell, ()\n"
        "def tell():\n"
        "    raise ValueError('found it')\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "a:b")])
    noted = importlib.import_module("shifted").Noted()
    one = pipeline(folder, source)
    workers = started(source, stages(one, opening=noted), 1)
    wait_for(lambda: workers.extract(positions(source)[:8]) is None and not processes())
    assert "ValueError: found it" in capsys.readouterr().err


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_workers_end_whatever_became_of_them(
    folder: Path,
    source: Source,
    handler: signal.Handlers,
) -> None:
    """One that ignores SIGTERM, as its parent does; and one that was stopped."""
    kept = signal.signal(signal.SIGTERM, handler)
    try:
        one = pipeline(folder, source)
        workers = WorkerProcesses(source, stages(one), 1)
        patiently(workers.extract, positions(source)[:8])
        if handler == signal.SIG_DFL:
            processes()[0].suspend()
        workers.close()
    finally:
        signal.signal(signal.SIGTERM, kept)
    assert not processes()


def test_interrupt_of_a_worker_alone_changes_nothing(
    folder: Path, source: Source, started: Callable[..., WorkerProcesses]
) -> None:
    one = pipeline(folder, source)
    workers = started(source, stages(one), 1)
    patiently(workers.extract, positions(source)[:8])
    processes()[0].send_signal(signal.SIGINT)
    assert workers.extract(positions(source)[:8]) is not None


def slow_extraction(tmp_path: Path) -> subprocess.Popen[bytes]:
    """Start an extraction by workers that takes long, and wait until they work."""
    write_ants_and_bees(tmp_path / "photos", 400)
    write_tiny_onnx(tmp_path, n_layers=200)
    return start(
        tmp_path / "photos",
        tmp_path / "c.h5",
        tmp_path,
        cluster=WITH_WORKERS,
        stderr=tmp_path / "stderr",
    )


def test_workers_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    with slow_extraction(tmp_path) as process:
        wait_for(lambda: len(workers_of(psutil.Process(process.pid))) == N_CORES)
        workers = workers_of(psutil.Process(process.pid))
        process.kill()
    gone, alive = psutil.wait_procs(workers, timeout=20)
    assert (len(gone), alive) == (N_CORES, [])


def test_interrupt_ends_workers_in_silence_and_keeps_what_is_done(tmp_path: Path) -> None:
    with slow_extraction(tmp_path) as process:
        wait_for(lambda: list(tmp_path.glob("c.h5*/*.h5")))
        workers = workers_of(psutil.Process(process.pid))
        os.killpg(process.pid, signal.SIGINT)
        process.wait(20)
    assert process.returncode != 0
    assert len(workers) == N_CORES
    assert not any(one.is_running() for one in workers)
    said = (tmp_path / "stderr").read_text()
    assert "workers/process.py" not in said  # where the traceback of a worker would begin
    assert "lost" not in said
    extract(tmp_path / "photos", tmp_path / "c.h5", tmp_path)
    extract(tmp_path / "photos", tmp_path / "whole.h5", tmp_path)
    assert_same_cache(tmp_path / "c.h5", tmp_path / "whole.h5")


def test_workers_are_started_where_there_are_enough_files_for_them(
    folder: Path, source: Source
) -> None:
    one = pipeline(folder, source)
    enough = N_CORES * pool.FEWEST_IMAGES
    with worker_processes(source, one, enough) as workers:
        assert isinstance(workers, WorkerProcesses)
    with worker_processes(source, one, enough - 1) as workers:
        assert workers is None


def test_no_worker_is_started_where_threads_are_as_fast(
    folder: Path, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pipeline(folder, source)
    arrays = ArraySource(
        "x", {"train": (np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2)}, ("a", "b")
    )
    with worker_processes(arrays, one, 10**6) as workers:
        assert workers is None
    one.engine.n_concurrent = 1
    with worker_processes(source, one, 10**6) as workers:
        assert workers is None
    one.engine.n_concurrent = 2
    monkeypatch.setattr(pool, "n_cores", lambda: 1)
    with worker_processes(source, one, 10**6) as workers:
        assert workers is None
