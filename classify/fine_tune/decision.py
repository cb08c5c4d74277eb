"""Whether fine-tuning is kept: only where validation shows that it beats the probe.

The epoch must not be chosen on the rows that decide, or the best of many epochs would look better
than it is. From :data:`CROSS_FITTED_BELOW` validation rows on, one half chooses the epoch and the
other decides. Below, half would tell too little, so every row decides: the rows are drawn into
folds, and on each fold the epoch is judged that the other folds choose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.selection.folds import draw_folds
from classify.statistics import metrics
from classify.statistics.intervals import mean_interval, paired_difference_interval
from data_cache.errors import DataError

CROSS_FITTED_BELOW = 2000
"""Fewer validation rows than this choose and decide in turns."""

CONFIDENCE = 0.95
"""Of the lower bound, which is one-sided: chance alone passes it in one case of twenty."""

_N_FOLDS = 5
_HALVES = 2


@dataclass(frozen=True)
class Decision:
    """What the comparison of n validation rows says.

    Attributes
    ----------
    n_rows : rows that decided
    n_folds : folds that chose and decided in turns; 0 where halves did
    probe_accuracy, tuned_accuracy : on the rows that decided
    difference : of these, the tuned model's less the probe's
    lower_bound : of the difference, one-sided, at :data:`CONFIDENCE`; see
        :func:`classify.statistics.intervals.paired_difference_interval`
    """

    n_rows: int
    n_folds: int
    probe_accuracy: float
    tuned_accuracy: float
    difference: float
    lower_bound: float

    @property
    def keeps_tuned(self) -> bool:
        """Whether fine-tuning is kept."""
        return self.lower_bound > 0

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return the figures, and what follows, as ``metrics.json`` has them."""
        return {"kept": "fine-tuned" if self.keeps_tuned else "probe", **asdict(self)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Decision:
        """Return the decision whose :attr:`facts` are given."""
        return cls(**{one.name: facts[one.name] for one in fields(cls)})

    def sentence(self) -> str:
        """Say what is kept and why, with both figures."""
        kept = "Fine-tuning is kept" if self.keeps_tuned else "The probe is kept"
        why = "beyond chance" if self.keeps_tuned else "which does not beat it"
        return (
            f"{kept}: on the {self.n_rows:,} validation rows that decide, fine-tuning reaches "
            f"{self.tuned_accuracy:.4f} and the probe {self.probe_accuracy:.4f}, {why} (difference "
            f"{self.difference:+.4f}, {CONFIDENCE:.0%} lower bound {self.lower_bound:+.4f})."
        )


@dataclass(frozen=True)
class DecisionPlan:
    """Which validation rows choose the epoch and which decide; drawn before training begins.

    Attributes
    ----------
    labels : (n,) int64
    fold_of : (n,) the fold of each row, from 0; of two halves the first chooses. Rows below 0 take
        no part in the decision
    groups : (n,), or None
    """

    labels: NDArray[np.int64]
    fold_of: NDArray[np.int64]
    groups: NDArray[np.bytes_] | None = None

    @classmethod
    def draw(
        cls, labels: NDArray[np.int64], groups: NDArray[np.bytes_] | None, seed: int
    ) -> DecisionPlan:
        """Draw halves or folds of the rows, (n,): stratified, every group whole.

        Raises
        ------
        DataError
            The rows are too few to be drawn apart.
        """
        n_most = int(np.bincount(labels).max())
        n_folds = _HALVES if len(labels) >= CROSS_FITTED_BELOW else min(_N_FOLDS, n_most)
        if n_folds < _HALVES:
            raise DataError(
                f"{len(labels)} validation rows, no two of one class, cannot decide whether "
                "fine-tuning is better: train the head with more of them"
            )
        return cls(labels, draw_folds(labels, groups, n_folds=n_folds, seed=seed), groups)

    @property
    def is_cross_fitted(self) -> bool:
        """Whether folds choose and decide in turns."""
        return len(self.labels) < CROSS_FITTED_BELOW

    def judge(self, logits: NDArray[np.float32]) -> tuple[float, float]:
        """Judge an epoch by its logits (n, k), on all rows that may choose; lowest is best.

        By its log loss, of equals by its errors: on some hundred rows the errors of epochs differ
        by chance, and an epoch chosen for them disappoints on other rows.
        """
        rows = self.fold_of >= 0 if self.is_cross_fitted else self.fold_of == 0
        return _figures(self.labels[rows], logits[rows])

    def decide(self, logits: NDArray[np.float32], probe: NDArray[np.int64]) -> Decision:
        """Compare the epochs' logits (e, n, k) with the probe's predictions (n,)."""
        tuned = np.full(len(self.labels), -1)
        folds = range(self.fold_of.max() + 1) if self.is_cross_fitted else [1]
        for fold in folds:
            held_out, choosing = self.fold_of == fold, (self.fold_of != fold) & (self.fold_of >= 0)
            figures = [_figures(self.labels[choosing], one[choosing]) for one in logits]
            epoch = figures.index(min(figures))
            tuned[held_out] = logits[epoch][held_out].argmax(axis=1)
        rows = tuned >= 0
        return _compare(
            tuned[rows] == self.labels[rows],
            probe[rows] == self.labels[rows],
            None if self.groups is None else self.groups[rows],
            n_folds=len(folds) if self.is_cross_fitted else 0,
        )


def _figures(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> tuple[float, float]:
    """Return the log loss and the share of errors of rows."""
    wrong = 1 - metrics.accuracy(labels, logits.argmax(axis=1))
    return metrics.log_loss(labels, logits), wrong


def _compare(
    tuned: NDArray[np.bool_],
    probe: NDArray[np.bool_],
    groups: NDArray[np.bytes_] | None,
    n_folds: int,
) -> Decision:
    """Compare which rows (n,) the two models have right."""
    return Decision(
        n_rows=len(tuned),
        n_folds=n_folds,
        probe_accuracy=float(probe.mean()),
        tuned_accuracy=float(tuned.mean()),
        difference=float((tuned.astype(int) - probe).mean()),
        lower_bound=_lower_bound(tuned, probe, groups),
    )


def _lower_bound(
    tuned: NDArray[np.bool_], probe: NDArray[np.bool_], groups: NDArray[np.bytes_] | None
) -> float:
    """Return the lower bound of the difference of the two models' accuracies."""
    two_sided = 2 * CONFIDENCE - 1
    if groups is not None:
        return mean_interval(tuned.astype(float) - probe, (-1, 1), groups, two_sided)[0]
    counts = int((tuned & ~probe).sum()), int((probe & ~tuned).sum())
    return paired_difference_interval(len(tuned), *counts, two_sided)[0]
