"""A baseline's run in words."""

from __future__ import annotations

from classify.runs import BASELINE, RunFolder
from classify.summary import model_table, words_on_test


def summarize_baseline(run: RunFolder) -> str:
    """Return what ``train-baseline`` prints of a run: lines without a last line end."""
    facts = run.metrics
    size = (
        f"{facts['trainable_parameters']:,} parameters, {facts['epochs']} epochs over "
        f"{facts['n_train']:,} images, {facts['seconds']:.0f} s in all."
    )
    return "\n".join(
        [*model_table(run, (BASELINE,)), "", size, words_on_test(facts), f"Wrote {run.path}"]
    )
