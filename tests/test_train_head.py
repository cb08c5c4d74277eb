"""The command train-head: what a run holds, what it is honest about, and what it refuses."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner, Result
from scipy.stats import binomtest

from classify.results.runs import load_run
from classify.selection.test_log import log_path
from classify.train_head.cli import train_head
from data_cache.console import import_keras
from data_cache.errors import TrainingError
from data_cache.seal import check_seal

MakeCache = Callable[..., Path]
CLASSES = ("ant, red", "bée", "cat\n$x$")
FILES = {
    "head.keras",
    "logistic_regression.npz",
    "history.csv",
    "split.csv",
    "test_predictions.csv",
    "metrics.json",
    "learning_curves.png",
    "confusion_matrix.png",
    "report.html",
}
N_FEATURES, N_TRAIN, N_TEST = 16, 200, 90


def blobs(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n_rows)
    centers = np.random.default_rng(42).normal(size=(3, N_FEATURES))
    return (centers[y] + rng.normal(scale=1.3, size=(n_rows, N_FEATURES))).astype(np.float32), y


def write_blobs(path: Path, **changes: Any) -> Path:
    splits = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)} | changes.pop("splits", {})
    present = {name: pair for name, pair in splits.items() if pair is not None}
    return cache_tools.write_cache(path, present, **{"classes": CLASSES} | changes)


def command(cache: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(train_head, [str(cache), "--output", str(output), *more])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("train_head")


@pytest.fixture(scope="module")
def cache(folder: Path) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        provenance = replace(cache_tools.PROVENANCE, backbone_parameters=2_257_984)
        patch.setattr(cache_tools, "PROVENANCE", provenance)
        yield write_blobs(folder / "blobs.h5")


@pytest.fixture(scope="module")
def trained(cache: Path, folder: Path) -> tuple[Path, Result]:
    """The first run on the cache, of 3 epochs; how it ended."""
    result = command(cache, folder / "first", "--epochs", "3", "--seed", "4")
    assert result.exit_code == 0, result.output
    return folder / "first", result


@pytest.fixture(scope="module")
def run(trained: tuple[Path, Result]) -> Path:
    return trained[0]


def test_a_run_holds_these_files_and_no_others(run: Path) -> None:
    assert {one.name for one in run.iterdir()} == FILES


def test_nothing_unfinished_is_left_beside_a_run(run: Path) -> None:
    assert not [one for one in run.parent.iterdir() if ".tmp-" in one.name]


def test_the_predictions_on_the_test_are_those_of_each_model(run: Path, cache: Path) -> None:
    features, labels = blobs(N_TEST, 1)
    loaded = load_run(run)
    for name in ("dense", "logistic_regression"):
        rows = loaded.test_predictions(name)
        assert rows is not None
        assert rows.ids == tuple(f"test/{row:06d}" for row in range(N_TEST))
        assert rows.classes == tuple(CLASSES[label] for label in labels)
        predicted = loaded.model(name).predict(features)
        assert rows.predictions == tuple(CLASSES[label] for label in predicted)
    assert loaded.test_predictions() == loaded.test_predictions(loaded.selected)


def test_metrics_count_rows_classes_and_parameters(run: Path) -> None:
    metrics = read_metrics(run)
    expected = {
        "n_train": 160,
        "n_validation": 40,
        "n_test": N_TEST,
        "n_classes": 3,
        "trainable_parameters": N_FEATURES * 3 + 3,
        "non_trainable_parameters": 2_257_984,
    }
    assert {name: metrics[name] for name in expected} == expected


def test_metrics_name_every_hyperparameter(run: Path) -> None:
    metrics = read_metrics(run)
    expected = {
        "epochs": 3,
        "batch_size": 64,
        "learning_rate": 0.001,
        "dropout": 0.2,
        "standardize": False,
        "class_weight": None,
        "seed": 4,
        "validation_split": 0.2,
        "rare_class": "keep",
        "test_split": "test",
        "no_test": False,
    }
    assert {name: metrics[name] for name in expected} == expected


def test_metrics_say_where_the_features_come_from(run: Path, cache: Path) -> None:
    metrics = read_metrics(run)
    assert metrics["cache"] == str(cache)
    assert metrics["recipe"]["backbone"] == cache_tools.RECIPE.backbone
    assert metrics["provenance"]["source"] == cache_tools.PROVENANCE.source
    assert metrics["classes"] == list(CLASSES)
    assert metrics["seconds"] >= sum(metrics["seconds_by_part"].values()) - 0.1
    assert {"tensorflow", "keras", "numpy", "scikit-learn"} <= metrics["versions"].keys()


def test_the_dense_heads_figures_are_those_of_the_saved_model(run: Path) -> None:
    metrics = read_metrics(run)
    X, y = blobs(N_TEST, 1)
    model = import_keras().saving.load_model(run / "head.keras")
    n_right = int((np.argmax(model.predict(X, verbose=0), axis=1) == y).sum())
    assert metrics["test_accuracy"] == metrics["dense"]["test_accuracy"] == n_right / N_TEST
    interval = binomtest(n_right, N_TEST).proportion_ci(0.95, method="wilson")
    assert metrics["test_accuracy_ci95"] == pytest.approx(list(interval))


def test_the_logistic_regressions_figures_are_those_of_the_saved_arrays(run: Path) -> None:
    metrics = read_metrics(run)["logistic_regression"]
    X, y = blobs(N_TEST, 1)
    with np.load(run / "logistic_regression.npz", allow_pickle=False) as saved:
        logits = (X - saved["mean"]) / saved["scale"] @ saved["coef"].T + saved["intercept"]
        predictions = saved["classes"][logits.argmax(axis=1)]
        np.testing.assert_allclose(saved["mean"], blobs(N_TRAIN, 0)[0].mean(axis=0), atol=1e-5)
    assert metrics["test_accuracy"] == (predictions == y).mean()
    assert metrics["C"] in [point["C"] for point in metrics["path"]]
    assert metrics["fitted_to"] == "train+validation"


def test_validation_figures_are_those_of_models_that_never_saw_the_rows(run: Path) -> None:
    metrics = read_metrics(run)
    rows = [int(one.split("/")[1]) for one in load_run(run).part_ids("validation")]
    X, y = (column[rows] for column in blobs(N_TRAIN, 0))
    dense = load_run(run).model("dense")
    assert metrics["validation_accuracy"] == dense.score(X, y)
    history = read_csv(run / "history.csv")
    assert float(history[-1]["val_accuracy"]) == metrics["validation_accuracy"]


def test_the_winner_on_validation_is_selected(run: Path) -> None:
    metrics = read_metrics(run)
    names = ("dense", "logistic_regression")
    assert metrics[metrics["selected"]]["validation_accuracy"] == max(
        metrics[name]["validation_accuracy"] for name in names
    )


def test_history_has_a_row_for_each_epoch(run: Path) -> None:
    rows = read_csv(run / "history.csv")
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[0].keys() == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy"}


def test_split_lists_who_was_where(run: Path) -> None:
    rows = read_csv(run / "split.csv")
    parts = {one: [row["id"] for row in rows if row["part"] == one] for one in ("train", "test")}
    assert len(parts["train"]) == 160
    assert parts["test"] == [f"test/{row:06d}" for row in range(N_TEST)]
    learnt = {row["id"] for row in rows if row["part"] in {"train", "validation"}}
    assert learnt == {f"train/{row:06d}" for row in range(N_TRAIN)}


def test_the_table_is_the_commands_only_standard_output(trained: tuple[Path, Result]) -> None:
    path, result = trained
    metrics = read_metrics(path)
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["model", "fitted", "to", "validation", "test", "95%", "interval"]
    assert lines[1].split()[:4] == [
        "dense",
        "train",
        f"{metrics['validation_accuracy']:.4f}",
        f"{metrics['test_accuracy']:.4f}",
    ]
    selected = [line.split()[0] for line in lines if line.endswith("  selected")]
    assert selected == [metrics["selected"]]
    assert lines[-2] == "These are the 1st and 2nd models scored on this test (90 rows)."
    assert lines[-1] == f"Wrote {path}"


def test_the_command_is_quiet_but_for_what_it_says(cache: Path, tmp_path: Path) -> None:
    script = "from classify.train_head.cli import train_head; train_head()"
    words = [sys.executable, "-c", script, str(cache), "--output", str(tmp_path / "run")]
    done = subprocess.run([*words, "--no-test"], check=False, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "160 rows to train on, 40 to validate on (drawn from them)\n"
    assert "The test was left alone." in done.stdout


def test_poisoned_test_labels_change_nothing_but_the_final_figures(tmp_path: Path) -> None:
    X, y = blobs(N_TEST, 1)
    runs = []
    for name, labels in {"honest": y, "poisoned": (y + 1) % 3}.items():
        path = write_blobs(tmp_path / f"{name}.h5", splits={"test": (X, labels)})
        assert command(path, tmp_path / name, "--epochs", "2").exit_code == 0
        runs.append(tmp_path / name)
    models = [load_run(one).model("dense").model_ for one in runs]
    for honest, poisoned in zip(models[0].weights, models[1].weights, strict=True):
        np.testing.assert_array_equal(honest, poisoned)
    for name in ("logistic_regression.npz", "history.csv", "split.csv", "learning_curves.png"):
        honest, poisoned = ((one / name).read_bytes() for one in runs)
        assert honest == poisoned
    metrics = [strip_test(read_metrics(one)) for one in runs]
    assert metrics[0] == metrics[1]
    assert read_metrics(runs[0])["test_accuracy"] != read_metrics(runs[1])["test_accuracy"]


def strip_test(metrics: dict[str, Any]) -> dict[str, Any]:
    """Drop the final figures, and what differs between any two runs."""
    figures = {"test_accuracy", "test_accuracy_ci95"}
    other = {"seconds", "seconds_by_part", "created", "cache", "provenance"}
    kept = {name: value for name, value in metrics.items() if name not in figures | other}
    for model in ("dense", "logistic_regression"):
        kept[model] = {name: one for name, one in metrics[model].items() if name not in figures}
    return kept


def test_without_a_look_at_the_test_there_is_no_figure_and_no_count(
    cache: Path, trained: tuple[Path, Result], tmp_path: Path
) -> None:
    counted = log_path(cache).read_bytes()
    assert command(cache, tmp_path / "run", "--no-test", "--epochs", "1").exit_code == 0
    metrics = read_metrics(tmp_path / "run")
    assert metrics["test_accuracy"] is metrics["test_accuracy_ci95"] is None
    assert metrics["logistic_regression"]["test_accuracy"] is None
    assert (metrics["n_test"], metrics["test_split"]) == (0, None)
    assert log_path(cache).read_bytes() == counted


def test_every_model_scored_is_counted(tmp_path: Path) -> None:
    path = write_blobs(tmp_path / "c.h5")
    for number in range(2):
        result = command(path, tmp_path / f"run{number}", "--epochs", "1")
    assert "These are the 3rd and 4th models scored on this test" in result.stdout
    assert read_metrics(tmp_path / "run1")["test_scorings"] == {"first": 3, "last": 4}


def test_without_a_test_split_there_is_no_test_figure(tmp_path: Path) -> None:
    path = write_blobs(tmp_path / "c.h5", splits={"test": None})
    result = command(path, tmp_path / "run", "--epochs", "1")
    assert read_metrics(tmp_path / "run")["test_accuracy"] is None
    assert "There is no test split." in result.stdout


def test_a_difference_beyond_noise_is_said_with_its_likely_cause(
    cache: Path, tmp_path: Path
) -> None:
    result = command(cache, tmp_path / "run", "--epochs", "1", "--learning-rate", "1e-7")
    assert "the Dense head trails by" in result.stdout
    cause = "stopped short of convergence, after a single epoch, on features that are not"
    assert cause in result.stdout
    assert cause in read_metrics(tmp_path / "run")["comparison"]["likely_cause"]


def test_options_reach_the_models(cache: Path, tmp_path: Path) -> None:
    options = ["--standardize", "--class-weight", "balanced", "--dropout", "0", "--epochs", "1"]
    assert command(cache, tmp_path / "run", *options, "--batch-size", "7").exit_code == 0
    model = load_run(tmp_path / "run").model("dense").model_
    assert [layer.__class__.__name__ for layer in model.layers] == [
        "Normalization",
        "Dropout",
        "Dense",
    ]
    assert model.layers[1].rate == 0


def test_a_val_split_of_the_cache_validates_and_groups_stay_whole(tmp_path: Path) -> None:
    groups = np.arange(N_TRAIN) // 4
    grouped = write_blobs(tmp_path / "grouped.h5", groups={"train": groups.astype("S")})
    assert command(grouped, tmp_path / "grouped", "--epochs", "1").exit_code == 0
    parts = [
        {int(one.split("/")[1]) // 4 for one in load_run(tmp_path / "grouped").part_ids(part)}
        for part in ("train", "validation")
    ]
    assert parts[1]
    assert not parts[0] & parts[1]


def test_a_run_read_back_predicts_as_it_did(run: Path) -> None:
    X, y = blobs(N_TEST, 1)
    loaded = load_run(run)
    assert loaded.classes == CLASSES
    assert loaded.recipe == cache_tools.RECIPE
    for name in ("dense", "logistic_regression"):
        assert loaded.model(name).score(X, y) == loaded.metrics[name]["test_accuracy"]
    np.testing.assert_array_equal(
        loaded.model().predict(X), loaded.model(loaded.selected).predict(X)
    )


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        ({"train": None}, [], "has no split 'train' to learn from"),
        ({}, ["--test-split", "tset"], "has no test split 'tset'; it could be: test"),
        ({}, ["--learning-rate", "nan"], "learning_rate is nan: expected above 0"),
        ({}, ["--validation-split", "nan"], "validation_split is nan: expected a share"),
        ({"train": (blobs(9, 0)[0], np.ones(9, int))}, [], "have 1 class ('bée')"),
        ({"test": (np.empty((0, N_FEATURES)), [])}, [], "has no rows"),
        ({"train": blobs(4, 0)}, ["--rare-class", "error"], "too few rows"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, splits: dict[str, Any], options: list[str], message: str
) -> None:
    path = write_blobs(tmp_path / "c.h5", splits=splits)
    assert_refused(command(path, tmp_path / "run", *options), message)
    assert not (tmp_path / "run").exists()
    assert not log_path(path).exists()


def test_a_cache_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.h5").write_bytes(b"not HDF5")
    assert_refused(command(tmp_path / "c.h5", tmp_path / "run"), "c.h5")
    assert_refused(command(tmp_path / "missing.h5", tmp_path / "run"), "missing.h5")


def assert_refused(result: Result, message: str) -> None:
    """See that the command ended with 2 and one line that says why."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert message in error
    assert "Traceback" not in result.stderr


def test_a_run_is_not_overwritten_unless_asked(cache: Path, run: Path) -> None:
    before = {one.name: one.read_bytes() for one in run.iterdir()}
    assert_refused(command(cache, run), "exists already: choose another --output")
    assert {one.name: one.read_bytes() for one in run.iterdir()} == before


def test_a_run_is_replaced_whole_when_asked(cache: Path, tmp_path: Path) -> None:
    options = ["--epochs", "1", "--no-test", "--overwrite"]
    assert command(cache, tmp_path / "run", *options).exit_code == 0
    (tmp_path / "run" / "sweep.csv").touch()
    assert command(cache, tmp_path / "run", *options, "--seed", "9").exit_code == 0
    assert {one.name for one in (tmp_path / "run").iterdir()} == FILES - {"test_predictions.csv"}
    assert read_metrics(tmp_path / "run")["seed"] == 9


@pytest.mark.parametrize("content", [None, "{}", '{"format": "another"}'])
def test_overwrite_never_replaces_what_is_no_run(
    cache: Path, tmp_path: Path, content: str | None
) -> None:
    precious = tmp_path / "folder" / "precious.txt"
    precious.parent.mkdir()
    precious.touch()
    if content is not None:
        (precious.parent / "metrics.json").write_text(content)
    result = command(cache, precious.parent, "--overwrite")
    assert_refused(result, "--overwrite replaces runs only")
    assert precious.exists()


def test_verify_compares_the_digest_though_the_cache_is_known(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Path] = []

    def watched(path: Path) -> Any:
        compared.append(path)
        return check_seal(path)

    monkeypatch.setattr("data_cache.checking.check_seal", watched)
    monkeypatch.setattr("data_cache.stat_index.StatIndex.lookup", lambda *_: bytes(32))
    assert command(cache, tmp_path / "a", "--epochs", "1", "--no-test").exit_code == 0
    assert compared == []
    words = ["--epochs", "1", "--no-test", "--verify"]
    assert command(cache, tmp_path / "b", *words).exit_code == 0
    assert compared == [cache]


def test_an_output_that_cannot_be_created_is_refused_before_training(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_file").touch()
    monkeypatch.setattr(
        "classify.train_head.job.fit_models", lambda *_: pytest.fail("it was trained")
    )
    assert_refused(command(cache, tmp_path / "a_file" / "run"), "cannot be written")


def test_overwrite_never_takes_a_strangers_file_with_the_run(cache: Path, tmp_path: Path) -> None:
    assert command(cache, tmp_path / "run", "--epochs", "1", "--no-test").exit_code == 0
    (tmp_path / "run" / "notes.txt").write_text("precious")
    result = command(cache, tmp_path / "run", "--overwrite")
    assert_refused(result, "holds notes.txt too")
    assert (tmp_path / "run" / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize("failure", [KeyboardInterrupt, TrainingError("the loss became nan")])
def test_a_run_that_fails_leaves_the_old_one_and_nothing_else(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Any
) -> None:
    assert command(cache, tmp_path / "run", "--epochs", "1", "--no-test").exit_code == 0
    before = {one.name: one.read_bytes() for one in (tmp_path / "run").iterdir()}

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr("classify.results.training.draw_confusion_matrix", fail)
    result = command(cache, tmp_path / "run", "--epochs", "1", "--no-test", "--overwrite")
    assert result.exit_code == 1
    assert {one.name: one.read_bytes() for one in (tmp_path / "run").iterdir()} == before
    assert [one.name for one in tmp_path.iterdir()] == ["run"]
