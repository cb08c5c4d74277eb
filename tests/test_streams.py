"""Training beyond memory: what is streamed is what is learned in memory, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

from classify.heads.dense import DenseHead
from classify.probes import (
    PROBES,
    KernelRidgeProbe,
    LogisticRegressionProbe,
    NearestMeanProbe,
    NeighborsProbe,
    RidgeProbe,
    Tuning,
)
from classify.probes.logistic_stream import StreamedProblem
from classify.streams import Budget, StreamedFeatures, WindowShuffle, cut_batches, read_ahead
from classify.train_head.cli import train_head
from data_cache.cache import FeatureCache
from data_cache.errors import ParameterError
from data_cache.layout import Storage
from data_cache.memory import available_bytes, parse_size
from data_cache.update import CacheUpdate, UpdateOptions

N, D, K = 1500, 10, 3
CENTERS = np.random.default_rng(42).normal(size=(K, D))
TINY = Budget(20_000)


def blobs(n_rows: int, seed: int, n_classes: int = K) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n_rows)
    X = CENTERS[y] + rng.normal(scale=1.2, size=(n_rows, D))
    return (3 + 2 * X).astype(np.float32), y


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return cache_tools.write_cache(folder / "c.h5", {"train": blobs(N, 0), "test": blobs(200, 1)})


@pytest.fixture(scope="module")
def cache(path: Path) -> Iterator[FeatureCache]:
    with FeatureCache.open(path) as opened:
        yield opened


@pytest.fixture
def streamed(cache: FeatureCache) -> StreamedFeatures:
    return StreamedFeatures.of(cache, "train", TINY)


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 8), st.integers(0, 5))
def test_an_epoch_takes_every_row_once_window_by_window(
    n: int, block: int, blocks: int, epoch: int
) -> None:
    shuffle = WindowShuffle(block, block * blocks)
    windows = list(shuffle.windows(7, epoch, n))
    assert sorted(np.concatenate(windows)) == list(range(n))
    assert max(map(len, windows)) <= block * blocks
    np.testing.assert_array_equal(shuffle.order(7, epoch, n), np.concatenate(windows))
    np.testing.assert_array_equal(shuffle.order(7, epoch, n), shuffle.order(7, epoch, n))


def test_epochs_differ_in_their_order() -> None:
    shuffle = WindowShuffle(8, 32)
    assert (shuffle.order(0, 0, 100) != shuffle.order(0, 1, 100)).any()
    assert (shuffle.order(0, 0, 100) != shuffle.order(1, 0, 100)).any()


def test_rows_are_shuffled_within_a_window_and_blocks_among_windows() -> None:
    within = WindowShuffle(100, 100).order(0, 0, 100)
    assert (within != np.arange(100)).mean() > 0.9
    first, *_ = WindowShuffle(10, 30).windows(0, 0, 1000)
    assert len(np.unique(first // 10)) == 3
    assert np.ptp(first) > 100


@given(st.lists(st.integers(0, 30), min_size=1, max_size=9), st.integers(1, 12))
def test_batches_run_on_from_window_to_window(sizes: list[int], batch_size: int) -> None:
    rows = np.arange(sum(sizes))
    windows = [(one, -one) for one in np.split(rows, np.cumsum(sizes)[:-1])]
    batches = list(cut_batches(windows, batch_size))
    assert [len(one) for one, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert [row for one, _ in batches for row in one] == rows.tolist()
    assert all((one == -other).all() for one, other in batches)


def test_reading_ahead_keeps_the_order_and_passes_errors_on() -> None:
    assert list(read_ahead(lambda one: one * 2, range(5))) == [0, 2, 4, 6, 8]
    with pytest.raises(ZeroDivisionError):
        list(read_ahead(lambda one: 1 // one, [1, 0]))


def test_streamed_rows_are_those_of_the_cache(
    streamed: StreamedFeatures, cache: FeatureCache
) -> None:
    X = blobs(N, 0)[0]
    order = np.random.default_rng(0).permutation(N)
    np.testing.assert_array_equal(streamed.read(order), X[order])
    chosen = streamed[X[:, 0] > 3].join(StreamedFeatures.of(cache, "test", TINY)[::2])
    expected = np.concatenate([X[X[:, 0] > 3], blobs(200, 1)[0][::2]])
    assert chosen.shape == expected.shape
    blocks = list(chosen.blocks())
    assert len(blocks) > 5
    np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks]), expected)
    backwards = np.arange(len(chosen))[::-1]
    np.testing.assert_array_equal(chosen.read(backwards), expected[::-1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weight": "balanced", "label_smoothing": 0.1, "batch_size": 37},
        {"standardize": True, "hidden_units": 4, "patience": 1, "epochs": 3},
    ],
)
def test_a_streamed_head_is_the_head_of_the_same_order_in_memory(
    streamed: StreamedFeatures, cache: FeatureCache, options: dict
) -> None:
    X, y = blobs(N, 0)
    options = {"epochs": 2, "seed": 3} | options
    test = blobs(200, 1)
    beyond = DenseHead(**options).fit(
        streamed, y, validation_data=(StreamedFeatures.of(cache, "test", TINY), test[1])
    )
    within = DenseHead(**options).fit(X, y, validation_data=test, shuffle=TINY.shuffle(D))
    compare = np.testing.assert_array_equal
    if "standardize" in options:
        compare = np.testing.assert_allclose
    for one, other in zip(beyond.model_.get_weights(), within.model_.get_weights(), strict=True):
        compare(one, other, **({"rtol": 1e-5, "atol": 1e-6} if "standardize" in options else {}))
    assert beyond.history_["val_accuracy"] == within.history_["val_accuracy"]
    assert len(beyond.history_["loss"]) <= options["epochs"]


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_streamed_logistic_regression_finds_scikit_learns_optimum(
    folder: Path, n_classes: int, class_weight: str | None
) -> None:
    X, y = blobs(N, 5, n_classes)
    path = folder / f"{n_classes}{class_weight}.h5"
    cache_tools.write_cache(path, {"train": (X, y)})
    exact = {"C": 0.1, "class_weight": class_weight, "tol": 1e-8}
    with FeatureCache.open(path) as cache:
        rows = StreamedFeatures.of(cache, "train", TINY)
        probe = LogisticRegressionProbe(**exact).fit(rows, y)
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    oracle = LogisticRegression(**exact, max_iter=1000).fit(Z, y)
    assert probe.converged_
    np.testing.assert_allclose(probe.predict_proba(X), oracle.predict_proba(Z), atol=1e-6)


def test_the_streamed_gradient_is_that_of_finite_differences(streamed: StreamedFeatures) -> None:
    y = blobs(N, 0)[1]
    scaler = StandardScaler().fit(blobs(N, 0)[0])
    rng = np.random.default_rng(0)
    for n_classes, codes in ((3, y), (2, np.minimum(y, 1))):
        problem = StreamedProblem(streamed, codes, rng.uniform(1, 2, N), scaler, 0.01, n_classes)
        shape = (n_classes if n_classes > 2 else 1, D + 1)
        weights, step = rng.normal(size=shape), rng.normal(size=shape)
        ends = [problem.loss(weights + h * step)[0] for h in (1e-5, -1e-5)]
        slope = (problem.loss(weights)[1] * step).sum()
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-6)


@pytest.mark.parametrize(
    "probe",
    [
        LogisticRegressionProbe(C=0.05, tol=1e-8),
        RidgeProbe(alpha=0.01, class_weight="balanced"),
        NearestMeanProbe(),
        NearestMeanProbe(shrinkage=0.3),
        NeighborsProbe(n_neighbors=7),
        KernelRidgeProbe(alpha=1e-3, n_landmarks=60),
    ],
    ids=lambda probe: f"{probe.kind}",
)
def test_a_streamed_probe_is_the_one_in_memory(streamed: StreamedFeatures, probe) -> None:
    from sklearn.base import clone

    X, y = blobs(N, 0)
    within, beyond = clone(probe).fit(X, y), clone(probe).fit(streamed, y)
    queries = blobs(100, 2)[0]
    np.testing.assert_allclose(beyond.logits(queries), within.logits(queries), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["ridge", "discriminant", "nearest_mean", "neighbors"])
def test_tuning_streamed_rows_chooses_as_in_memory(
    name: str, streamed: StreamedFeatures, cache: FeatureCache
) -> None:
    (X, y), validation = blobs(N, 0), blobs(200, 1)
    within = PROBES[name]((X, y), validation, Tuning())
    other = StreamedFeatures.of(cache, "test", TINY)
    beyond = PROBES[name]((streamed, y), (other, validation[1]), Tuning())
    assert beyond.hyperparameters == within.hyperparameters
    losses = [[point.log_loss for point in one.points] for one in (within, beyond)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_streamed_neighbors_are_scikit_learns(streamed: StreamedFeatures) -> None:
    X, y = blobs(N, 0)
    queries = blobs(60, 2)[0]
    found = NeighborsProbe().fit(streamed, y).neighbors(queries, 9)
    oracle = NearestNeighbors(n_neighbors=9, metric="cosine").fit(X)
    distances, positions = oracle.kneighbors(queries)
    np.testing.assert_allclose(1 - found.similarities, distances, atol=1e-5)
    assert (found.codes == y[positions]).mean() > 0.99
    assert np.abs(normalize(queries)).max() <= 1


def test_streamed_neighbors_are_saved_as_those_in_memory(
    streamed: StreamedFeatures, tmp_path: Path
) -> None:
    X, y = blobs(N, 0)
    backwards = np.arange(N)[::-1]
    NeighborsProbe(n_neighbors=7).fit(streamed[backwards], y[::-1]).save(tmp_path / "beyond.npz")
    NeighborsProbe(n_neighbors=7).fit(X[::-1], y[::-1]).save(tmp_path / "within.npz")
    with np.load(tmp_path / "beyond.npz") as beyond, np.load(tmp_path / "within.npz") as within:
        assert beyond.files == within.files
        for name in within.files:
            np.testing.assert_array_equal(beyond[name], within[name])
    assert NeighborsProbe.load(tmp_path / "beyond.npz").n_neighbors == 7


def test_memory_stays_within_the_budget_whatever_the_rows(folder: Path) -> None:
    n, d = 40_000, 64
    X = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    y = np.arange(n) % 2
    cache_tools.write_cache(folder / "large.h5", {"train": (X, y)})
    del X
    with FeatureCache.open(folder / "large.h5") as cache:
        rows = StreamedFeatures.of(cache, "train", Budget(1_500_000))
        for probe in (RidgeProbe(), NearestMeanProbe(), LogisticRegressionProbe(max_iter=3)):
            tracemalloc.start()
            probe.fit(rows, y)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            # The columns of labels, weights and positions take some; the features are 10 MB.
            assert peak < 4_500_000, type(probe)


def test_sharded_caches_stream_too(tmp_path: Path) -> None:
    X, y = blobs(600, 0)
    rows = cache_tools.make_rows("train", cache_tools.digests_of(X), y)
    options = UpdateOptions(sharded=True, shard_rows=50)
    manifest = cache_tools.Manifest(("0", "1", "2"), {"train": rows})
    with CacheUpdate.begin(
        tmp_path / "s.h5", cache_tools.RECIPE, cache_tools.PROVENANCE, options=options
    ) as update:
        update.append(rows.content, X)
        update.bind(manifest)
    with FeatureCache.open(tmp_path / "s.h5") as cache:
        assert cache.storage == Storage(sharded=True)
        streamed = StreamedFeatures.of(cache, "train", TINY)
        for window, at in streamed.epoch(TINY.shuffle(D), seed=0, number=0):
            np.testing.assert_array_equal(window, X[at])


def command(cache: Path, output: Path, *more: str) -> Result:
    options = ["--output", str(output), "--epochs", "2", *more]
    return CliRunner().invoke(train_head, [str(cache), *options])


def test_train_head_streams_what_would_take_more_than_half_of_the_limit(
    path: Path, tmp_path: Path
) -> None:
    n_bytes = 4 * (N + 200) * D
    beyond = command(path, tmp_path / "beyond", "--memory-limit", str(2 * n_bytes - 2))
    within = command(path, tmp_path / "within", "--memory-limit", str(2 * n_bytes))
    assert beyond.exit_code == within.exit_code == 0, beyond.output + within.output
    assert "Features are streamed" in beyond.stderr
    assert "streamed" not in within.stderr
    told = [
        json.loads((tmp_path / one / "metrics.json").read_text()) for one in ("beyond", "within")
    ]
    assert told[1]["streamed"] is None
    shuffle = Budget(n_bytes - 1).shuffle(D)
    assert told[0]["streamed"]["window_rows"] == shuffle.window_rows
    # Other orders of the rows, the same split of them, and the same optimum.
    assert told[0]["n_validation"] == told[1]["n_validation"]
    logistic = [one["logistic_regression"] for one in told]
    assert logistic[0]["n_rows_for_C"] < logistic[1]["n_rows_for_C"] == told[1]["n_train"]
    assert abs(logistic[0]["test_accuracy"] - logistic[1]["test_accuracy"]) < 0.03
    assert abs(told[0]["test_accuracy"] - told[1]["test_accuracy"]) < 0.06


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("500m", 5 * 10**8), ("100", 100), ("7kb", 7000)],
)
def test_sizes_are_read_as_people_write_them(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "2 XB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ParameterError, match="is no size: expected one such as 2GB"):
        parse_size(text)


def test_available_memory_is_what_the_system_or_the_container_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr("data_cache.memory._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("data_cache.memory._CGROUP", tmp_path)
    assert available_bytes() == 1_024_000
    (tmp_path / "memory.max").write_text("900000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100000\n")
    assert available_bytes() == 300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes() == 1_024_000
