"""The command compare-probes: what it reports, what it refuses, and what it never looks at."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
import sklearn.metrics
from cache_tools import RECIPE
from click.testing import CliRunner, Result
from export_tools import Exports, tiny_in_the_registry
from probe_data import blobs
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from scipy.stats import binomtest
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

import classify
from classify.compare_probes import figures
from classify.compare_probes.candidates import draws_anything
from classify.compare_probes.cli import compare_probes as command
from classify.compare_probes.differences import (
    design_effect,
    differences_from,
    find_baseline,
    summarize_differences,
)
from classify.compare_probes.job import compare_probes
from classify.compare_probes.options import CompareOptions
from classify.compare_probes.shared_rows import short_names
from classify.compare_probes.tables import notes
from classify.export.exporting import ExportOptions, export_model
from classify.predict.classifiers import PredictOptions
from classify.predict.run import load_model
from classify.probes import PROBES, KernelRidgeProbe, RidgeProbe, TriedPoint, TunedProbe
from classify.results.runs import RUN_FILES, load_run
from classify.statistics.paired_tests import cluster_permutation_p, detectable_difference
from data_cache.cache import FeatureCache
from data_cache.errors import HeadstartError, ParameterError, RunError
from data_cache.recipe import Recipe

N_TRAIN, N_TEST = 150, 90
CLOSED_FORM = ("ridge", "nearest_mean", "logistic_regression")
OPTIONS = CompareOptions(probes=CLOSED_FORM)
SMALLER = Recipe(**{**RECIPE.__dict__, "image_size": 160})


def narrow(rows: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The same images as a poorer backbone has them: the second half of the features."""
    return np.ascontiguousarray(rows[0][:, 6:]), rows[1]


def write_wide(path: Path, **changes: Any) -> Path:
    return cache_tools.write_cache(
        path, {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}, **changes
    )


def write_narrow(path: Path, **changes: Any) -> Path:
    splits = {"train": narrow(blobs(N_TRAIN, 0)), "test": narrow(blobs(N_TEST, 1))}
    return cache_tools.write_cache(path, splits, recipe=SMALLER, **changes)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def read_metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def scored(cache: Path) -> list[str]:
    lines = cache.with_name(f"{cache.name}.scorings.jsonl").read_text().splitlines()
    return [name for line in lines for name in json.loads(line)["models"]]


def run_command(*words: Path | str) -> Result:
    return CliRunner().invoke(command, [str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare_probes")


@pytest.fixture(scope="module")
def caches(folder: Path) -> tuple[Path, Path]:
    return write_narrow(folder / "narrow.h5"), write_wide(folder / "wide.h5")


@pytest.fixture(scope="module")
def run(caches: tuple[Path, Path], folder: Path) -> Path:
    return compare_probes(caches, folder / "run", OPTIONS).path


def logits_of(run: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The winner's logits on the test, by its saved model; the labels; its figures."""
    opened = load_run(run)
    features, labels = blobs(N_TEST, 1)
    if opened.recipe.image_size == SMALLER.image_size:
        features, labels = narrow((features, labels))
    return opened.model().logits(features), labels, opened.metrics[opened.selected]


def test_every_probe_of_every_cache_has_its_figures(run: Path) -> None:
    names = [f"{cache}:{probe}" for cache in ("narrow", "wide") for probe in CLOSED_FORM]
    metrics = read_metrics(run)
    assert metrics["kind"] == "comparison"
    assert metrics["models"] == names
    rows = read_csv(run / "comparison.csv")
    assert [row["model"] for row in rows] == names
    assert [row["image_size"] for row in rows] == ["160"] * 3 + ["96"] * 3
    for row in rows:
        assert float(row["test_accuracy"]) == metrics[row["model"]]["test_accuracy"]
        assert float(row["test_macro_f1_low"]) < float(row["test_macro_f1"])
    (winner,) = [row["model"] for row in rows if row["selected"] == "1"]
    assert winner == metrics["selected"] == load_run(run).selected


def test_the_winner_is_the_best_on_rows_held_out(run: Path) -> None:
    metrics = read_metrics(run)

    def merit(name: str) -> tuple[float, float]:
        return metrics[name]["held_out_accuracy"], -metrics[name]["held_out_log_loss"]

    assert len({merit(name) for name in metrics["models"]}) > 3
    assert metrics["selected"] == max(metrics["models"], key=merit)
    by_loss = CompareOptions(probes=CLOSED_FORM, select_by="log_loss")
    cache = run.parent / "wide.h5"
    other = compare_probes([cache], run.parent / "by_loss", by_loss).metrics
    losses = {name: other[name]["held_out_log_loss"] for name in other["models"]}
    assert other["selected"] == min(losses, key=lambda name: losses[name])


def test_the_figures_are_scikit_learns(run: Path) -> None:
    logits, labels, found = logits_of(run)
    predictions, one_hot = logits.argmax(axis=1), np.eye(3)[labels]
    calibrated = softmax(logits / found["temperature"], axis=1)
    raw = softmax(logits, axis=1)
    expected = {
        "test_accuracy": sklearn.metrics.accuracy_score(labels, predictions),
        "test_balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predictions),
        "test_macro_f1": sklearn.metrics.f1_score(labels, predictions, average="macro"),
        "test_log_loss": sklearn.metrics.log_loss(labels, raw),
        "test_brier": np.square(raw - one_hot).sum(axis=1).mean(),
        "test_calibrated_log_loss": sklearn.metrics.log_loss(labels, calibrated),
        "test_calibrated_brier": np.square(calibrated - one_hot).sum(axis=1).mean(),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    for name in (*expected, "test_ece", "test_calibrated_ece"):
        low, high = found[f"{name}_ci95"]
        assert 0 <= low <= found[name] <= high, name


def test_the_temperature_is_that_of_training_rows_out_of_fold(caches: Any, folder: Path) -> None:
    found = compare_probes([caches[1]], folder / "ridge", CompareOptions(probes=("ridge",)))
    features, labels = blobs(N_TRAIN, 0)
    order = np.argsort([f"train/{row:06d}" for row in range(N_TRAIN)])
    in_training = np.isin(order, [int(name[-6:]) for name in found.part_ids("train")])
    X, y = features[in_training], labels[in_training]
    chosen = found.metrics["ridge"]["hyperparameters"]
    logits = np.empty((len(y), 3))
    for train, held_out in StratifiedKFold(5, shuffle=True, random_state=0).split(X, y):
        logits[held_out] = RidgeProbe(**chosen).fit(X[train], y[train]).logits(X[held_out])
    # The logits are compared divided by what tuning found on validation rows: that cancels out.
    unscaled = RidgeProbe(**chosen).fit(*_everything(found)).logits(X)
    scale = float(np.abs(unscaled).max() / np.abs(found.model().logits(X)).max())

    def loss(temperature: float) -> float:
        losses = -log_softmax(logits / temperature, axis=1)
        # Labels of n rows are smoothed by one more, of the classes in equal parts.
        return (len(y) * losses[np.arange(len(y)), y].mean() + losses.mean()) / (len(y) + 1)

    best = minimize_scalar(loss, bounds=(1e-3, 10), method="bounded", options={"xatol": 1e-9}).x
    assert found.metrics["ridge"]["temperature"] == pytest.approx(best / scale, rel=1e-4)
    assert found.metrics["ridge"]["temperature_from"] == "out-of-fold"


def _everything(run: Any) -> tuple[np.ndarray, np.ndarray]:
    """Training rows followed by validation rows."""
    features, labels = blobs(N_TRAIN, 0)
    rows = [int(name[-6:]) for part in ("train", "validation") for name in run.part_ids(part)]
    return features[rows], labels[rows]


def test_the_winner_is_kept_fitted_to_training_and_validation_rows(
    caches: Any, folder: Path
) -> None:
    options = CompareOptions(probes=("nearest_mean",))
    found = compare_probes([caches[1]], folder / "mean", options)
    model = found.model()
    alone = clone(model).set_params(shrinkage=1.0).fit(*_everything(found))
    rows = blobs(N_TEST, 1)[0]
    np.testing.assert_array_equal(model.predict(rows), alone.predict(rows))
    np.testing.assert_allclose(model.mean_, alone.mean_)
    assert len(found.part_ids("train")) + len(found.part_ids("validation")) == N_TRAIN


def test_differences_are_paired_and_holm_corrected(run: Path) -> None:
    metrics = read_metrics(run)
    table = read_csv(run / "test_predictions.csv")
    right = {
        name: np.array([row[name] == row["class"] for row in table]) for name in metrics["models"]
    }
    first = right.pop(metrics["selected"])
    assert metrics["baseline"] == metrics["selected"]
    raw = {}
    for name, second in right.items():
        fewer, more = sorted([(second & ~first).sum(), (first & ~second).sum()])
        exact = binomtest(int(fewer), int(fewer + more)).pvalue
        # Mid-p counts what was seen by half: of two equal tails, the probability of one of them.
        seen = binomtest(int(fewer), int(fewer + more), alternative="less").pvalue
        below = binomtest(int(fewer) - 1, int(fewer + more), alternative="less").pvalue
        raw[name] = exact - (seen - (below if fewer else 0)) if fewer != more else None
    found = {one["model"]: one for one in metrics["differences"]}
    assert list(found) == list(right)
    for name, expected in raw.items():
        assert found[name]["difference"] == pytest.approx(right[name].mean() - first.mean())
        if expected is not None:
            assert found[name]["p_value"] == pytest.approx(expected)
        low, high = found[name]["ci95"]
        assert low < found[name]["difference"] < high
    ordered = sorted(found.values(), key=lambda one: one["p_value"])
    stepped = [one["p_value"] * (len(ordered) - at) for at, one in enumerate(ordered)]
    expected_holm = np.minimum(np.maximum.accumulate(stepped), 1)
    assert [one["p_value_holm"] for one in ordered] == pytest.approx(expected_holm)
    assert {one["verdict"] for one in ordered} >= {"not distinguishable", "worse"}


def test_the_smallest_difference_that_could_be_found_is_told() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 600)
    noisy = {
        name: np.where(rng.random(600) < share, labels, (labels + 1) % 4)
        for name, share in (("a", 0.7), ("b", 0.7), ("c", 0.72))
    }
    found = differences_from(labels, None, noisy, "a")
    for one in found:
        discordance = ((noisy[one.model] == labels) != (noisy["a"] == labels)).mean()
        expected = detectable_difference(600, discordance, 0.8, 0.05 / 2)
        assert one.detectable == pytest.approx(expected)
    told = summarize_differences(found, groups=False)
    assert "Holm-corrected for 2 tests. The 95% intervals are not adjusted" in told[0]
    assert "not adjusted" not in summarize_differences(found[:1], groups=False)[0]
    assert f"this test would find a difference of {found[0].detectable:.4f}" in told[1]
    # In groups of four rows that go the same way, a quarter of the rows tells as much.
    repeated = {name: np.repeat(one, 4) for name, one in noisy.items()}
    (grouped, _) = differences_from(np.repeat(labels, 4), np.arange(2400) // 4, repeated, "a")
    assert grouped.detectable == pytest.approx(found[0].detectable, rel=0.01)
    assert grouped.p_value == pytest.approx(found[0].p_value, abs=0.03)


def test_a_baseline_is_fixed_beforehand(caches: Any, folder: Path, run: Path) -> None:
    result = run_command(
        *caches,
        *("--output", folder / "based", "--probe", "ridge", "--probe", "nearest_mean"),
        *("--baseline", "narrow:nearest_mean"),
    )
    assert result.exit_code == 0, result.output
    found = read_metrics(folder / "based")["differences"]
    assert {one["baseline"] for one in found} == {"narrow:nearest_mean"}
    assert "Against narrow:nearest_mean on the test" in result.output
    assert re.search(r"wide:ridge: \+0\.\d+ .*, better", result.output)
    assert "equal" not in result.output.lower()


def test_baselines_are_named_by_probe_where_that_is_enough() -> None:
    names = {"a:ridge": "ridge", "b:ridge": "ridge", "b:dense": "dense"}
    assert find_baseline(None, names, "b:ridge") == "b:ridge"
    assert find_baseline("dense", names, "b:ridge") == "b:dense"
    for wanted in ("ridge", "a", "a:dense"):
        with pytest.raises(ParameterError, match="expected one of a:ridge, b:ridge, b:dense"):
            find_baseline(wanted, names, "b:ridge")


def test_what_is_printed_says_what_was_chosen_by_what(caches: Any, folder: Path) -> None:
    probes = [word for name in CLOSED_FORM for word in ("--probe", name)]
    result = run_command(*caches, *probes, "--output", folder / "printed")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    marked = [line for line in lines if re.search(r"\d\*", line)]
    assert len(marked) == 1
    assert marked[0].startswith(read_metrics(folder / "printed")["selected"])
    assert "optimistic" in result.output
    assert "not distinguishable; they differ on too few rows" in result.output
    markdown = (folder / "printed" / "comparison.md").read_text(encoding="utf-8").splitlines()
    widths = {line.count("|") for line in markdown if line.startswith("|")}
    assert len(widths) == 1


def test_a_run_holds_what_it_promises(run: Path) -> None:
    names = {one.name for one in run.iterdir()}
    probe = read_metrics(run)["selected"].partition(":")[2]
    expected = {
        "report.html",
        "metrics.json",
        "comparison.csv",
        "comparison.md",
        "tuning.csv",
        "split.csv",
    }
    expected |= {"test_predictions.csv", "confusion_matrix.png", f"{probe}.npz"}
    assert names == expected <= RUN_FILES
    tried = read_csv(run / "tuning.csv")
    chosen = [row["model"] for row in tried if row["is_chosen"] == "1"]
    assert chosen == read_metrics(run)["models"]
    assert len(tried) > 3 * len(chosen)


def test_poisoned_test_labels_change_nothing_but_the_final_figures(run: Path, folder: Path) -> None:
    features, labels = blobs(N_TEST, 1)
    (folder / "poisoned").mkdir()
    poisoned = (labels + 1) % 3
    splits = {"train": narrow(blobs(N_TRAIN, 0)), "test": narrow((features, poisoned))}
    first = cache_tools.write_cache(folder / "poisoned" / "narrow.h5", splits, recipe=SMALLER)
    splits = {"train": blobs(N_TRAIN, 0), "test": (features, poisoned)}
    second = cache_tools.write_cache(folder / "poisoned" / "wide.h5", splits)
    other = compare_probes([first, second], folder / "poisoned" / "run", OPTIONS).path
    honest, wrong = read_metrics(run), read_metrics(other)
    assert honest["selected"] == wrong["selected"]
    for name in honest["models"]:
        assert honest[name]["test_accuracy"] > 1.5 * wrong[name]["test_accuracy"]
        kept = [key for key in honest[name] if not key.startswith("test_")]
        kept = [key for key in kept if key not in {"cache", "seconds"}]
        assert len(kept) > 10
        assert {key: honest[name][key] for key in kept} == {key: wrong[name][key] for key in kept}
    for file in ("tuning.csv", f"{honest['selected'].partition(':')[2]}.npz"):
        assert (run / file).read_bytes() == (other / file).read_bytes()
    columns = [
        [{k: v for k, v in row.items() if k != "class"} for row in read_csv(one / file)]
        for one in (run, other)
        for file in ("test_predictions.csv",)
    ]
    assert columns[0] == columns[1]


def test_every_model_is_counted_beside_every_cache(folder: Path) -> None:
    place = folder / "counted"
    place.mkdir()
    caches = [write_narrow(place / "narrow.h5"), write_wide(place / "wide.h5")]
    options = CompareOptions(probes=("nearest_mean",))
    compare_probes(caches[1:], place / "first", options)
    told = compare_probes(caches, place / "second", options).metrics["test_scorings"]
    assert scored(caches[0]) == ["narrow:nearest_mean", "wide:nearest_mean"]
    assert scored(caches[1]) == ["nearest_mean", "narrow:nearest_mean", "wide:nearest_mean"]
    assert (told["first"], told["last"]) == (2, 3)


def test_the_test_can_be_left_alone(folder: Path) -> None:
    cache = write_wide(folder / "alone.h5")
    result = run_command(cache, "--output", folder / "alone", "--probe", "ridge", "--no-test")
    assert result.exit_code == 0, result.output
    assert "The test was left alone." in result.output
    assert not cache.with_name("alone.h5.scorings.jsonl").exists()
    metrics = read_metrics(folder / "alone")
    assert (metrics["ridge"]["test_accuracy"], metrics["n_test"]) == (None, 0)
    assert not (folder / "alone" / "test_predictions.csv").exists()
    assert load_run(folder / "alone").model().classes_.tolist() == [0, 1, 2]


def test_seeds_show_their_spread(caches: Any, folder: Path) -> None:
    options = CompareOptions(probes=("kernel_ridge", "ridge"), n_seeds=3)
    with pytest.MonkeyPatch.context() as patch:
        # Fewer landmarks than rows, so that they are drawn.
        patch.setitem(PROBES_FOR_TESTS, "kernel_ridge", _tune_few_landmarks)
        patch.setattr("classify.compare_probes.candidates.PROBES", PROBES_FOR_TESTS)
        metrics = compare_probes([caches[1]], folder / "seeds", options).metrics
    over_seeds = metrics["kernel_ridge"]["test_accuracy_of_seeds"]
    assert len(over_seeds) == 3
    assert over_seeds[0] == metrics["kernel_ridge"]["test_accuracy"]
    assert len(set(over_seeds)) > 1
    assert metrics["kernel_ridge"]["test_accuracy_sd_of_seeds"] == pytest.approx(
        np.std(over_seeds, ddof=1)
    )
    assert metrics["ridge"]["test_accuracy_of_seeds"] is None
    assert not draws_anything(KernelRidgeProbe(n_landmarks=20), n_rows=20)
    assert scored(caches[1])[-4:] == [
        "kernel_ridge",
        "kernel_ridge seed +1",
        "kernel_ridge seed +2",
        "ridge",
    ]


PROBES_FOR_TESTS: dict[str, Callable[..., Any]] = dict(PROBES)


def _tune_few_landmarks(training: Any, validation: Any, tuning: Any) -> Any:
    probe = KernelRidgeProbe(n_landmarks=20, seed=tuning.seed).fit(*training)
    point = TriedPoint({"gamma": 0.5}, 0.5, 1.0, 1.0)
    return TunedProbe(probe, {"gamma": 0.5}, (point,))


def test_the_order_of_rows_in_a_cache_does_not_matter(run: Path, folder: Path) -> None:
    place = folder / "shuffled"
    place.mkdir()
    shuffled = _write_shuffled(place / "wide.h5")
    other = compare_probes([folder / "narrow.h5", shuffled], place / "run", OPTIONS)
    honest = read_metrics(run)
    for name in honest["models"]:
        for key in ("validation_accuracy", "test_accuracy", "temperature", "hyperparameters"):
            assert other.metrics[name][key] == pytest.approx(honest[name][key]), (name, key)


def _write_shuffled(path: Path) -> Path:
    """The cache of :func:`write_wide` with the rows of each split in another order."""
    from data_cache.rows import Manifest
    from data_cache.update import CacheUpdate

    rng = np.random.default_rng(5)
    arrays = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    rows, features = {}, {}
    for split, (X, y) in arrays.items():
        order = rng.permutation(len(y))
        rows[split] = cache_tools.make_rows(split, cache_tools.digests_of(X), y).take(order)
        features[split] = X[order]
    with CacheUpdate.begin(path, RECIPE, cache_tools.PROVENANCE) as update:
        for split in arrays:
            update.append(rows[split].content, features[split])
        update.bind(Manifest(("0", "1", "2"), rows))
    return path


def _swap(rows: tuple[np.ndarray, np.ndarray], at: int = 0) -> tuple[np.ndarray, np.ndarray]:
    features, labels = rows
    changed = labels.copy()
    changed[at] = (changed[at] + 1) % 3
    return features, changed


TRAIN, TEST = blobs(N_TRAIN, 0), blobs(N_TEST, 1)
OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "fewer_test_rows": (
        {"train": TRAIN, "test": blobs(N_TEST - 3, 1)},
        {},
        r"test of .* lacks 3 of the rows .* and has 0 others \(test/000087\)",
    ),
    "more_training_rows": (
        {"train": blobs(N_TRAIN + 1, 0), "test": TEST},
        {},
        r"train of .* lacks 0 .* has 1 others \(train/000150\)",
    ),
    "another_test_label": (
        {"train": TRAIN, "test": _swap(TEST, 4)},
        {},
        r"1 rows of test have other classes .* \(such as test/000004\)",
    ),
    "another_training_label": (
        {"train": _swap(TRAIN, 7), "test": TEST},
        {},
        r"1 rows of train have other classes .* \(such as train/000007\)",
    ),
    "other_classes": (
        {"train": TRAIN, "test": TEST},
        {"classes": ("ant", "bee", "cat")},
        "different classes",
    ),
    "a_split_more": (
        {"train": TRAIN, "val": blobs(30, 2), "test": TEST},
        {},
        "has the splits train, val, test where .* has train, test",
    ),
    "no_test": ({"train": TRAIN}, {}, "has the splits train where .* has train, test"),
    "groups": (
        {"train": TRAIN, "test": TEST},
        {"groups": {"train": np.arange(N_TRAIN) // 5}},
        "rows of train have other groups",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_caches_of_other_rows_are_refused(kind: str, caches: Any, tmp_path: Path) -> None:
    splits, changes, message = OTHERS[kind]
    other = cache_tools.write_cache(tmp_path / "other.h5", splits, **changes)
    result = run_command(caches[1], other, "--output", tmp_path / "run", "--probe", "ridge")
    assert result.exit_code == 2, result.output
    assert re.search(message, result.output), result.output
    assert str(other) in result.output
    assert not (tmp_path / "run").exists()


def test_other_splits_and_other_contents_are_none_of_its_business(
    caches: Any, tmp_path: Path
) -> None:
    more = {"train": narrow(TRAIN), "test": narrow(TEST), "extra": narrow(blobs(9, 3))}
    other = cache_tools.write_cache(tmp_path / "other.h5", more)
    result = run_command(caches[1], other, "--output", tmp_path / "run", "--probe", "ridge")
    assert result.exit_code == 0, result.output
    assert "150 rows of train were read from other bytes" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--probe", "forest"), "there is no probe 'forest'"),
        (("--probe", "ridge", "--probe", "ridge"), "named twice"),
        (("--baseline", "forest"), "no model has the name"),
        (("--no-test", "--n-seeds", "2"), "--no-test"),
        (("--test-split", "holdout"), "no test split 'holdout'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: tuple[str, ...], message: str, caches: Any, tmp_path: Path
) -> None:
    result = run_command(caches[1], "--output", tmp_path / "run", *words)
    assert result.exit_code == 2
    assert message in result.output


def test_a_cache_given_twice_is_refused(caches: Any, tmp_path: Path) -> None:
    result = run_command(caches[1], caches[1], "--output", tmp_path / "run")
    assert result.exit_code == 2
    assert "given twice" in result.output


def test_caches_are_called_by_as_much_of_their_path_as_it_takes() -> None:
    paths = [Path("/a/x/photos.h5"), Path("/a/y/photos.h5")]
    assert short_names(paths) == ("x/photos", "y/photos")
    assert short_names([Path("/a/x/photos.h5"), Path("/a/x/pets.h5")]) == ("photos", "pets")


def test_only_runs_are_replaced_and_only_when_asked(caches: Any, run: Path, tmp_path: Path) -> None:
    words = (caches[1], "--probe", "ridge", "--output")
    assert "exists already" in run_command(*words, run).output
    (tmp_path / "notes.txt").touch()
    result = run_command(*words, tmp_path, "--overwrite")
    assert (result.exit_code, (tmp_path / "notes.txt").exists()) == (2, True)


def test_rows_in_groups_are_tested_and_measured_by_group(folder: Path) -> None:
    groups = {"train": np.arange(N_TRAIN) // 5, "test": np.arange(N_TEST) // 6}
    cache = write_wide(folder / "grouped.h5", groups=groups)
    result = run_command(
        *(cache, "--output", folder / "grouped"),
        *("--probe", "ridge", "--probe", "nearest_mean", "--probe", "neighbors"),
    )
    assert result.exit_code == 0, result.output
    assert "permutation of whole groups" in result.output
    metrics, table = read_metrics(folder / "grouped"), read_csv(folder / "grouped/comparison.csv")
    assert metrics["test_groups"] == 15
    predictions = read_csv(folder / "grouped" / "test_predictions.csv")
    right = {
        name: np.array([row[name] == row["class"] for row in predictions], float)
        for name in metrics["models"]
    }
    for one in metrics["differences"]:
        gains = right[one["model"]] - right[one["baseline"]]
        assert one["p_value"] == cluster_permutation_p(gains, groups["test"])
    plain = compare_probes(
        [write_wide(folder / "plain.h5")], folder / "plain", CompareOptions(probes=("neighbors",))
    ).metrics["neighbors"]
    assert len(table) == 3
    assert metrics["neighbors"]["test_accuracy_ci95"] != plain["test_accuracy_ci95"]


def test_a_design_effect_is_the_size_of_groups_of_equal_rows() -> None:
    values = np.random.default_rng(0).normal(size=400)
    assert design_effect(np.repeat(values, 5), np.repeat(np.arange(400), 5)) == pytest.approx(5)
    assert design_effect(values, np.arange(400)) == pytest.approx(1)
    assert design_effect(np.zeros(4), np.zeros(4)) == 1


def test_classes_that_the_test_lacks_are_named_and_rows_of_unknown_classes_counted(
    folder: Path,
) -> None:
    X, y = blobs(N_TEST, 1, n_classes=4)
    train_X, train_y = blobs(N_TRAIN, 0, n_classes=4)
    kept = train_y != 3
    splits = {"train": (train_X[kept], train_y[kept]), "test": (X[y != 0], y[y != 0])}
    cache = cache_tools.write_cache(
        folder / "missing.h5", splits, classes=("ant", "bee", "cat", "dog")
    )
    result = run_command(cache, "--output", folder / "missing", "--probe", "ridge")
    assert result.exit_code == 0, result.output
    assert "The test has no rows of ant" in result.output
    found = read_metrics(folder / "missing")
    assert found["classes_missing_from_test"] == ["ant"]
    n_dogs = int((y == 3).sum())
    assert found["ridge"]["test_rows_of_unknown_classes"] == n_dogs
    n_right = sum(
        row["class"] == row["ridge"] for row in read_csv(folder / "missing/test_predictions.csv")
    )
    assert found["ridge"]["test_accuracy"] == pytest.approx(n_right / (y != 0).sum())
    assert np.isfinite(found["ridge"]["test_log_loss"])
    n_test = int((y != 0).sum())
    assert found["ridge"]["test_brier"] > n_dogs / n_test
    footnote = f"Log loss is over {n_test - n_dogs} of {n_test} rows: the others are of classes"
    assert footnote in result.output
    assert footnote in (folder / "missing" / "comparison.md").read_text(encoding="utf-8")


def test_the_footnote_on_the_log_loss_names_the_models_it_is_about() -> None:
    facts: dict[str, Any] = {
        "models": ["ridge", "dense"],
        "test_split": "test",
        "test_groups": None,
        "n_train": 9,
        "n_validation": 3,
        "n_test": 18,
        "classes_missing_from_test": [],
        "ridge": {"test_rows_of_unknown_classes": 1},
        "dense": {"test_rows_of_unknown_classes": 0},
    }
    assert [one for one in notes(facts) if "17 of 18 rows for ridge: the others" in one]
    facts["ridge"] = facts["dense"]
    assert not [one for one in notes(facts) if "of 18 rows" in one]


def test_an_interval_that_says_nothing_of_a_log_loss_is_none() -> None:
    labels = np.array([0, 1] * 4)
    sure = np.eye(2)[labels] * 1e5
    measured = figures.TestRows(labels, None, 2).measure(sure, 2e4)
    assert measured["log_loss"].value == pytest.approx(0)
    assert np.isnan(measured["log_loss"].ci95).all()
    low, high = measured["calibrated_log_loss"].ci95
    assert 0 <= low < high < 5


@pytest.mark.parametrize("probe", sorted(PROBES.keys() - {"dense"}))
def test_a_winner_of_every_kind_is_read_back(probe: str, caches: Any, tmp_path: Path) -> None:
    run = compare_probes([caches[1]], tmp_path / "run", CompareOptions(probes=(probe,)))
    table = read_csv(run.path / "test_predictions.csv")
    features, _ = blobs(N_TEST, 1)
    for model in (run.model(), load_model(run)):
        found = model.classes_[model.logits(features).argmax(axis=1)]
        assert [row[probe] for row in table] == [str(one) for one in found]
    with pytest.raises(RunError, match=f"has no model 'other': expected {probe}"):
        run.model("other")


def test_copies_of_test_rows_are_left_out_of_all_caches(folder: Path) -> None:
    X, y = blobs(N_TRAIN, 0)
    X = np.concatenate([X, TEST[0][:3]])
    y = np.concatenate([y, TEST[1][:3]])
    place = folder / "leaking"
    place.mkdir()
    caches = [
        cache_tools.write_cache(place / "a.h5", {"train": (X, y), "test": TEST}),
        cache_tools.write_cache(place / "b.h5", {"train": narrow((X, y)), "test": narrow(TEST)}),
    ]
    options = CompareOptions(probes=("ridge",), drop_leaks=True)
    found = compare_probes(caches, place / "run", options)
    learned = {name for part in ("train", "validation") for name in found.part_ids(part)}
    assert learned.isdisjoint({f"train/{row:06d}" for row in range(N_TRAIN, N_TRAIN + 3)})


def test_damage_is_told_before_anything_is_fitted(caches: Any, tmp_path: Path) -> None:
    torn = tmp_path / "torn.h5"
    torn.write_bytes(caches[0].read_bytes()[:-100])
    with pytest.raises(HeadstartError, match="torn"):
        compare_probes([caches[1], torn], tmp_path / "run", OPTIONS)
    with FeatureCache.open(caches[1]) as cache:
        assert cache.split_names == ("train", "test")


def test_a_winner_classifies_images_and_is_exported(tmp_path: Path, exports: Exports) -> None:
    cache = exports.run.parent / "cache.h5"
    with tiny_in_the_registry():
        run = compare_probes([cache], tmp_path / "run", CompareOptions(probes=("ridge",)))
        photos = sorted((exports.folder / "photos").rglob("*.png"))[::9]
        classifier = classify.load(run.path, PredictOptions(probabilities="calibrated"))
        told = classifier.predict(photos).probabilities
        output = export_model(run.path, tmp_path / "model.keras", ExportOptions("keras")).path
        exported = classify.load(output).predict(photos).labels
    with FeatureCache.open(cache) as opened:
        at = {name.decode(): row for row, name in enumerate(opened.rows("train").ids)}
        rows = [at.get(str(path.relative_to(exports.folder / "photos"))) for path in photos]
        features = opened.features("train")
    for row, probabilities in zip(rows, told, strict=True):
        if row is not None:
            logits = run.model().logits(features[row : row + 1])[0]
            expected = softmax(logits / run.metrics["ridge"]["temperature"])
            np.testing.assert_allclose(probabilities, expected, atol=1e-4)
    assert sum(row is not None for row in rows) > 2
    assert list(exported) == [run.classes[one] for one in told.argmax(axis=1)]


def test_classes_can_be_weighed_alike(folder: Path) -> None:
    """Of two classes, 1 row in 10 of the second: weighed alike, it is found more often."""
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10 == 0).astype(int)
    features = (labels[:, None] + rng.normal(scale=0.8, size=(400, 3))).astype(np.float32)
    splits = {"train": (features[:300], labels[:300]), "test": (features[300:], labels[300:])}
    cache = cache_tools.write_cache(folder / "rare.h5", splits)
    found = {
        weight: compare_probes(
            [cache],
            folder / f"rare_{weight}",
            CompareOptions(probes=("logistic_regression",), class_weight=weight),
        ).metrics["logistic_regression"]["test_balanced_accuracy"]
        for weight in (None, "balanced")
    }
    assert found["balanced"] > found[None] + 0.05
