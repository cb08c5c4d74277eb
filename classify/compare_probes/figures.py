"""What a candidate reaches on the test: each figure with its interval, before and after scaling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.statistics import intervals, metrics
from classify.statistics.calibration import apply_temperature, reliability

SURE_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")
"""What a temperature does not change: shares in [0, 1]."""

SCALED_FIGURES = ("log_loss", "brier", "ece")
"""What it does: nats, the Brier score in [0, 2], the equal-mass calibration error in [0, 1]."""

RAW, CALIBRATED = "", "calibrated_"
FIGURES = (*SURE_FIGURES, *SCALED_FIGURES, *(CALIBRATED + name for name in SCALED_FIGURES))


_HIGHEST_TOLD = -float(np.log(np.finfo(np.float32).tiny))
"""Nats: the loss of the smallest probability that float32 holds whole."""


@dataclass(frozen=True)
class Estimate:
    """A figure of n test rows, and the 95% interval for that of all such rows; NaN for none."""

    value: float
    ci95: tuple[float, float]


_NOTHING = Estimate(float("nan"), (float("nan"), float("nan")))


@dataclass(frozen=True)
class TestRows:
    """The test with its seal open: labels (n,) among k classes, and groups (n,) or None."""

    labels: NDArray[np.int64]
    groups: NDArray[np.bytes_] | None
    n_classes: int

    def measure(
        self, logits: NDArray[np.floating], temperature: float | None
    ) -> Mapping[str, Estimate]:
        """Return :data:`FIGURES` of logits (n, k), minus infinity for classes never seen.

        The log loss is over the rows of classes that the model knows, the others over all. Its
        interval is NaN where it would reach beyond the loss of any probability that float32 holds.
        Without a temperature the calibrated figures are NaN.
        """
        found = {**self._sure(logits.argmax(axis=1)), **self._scaled(logits, RAW)}
        if temperature is None:
            return {**found, **{CALIBRATED + name: _NOTHING for name in SCALED_FIGURES}}
        return {**found, **self._scaled(apply_temperature(logits, temperature), CALIBRATED)}

    def n_unknown(self, logits: NDArray[np.floating]) -> int:
        """Return how many rows are of classes that a model never saw."""
        return int((~self._known(logits)).sum())

    def _sure(self, predictions: NDArray[np.int64]) -> dict[str, Estimate]:
        """Return the figures of predictions (n,)."""
        rows, k, groups = (self.labels, predictions), self.n_classes, self.groups
        return {
            "accuracy": Estimate(
                metrics.accuracy(*rows), intervals.accuracy_interval(*rows, groups)
            ),
            "balanced_accuracy": Estimate(
                metrics.balanced_accuracy(*rows, k),
                intervals.balanced_accuracy_interval(*rows, k, groups),
            ),
            "macro_f1": Estimate(
                metrics.macro_f1(*rows, k), intervals.macro_f1_interval(*rows, k, groups)
            ),
        }

    def _scaled(self, logits: NDArray[np.floating], prefix: str) -> dict[str, Estimate]:
        """Return the figures of probabilities."""
        table = reliability(logits, self.labels, self.groups)
        return {
            f"{prefix}log_loss": self._log_loss(logits),
            f"{prefix}brier": Estimate(
                metrics.brier_score(self.labels, logits),
                intervals.brier_interval(self.labels, logits, self.groups),
            ),
            f"{prefix}ece": Estimate(table.error, table.error_interval()),
        }

    def _log_loss(self, logits: NDArray[np.floating]) -> Estimate:
        """Return the log loss over the rows of known classes."""
        known = self._known(logits)
        if not known.any():
            return _NOTHING
        groups = None if self.groups is None else self.groups[known]
        rows = self.labels[known], logits[known]
        low, high = intervals.log_loss_interval(*rows, groups)
        told = (low, high) if high <= _HIGHEST_TOLD else _NOTHING.ci95
        return Estimate(metrics.log_loss(*rows), told)

    def _known(self, logits: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Return which rows (n,) are of a class that the model knows."""
        return np.isfinite(np.take_along_axis(logits, self.labels[:, None], axis=1))[:, 0]
