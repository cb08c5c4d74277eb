"""The command compare-study: resuming, counting, the tables, and tests across data sets."""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from cache_tools import RECIPE
from click.testing import CliRunner, Result
from probe_data import blobs
from sklearn.metrics import log_loss

from classify.probes import PROBES
from classify.study import cells as cells_module
from classify.study.across import compare_across
from classify.study.cli import compare_study as command
from classify.study.job import compare_study
from classify.study.plan import read_plan
from classify.study.scores import measure
from data_cache.errors import DataError, OutputExistsError, ParameterError
from data_cache.recipe import Recipe

N_TRAIN, N_TEST = 90, 60
OTHER = Recipe(**{**RECIPE.__dict__, "image_size": 160})
STUDY = """\
probes = ["ridge", "nearest_mean"]
seeds = [0, 1]

[data.first_set]
wide = "first_wide.h5"
narrow = "first_narrow.h5"

[data.second]
wide = "second_wide.h5"
"""


def write_pair(folder: Path, name: str, seed: int) -> None:
    splits = {"train": blobs(N_TRAIN, seed), "test": blobs(N_TEST, seed + 1)}
    cache_tools.write_cache(folder / f"{name}_wide.h5", splits)
    fewer = {split: (np.ascontiguousarray(X[:, 6:]), y) for split, (X, y) in splits.items()}
    cache_tools.write_cache(folder / f"{name}_narrow.h5", fewer, recipe=OTHER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_pair(tmp_path, "first", 0)
    write_pair(tmp_path, "second", 10)
    (tmp_path / "study.toml").write_text(STUDY)
    return tmp_path


def run_command(folder: Path, study: str = "study.toml") -> Result:
    words = [str(folder / study), "--output", str(folder / "out")]
    return CliRunner().invoke(command, words)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def scored(cache: Path) -> list[str]:
    lines = cache.with_name(f"{cache.name}.scorings.jsonl").read_text().splitlines()
    return [name for line in lines for name in json.loads(line)["models"]]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of probes, one for each time that one was tuned."""
    tuned: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        def tune(*words: Any) -> Any:
            tuned.append(name)
            return PROBES[name](*words)

        return tune

    monkeypatch.setattr(cells_module, "PROBES", {name: counting(name) for name in PROBES})
    return tuned


def test_a_study_measures_every_probe_on_every_cache(folder: Path) -> None:
    result = run_command(folder)
    assert result.exit_code == 0, result.output
    fits = read_csv(folder / "out" / "fits.csv")
    assert len(fits) == (2 + 1) * 2 * 2
    table = read_csv(folder / "out" / "table.csv")
    assert [(row["model"], row["data"]) for row in table] == [
        ("wide:ridge", "first_set"),
        ("wide:ridge", "second"),
        ("wide:nearest_mean", "first_set"),
        ("wide:nearest_mean", "second"),
        ("narrow:ridge", "first_set"),
        ("narrow:nearest_mean", "first_set"),
    ]
    for row in table:
        backbone, probe = row["model"].split(":")
        reached = [
            float(fit["accuracy"])
            for fit in fits
            if (fit["data"], fit["backbone"], fit["probe"]) == (row["data"], backbone, probe)
        ]
        assert len(reached) == int(row["n_seeds"]) == 2
        assert float(row["mean"]) == pytest.approx(np.mean(reached))
        assert float(row["sd"]) == pytest.approx(np.std(reached, ddof=1))
        shown = f"{np.mean(reached):.4f} ± {np.std(reached, ddof=1):.4f}"
        assert shown in (folder / "out" / "table.md").read_text(encoding="utf-8")
        assert shown in result.output


def test_the_page_has_the_table_the_ranks_and_a_dot_for_each_entry(folder: Path) -> None:
    result = run_command(folder)
    said = html.unescape((folder / "out" / "report.html").read_text(encoding="utf-8"))
    table = read_csv(folder / "out" / "table.csv")
    for row in table:
        assert f">{float(row['mean']):.4f} ± {float(row['sd']):.4f}</td>" in said
        dot = f"<title>{row['model']}, {row['data']}: {float(row['mean']):.4g}</title>"
        assert said.count(dot) == 1
    assert len(re.findall(r">0\.\d{4} ± 0\.\d{4}</td>", said)) == len(table)
    ranks = re.findall(r"ridge +0.*?(\d\.\d\d)$|mean +0.*?(\d\.\d\d)$", result.output, re.M)
    assert [f">{''.join(rank)}</td>" in said for rank in ranks] == [True, True]
    assert "These are the 1st to 8th models scored on this test." in said
    assert all(
        row["hyperparameters"].partition(":")[0] in said
        for row in read_csv(folder / "out" / "fits.csv")
    )


def test_what_is_finished_is_not_made_again(folder: Path, counted: list[str]) -> None:
    first = run_command(folder)
    assert first.exit_code == 0
    assert "first_set: These are the 1st to 8th models scored on this test." in first.output
    assert "second: These are the 1st to 4th models scored on this test." in first.output
    assert len(counted) == 12
    table = (folder / "out" / "table.csv").read_bytes()
    again = run_command(folder)
    assert (again.exit_code, len(counted)) == (0, 12)
    assert "12 of 12 fits are there" in again.output
    assert "second: No further model was scored on this test." in again.output
    assert (folder / "out" / "table.csv").read_bytes() == table
    assert len(scored(folder / "first_wide.h5")) == 8  # not counted a second time
    assert len(scored(folder / "second_wide.h5")) == 4


def test_a_study_that_was_stopped_goes_on(
    folder: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cells_module._write

    def stop_at_the_fifth(path: Path, cell: Any) -> None:
        if len(counted) == 5:
            raise KeyboardInterrupt
        write(path, cell)

    monkeypatch.setattr(cells_module, "_write", stop_at_the_fifth)
    plan = read_plan(folder / "study.toml")
    with pytest.raises(KeyboardInterrupt):
        compare_study(plan, folder / "out", STUDY)
    assert not (folder / "first_wide.h5.scorings.jsonl").exists()
    monkeypatch.setattr(cells_module, "_write", write)
    compare_study(plan, folder / "out", STUDY)
    assert len(counted) == 5 + 12 - 4
    assert not [one for one in (folder / "out").rglob("*") if ".tmp-" in one.name]


def test_a_study_that_grows_makes_what_is_new_alone(folder: Path, counted: list[str]) -> None:
    run_command(folder)
    more = STUDY.replace('"nearest_mean"]', '"nearest_mean", "neighbors"]')
    more = more.replace("[0, 1]", "[0, 1, 2]")
    (folder / "study.toml").write_text(more + 'narrow = "second_narrow.h5"\n')
    result = run_command(folder)
    assert result.exit_code == 0, result.output
    assert len(counted) == 4 * 3 * 3
    assert "12 of 36 fits are there" in result.output
    assert (folder / "out" / "study.toml").read_text() == (folder / "study.toml").read_text()


def test_warnings_follow_the_name_of_their_data_set_and_come_once(folder: Path) -> None:
    train, test = blobs(N_TRAIN, 10), blobs(N_TEST, 11)
    leaking = tuple(
        np.concatenate([some, other[:2]]) for some, other in zip(train, test, strict=True)
    )
    (folder / "second_wide.h5").unlink()
    cache_tools.write_cache(folder / "second_wide.h5", {"train": leaking, "test": test})
    lines = run_command(folder).stderr.splitlines()
    (warning,) = [at for at, line in enumerate(lines) if line.startswith("Warning: 2 rows of test")]
    assert lines[warning - 1] == "Reading the rows of second"
    assert "Warning" not in run_command(folder).stderr


def test_a_cache_that_changed_is_measured_again(folder: Path, counted: list[str]) -> None:
    run_command(folder)
    (folder / "second_wide.h5").unlink()
    (folder / "second_narrow.h5").unlink()
    write_pair(folder, "second", 20)
    run_command(folder)
    assert len(counted) == 12 + 4


def test_a_damaged_cell_is_made_again(folder: Path, counted: list[str]) -> None:
    run_command(folder)
    cell = folder / "out" / "cells" / "second" / "wide" / "ridge-seed-0.npz"
    cell.write_bytes(cell.read_bytes()[:100])
    assert run_command(folder).exit_code == 0
    assert len(counted) == 13


def test_cells_know_nothing_of_the_tests_labels(folder: Path) -> None:
    """The keys are those of other caches, so the cells are compared by what they hold."""
    plan = read_plan(folder / "study.toml")
    honest = compare_study(plan, folder / "out", STUDY)
    X, y = blobs(N_TEST, 11)
    (folder / "second_wide.h5").unlink()
    splits = {"train": blobs(N_TRAIN, 10), "test": (X, (y + 1) % 3)}
    cache_tools.write_cache(folder / "second_wide.h5", splits)
    wrong = compare_study(plan, folder / "poisoned", STUDY)
    for one, other in zip(honest.cells, wrong.cells, strict=True):
        assert (one.unit, one.hyperparameters) == (other.unit, other.hyperparameters)
        np.testing.assert_array_equal(one.logits, other.logits)
    entry = ("wide:ridge", "second")
    assert honest.entries[entry].mean > 0.6
    assert wrong.entries[entry].mean < 0.4


def test_figures_are_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 80)
    logits = rng.normal(size=(80, 4)).astype(np.float32)
    logits[np.arange(80), labels] += 1
    predicted = logits.argmax(axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert measure(labels, logits) == pytest.approx(
        {
            "accuracy": (labels == predicted).mean(),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted),
            "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro"),
            "log_loss": log_loss(labels, probabilities),
        }
    )


def test_the_latex_table_compiles_as_far_as_its_letters_go(folder: Path) -> None:
    assert run_command(folder).exit_code == 0
    lines = (folder / "out" / "table.tex").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.endswith(r"\\")]
    assert rows[0] == r"model & first\_set & second & mean rank \\"
    assert all(re.search(r"& \$0\.\d{4} \\pm 0\.\d{4}\$ &", row) for row in rows[1:])
    assert r"wide:nearest\_mean" in rows[2]
    assert rows[3].endswith(r"& - & - \\")
    assert lines.count(r"\hline") == 3


def grid(n_sets: int, n_models: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 0.9, (n_sets, 1)) + rng.normal(0, 0.02, (n_sets, n_models))


def test_ranks_and_tests_across_data_sets_are_scipys() -> None:
    figures = grid(9, 3) + np.array([0, 0.001, 0.08])
    found = compare_across(["a", "b", "c"], figures, lower_is_better=False, baseline=None)
    assert found is not None
    assert found.friedman == pytest.approx(scipy.stats.friedmanchisquare(*figures.T).pvalue)
    ranks = np.array([scipy.stats.rankdata(-row) for row in figures]).mean(axis=0)
    assert found.ranks == pytest.approx(tuple(ranks))
    raw = [
        scipy.stats.wilcoxon(figures[:, i], figures[:, j]).pvalue
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    order = np.argsort(raw)
    expected = np.empty(3)
    expected[order] = np.minimum(np.maximum.accumulate(np.sort(raw) * [3, 2, 1]), 1)
    assert [pair.p_value_holm for pair in found.pairs] == pytest.approx(expected)
    assert [pair.verdict for pair in found.pairs] == ["not distinguishable", "worse", "worse"]


def test_of_losses_the_lower_is_the_better() -> None:
    figures = grid(9, 2) + np.array([0, 0.2])
    found = compare_across(["a", "b"], figures, lower_is_better=True, baseline="b")
    assert found is not None
    (pair,) = found.pairs
    assert (pair.first, pair.second, pair.verdict) == ("a", "b", "better")
    assert pair.difference == pytest.approx((figures[:, 0] - figures[:, 1]).mean())
    assert found.ranks == (1.0, 2.0)
    assert found.friedman is None


def test_few_data_sets_are_said_to_be_few(folder: Path) -> None:
    result = run_command(folder)
    assert "with fewer than 6 data sets it can find no difference" in result.output
    assert "not distinguishable" in result.output
    assert "equal" not in result.output
    alone = compare_across(["a", "b"], grid(1, 2), lower_is_better=False, baseline=None)
    assert alone is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("probes = [", "cannot be read"),
        ("figures = 'accuracy'", "no setting 'figures'"),
        (STUDY.replace("nearest_mean", "forest"), "no probe 'forest'"),
        (STUDY.replace("[0, 1]", "[0]"), "two or more"),
        (STUDY.replace("[0, 1]", '["a", "b"]'), "whole numbers"),
        (STUDY.replace("[0, 1]", "3"), "expected a list"),
        ("seeds = [0, 1]", "names no data"),
        ("[data.first]\n", "BACKBONE = CACHE"),
        ('[data."../up"]\nwide = "x.h5"', "letters, digits"),
        ('[data.first]\n".." = "x.h5"', "letters, digits"),
        ("[data.first]\nwide = 3", "expected its path"),
        ('figure = "f1"\n' + STUDY, "expected one of accuracy"),
        ('baseline = "wide:dense"\n' + STUDY, "expected one of wide:ridge"),
        ("validation_split = 1.5\n" + STUDY, "validation_split"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(text)
    result = run_command(tmp_path)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_the_test_can_be_a_split_of_another_name(folder: Path) -> None:
    splits = {"train": blobs(N_TRAIN, 0), "holdout": blobs(25, 1)}
    cache_tools.write_cache(folder / "held.h5", splits)
    study = 'probes = ["ridge"]\nseeds = [0, 1]\n[data.held]\nwide = "held.h5"\n'
    (folder / "held.toml").write_text(study)
    assert "data.held has no test split" in run_command(folder, "held.toml").output
    (folder / "held.toml").write_text('test_split = "holdout"\n' + study)
    result = run_command(folder, "held.toml")
    assert result.exit_code == 0, result.output
    with np.load(folder / "out" / "cells" / "held" / "wide" / "ridge-seed-0.npz") as arrays:
        assert arrays["logits"].shape == (25, 3)


def test_a_cache_that_is_missing_is_named(folder: Path) -> None:
    (folder / "second_wide.h5").unlink()
    result = run_command(folder)
    assert result.exit_code == 2
    assert "second_wide.h5, of data.second, is not there" in result.output


def test_a_folder_of_something_else_is_left_alone(folder: Path) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").touch()
    with pytest.raises(OutputExistsError, match="something else than a study"):
        compare_study(read_plan(folder / "study.toml"), folder / "thesis", STUDY)


def test_a_probe_that_cannot_be_fitted_is_named_with_its_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_words: Any) -> Any:
        raise DataError("every row equals the mean of its class")

    monkeypatch.setattr(cells_module, "PROBES", {**PROBES, "ridge": refuse})
    result = run_command(folder)
    assert result.exit_code == 2
    assert "Error: first_set, wide:ridge, seed 0: every row equals" in result.output


def test_paths_are_relative_to_the_file(folder: Path) -> None:
    plan = read_plan(folder / "study.toml")
    assert plan.data["second"] == {"wide": folder / "second_wide.h5"}
    assert plan.models == ("wide:ridge", "wide:nearest_mean", "narrow:ridge", "narrow:nearest_mean")
    with pytest.raises(ParameterError, match="cannot be read"):
        read_plan(folder / "nothing.toml")
