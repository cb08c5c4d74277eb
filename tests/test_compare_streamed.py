"""compare-probes and folds beyond memory: the figures are those that are found in memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from probe_data import N_FEATURES, blobs
from sklearn.base import clone

from classify.compare_probes.cli import compare_probes as command
from classify.compare_probes.job import compare_probes
from classify.compare_probes.options import CompareOptions
from classify.probes import PROBES, KernelRidgeProbe, TriedPoint, TunedProbe, logistic_path
from classify.probes.dense import DENSE_GRID, HIDDEN_GRID, tune_dense
from classify.results.runs import Run
from classify.streams import Budget, StreamedFeatures
from classify.train_head.job import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.rows import Manifest
from data_cache.update import CacheUpdate

N_TRAIN, N_TEST = 150, 60
LIMIT = "16KB"
BUDGET = Budget(8_000)
FIGURES = (
    *("validation_accuracy", "validation_log_loss", "held_out_accuracy", "held_out_log_loss"),
    *("temperature", "test_accuracy", "test_log_loss", "test_brier", "test_accuracy_of_seeds"),
)
DENSE = ("dense", "dense_hidden")
IN_CLOSED_FORM = tuple(name for name in PROBES if name not in DENSE)
IN_FLOAT32 = {"kernel_ridge": 1e-2, "neighbors": 1e-4, "dense": 1e-4, "dense_hidden": 1e-4}
"""Products of float32 depend on how many rows are multiplied at a time; sums in float64 do not."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare_streamed")


@pytest.fixture(scope="module")
def caches(folder: Path) -> tuple[Path, Path]:
    """The same images twice: the second cache has other features, and its rows in another order."""
    splits = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    first = cache_tools.write_cache(folder / "first.h5", splits)
    rng = np.random.default_rng(5)
    rows, features = {}, {}
    for split, (X, y) in splits.items():
        order = rng.permutation(len(y))
        rows[split] = cache_tools.make_rows(split, cache_tools.digests_of(X), y).take(order)
        features[split] = np.sqrt(np.abs(X))[order]
    with CacheUpdate.begin(folder / "second.h5", cache_tools.RECIPE, cache_tools.PROVENANCE) as new:
        for split in splits:
            new.append(rows[split].content, features[split])
        new.bind(Manifest(("0", "1", "2"), rows))
    return first, folder / "second.h5"


@pytest.fixture
def same_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows in memory are shuffled as streamed ones are, and C is chosen with all of them."""
    order = BUDGET.shuffle(N_FEATURES).order
    monkeypatch.setattr("classify.heads.dense.epoch_order", order)
    monkeypatch.setattr("classify.heads.batches.epoch_order", order)
    monkeypatch.setattr("classify.probes.logistic._BYTES_PER_VALUE", 1)
    quick = {
        "dense": partial(tune_dense, specs=DENSE_GRID[:6:2]),
        "dense_hidden": partial(
            tune_dense, specs=[replace(HIDDEN_GRID[0], hidden_units=8, epochs=6, patience=1)]
        ),
    }
    monkeypatch.setattr("classify.compare_probes.candidates.PROBES", {**PROBES, **quick})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of features each read asks of a cache for."""
    numbers: list[int] = []

    def count(name: str, length: Callable[[Any], int]) -> None:
        read = getattr(FeatureCache, name)

        def counted(cache: FeatureCache, split: str, rows: Any) -> NDArray[np.float32]:
            numbers.append(length(rows))
            return read(cache, split, rows)

        monkeypatch.setattr(FeatureCache, name, counted)

    count("take", len)
    count("_read", lambda rows: rows.stop - rows.start)
    return numbers


def compare(caches: list[Path], output: Path, limit: str, *probes: str, **more: Any) -> Run:
    options = CompareOptions(probes=probes, memory_limit=limit, n_folds=3, **more)
    return compare_probes(caches, output, options)


def assert_alike(beyond: Run, within: Run) -> None:
    found, expected = beyond.metrics, within.metrics
    assert all(found["streamed"].values())
    assert not any(expected["streamed"].values())
    assert found["models"] == expected["models"]
    assert found["selected"] == expected["selected"]
    for name in expected["models"]:
        assert found[name]["hyperparameters"] == expected[name]["hyperparameters"]
        rtol = IN_FLOAT32.get(name.rpartition(":")[2], 1e-5)
        for figure in FIGURES:
            if expected[name][figure] is not None:
                one, other = (np.asarray(of[name][figure]) for of in (found, expected))
                np.testing.assert_allclose(one, other, rtol, err_msg=f"{name} {figure}")
    features = blobs(40, 9)[0]
    one, other = (run.model().logits(features) for run in (beyond, within))
    np.testing.assert_allclose(one, other, 1e-4, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("probes", [IN_CLOSED_FORM, DENSE], ids=["closed form", "dense"])
@pytest.mark.usefixtures("same_choices")
def test_what_is_streamed_is_what_is_found_in_memory(
    probes: tuple[str, ...], caches: tuple[Path, Path], tmp_path: Path, asked: list[int]
) -> None:
    # A cache whose rows lie in another order is shuffled in that order: another Dense head.
    given = list(caches[:1] if probes is DENSE else caches)
    within = compare(given, tmp_path / "within", "1GB", *probes)
    assert max(asked) > 100
    asked.clear()
    beyond = compare(given, tmp_path / "beyond", LIMIT, *probes)
    assert_alike(beyond, within)
    samples = [rows for rows in asked if rows > BUDGET.shuffle(N_FEATURES).window_rows]
    assert len(samples) == (0 if probes is DENSE else len(given))


def test_a_winner_that_keeps_its_streamed_rows_is_saved_whole(
    caches: tuple[Path, Path], tmp_path: Path, asked: list[int]
) -> None:
    run = compare(list(caches[1:]), tmp_path / "run", LIMIT, "neighbors")
    assert max(asked) <= BUDGET.shuffle(N_FEATURES).window_rows
    rows = [int(name[-6:]) for part in ("train", "validation") for name in run.part_ids(part)]
    X, y = blobs(N_TRAIN, 0)
    model = run.model()
    alone = clone(model).fit(np.sqrt(np.abs(X))[rows], y[rows])
    queries = np.sqrt(np.abs(blobs(40, 9)[0]))
    np.testing.assert_allclose(model.logits(queries), alone.logits(queries), rtol=1e-4)


def test_a_sample_for_the_choice_of_c_takes_no_more_than_its_share(
    caches: tuple[Path, Path], asked: list[int]
) -> None:
    X, y = blobs(N_TRAIN, 0)
    with FeatureCache.open(caches[0]) as cache:
        rows = StreamedFeatures.of(cache, "train", BUDGET)
        path = logistic_path((rows, y), (X, y), path=(0.01,))
    assert path.n_rows == max(asked) == BUDGET.n_bytes // (16 * N_FEATURES) < N_TRAIN


def _tune_few_landmarks(training: Any, validation: Any, tuning: Any) -> TunedProbe:
    probe = KernelRidgeProbe(n_landmarks=20, alpha=1e-3, seed=tuning.seed).fit(*training)
    return TunedProbe(probe, {"gamma": 0.5}, (TriedPoint({"gamma": 0.5}, 0.5, 1.0, 1.0),))


def test_seeds_and_landmarks_that_are_drawn_are_those_in_memory(
    caches: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = {**PROBES, "kernel_ridge": _tune_few_landmarks}
    monkeypatch.setattr("classify.compare_probes.candidates.PROBES", probes)
    runs = [
        compare(list(caches), tmp_path / limit, limit, "kernel_ridge", "ridge", n_seeds=3)
        for limit in (LIMIT, "1GB")
    ]
    assert_alike(*runs)
    assert len(set(runs[0].metrics["first:kernel_ridge"]["test_accuracy_of_seeds"])) > 1


def test_the_command_streams_what_would_take_more_than_half_of_the_limit(
    caches: tuple[Path, Path], tmp_path: Path
) -> None:
    n_bytes = 4 * (N_TRAIN + N_TEST) * N_FEATURES
    for limit, is_streamed in ((2 * n_bytes - 2, True), (2 * n_bytes, False)):
        words = [*caches, "--probe", "ridge", "--memory-limit", limit]
        output = tmp_path / str(limit)
        done = CliRunner().invoke(command, [*map(str, words), "--output", str(output)])
        assert done.exit_code == 0, done.output
        assert done.stderr.count("Features are streamed: those of") == 2 * is_streamed
        told = json.loads((output / "metrics.json").read_text())["streamed"]
        shuffle = Budget(n_bytes - 1).facts(N_FEATURES)
        assert told == dict.fromkeys(("first", "second"), shuffle if is_streamed else None)
    words = [str(caches[0]), "--memory-limit", "much", "--output", str(tmp_path / "none")]
    refused = CliRunner().invoke(command, words)
    assert (refused.exit_code, "'much' is no size" in refused.stderr) == (2, True)


def test_rows_in_another_order_are_read_as_they_lie(
    caches: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = np.random.default_rng(0).permutation(N_TRAIN)
    n_read: list[int] = []
    with FeatureCache.open(caches[0]) as cache:
        rows = StreamedFeatures.of(cache, "train", BUDGET)[order]
        expected = blobs(N_TRAIN, 0)[0][order]
        take = FeatureCache.take

        def spanned(self: FeatureCache, split: str, places: Any) -> NDArray[np.float32]:
            n_read.append(int(places.max() - places.min()) + 1)
            return take(self, split, places)

        monkeypatch.setattr(FeatureCache, "take", spanned)
        found = np.full(expected.shape, np.nan, np.float32)
        for block, places in rows.blocks():
            found[places] = block
        assert sum(n_read) == N_TRAIN
        np.testing.assert_array_equal(found, expected)
        windows = list(rows.epoch(BUDGET.shuffle(N_FEATURES), seed=0, number=0))
        assert sorted(np.concatenate([places for _, places in windows])) == list(range(N_TRAIN))
        for block, places in windows:
            np.testing.assert_array_equal(block, expected[places])


@pytest.mark.usefixtures("same_choices")
def test_folds_of_streamed_rows_are_those_in_memory(
    caches: tuple[Path, Path], tmp_path: Path, asked: list[int]
) -> None:
    tables, suspects = [], []
    for limit in ("1GB", LIMIT):
        asked.clear()
        options = TrainingOptions(
            n_folds=3, epochs=3, patience=1, standardize=True, memory_limit=limit
        )
        run = train_head(caches[0], tmp_path / limit, options).path
        table = (run / "folds.csv").read_text(encoding="utf-8").splitlines()
        tables.append(list(csv.DictReader(table)))
        suspects.append((run / "suspects.csv").read_text(encoding="utf-8").count("\n"))
    assert len(tables[0]) == 6
    assert suspects[0] == suspects[1]
    for within, beyond in zip(*tables, strict=True):
        for name, value in within.items():
            if name in ("accuracy", "log_loss"):
                assert float(beyond[name]) == pytest.approx(float(value), rel=1e-5)
            else:
                assert beyond[name] == value
    assert sum(rows > BUDGET.shuffle(N_FEATURES).window_rows for rows in asked) == 4
