"""What the models of a run are fitted to in the end, and what may be said of them then."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner, Result

from classify.heads.dense import DenseHead
from classify.results.runs import load_run
from classify.selection.sealed_test import SealedTest
from classify.selection.test_log import log_path
from classify.train_head.cli import train_head
from data_cache.cache import FeatureCache

N_FEATURES, N_TRAIN, N_TEST = 16, 200, 60
SHAPE = ("--epochs", "30", "--patience", "1", "--learning-rate", "0.02", "--seed", "4")


def blobs(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n_rows)
    centers = np.random.default_rng(42).normal(size=(3, N_FEATURES))
    return (centers[y] + rng.normal(scale=1.3, size=(n_rows, N_FEATURES))).astype(np.float32), y


def command(cache: Path, output: Path, *more: str) -> Result:
    result = CliRunner().invoke(train_head, [str(cache), "--output", str(output), *SHAPE, *more])
    assert result.exit_code in {0, 2}, result.output
    return result


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def split_of(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("refit")


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    splits = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    return cache_tools.write_cache(folder / "c.h5", splits)


@pytest.fixture(scope="module")
def to_all(folder: Path) -> tuple[Path, Result]:
    """The only run on a cache, refitted to all rows."""
    splits = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    cache = cache_tools.write_cache(folder / "never_scored.h5", splits)
    return folder / "all", command(cache, folder / "all", "--refit", "all")


@pytest.fixture(scope="module")
def to_train(cache: Path, folder: Path) -> Path:
    command(cache, folder / "train", "--no-test")
    return folder / "train"


def fitted_by_hand(run: Path, parts: list[str]) -> DenseHead:
    """The Dense head on rows of a run's parts, for the epochs that it says."""
    blob_of = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    ids = [one for part in parts for one in load_run(run).part_ids(part)]
    rows = [[column[int(number)] for column in blob_of[split]] for split, number in map(_cut, ids)]
    features, labels = (np.array(column) for column in zip(*rows, strict=True))
    epochs = metrics_of(run)["dense"]["epochs"]
    return DenseHead(epochs=epochs, learning_rate=0.02, seed=4).fit(features, labels)


def _cut(row_id: str) -> list[str]:
    return row_id.split("/")


def assert_same_head(run: Path, expected: DenseHead) -> None:
    X, _ = blobs(N_TEST, 2)
    np.testing.assert_allclose(
        load_run(run).model("dense").logits(X), expected.logits(X), atol=1e-5
    )


def test_train_val_fits_the_head_to_both_parts_for_the_epochs_that_patience_chose(
    cache: Path, folder: Path, to_train: Path
) -> None:
    command(cache, folder / "both", "--refit", "train+val")
    metrics, alone = metrics_of(folder / "both"), metrics_of(to_train)
    assert metrics["dense"]["epochs"] == alone["dense"]["epochs"] < 30
    assert_same_head(folder / "both", fitted_by_hand(folder / "both", ["train", "validation"]))
    same = ("validation_accuracy", "validation_log_loss", "selected", "comparison")
    assert {name: metrics[name] for name in same} == {name: alone[name] for name in same}
    assert metrics["dense"]["fitted_to"] == "train+validation"
    assert metrics["test_accuracy"] == load_run(folder / "both").model("dense").score(*blobs(60, 1))
    both = "dense logistic_regression"
    told = {(row["part"], row["learned_by"]) for row in split_of(folder / "both")}
    assert told == {("train", both), ("validation", both), ("test", "")}


def test_by_default_validation_rows_teach_the_logistic_regression_alone(to_train: Path) -> None:
    assert metrics_of(to_train)["refit"] == "train"
    told = {(row["part"], row["learned_by"]) for row in split_of(to_train)}
    assert told == {("train", "dense logistic_regression"), ("validation", "logistic_regression")}


def test_all_fits_both_models_to_the_test_rows_too(to_all: tuple[Path, Result]) -> None:
    run, _ = to_all
    assert_same_head(run, fitted_by_hand(run, ["train", "validation", "refit"]))
    every_row = np.concatenate([blobs(N_TRAIN, 0)[0], blobs(N_TEST, 1)[0]])
    with np.load(run / "logistic_regression.npz") as saved:
        np.testing.assert_allclose(saved["mean"], every_row.mean(axis=0), atol=1e-5)
    assert {metrics_of(run)[name]["fitted_to"] for name in ("dense", "logistic_regression")} == {
        "train+validation+test"
    }


def test_a_model_that_learned_from_the_test_has_no_score_on_it(
    to_all: tuple[Path, Result], folder: Path
) -> None:
    run, result = to_all
    metrics = metrics_of(run)
    assert metrics["refit"] == "all"
    names = ("test_accuracy", "test_accuracy_ci95", "test_split", "test_scorings")
    assert [metrics[name] for name in names] == [None] * 4
    assert metrics["logistic_regression"]["test_accuracy"] is None
    assert "no score on the test: the models were refitted to its rows too" in result.stdout
    assert not log_path(folder / "never_scored.h5").exists()
    assert not (run / "test_predictions.csv").exists()
    assert len(load_run(run).part_ids("refit")) == N_TEST
    assert load_run(run).part_ids("test") == ()


def test_nothing_is_chosen_by_the_test_rows_that_are_learned_from(
    to_all: tuple[Path, Result], to_train: Path
) -> None:
    run, alone = metrics_of(to_all[0]), metrics_of(to_train)
    same = ("validation_accuracy", "selected", "comparison")
    assert {name: run[name] for name in same} == {name: alone[name] for name in same}
    for model in ("dense", "logistic_regression"):
        assert run[model]["temperature"] == alone[model]["temperature"]
    assert run["logistic_regression"]["path"] == alone["logistic_regression"]["path"]
    assert (to_all[0] / "history.csv").read_text() == (to_train / "history.csv").read_text()


def test_a_test_that_was_learned_from_cannot_be_opened(cache: Path, folder: Path) -> None:
    with FeatureCache.open(cache) as features:
        test = SealedTest(features, "test")
        part = test.learn()
        np.testing.assert_array_equal(part.labels, blobs(N_TEST, 1)[1])
        with pytest.raises(RuntimeError, match="open already"):
            test.open(("dense",), folder)


def test_folds_with_patience_choose_the_epochs_and_the_winner(cache: Path, folder: Path) -> None:
    words = ["--folds", "3", "--repeats", "2", "--refit", "train+val", "--no-test"]
    result = command(cache, folder / "folds", *words)
    metrics = metrics_of(folder / "folds")
    folds = metrics["folds"]
    assert metrics["dense"]["epochs"] == folds["epochs"] < 30
    assert_same_head(folder / "folds", fitted_by_hand(folder / "folds", ["train", "validation"]))
    names = ("dense", "logistic_regression")
    best = max(names, key=lambda name: folds[name]["accuracy"]["mean"])
    assert metrics["selected"] == best
    with (folder / "folds" / "folds.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    for name in names:
        values = [float(row["accuracy"]) for row in rows if row["model"] == name]
        assert folds[name]["accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert metrics[name]["temperature_from"] == "out-of-fold"
        assert f"{np.mean(values):.4f}" in result.stdout
    assert "3 folds of 200 rows, 2 times" in result.stdout


def test_the_temperature_is_of_validation_rows_without_folds(to_train: Path) -> None:
    figures = metrics_of(to_train)["dense"]
    assert figures["temperature_from"] == "validation"
    ids = load_run(to_train).part_ids("validation")
    X, y = (column[[int(_cut(one)[1]) for one in ids]] for column in blobs(N_TRAIN, 0))
    logits = load_run(to_train).model("dense").logits(X).astype(float)

    def loss(temperature: float) -> float:
        shifted = logits / temperature
        losses = np.log(np.exp(shifted).sum(axis=1, keepdims=True)) - shifted
        # Labels of n rows are smoothed by one more, of the classes in equal parts.
        return float((losses[np.arange(len(y)), y].sum() + losses.mean()) / (len(y) + 1))

    best = figures["temperature"]
    assert loss(best) < min(loss(best * 0.99), loss(best * 1.01))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--refit", "all", "--no-test"], "--refit all learns from the test rows"),
        (["--repeats", "3"], "repeats is 3 without folds"),
        (["--folds", "99", "--no-test"], "99 folds, and no class has more than"),
    ],
)
def test_options_at_odds_are_refused(
    cache: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    result = command(cache, tmp_path / "run", *words)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_all_without_a_test_split_is_refused(tmp_path: Path) -> None:
    cache = cache_tools.write_cache(tmp_path / "c.h5", {"train": blobs(90, 0)})
    result = command(cache, tmp_path / "run", "--refit", "all")
    assert result.exit_code == 2
    assert "no test split for --refit all" in result.stderr
