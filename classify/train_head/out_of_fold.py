"""What cross-validation found: logits of rows that were held out, figures, and their spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import inf, sqrt
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.results.runs import DENSE, LOGISTIC
from classify.selection.division import Part
from classify.selection.folds import FoldPlan
from classify.statistics import metrics
from classify.statistics.intervals import wilson_interval
from classify.train_head.suspects import Suspects, find_suspects

FIGURES = ("accuracy", "log_loss", "balanced_accuracy", "macro_f1")
"""What is measured on every fold: shares in [0, 1], the log loss in nats."""

_SHARES = tuple(name for name in FIGURES if name != "log_loss")


@dataclass(frozen=True)
class FoldScore:
    """What a model reached on one held-out fold; a row of ``folds.csv``.

    ``repeat`` and ``fold`` count from 1. ``epochs`` are those of the Dense head, ``C`` is the
    logistic regression's; each is None for the other model.
    """

    repeat: int
    fold: int
    model: str
    n_train: int
    n_held_out: int
    accuracy: float
    log_loss: float
    balanced_accuracy: float
    macro_f1: float
    epochs: int | None = None
    C: float | None = None


@dataclass(frozen=True)
class Spread:
    """A figure over all folds and repeats.

    Attributes
    ----------
    mean : over folds
    sd : standard deviation over folds (n - 1)
    sd_over_repeats : standard deviation of the repeats' means; None for a single repeat
    ci95 : interval for the mean, see :func:`corrected_interval`
    """

    mean: float
    sd: float
    sd_over_repeats: float | None
    ci95: tuple[float, float]


@dataclass(frozen=True)
class OutOfFold:
    """What cross-validation found.

    Attributes
    ----------
    plan : how the folds were drawn
    rows : the n rows that they were drawn from
    positions : (n,) of these rows among those that were given
    fold_of : (repeats, n) the fold, from 0, in which a row was held out, or ``ALWAYS_TRAINED``
    logits : for each model (repeats, n, k) float32, NaN where a row was not held out, minus
        infinity for classes that the model did not know
    scores : for each repeat, fold and model
    """

    plan: FoldPlan
    rows: Part
    positions: NDArray[np.int64]
    fold_of: NDArray[np.int64]
    logits: Mapping[str, NDArray[np.float32]]
    scores: tuple[FoldScore, ...]

    @property
    def selected(self) -> str:
        """The model of the best mean accuracy; of equals, of the best log loss."""
        return max(
            self.logits,
            key=lambda name: (
                self.spread(name, "accuracy").mean,
                -self.spread(name, "log_loss").mean,
            ),
        )

    @property
    def n_epochs(self) -> int:
        """The median of the epochs that the folds chose for the Dense head, rounded up at half."""
        chosen = [one.epochs for one in self.scores if one.epochs is not None]
        return int(median(chosen) + 0.5)

    def spread(self, model: str, figure: str) -> Spread:
        """Return a model's figure over folds and repeats."""
        bounds = (0.0, 1.0 if figure in _SHARES else inf)
        return self._spread(self._by_repeat(model, figure), bounds)

    def difference(self, figure: str = "accuracy") -> Spread:
        """Return the Dense head's figure less the logistic regression's, fold by fold."""
        first, second = (self._by_repeat(name, figure) for name in (DENSE, LOGISTIC))
        return self._spread(first - second, (-1.0, 1.0) if figure in _SHARES else (-inf, inf))

    def pooled(self, model: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the logits (m, c) and labels (m,) of all held-out rows of all repeats.

        Classes that some fold's model did not know have no column, and no row; labels are
        positions among the columns.
        """
        held_out = self.fold_of >= 0
        logits = self.logits[model][held_out]
        labels = np.broadcast_to(self.rows.labels, held_out.shape)[held_out]
        known = np.logical_and.reduce(np.isfinite(logits), axis=0)
        return logits[:, known][known[labels]], (known.cumsum() - 1)[labels[known[labels]]]

    def probabilities(self, model: str) -> NDArray[np.float64]:
        """Return the mean over repeats of each row's probabilities, (n, k).

        They are NaN for a row that was never held out.
        """
        total = np.zeros(self.logits[model].shape[1:])
        for fold_of, logits in zip(self.fold_of, self.logits[model], strict=True):
            held_out = fold_of >= 0
            total[held_out] += metrics.softmax(logits[held_out])
        n_times = (self.fold_of >= 0).sum(axis=0)[:, None]
        return np.divide(total, n_times, out=np.full_like(total, np.nan), where=n_times > 0)

    @cached_property
    def suspects(self) -> Suspects:
        """The rows that look mislabeled by what the selected model predicts out of fold."""
        return find_suspects(self.probabilities(self.selected), self.rows.labels)

    def facts(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says of the folds."""
        models = {
            name: {figure: asdict(self.spread(name, figure)) for figure in FIGURES}
            for name in self.logits
        }
        return {
            "n_folds": self.plan.n_folds,
            "n_repeats": self.plan.n_repeats,
            "n_rows": len(self.rows),
            "n_held_out": int((self.fold_of >= 0).any(axis=0).sum()),
            "groups": self.rows.groups is not None,
            "n_suspects": len(self.suspects),
            "epochs": self.n_epochs,
            **models,
            "difference": {figure: asdict(self.difference(figure)) for figure in FIGURES},
        }

    def _by_repeat(self, model: str, figure: str) -> NDArray[np.float64]:
        """Return a model's figure of each fold, (repeats, folds)."""
        values = [getattr(one, figure) for one in self.scores if one.model == model]
        return np.reshape(values, (self.plan.n_repeats, self.plan.n_folds))

    def _spread(self, values: NDArray[np.float64], bounds: tuple[float, float]) -> Spread:
        """Return the spread of values (repeats, folds), which are within ``bounds``.

        Shares that are the same in every fold have the interval of a share of all rows.
        """
        low, high = corrected_interval(values.ravel(), self.plan.n_folds)
        means = values.mean(axis=1)
        if low == high and bounds == (0.0, 1.0):
            n_rows = int((self.fold_of >= 0).any(axis=0).sum())
            low, high = wilson_interval(round(float(means[0]) * n_rows), n_rows)
        return Spread(
            mean=float(values.mean()),
            sd=float(values.std(ddof=1)),
            sd_over_repeats=float(means.std(ddof=1)) if len(means) > 1 else None,
            ci95=(max(low, bounds[0]), min(high, bounds[1])),
        )


def corrected_interval(
    values: NDArray[np.floating], n_folds: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return an interval for the mean of a figure over the folds of one or more repeats.

    With J ``values`` of mean m and variance s² (J - 1), and t Student's quantile with J - 1
    degrees of freedom::

        m ± t sqrt((1 / J + 1 / (n_folds - 1)) s²)

    Training parts overlap, so the folds are not independent; the second term, the held-out rows
    per training row, makes up for that. C. Nadeau, Y. Bengio (2003), "Inference for the
    generalization error", Machine Learning 52, 239-281; for repeated folds R. Bouckaert, E. Frank
    (2004), "Evaluating the replicability of significance tests", PAKDD.
    """
    from scipy.stats import t

    n = len(values)
    variance = (1 / n + 1 / (n_folds - 1)) * np.var(values, ddof=1)
    half_width = float(t.ppf((1 + confidence) / 2, n - 1)) * sqrt(variance)
    mean = float(np.mean(values))
    return mean - half_width, mean + half_width
