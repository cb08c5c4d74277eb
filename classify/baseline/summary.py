"""A baseline's run in words."""

from __future__ import annotations

from classify.baseline.job import log_beside
from classify.results.runs import BASELINE, RunFolder
from classify.results.summary import model_table, words_on_test
from classify.selection.test_log import log_path


def summarize_baseline(run: RunFolder) -> str:
    """Return what ``train-baseline`` prints of a run: lines without a last line end."""
    facts = run.metrics
    epochs = "1 epoch" if facts["epochs"] == 1 else f"{facts['epochs']:,} epochs"
    size = (
        f"{facts['trainable_parameters']:,} parameters, {epochs} over "
        f"{facts['n_train']:,} images, {facts['seconds']:.0f} s in all."
    )
    return "\n".join([*model_table(run, (BASELINE,)), "", size, _on_test(run), f"Wrote {run.path}"])


def _on_test(run: RunFolder) -> str:
    """Say how often the test was scored, and which log knows only so many times."""
    words, facts = words_on_test(run.metrics), run.metrics
    if facts["test_scorings"] is None:
        return words
    log = log_path(log_beside(run.path, facts["source"]))
    return f"{words[:-1]}, as far as {log} knows; caches keep logs of their own."
