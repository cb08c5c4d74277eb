"""A run in words: the table and the sentences that the command prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classify.runs import DENSE, LOGISTIC, Run
from classify.test_log import Scorings

_HEADER = ("model", "fitted to", "validation", "test", "95% interval", "")


def summarize(run: Run) -> str:
    """Return what ``train-head`` prints of a run: lines without a last line end."""
    lines = _align([_HEADER, *(_row(run, name) for name in (DENSE, LOGISTIC))])
    lines += ["", _comparison(run.metrics["comparison"], run.metrics["n_validation"])]
    lines += [_test(run.metrics), f"Wrote {run.path}"]
    return "\n".join(lines)


def _row(run: Run, name: str) -> tuple[str, ...]:
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
    return (
        f"{place} the {trailing} trails by {abs(difference):.4f}, beyond noise ({evidence}). "
        f"Likely cause: {comparison['likely_cause']}."
    )


def _test(metrics: Mapping[str, Any]) -> str:
    """Say how often the test was scored, or that it was left alone."""
    if metrics["test_split"] is None:
        return "The test was left alone." if metrics["no_test"] else "There is no test split."
    if metrics["test_scorings"] is None:
        return "How often this test was scored is not known."
    return f"{Scorings(**metrics['test_scorings']).sentence()} ({metrics['n_test']:,} rows)."


def _interval(bounds: Sequence[float]) -> str:
    """Return an interval as text."""
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return ["  ".join(row).rstrip() for row in cells]
