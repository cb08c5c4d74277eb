"""The Dense head and its cross-check, paired on the same rows: which is ahead, and why.

Without a hidden layer both are linear in the features and minimize the cross-entropy, so where they
differ beyond noise something in the training is to blame; it is named from what that left behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.heads.dense import DenseHead
from classify.probes import LogisticPath
from classify.statistics.paired_tests import mcnemar_mid_p

NOISE_LEVEL = 0.05
"""Two models differ beyond noise where the McNemar mid-p value is below this."""

_STILL_FALLING = 0.02
_TURNED = 0.02


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same n rows.

    ``difference`` is the first's accuracy less the second's, in [-1, 1]; ``n_only_first`` rows are
    right with the first model alone, ``n_only_second`` with the second alone; ``mid_p`` is
    :func:`classify.statistics.paired_tests.mcnemar_mid_p` of the two.
    """

    n: int
    n_only_first: int
    n_only_second: int
    difference: float
    mid_p: float

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the difference is beyond what chance alone would often give."""
        return self.mid_p < NOISE_LEVEL


def compare(labels: NDArray, first: NDArray, second: NDArray) -> PairedComparison:
    """Compare the predictions (n,) of two models with the labels (n,)."""
    first_right, second_right = first == labels, second == labels
    n_only_first = int((first_right & ~second_right).sum())
    n_only_second = int((second_right & ~first_right).sum())
    return PairedComparison(
        n=len(labels),
        n_only_first=n_only_first,
        n_only_second=n_only_second,
        difference=(n_only_first - n_only_second) / len(labels),
        mid_p=mcnemar_mid_p(n_only_first, n_only_second),
    )


def likely_cause(comparison: PairedComparison, head: DenseHead, path: LogisticPath) -> str | None:
    """Name the likely cause of a difference between the Dense head and logistic regression.

    None where there is no difference beyond noise, and for a head with a hidden layer: that is
    another model, so a difference needs no cause in the training. The comparison's first model is
    the head, which was fitted with validation data.
    """
    if not comparison.is_beyond_noise or head.hidden_units:
        return None
    if comparison.difference > 0:
        return _why_logistic_trails(path, head)
    return _why_dense_trails(head)


def _why_dense_trails(head: DenseHead) -> str:
    """Say why the Dense head trails, from its history up to the epoch that made it."""
    losses, val_losses = (head.history_[name][: head.best_epoch_] for name in ("loss", "val_loss"))
    lowest = int(np.argmin(val_losses)) + 1
    on_raw = "" if head.standardize else ", on features that are not standardized"
    if val_losses[-1] > (1 + _TURNED) * min(val_losses):
        return f"the Dense head is overfitted: its validation loss was least in epoch {lowest}"
    if head.best_epoch_ < len(head.history_["loss"]):
        return f"the Dense head was at its best in epoch {lowest}, and training longer did not help"
    if len(losses) == 1:
        return f"the Dense head stopped short of convergence, after a single epoch{on_raw}"
    if (fall := 1 - losses[-1] / losses[-2]) > _STILL_FALLING:
        return (
            "the Dense head stopped short of convergence (its loss still fell by "
            f"{fall:.0%} in epoch {len(losses)}){on_raw}"
        )
    if not head.standardize:
        return "the Dense head's features are not standardized"
    held = "its weight decay is another penalty" if head.weight_decay else "no penalty holds it"
    return f"the Dense head has converged, but {held}, and C was chosen on these very rows"


def _why_logistic_trails(path: LogisticPath, head: DenseHead) -> str:
    """Say why the logistic regression trails, from the path of its C and what held the head."""
    tried = [point.C for point in path.points]
    if not path.probe.converged_:
        return f"the logistic regression did not converge in {path.probe.max_iter:,} iterations"
    if path.probe.C in (tried[0], tried[-1]):
        return f"the logistic regression's best C, {path.probe.C:g}, is an end of what was tried"
    holds = {
        "dropout": head.dropout,
        "weight decay": head.weight_decay,
        "label smoothing": head.label_smoothing,
    }
    held = [name for name, strength in holds.items() if strength]
    n_epochs = f"stopping after epoch {head.best_epoch_}"
    return f"{', '.join([*held, n_epochs])} may suit these features better than a penalty does"
