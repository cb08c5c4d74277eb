"""Training night after night: a head that starts from the last one, and a champion to beat."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from classify.heads.dense import DenseHead
from classify.results.runs import load_run
from classify.selection.division import Part, draw_unlearned
from classify.selection.test_log import log_path
from classify.train_head.champion import judge
from classify.train_head.cli import train_head
from data_cache.errors import DataError

D, N_TRAIN, N_TEST = 12, 150, 320
CENTERS = np.random.default_rng(42).normal(size=(4, D))
QUICK = ("--epochs", "2")


def blobs(n_rows: int, seed: int, n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n_rows)
    return (CENTERS[y] + rng.normal(scale=0.9, size=(n_rows, D))).astype(np.float32), y


def joined(*parts: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    features, labels = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(labels)


def command(cache: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(train_head, [str(cache), "--output", str(output), *QUICK, *more])


def metrics_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nightly")


@pytest.fixture(scope="module")
def first(folder: Path) -> Path:
    """The run of the first night."""
    splits = {"train": blobs(N_TRAIN, 0), "test": blobs(N_TEST, 1)}
    cache = cache_tools.write_cache(folder / "first.h5", splits)
    assert command(cache, folder / "first", "--standardize").exit_code == 0
    return folder / "first"


@pytest.fixture(scope="module")
def grown(folder: Path) -> Path:
    """The cache of the next night: more rows of every split, and a class at the end."""
    splits = {
        "train": joined(blobs(N_TRAIN, 0), blobs(100, 2, n_classes=4)),
        "test": joined(blobs(N_TEST, 1), blobs(40, 3, n_classes=4)),
    }
    return cache_tools.write_cache(folder / "grown.h5", splits)


@pytest.fixture(scope="module")
def second(first: Path, grown: Path, folder: Path) -> tuple[Path, Result]:
    """The run of the next night, and how it ended."""
    more = ("--init-from", str(first), "--champion", str(first), "--champion-margin", "0.1")
    result = command(grown, folder / "second", *more)
    assert result.exit_code == 0, result.output
    return folder / "second", result


@pytest.mark.parametrize("hidden_units", [0, 5])
@pytest.mark.parametrize("standardize", [(True, True), (True, False), (False, True)])
def test_a_head_starts_as_the_function_that_the_last_one_was(
    hidden_units: int, standardize: tuple[bool, bool]
) -> None:
    old, new = (
        DenseHead(epochs=1, hidden_units=hidden_units, standardize=one, learning_rate=rate)
        for one, rate in zip(standardize, (0.05, 1e-12), strict=True)
    )
    old.fit(*blobs(80, 0))
    new.fit(*blobs(90, 1, n_classes=4), start=old)
    X = blobs(50, 2)[0]
    np.testing.assert_allclose(new.logits(X)[:, :3], old.logits(X), rtol=1e-4, atol=1e-4)


def test_classes_that_are_new_start_as_in_any_head() -> None:
    rows, few = blobs(90, 1, n_classes=4), {"epochs": 1, "learning_rate": 1e-12}
    old = DenseHead(epochs=1).fit(*blobs(80, 0))
    carried, fresh = DenseHead(**few).fit(*rows, start=old), DenseHead(**few).fit(*rows)
    X = blobs(50, 2)[0]
    np.testing.assert_allclose(carried.logits(X)[:, 3], fresh.logits(X)[:, 3], atol=1e-5)
    assert np.abs(carried.logits(X)[:, :3] - fresh.logits(X)[:, :3]).max() > 0.1


def test_a_head_of_another_shape_is_no_start() -> None:
    old = DenseHead(epochs=1, hidden_units=5).fit(*blobs(80, 0))
    with pytest.raises(DataError, match="12 features and 5 hidden units: expected 12 and 0"):
        DenseHead(epochs=1).fit(*blobs(80, 0), start=old)


def test_rows_that_the_last_head_learned_never_validate(
    first: Path, second: tuple[Path, Result]
) -> None:
    learned = set(load_run(first).part_ids("train"))
    validation = set(load_run(second[0]).part_ids("validation"))
    assert not learned & validation
    assert len(validation) == round(0.2 * 250)
    assert learned <= set(load_run(second[0]).part_ids("train"))


def test_both_are_scored_on_the_champions_rows_and_no_others(
    first: Path, second: tuple[Path, Result]
) -> None:
    run, result = second
    assert result.exit_code == 0, result.output
    told, X = metrics_of(run)["champion"], blobs(N_TEST, 1)
    assert load_run(run).part_ids("test") == load_run(first).part_ids("test")
    old, new = load_run(first).model(), load_run(run).model()
    assert told["accuracy"] == old.score(*X)
    assert told["new_accuracy"] == new.score(*X)
    assert (told["run"], told["n"], told["use"]) == (str(first), N_TEST, "new")
    assert f"Use this run: {run}" in result.stdout


def test_the_champions_predictions_are_kept_beside_the_new_ones(
    first: Path, second: tuple[Path, Result]
) -> None:
    with (second[0] / "test_predictions.csv").open(newline="") as stream:
        told = [row["champion"] for row in csv.DictReader(stream)]
    assert told == [str(label) for label in load_run(first).model().predict(blobs(N_TEST, 1)[0])]


def test_the_one_look_at_the_test_counts_every_model(
    grown: Path, second: tuple[Path, Result]
) -> None:
    (record,) = map(json.loads, log_path(grown).read_text().splitlines())
    assert record["models"] == ["dense", "logistic_regression", "champion"]


def test_a_worse_run_is_written_and_ends_with_4(first: Path, folder: Path) -> None:
    features, labels = blobs(N_TRAIN, 0)
    splits = {"train": (features, (labels + 1) % 3), "test": blobs(N_TEST, 1)}
    cache = cache_tools.write_cache(folder / "poisoned.h5", splits)
    result = command(cache, folder / "worse", "--champion", str(first))
    assert result.exit_code == 4, result.output
    told = metrics_of(folder / "worse")["champion"]
    assert (told["outcome"], told["use"]) == ("worse", "champion")
    assert f"This run is worse. Use the champion: {first}" in result.stdout
    assert metrics_of(folder / "worse")["selected"] in {"dense", "logistic_regression"}


def test_copies_of_the_champions_test_rows_are_not_learned_from(first: Path, folder: Path) -> None:
    splits = {"train": joined(blobs(N_TRAIN, 0), blobs(5, 1)), "test": blobs(N_TEST, 1)}
    test = blobs(N_TEST, 1)
    splits["train"] = joined(blobs(N_TRAIN, 0), (test[0][:5], test[1][:5]))
    cache = cache_tools.write_cache(folder / "copies.h5", splits)
    command(cache, folder / "copies", "--champion", str(first))
    run = load_run(folder / "copies")
    assert len(run.part_ids("train")) + len(run.part_ids("validation")) == N_TRAIN


REFUSED = {
    "other classes": ({"classes": ("a", "b", "c")}, "--init-from", "tells apart 3 classes"),
    "other recipe": (
        {"recipe": replace(cache_tools.RECIPE, image_size=128)},
        "--init-from",
        "image size 128, was 96",
    ),
    "champion of another recipe": (
        {"recipe": replace(cache_tools.RECIPE, image_size=128)},
        "--champion",
        "image size 128, was 96",
    ),
    "champion of other classes": ({"classes": ("0", "1", "x")}, "--champion", "the class '2'"),
    "test rows gone": ({"n_test": 100}, "--champion", "220 of the 320 rows"),
    "no test": ({"n_test": 0}, "--champion", "no test split"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_runs_that_do_not_fit_the_cache_are_refused(case: str, first: Path, tmp_path: Path) -> None:
    changes, option, message = REFUSED[case]
    changes = dict(changes)
    n_test = changes.pop("n_test", N_TEST)
    splits = {"train": blobs(N_TRAIN, 0)}
    if n_test:
        splits["test"] = tuple(column[:n_test] for column in blobs(N_TEST, 1))
    cache = cache_tools.write_cache(tmp_path / "c.h5", splits, **changes)
    assert_refused(command(cache, tmp_path / "run", option, str(first)), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--init-from", "RUN", "--hidden-units", "5"), "0 hidden units, and 5 were asked for"),
        (("--init-from", "RUN", "--folds", "3"), "--folds measures heads on rows that"),
        (("--champion", "RUN", "--no-test"), "--no-test leaves none"),
        (("--champion", "RUN", "--refit", "all"), "--refit all leaves none"),
        (("--champion", "RUN", "--champion-margin", "0.001"), "not even the champion itself"),
    ],
)
def test_options_at_odds_are_refused(
    options: tuple[str, ...], message: str, first: Path, grown: Path, tmp_path: Path
) -> None:
    more = [str(first) if one == "RUN" else one for one in options]
    assert_refused(command(grown, tmp_path / "run", *more), message)


def test_a_head_that_learned_test_rows_is_no_start(first: Path, tmp_path: Path) -> None:
    (X, y), test = blobs(N_TRAIN, 0), blobs(N_TEST, 1)
    cache = cache_tools.write_cache(tmp_path / "all.h5", {"train": (X, y), "test": test})
    command(cache, tmp_path / "all", "--refit", "all")
    result = command(cache, tmp_path / "run", "--init-from", str(tmp_path / "all"))
    assert_refused(result, "learned from 320 rows of test")


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    import re

    assert re.search(message, error), error


@given(st.data())
def test_the_verdict_is_the_score_tests(data: st.DataObject) -> None:
    n = data.draw(st.integers(20, 400))
    better = data.draw(st.integers(0, n // 2))
    worse = data.draw(st.integers(0, n // 2))
    new, old = np.zeros(n, bool), np.zeros(n, bool)
    new[:better], old[n - worse :] = True, True
    found = judge(new, old, margin=0.05)
    assert found.difference == pytest.approx((better - worse) / n)
    # Tango's score statistic at -margin, with its restricted estimate found on a grid.
    rejects = tango_statistic(n, better, worse, -0.05) > norm.ppf(0.95)
    if abs(tango_statistic(n, better, worse, -0.05) - norm.ppf(0.95)) > 1e-3:
        assert (found.outcome == "not worse") == rejects
    if found.outcome == "worse":
        assert found.high < 0


def tango_statistic(n: int, b: int, c: int, difference: float) -> float:
    """The score statistic, the nuisance share maximizing the likelihood on a fine grid."""
    low, high = max(0.0, -difference), (1 - difference) / 2 - 1e-12
    share = np.linspace(low + 1e-9, high, 200_001)
    likelihood = np.zeros_like(share)
    for count, p in ((b, share + difference), (c, share), (n - b - c, 1 - 2 * share - difference)):
        if count:
            likelihood += count * np.log(np.clip(p, 1e-300, None))
    best = share[likelihood.argmax()]
    variance = n * (2 * best + difference - difference**2)
    return (b - c - n * difference) / np.sqrt(max(variance, 1e-12))


def test_groups_of_learned_rows_stay_out_of_validation_whole() -> None:
    y = np.arange(60) % 2
    groups = np.array([f"g{row // 3}" for row in range(60)], "S")
    part = Part(np.arange(60).astype("S"), np.zeros((60, 1)), y, groups)
    learned = np.zeros(60, bool)
    learned[:30:3] = True
    chosen = draw_unlearned(part, learned, fraction=0.2, seed=0)
    assert chosen[:30].sum() == 0
    assert 6 <= chosen.sum() <= 18
    assert not set(groups[chosen]) & set(groups[~chosen])


def test_nothing_left_to_validate_on_is_refused() -> None:
    part = Part(np.arange(6).astype("S"), np.zeros((6, 1)), np.arange(6) % 2)
    with pytest.raises(DataError, match="all 6 training rows were learned from"):
        draw_unlearned(part, np.ones(6, bool), fraction=0.2, seed=0)
