"""A fine-tuning in words: what the command prints."""

from __future__ import annotations

from collections.abc import Sequence

from classify.fine_tune.decision import Decision
from classify.results.runs import TUNED_KIND, Run
from classify.selection.test_log import Scorings


def summarize(run: Run) -> str:
    """Return what ``fine-tune`` prints of the run that it wrote: lines without a last line end."""
    lines = [Decision.from_facts(run.metrics["fine_tuning"]).sentence()]
    if run.kind == TUNED_KIND:
        lines += _test(run)
    return "\n".join([*lines, f"Wrote {run.path}"])


def _test(run: Run) -> list[str]:
    """Say what the test says of the fine-tuned network, and of the probe where it is known."""
    metrics = run.metrics
    if metrics["test_accuracy"] is None:
        return ["The test was left alone." if metrics["no_test"] else "There is no test split."]
    tuned = _figure(metrics["test_accuracy"], metrics["test_accuracy_ci95"])
    lines = [f"On the {metrics['n_test']:,} test rows it reaches {tuned}."]
    attempt = metrics["fine_tuning"]
    if attempt["probe_test_accuracy"] is not None:
        probe = _figure(attempt["probe_test_accuracy"], attempt["probe_test_accuracy_ci95"])
        lines[0] = lines[0][:-1] + f"; the probe reached {probe}."
    if metrics["test_scorings"] is not None:
        lines.append(f"{Scorings(**metrics['test_scorings']).sentence()}.")
    return lines


def _figure(accuracy: float, bounds: Sequence[float]) -> str:
    """Return an accuracy with its interval."""
    return f"{accuracy:.4f} ({bounds[0]:.4f} to {bounds[1]:.4f})"
