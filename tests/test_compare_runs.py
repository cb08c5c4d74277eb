"""The command compare-runs: its table, which differences it calls beyond chance, and its files."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from scipy.stats import binom

from classify.compare_runs.cli import compare_runs
from classify.compare_runs.job import FILES
from classify.compare_runs.job import compare_runs as compare
from classify.results.runs import open_run, write_metrics, write_test_predictions
from data_cache.errors import OutputExistsError, RunError

CLASSES = ["ant", "bee"]


def write_run(folder: Path, *right: int, ids: range = range(400), **changes: Any) -> Path:
    """Write a run with the models m0, m1, ...; each gets so many test rows right, the first."""
    folder.mkdir()
    labels = [CLASSES[i % 2] for i in ids]
    columns = {"id": [f"test/{i:06d}" for i in ids], "class": labels}
    metrics: dict[str, Any] = {
        "kind": "head",
        "classes": CLASSES,
        "selected": "m0",
        "n_train": 80,
        "n_validation": 20,
        "n_test": len(ids),
        "seconds": 9.0,
        "seconds_by_part": {"m0": 2.5},
    } | changes
    for number, n_right in enumerate(right):
        flipped = [CLASSES[1 - CLASSES.index(label)] for label in labels]
        columns[f"m{number}"] = [*labels[:n_right], *flipped[n_right:]]
        metrics[f"m{number}"] = {
            "test_accuracy": n_right / len(ids),
            "test_accuracy_ci95": [0.25, 0.75],
            "trainable_parameters": 1234,
        }
    write_metrics(folder, metrics)
    write_test_predictions(folder, columns)
    return folder


def command(*words: Path | str) -> Result:
    return CliRunner().invoke(compare_runs, [str(word) for word in words])


def assert_refused(result: Result, message: str) -> None:
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def mid_p(n_fewer: int, n: int) -> float:
    """The two-sided mid-p value of a sign test, summed outcome by outcome."""
    distance = abs(n_fewer - n / 2)
    total = 0.0
    for k in range(n + 1):
        weight = 1.0 if abs(k - n / 2) > distance else 0.5 if abs(k - n / 2) == distance else 0.0
        total += weight * binom.pmf(k, n, 0.5)
    return total


def test_the_table_says_what_each_took_and_reached(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300)
    second = write_run(tmp_path / "second", 380, kind="baseline", seconds_by_part={})
    lines = command(first, second).output.splitlines()
    header = ["approach", "run", "images", "parameters", "seconds", "test", "95% interval"]
    assert [cell.strip() for cell in lines[0].split("  ") if cell.strip()] == header
    assert lines[1].split("  ")[0] == "1"
    for line, words in (
        (lines[1], ["frozen features, m0", str(first), "100", "1,234", "2.5", "0.7500"]),
        (lines[2], ["from scratch, m0", str(second), "100", "1,234", "9.0", "0.9500"]),
    ):
        assert [word for word in words if word not in line] == []
        assert "0.2500 to 0.7500" in line


def test_p_values_are_mcnemars_mid_p_with_holms_correction(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{n}", n) for n in (300, 304, 330)]
    pairs = compare(runs).pairs
    raw = {(0, 1): mid_p(0, 4), (0, 2): mid_p(0, 30), (1, 2): mid_p(0, 26)}
    expected = {(0, 1): raw[0, 1], (0, 2): 3 * raw[0, 2], (1, 2): 2 * raw[1, 2]}
    assert {(pair.first, pair.second) for pair in pairs} == set(expected)
    for pair in pairs:
        assert pair.p_value == pytest.approx(expected[pair.first, pair.second])
        assert pair.n_common == 400
    assert [pair.is_beyond_chance for pair in pairs] == [False, True, True]
    assert pairs[0].difference == pytest.approx(-4 / 400)


def test_what_chance_alone_may_give_is_called_not_distinguishable(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{n}", n) for n in (300, 303, 360)]
    output = command(*runs).output
    assert "2 over 1: +0.0075 on 400 images, p = 0.12, not distinguishable" in output
    assert "3 over 1: +0.1500 on 400 images, p < 0.0001, beyond chance" in output
    assert "equal" not in output


def test_a_correction_can_take_a_difference_back(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{n}", n) for n in (300, 305, 310)]
    alone = compare(runs[:2]).pairs
    together = compare(runs).pairs
    assert [pair.is_beyond_chance for pair in alone] == [True]
    assert [pair.is_beyond_chance for pair in together] == [False, True, False]


def test_different_tests_are_compared_on_the_images_they_share(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300, ids=range(400))
    second = write_run(tmp_path / "second", 120, ids=range(201, 601))
    comparison = compare([first, second])
    (pair,) = comparison.pairs
    # Rows 201 to 399 are common; of these the first has 201 to 299 right, the second 201 to 320.
    assert (pair.n_common, pair.difference) == (199, (99 - 120) / 199)
    assert pair.p_value == pytest.approx(mid_p(0, 21))
    assert "those they share count" in comparison.text


def test_too_few_common_images_are_not_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 400, ids=range(400))
    second = write_run(tmp_path / "second", 100, ids=range(371, 771))
    output = command(first, second).output
    assert "1 and 2: not compared: their tests share 29 images" in output
    assert "No pair could be compared" in output


def test_a_small_test_that_both_had_is_compared_whole(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{n}", n, ids=range(20)) for n in (5, 15)]
    (pair,) = compare(runs).pairs
    assert pair.p_value == pytest.approx(mid_p(0, 10))


def test_runs_on_other_data_with_the_same_ids_are_not_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300)
    second = write_run(tmp_path / "second", 300)
    path = second / "test_predictions.csv"
    path.write_text(path.read_text().replace("ant", "cat"))
    assert "their tests name different classes for the same ids" in command(first, second).output


def test_a_test_that_was_left_alone_is_shown_and_not_compared(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "first", 300), write_run(tmp_path / "second", 300)
    untested = {"test_accuracy": None, "test_accuracy_ci95": None, "trainable_parameters": 7}
    write_metrics(second, dict(open_run(second).metrics) | {"m0": untested})
    (second / "test_predictions.csv").unlink()
    result = command(first, second, "--output", tmp_path / "table")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[2].split()[-2:] == ["-", "-"]
    assert "1 and 2: not compared: a test was left alone" in result.output


def test_models_are_chosen_by_name(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300, 310)
    second = write_run(tmp_path / "second", 320)
    shown = {
        words: [
            (entry.run.name, entry.model)
            for entry in compare([first, second], models=words).entries
        ]
        for words in (("selected",), ("all",), ("m1", "selected"))
    }
    assert shown[("selected",)] == [("first", "m0"), ("second", "m0")]
    assert shown[("all",)] == [("first", "m0"), ("first", "m1"), ("second", "m0")]
    assert shown[("m1", "selected")] == shown[("all",)]
    assert_refused(command(first, second, "--model", "m1"), "second has no model m1: it has m0")


def test_a_head_that_fine_tuning_kept_is_shown_once_and_called_so(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300, 310)
    kept = write_run(tmp_path / "kept", 300, 310, fine_tuning={"is_kept": False})
    tuned = write_run(tmp_path / "tuned", 340, kind="fine-tuned", seconds_by_part={"training": 60})
    comparison = compare([first, kept, tuned], models=("all",))
    shown = [(entry.run.name, entry.approach, entry.seconds) for entry in comparison.entries]
    assert shown == [
        ("first", "frozen features, m0", 2.5),
        ("first", "frozen features, m1", 9.0),
        ("kept", "fine-tuning that kept the head, m0", 2.5),
        ("tuned", "fine-tuned, m0", 60.0),
    ]
    compared = [(pair.first, pair.second) for pair in comparison.pairs if not pair.why_not]
    assert compared == [(0, 1), (0, 3), (1, 3)]
    assert "1 and 3: not compared: they are one and the same model" in comparison.text


def test_one_run_alone_is_shown(tmp_path: Path) -> None:
    output = command(write_run(tmp_path / "first", 300)).output
    assert "nothing to compare it with" in output


def test_a_run_given_twice_is_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300)
    assert_refused(command(first, tmp_path / "." / "first"), "is given twice")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert_refused(command(tmp_path), "is no run")
    assert_refused(command(tmp_path / "nowhere"), "is not there")


@pytest.mark.parametrize("lacking", ["n_train", "seconds_by_part", "n_test"])
def test_a_run_that_lacks_figures_is_refused(tmp_path: Path, lacking: str) -> None:
    first = write_run(tmp_path / "first", 300)
    facts = {name: value for name, value in open_run(first).metrics.items() if name != lacking}
    (first / "metrics.json").write_text(json.dumps(facts))
    assert_refused(command(first), f"is not whole ('{lacking}')")


@pytest.mark.parametrize("text", ["id,class\na,ant\n", "id,class,m0\na,ant\n"])
def test_predictions_that_are_damaged_are_refused(tmp_path: Path, text: str) -> None:
    first = write_run(tmp_path / "first", 300)
    (first / "test_predictions.csv").write_text(text)
    with pytest.raises(RunError, match="test_predictions"):
        open_run(first).test_predictions("m0")
    assert_refused(command(first), "train again")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three models, written."""
    folder = tmp_path_factory.mktemp("compare")
    first = write_run(folder / "a|b", 300, 360)
    second = write_run(folder / "second", 303, kind="baseline")
    result = command(first, second, "--model", "all", "--output", folder / "table")
    assert result.exit_code == 0, result.output
    return folder / "table"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_a_comparison_is_written_whole(table: Path) -> None:
    assert {one.name for one in table.iterdir()} == FILES
    assert not [one for one in table.parent.iterdir() if ".tmp-" in one.name]


def test_the_csv_files_have_full_precision(table: Path) -> None:
    rows = read_csv(table / "table.csv")
    assert [float(row["test_accuracy"]) for row in rows] == [0.75, 0.9, 0.7575]
    assert [row["images"] for row in rows] == ["100"] * 3
    pairs = read_csv(table / "pairs.csv")
    assert [(row["first"], row["second"]) for row in pairs] == [("1", "2"), ("1", "3"), ("2", "3")]
    assert float(pairs[1]["p_value_holm"]) == pytest.approx(mid_p(0, 3))
    assert [row["verdict"] for row in pairs] == [
        "beyond chance",
        "not distinguishable",
        "beyond chance",
    ]


def test_the_markdown_is_a_table_whatever_a_run_is_called(table: Path) -> None:
    lines = (table / "table.md").read_text(encoding="utf-8").splitlines()
    rows = [line.replace(r"\|", "") for line in lines if line.startswith("|")]
    assert [row.count("|") for row in rows] == [9] * 5


def test_the_figure_is_a_png_with_something_on_it(table: Path) -> None:
    with Image.open(table / "accuracy.png") as image:
        image.load()
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_the_page_has_a_whisker_for_each_model_and_the_surest_difference_first(
    table: Path,
) -> None:
    said = (table / "report.html").read_text(encoding="utf-8")
    assert "3 models of 2 runs; pairs that differ beyond chance: 2 of 3." in said
    dots = re.findall(r"<title>(\d) [^<]*, test accuracy: (.*?)</title>", said)
    assert dots == [("1", "0.75"), ("2", "0.9"), ("3", "0.7575")]
    assert said.count("(0.2500 to 0.7500)") == 3
    rows = said.partition("the surest difference first</caption>")[2]
    texts = [re.findall(r"<td[^>]*>([^<]*)", row) for row in rows.split("<tr>")[2:]]
    found = [(ahead[0], behind[0], *map(html.unescape, rest)) for ahead, behind, *rest in texts]
    assert found == [
        ("2", "1", "+0.1500", "400", "< 0.0001", "beyond chance"),
        ("2", "3", "+0.1425", "400", "< 0.0001", "beyond chance"),
        ("3", "1", "+0.0075", "400", "0.12", "not distinguishable"),
    ]


def test_the_page_shows_what_was_not_tested_and_runs_no_name(tmp_path: Path) -> None:
    first = write_run(tmp_path / "<script>x", 300)
    untested = {"test_accuracy": None, "test_accuracy_ci95": None, "trainable_parameters": 7}
    write_metrics(first, dict(open_run(first).metrics) | {"m0": untested})
    assert command(first, "--output", tmp_path / "table").exit_code == 0
    text = (tmp_path / "table" / "report.html").read_text(encoding="utf-8")
    assert "<script>x" not in text
    assert "1 frozen features, m0: none" in text
    assert "nothing to compare it with" in text


def test_a_comparison_is_replaced_only_when_asked_and_nothing_else_ever(
    table: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", 300)
    assert_refused(command(run, "--output", table), "exists already")
    other = tmp_path / "other"
    assert command(run, "--output", other).exit_code == 0
    assert command(run, "--output", other, "--overwrite").exit_code == 0
    (other / "thesis.tex").touch()
    assert_refused(command(run, "--output", other, "--overwrite"), "thesis.tex")
    assert (other / "thesis.tex").exists()
    with pytest.raises(OutputExistsError):
        compare([run], output=run / "metrics.json", overwrite=True)


def test_predictions_of_fewer_rows_than_the_test_had_are_refused(tmp_path: Path) -> None:
    first = write_run(tmp_path / "first", 300)
    path = first / "test_predictions.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(RunError, match="test rows"):
        open_run(first).test_predictions("m0")
