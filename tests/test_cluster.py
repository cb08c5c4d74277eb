"""Extraction on a Dask cluster gives what a local run gives, whatever happens to its processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from cache_tools import (
    PROVENANCE,
    RECIPE,
    assert_same_cache,
    contents_of,
    fake_engine,
    manifest_of,
)
from click.testing import CliRunner
from extraction_process import SHARD_ROWS, extract, start
from image_files import write_ants_and_bees
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from tiny_onnx import N_FEATURES, write_tiny_onnx

from data_cache import connecting, parts
from data_cache.bad_images import bad_images_file
from data_cache.connecting import connected, fits_on, n_local_workers
from data_cache.errors import BadImagesError, CacheError, ClusterError, ParameterError, SourceError
from data_cache.files import TEMPORARY_MARK
from data_cache.layout import SHARD_PATTERN, Storage, parts_folder
from data_cache.part import Part
from data_cache.shards import write_shard
from data_cache.update import CacheUpdate, UpdateOptions
from extract.cli import extract_features as command
from extract.cluster import runner
from extract.cluster.task import Making, WorkerJob, extract_shard, package_version, why_unfit
from extract.extraction import ExtractionOptions, ExtractionReport, extract_features
from extract.extractor import WeightsChoice
from extract.sources import ArraySource, Source, SourceOptions, open_source
from extract.workers.images import Opening, task_images

pytest.importorskip("distributed")
logging.getLogger("distributed").setLevel(logging.CRITICAL)

N_IMAGES = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, one of them bad, and a small backbone."""
    root = tmp_path_factory.mktemp("cluster")
    photos = write_ants_and_bees(root / "photos", N_IMAGES)
    (photos / "bee" / "bad.png").write_bytes(b"no image")
    write_tiny_onnx(root)
    return root


@pytest.fixture(scope="module")
def whole(folder: Path) -> Path:
    """The cache of a run without a cluster."""
    extract(folder / "photos", folder / "whole.h5", folder)
    return folder / "whole.h5"


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a cluster of two workers that runs already."""
    with connected("local:2") as client:
        yield client.scheduler.address


def options(folder: Path, cluster: str | None, **more: object) -> ExtractionOptions:
    return ExtractionOptions(
        backbone=f"onnx:{folder / 'tiny.onnx'}",
        preprocess=folder / "tiny.json",
        cluster=cluster,
        update=UpdateOptions(shard_rows=SHARD_ROWS),
        **more,
    )


def run(folder: Path, output: Path, cluster: str | None, **more: object) -> ExtractionReport:
    source = open_source(str(folder / "photos"))
    return extract_features(source, output, options(folder, cluster, **more))


def job(folder: Path, output: Path) -> WorkerJob:
    """Return the job that a driver would send for the photos."""
    chosen = options(folder, None)
    recipe = runner_job(open_source(str(folder / "photos")), chosen).extractor.recipe
    weights = WeightsChoice(str(folder / "tiny.onnx"), folder / "tiny.json")
    parts_folder(output).mkdir()
    making = Making(recipe, weights, "auto", 8, Opening())
    return WorkerJob(package_version(), making, output, Storage())


def runner_job(source: Source, chosen: ExtractionOptions) -> runner.Job:
    from extract.extraction import decide

    return decide(source, chosen)


def test_cluster_gives_what_a_local_run_gives(
    folder: Path, whole: Path, scheduler: str, tmp_path: Path
) -> None:
    report = run(folder, tmp_path / "c.h5", scheduler)
    assert (report.exit_code, report.n_extracted) == (3, 2 * N_IMAGES)
    assert_same_cache(tmp_path / "c.h5", whole)
    found, expected = (bad_images_file(path).read_text() for path in (tmp_path / "c.h5", whole))
    assert found == expected
    assert not parts_folder(tmp_path / "c.h5").exists()


def test_arrays_are_opened_by_the_workers_themselves(
    folder: Path, scheduler: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 9, 9, 3), np.uint8)
    np.savez(
        tmp_path / "x.npz",
        x_train=images[:30] / np.float32(255),
        y_train=np.arange(30) % 3,
        x_test=images[30:] / np.float32(255),
        y_test=np.arange(10) % 3,
    )
    for name, cluster in (("c.h5", scheduler), ("whole.h5", None)):
        source = open_source(str(tmp_path / "x.npz"))
        extract_features(source, tmp_path / name, options(folder, cluster))
    assert_same_cache(tmp_path / "c.h5", tmp_path / "whole.h5")


def test_sharded_parts_on_a_cluster_are_what_one_run_gives(
    folder: Path, scheduler: str, tmp_path: Path
) -> None:
    update = UpdateOptions(shard_rows=SHARD_ROWS, sharded=True, dtype="float16")
    for k in (1, 2):
        part = open_source(str(folder / "photos"), SourceOptions(part=Part(k, 2)))
        chosen = replace(options(folder, scheduler), update=update)
        extract_features(part, tmp_path / "c.h5", chosen)
    photos = open_source(str(folder / "photos"))
    bound = extract_features(
        photos, tmp_path / "c.h5", replace(options(folder, None), update=update)
    )
    assert bound.n_extracted == 0
    extract_features(photos, tmp_path / "w.h5", replace(options(folder, None), update=update))
    assert_same_cache(tmp_path / "c.h5", tmp_path / "w.h5")


def test_only_what_is_missing_is_done_and_nothing_needs_no_cluster(
    folder: Path, whole: Path, scheduler: str, tmp_path: Path
) -> None:
    half = open_source(str(folder / "photos"), SourceOptions(train_limit=50, test_limit=10))
    extract_features(half, tmp_path / "c.h5", options(folder, None))
    report = run(folder, tmp_path / "c.h5", scheduler)
    assert 0 < report.n_extracted <= 2 * N_IMAGES - 60 + 1
    assert_same_cache(tmp_path / "c.h5", whole)
    again = run(folder, tmp_path / "c.h5", "tcp://127.0.0.1:1")
    assert again.outcome.startswith("up to date")


def test_task_done_twice_is_one_shard(folder: Path, scheduler: str, tmp_path: Path) -> None:
    source = open_source(str(folder / "photos"))
    images = task_images(source, [("train", row) for row in range(20)])
    with connected(scheduler) as client:
        work = job(folder, tmp_path / "c.h5")
        first, second = client.gather(
            [client.submit(extract_shard, work, images, pure=False) for _ in range(2)]
        )
    assert (first.shard, first.n_images) == (second.shard, 20)
    assert [p.name for p in parts_folder(tmp_path / "c.h5").iterdir()] == [first.shard]


def test_shard_that_is_not_the_one_of_the_receipt_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_LOOK_SECONDS", 0.001)
    content = contents_of(["a", "b"])
    with CacheUpdate.begin(tmp_path / "c.h5", RECIPE, PROVENANCE) as update:
        with pytest.raises(CacheError, match="is not here: the cache must lie on a file system"):
            update.adopt("shard-0.h5", "ab" * 32)
        folder = parts_folder(tmp_path / "c.h5")
        shard = write_shard(folder, RECIPE, content, fake_engine(content), Storage())
        with pytest.raises(CacheError, match="is another here"):
            update.adopt(shard.stored.path.name, "ab" * 32)
        update.adopt(shard.stored.path.name, shard.digest)
        update.bind(manifest_of({"train": {"x": ("a", "ant"), "y": ("b", "bee")}}))


def test_few_tasks_are_handed_out_at_a_time(
    folder: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = []
    put = runner._Queue.put

    def counted(queue: runner._Queue, images: object) -> None:
        put(queue, images)
        lengths.append(len(queue))

    monkeypatch.setattr(runner, "_FEWEST_ROWS", 4)
    monkeypatch.setattr(runner._Queue, "put", counted)
    monkeypatch.setattr(runner, "_TASKS_PER_THREAD", 30)
    run(folder, tmp_path / "c.h5", scheduler)
    assert len(lengths) > 30
    assert max(lengths) <= 5


def test_first_bad_image_stops_the_run_if_wanted(
    folder: Path, scheduler: str, tmp_path: Path
) -> None:
    with pytest.raises(BadImagesError, match=r"bad\.png"):
        run(folder, tmp_path / "c.h5", scheduler, on_bad_image="fail")
    assert not (tmp_path / "c.h5").exists()


def test_images_in_memory_are_refused(folder: Path, tmp_path: Path) -> None:
    images = np.zeros((4, 9, 9), np.uint8)
    images[:, 0, 0] = range(4)
    source = ArraySource("mine", {"train": (images, np.arange(4) % 2)}, ("a", "b"))
    with pytest.raises(SourceError, match="mine is held by this process alone"):
        extract_features(source, tmp_path / "c.h5", options(folder, "local:1"))


@pytest.mark.parametrize("text", ["local:0", "local:", "local", "host:8786", "http://x", ""])
def test_text_that_names_no_cluster_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="local:N"):
        n_local_workers(text)


def test_scheduler_that_does_not_answer_is_an_error_of_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "_CONNECT_SECONDS", 1)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        run(folder, tmp_path / "c.h5", "tcp://127.0.0.1:1")


@pytest.mark.parametrize("text", ["s3://bucket/photos", "https://host/x.npz"])
def test_urls_are_refused_as_source_and_as_output(text: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [text, "--output", str(tmp_path / "c.h5")])
    assert (result.exit_code, "is a URL" in result.output) == (2, True)
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 4, 4), np.uint8), y=np.arange(9) % 2)
    words = [str(tmp_path / "x.npz"), "--output", "s3://bucket/c.h5", "--weights", "random"]
    result = CliRunner().invoke(command, [*words, "--image-size", "32"])
    assert (result.exit_code, "is a URL" in result.output) == (2, True)


def test_worker_of_another_version_is_refused_and_both_are_named(
    folder: Path, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "package_version", lambda: "99.1")
    with pytest.raises(ClusterError, match=rf"has headstart {package_version()}, .* has 99\.1"):
        run(folder, tmp_path / "c.h5", scheduler)


def test_worker_with_other_weights_or_steps_says_both_values(folder: Path, tmp_path: Path) -> None:
    work = job(folder, tmp_path / "c.h5")
    recipe = work.making.recipe

    def reason_for(**other: str) -> str:
        making = replace(work.making, recipe=replace(recipe, **other))
        return why_unfit(replace(work, making=making))

    assert reason_for() == ""
    reason = reason_for(weights_digest="ab" * 32)
    assert "abababababab" in reason
    assert recipe.weights_digest[:12] in reason
    reason = reason_for(preprocessing="affine/9")
    assert f"preprocessing {recipe.preprocessing}, was affine/9" in reason
    reason = why_unfit(replace(work, output=tmp_path / "elsewhere.h5"))
    assert "does not see" in reason


def test_local_workers_listen_here_alone_serve_no_pages_and_go(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    me = psutil.Process()
    before = set(workers_of(me))
    ours = {c.laddr for c in me.net_connections() if c.status == "LISTEN"}
    with connected("local:1") as client:
        modules = client.run(lambda: "tensorflow" in sys.modules)
        assert not any(modules.values())
        started = set(workers_of(me)) - before
        listening = {
            connection.laddr
            for process in (me, *started)
            for connection in process.net_connections()
            if connection.status == "LISTEN"
        } - ours
        assert {address.ip for address in listening} == {"127.0.0.1"}
        assert len(listening) == len(("scheduler", "nanny", "worker"))
    wait_until_gone(list(started))
    assert not list((tmp_path / "home").iterdir())


def test_plan_says_what_it_would_take_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    words = [str(folder / "photos"), "--output", str(tmp_path / "c.h5"), "--plan"]
    words += ["--backbone", f"onnx:{folder / 'tiny.onnx'}"]
    words += ["--preprocess", str(folder / "tiny.json"), "--cluster", "local:2"]
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    n_images = 2 * N_IMAGES + 1
    assert lines["images"] == f"{n_images} to extract, of {n_images}"
    megabytes = float(lines["on"].split()[1])
    assert megabytes * 1e6 > n_images * 4 * N_FEATURES
    assert lines["shards"] == "3"
    assert "images/s here" in lines["time"]
    assert not list(tmp_path.iterdir())


def test_fits_of_scikit_learn_run_on_the_workers(scheduler: str) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 5)), np.arange(60) % 2
    X[:, 0] += y
    search = {"estimator": LogisticRegression(), "param_grid": {"C": [0.1, 1.0]}, "cv": 3}
    here = GridSearchCV(**search).fit(X, y)

    def score(model: LogisticRegression, X: np.ndarray, y: np.ndarray) -> dict[str, float]:
        return {"pid": os.getpid(), "accuracy": model.score(X, y)}

    with fits_on(scheduler):
        there = GridSearchCV(**search, n_jobs=-1, scoring=score, refit=False).fit(X, y)
    pids = [there.cv_results_[f"split{k}_test_pid"] for k in range(3)]
    assert os.getpid() not in np.ravel(pids)
    found, expected = there.cv_results_["mean_test_accuracy"], here.cv_results_["mean_test_score"]
    np.testing.assert_allclose(found, expected)


def slow_backbone(folder: Path) -> Path:
    """Return a folder with a backbone that takes long enough for a process to be killed."""
    write_tiny_onnx(folder, n_layers=12)
    return folder


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the worker processes of a driver, without Python's own helpers."""
    return [one for one in process.children() if "spawn_main" in " ".join(one.cmdline())]


def wait_for_shards(path: Path, driver: subprocess.Popen[bytes], n_more: int = 1) -> bool:
    """Wait until there are more shards; return whether the driver still runs."""
    n_before = len(list(parts_folder(path).glob(SHARD_PATTERN)))
    end = time.monotonic() + 60
    while time.monotonic() < end and driver.poll() is None:
        if len(list(parts_folder(path).glob(SHARD_PATTERN))) >= n_before + n_more:
            return True
        time.sleep(0.02)
    return False


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    ("n_worker_kills", "n_driver_kills"),
    [(1, 0), pytest.param(3, 1, marks=[pytest.mark.stress, pytest.mark.timeout(600)])],
)
def test_killed_workers_and_drivers_lose_nothing(
    folder: Path, tmp_path: Path, n_worker_kills: int, n_driver_kills: int
) -> None:
    slow = slow_backbone(tmp_path / "slow")
    path = tmp_path / "c.h5"
    driver = start(folder / "photos", path, slow, cluster="local:2")
    for _ in range(n_driver_kills):
        assert wait_for_shards(path, driver)
        orphans = workers_of(psutil.Process(driver.pid))
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        wait_until_gone(orphans)
        assert not path.exists()
        driver = start(folder / "photos", path, slow, cluster="local:2")
    for _ in range(n_worker_kills):
        assert wait_for_shards(path, driver), "the run ended before a worker was killed"
        workers_of(psutil.Process(driver.pid))[0].kill()
    assert driver.wait(timeout=200) == 0
    extract(folder / "photos", tmp_path / "whole.h5", slow)
    assert_same_cache(path, tmp_path / "whole.h5")
    assert not [one for one in tmp_path.rglob("*") if TEMPORARY_MARK in one.name]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM")
def test_terminated_driver_takes_its_workers_along_and_goes_on_later(
    folder: Path, tmp_path: Path
) -> None:
    slow = slow_backbone(tmp_path / "slow")
    path = tmp_path / "c.h5"
    words = [str(folder / "photos"), "--output", str(path), "--cluster", "local:2"]
    words += ["--backbone", f"onnx:{slow / 'tiny.onnx'}", "--preprocess", str(slow / "tiny.json")]
    code = "from extract.cli import extract_features; extract_features()"
    driver = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert wait_for_shards(path, driver)  # type: ignore[arg-type]
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.terminate()
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 1
    assert "Traceback" not in errors
    wait_until_gone(children)
    report = extract_features(open_source(words[0]), path, options(slow, None))
    assert report.n_extracted < 2 * N_IMAGES
