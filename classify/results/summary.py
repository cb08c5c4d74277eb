"""A run in words: the table and the sentences that the command prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classify.results.runs import DENSE, LOGISTIC, Run, RunFolder
from classify.selection.test_log import Scorings

_HEADER = ("model", "fitted to", "validation", "test", "95% interval", "")


def summarize(run: Run) -> str:
    """Return what ``train-head`` prints of a run: lines without a last line end."""
    lines = model_table(run, (DENSE, LOGISTIC))
    lines += ["", _comparison(run.metrics["comparison"], run.metrics["n_validation"])]
    if run.metrics.get("folds"):
        lines += ["", *_folds(run.metrics["folds"]), ""]
    lines += [words_on_test(run.metrics), f"Wrote {run.path}"]
    if run.metrics.get("champion"):
        lines += ["", *words_on_champion(run)]
    return "\n".join(lines)


def words_on_champion(run: RunFolder) -> list[str]:
    """Say how a run compares with the champion, and which of the two is to be used."""
    told = run.metrics["champion"]
    n, new, old = told["n"], told["new_accuracy"], told["accuracy"]
    bound = f"with {told['confidence']:.0%} confidence above {told['low']:+.4f}"
    seen = f"difference {told['difference']:+.4f}, {bound}; the margin is {told['margin']:g}"
    outcome = {
        "not worse": "not worse",
        "worse": "worse",
        "not shown": "not shown to be no worse",
    }[told["outcome"]]
    name = "this run" if told["use"] == "new" else "the champion"
    path = run.path if told["use"] == "new" else told["run"]
    return [
        f"On the champion's {n:,} test rows: this run {new:.4f}, the champion {old:.4f} ({seen}).",
        f"This run is {outcome}. Use {name}: {path}",
    ]


def model_table(run: RunFolder, names: Sequence[str]) -> list[str]:
    """Return the lines of a table of some of a run's models."""
    return align([_HEADER, *(_row(run, name) for name in names)])


def _row(run: RunFolder, name: str) -> tuple[str, ...]:
    """Return the table's cells of one model."""
    figures = run.metrics[name]
    return (
        name,
        figures["fitted_to"],
        f"{figures['validation_accuracy']:.4f}",
        "-" if figures["test_accuracy"] is None else f"{figures['test_accuracy']:.4f}",
        "-" if figures["test_accuracy"] is None else _interval(figures["test_accuracy_ci95"]),
        "selected" if name == run.selected else "",
    )


def _comparison(comparison: Mapping[str, Any], n: int) -> str:
    """Say whether the two models differ on validation, and if so why."""
    difference, place = comparison["difference"], f"On the {n:,} validation rows"
    evidence = f"McNemar mid-p {comparison['mid_p']:.2g}"
    if not comparison["is_beyond_noise"]:
        seen = f"difference {difference:+.4f}, {evidence}"
        return f"{place} the two are not distinguishable ({seen})."
    trailing = "Dense head" if difference < 0 else "logistic regression"
    said = f"{place} the {trailing} trails by {abs(difference):.4f}, beyond noise ({evidence})."
    cause = comparison["likely_cause"]
    return f"{said} Likely cause: {cause}." if cause else said


def _folds(folds: Mapping[str, Any]) -> list[str]:
    """Return the table of what cross-validation found, and what it means."""
    repeats = f", {folds['n_repeats']} times" if folds["n_repeats"] > 1 else ""
    groups = ", groups whole" if folds["groups"] else ""
    place = f"{folds['n_folds']} folds of {folds['n_rows']:,} rows{groups}{repeats}"
    header = (place, "accuracy", "SD", "95% interval", "log loss", "balanced", "macro F1")
    table = align([header, *(_fold_row(name, folds[name]) for name in (DENSE, LOGISTIC))])
    suspects = f"{folds['n_suspects']:,} rows look mislabeled out of fold: see suspects.csv"
    return [*table, _fold_difference(folds["difference"]["accuracy"]), suspects]


def _fold_row(name: str, figures: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one model's figures out of fold."""
    accuracy = figures["accuracy"]
    others = (figures[one]["mean"] for one in ("log_loss", "balanced_accuracy", "macro_f1"))
    cells = (f"{accuracy['mean']:.4f}", f"{accuracy['sd']:.4f}", _interval(accuracy["ci95"]))
    return (name, *cells, *(f"{mean:.4f}" for mean in others))


def _fold_difference(difference: Mapping[str, Any]) -> str:
    """Say whether the two models differ out of fold."""
    low, high = difference["ci95"]
    seen = f"difference {difference['mean']:+.4f}, 95% interval {low:+.4f} to {high:+.4f}"
    if low <= 0 <= high:
        return f"Out of fold the two are not distinguishable ({seen})."
    trailing = "Dense head" if high < 0 else "logistic regression"
    return f"Out of fold the {trailing} trails ({seen})."


def words_on_test(metrics: Mapping[str, Any]) -> str:
    """Say how often the test was scored, or why it was not."""
    if metrics.get("refit") == "all":
        return "There is no score on the test: the models were refitted to its rows too."
    if metrics["test_split"] is None:
        return "The test was left alone." if metrics["no_test"] else "There is no test split."
    if metrics["test_scorings"] is None:
        return "How often this test was scored is not known."
    return f"{Scorings(**metrics['test_scorings']).sentence()} ({metrics['n_test']:,} rows)."


def _interval(bounds: Sequence[float]) -> str:
    """Return an interval as text."""
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]
