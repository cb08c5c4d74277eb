"""The command sweep-heads: how it chooses, what it leaves behind, and what it never looks at."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
import sklearn.metrics
from click.testing import CliRunner, Result

from classify.heads.spec import HeadSpec
from classify.results.runs import load_run
from classify.selection.division import divide
from classify.sweep_heads.cli import sweep_heads as command
from classify.sweep_heads.job import (
    HeadScore,
    SweepOptions,
    Trial,
    describe,
    measure,
    rank,
    sweep_heads,
)
from classify.sweep_heads.search import SearchSpace
from classify.train_head.job import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.errors import ParameterError, TrainingError

N_FEATURES, N_TRAIN, N_TEST = 16, 200, 90
SPACE = SearchSpace(
    learning_rate=(3e-3, 1e-2, 3e-2),
    dropout=(0.0, 0.3),
    weight_decay=(0.0, 0.1),
    label_smoothing=(0.1,),
    epochs=(2, 6),
    batch_size=(32,),
    standardize=(False, True),
    hidden_units=(0, 8),
    patience=(None, 2),
)
OPTIONS = SweepOptions(space=SPACE, n_trials=12, n_seeds=2, select_by="macro_f1", seed=4)


def blobs(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n_rows, p=[0.6, 0.3, 0.1])
    centers = np.random.default_rng(42).normal(size=(3, N_FEATURES))
    return (centers[y] + rng.normal(scale=1.3, size=(n_rows, N_FEATURES))).astype(np.float32), y


def write_blobs(path: Path, **splits: Any) -> Path:
    return cache_tools.write_cache(
        path, {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)} | splits
    )


def read_table(run: Path) -> list[dict[str, str]]:
    with (run / "sweep.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    return write_blobs(folder / "blobs.h5")


@pytest.fixture(scope="module")
def run(cache: Path, folder: Path) -> Path:
    return sweep_heads(cache, folder / "swept", OPTIONS).path


def test_the_table_has_a_row_for_each_head(run: Path) -> None:
    rows = read_table(run)
    assert len(rows) == 24
    assert {row["seed"] for row in rows} == {"4", "5"}
    assert [int(row["rank"]) for row in rows] == sorted([*range(1, 13)] * 2)
    specs = OPTIONS.specs()
    for row in rows:
        spec = specs[int(row["trial"]) - 1]
        assert float(row["learning_rate"]) == spec.learning_rate
        assert row["hidden_units"] == str(spec.hidden_units)
        assert int(row["n_epochs"]) <= spec.epochs


def test_the_best_on_the_mean_over_seeds_is_first(run: Path) -> None:
    rows = read_table(run)
    means = [
        np.mean([float(row["macro_f1"]) for row in rows if row["rank"] == str(place)])
        for place in range(1, 13)
    ]
    assert means == sorted(means, reverse=True)
    assert len(set(means)) > 6


def test_the_winner_is_trained_as_train_head_does(run: Path, cache: Path, folder: Path) -> None:
    metrics = read_metrics(run)
    best = OPTIONS.specs()[metrics["sweep"]["trial"] - 1]
    alone = train_head(cache, folder / "alone", OPTIONS.winner(best))
    test_rows, _ = blobs(N_TEST, 1)
    np.testing.assert_array_equal(
        load_run(run).model("dense").logits(test_rows), alone.model("dense").logits(test_rows)
    )
    same = ("learning_rate", "dropout", "epochs", "hidden_units", "seed", "test_accuracy", "dense")
    assert {name: metrics[name] for name in same} == {name: alone.metrics[name] for name in same}
    files = {one.name for one in alone.path.iterdir()}
    assert {one.name for one in run.iterdir()} == files | {"sweep.csv"}


def test_the_table_says_of_the_winner_what_scikit_learn_says_of_its_model(
    run: Path, cache: Path
) -> None:
    with FeatureCache.open(cache) as features:
        validation = divide(features, fraction=0.2, seed=4).validation
    model = load_run(run).model("dense")
    predictions = model.predict(validation.features)
    row = next(row for row in read_table(run) if row["seed"] == "4")
    expected = {
        "accuracy": sklearn.metrics.accuracy_score(validation.labels, predictions),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(
            validation.labels, predictions
        ),
        "macro_f1": sklearn.metrics.f1_score(validation.labels, predictions, average="macro"),
        "log_loss": sklearn.metrics.log_loss(
            validation.labels, model.predict_proba(validation.features)
        ),
    }
    assert {name: float(row[name]) for name in expected} == pytest.approx(expected, rel=1e-4)


def test_metrics_say_what_was_tried(run: Path) -> None:
    sweep = read_metrics(run)["sweep"]
    assert (sweep["n_trials"], sweep["n_heads"], sweep["n_diverged"]) == (12, 24, 0)
    assert (sweep["select_by"], sweep["seeds"]) == ("macro_f1", [4, 5])
    rows = [row for row in read_table(run) if row["rank"] == "1"]
    mean = np.mean([float(row["log_loss"]) for row in rows])
    assert sweep["mean_over_seeds"]["log_loss"] == pytest.approx(mean)


def test_the_test_is_scored_for_the_winner_alone(run: Path) -> None:
    assert read_metrics(run)["test_scorings"] == {"first": 1, "last": 2}


def test_poisoned_test_labels_change_nothing_but_the_final_figures(run: Path, folder: Path) -> None:
    rows, labels = blobs(N_TEST, 1)
    poisoned = write_blobs(folder / "poisoned.h5", test=(rows, (labels + 1) % 3))
    other = sweep_heads(poisoned, folder / "poisoned", OPTIONS).path
    assert (other / "sweep.csv").read_bytes() == (run / "sweep.csv").read_bytes()
    found, clean = read_metrics(other), read_metrics(run)
    assert found["sweep"] == clean["sweep"]
    assert found["test_accuracy"] < clean["test_accuracy"]


def trial(number: int, *scores: HeadScore) -> Trial:
    return Trial(number, HeadSpec(), dict(enumerate(scores)))


def score(accuracy: float, log_loss: float, balanced: float = 0.5, f1: float = 0.5) -> HeadScore:
    return HeadScore(accuracy, log_loss, balanced, f1, n_epochs=1)


@pytest.mark.parametrize(
    ("select_by", "expected"),
    [("accuracy", 1), ("log_loss", 2), ("balanced_accuracy", 3), ("macro_f1", 4)],
)
def test_the_figure_asked_for_chooses(select_by: Any, expected: int) -> None:
    trials = [
        trial(1, score(0.9, 0.5, 0.5, 0.5)),
        trial(2, score(0.8, 0.1, 0.5, 0.5)),
        trial(3, score(0.8, 0.5, 0.7, 0.5)),
        trial(4, score(0.8, 0.5, 0.5, 0.7)),
    ]
    assert rank(trials, select_by)[0].number == expected


def test_the_mean_over_seeds_decides_and_of_equals_the_log_loss_and_then_the_first() -> None:
    trials = [
        trial(1, score(0.99, 0.1), score(0.5, 0.1)),
        trial(2, score(0.8, 0.3), score(0.8, 0.3)),
        trial(3, score(0.8, 0.2), score(0.8, 0.3)),
        trial(4, score(0.8, 0.2), score(0.8, 0.3)),
    ]
    assert [one.number for one in rank(trials, "accuracy")] == [3, 4, 2, 1]


@pytest.mark.parametrize("select_by", ["accuracy", "log_loss"])
def test_a_configuration_that_diverged_with_any_seed_comes_last(select_by: Any) -> None:
    trials = [
        trial(1, score(nan, nan), score(0.9, 0.1)),
        trial(2, score(0.1, 9.0), score(0.1, 9.0)),
    ]
    assert [one.number for one in rank(trials, select_by)] == [2, 1]


def test_a_sweep_in_which_all_diverged_fails(cache: Path, folder: Path) -> None:
    wild = SearchSpace(learning_rate=(1e38,), dropout=(0.0,), hidden_units=(4,), epochs=(1,))
    with pytest.raises(TrainingError, match="all 16 configurations diverged"):
        sweep_heads(cache, folder / "wild", SweepOptions(space=wild, n_trials=None))
    assert not (folder / "wild").exists()


def test_logits_that_are_not_finite_have_no_figures() -> None:
    logits = np.zeros((4, 3))
    logits[2, 1] = np.inf
    found = measure(np.array([0, 1, 2, 0]), logits, n_epochs=7)
    assert np.isnan([found.accuracy, found.log_loss, found.balanced_accuracy, found.macro_f1]).all()
    assert found.n_epochs == 7


def test_a_winner_is_described_by_the_options_that_train_it() -> None:
    spec = HeadSpec(learning_rate=0.004, standardize=True, class_weight="balanced")
    expected = "--learning-rate 0.004 --standardize --class-weight balanced"
    assert describe(Trial(1, spec, {})) == expected
    assert describe(Trial(1, HeadSpec(), {})) == "the defaults"


def test_the_winner_keeps_what_was_said_of_the_rows() -> None:
    options = SweepOptions(seed=3, validation_split=0.3, rare_class="drop", no_test=True)
    assert options.winner(HeadSpec(epochs=9)) == TrainingOptions(
        epochs=9, seed=3, validation_split=0.3, rare_class="drop", no_test=True
    )


@pytest.mark.parametrize("wrong", [{"n_trials": 0}, {"n_seeds": 0}, {"select_by": "luck"}])
def test_a_value_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match=f"^{next(iter(wrong))} is"):
        SweepOptions(**wrong)


def invoke(cache: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(command, [str(cache), "--output", str(output), *more])


def test_the_command_sweeps_a_grid_and_tells_of_the_winner(cache: Path, folder: Path) -> None:
    grid = ("--grid", "--learning-rate", "1e-3,1e-2", "--dropout", "0", "--weight-decay", "0")
    more = ("--label-smoothing", "0", "--epochs", "1,4", "--standardize", "yes", "--no-test")
    result = invoke(cache, folder / "grid", *grid, *more)
    assert result.exit_code == 0, result.output
    assert len(read_table(folder / "grid")) == 4
    assert "Best of 4 on validation, so its figures there are optimistic: --" in result.stderr
    assert "The test was left alone." in result.stdout
    assert f"Wrote {folder / 'grid'}" in result.stdout


def test_the_defaults_that_help_shows_are_those_of_the_search_space() -> None:
    helps = {one.name: one.help for one in command.params if hasattr(one, "help")}
    shown = {
        name: helps[name].partition("[default: ")[2].rstrip("]") for name in SearchSpace.names()
    }
    assert SearchSpace.from_text(**shown) == SearchSpace()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid",), "Error: learning_rate is the range 0.0001:0.01: a grid expects values"),
        (("--dropout", "lots"), "Error: dropout is 'lots': expected numbers such as 0,0.2"),
        (("--learning-rate", "-1"), "Error: learning_rate is -1.0: expected above 0"),
        (("--test-split", "exam"), "has no test split 'exam'; it could be: test"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    cache: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = invoke(cache, tmp_path / "run", *options)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_exists_is_kept(cache: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("trained before looking")

    monkeypatch.setattr("classify.sweep_heads.job.run_trials", refuse)
    before = (run / "metrics.json").read_bytes()
    result = invoke(cache, run)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert (run / "metrics.json").read_bytes() == before


def test_sweep_on_a_cluster_is_the_sweep_of_one_process(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    cache = write_blobs(tmp_path / "cache.h5")
    options = replace(OPTIONS, n_trials=6)
    sweep_heads(cache, tmp_path / "here", options)
    sweep_heads(cache, tmp_path / "there", replace(options, cluster="local:1"))
    here, there = (read_table(tmp_path / name) for name in ("here", "there"))
    assert [row["trial"] for row in there] == [row["trial"] for row in here]
    for name in ("accuracy", "log_loss", "macro_f1", "n_epochs"):
        values = [[float(row[name]) for row in rows] for rows in (there, here)]
        np.testing.assert_allclose(*values, atol=1e-5)


def test_sweep_on_what_is_no_cluster_is_refused() -> None:
    with pytest.raises(ParameterError, match="local:N"):
        SweepOptions(cluster="host")
