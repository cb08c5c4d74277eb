"""Hyperparameters chosen on validation rows: what every probe's tuning takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classify.estimators import LogitsClassifier
from classify.statistics import metrics
from classify.statistics.calibration import apply_temperature, fit_temperature

Rows = tuple[Any, NDArray[np.integer]]
"""Features (n, d), float32, in memory or streamed (:mod:`classify.streams`), and labels (n,)."""


@dataclass(frozen=True)
class Tuning:
    """How to choose.

    Attributes
    ----------
    select_by : ``"log_loss"`` on validation rows, at the best temperature; or ``"accuracy"``, of
        equals by log loss. Of a few hundred rows the accuracy is a coarse, noisy curve
    class_weight : ``"balanced"`` or None; probes that keep their training rows, or one mean for a
        class, have no use for it
    seed : of all that is drawn
    """

    select_by: Literal["log_loss", "accuracy"] = "log_loss"
    class_weight: Literal["balanced"] | None = None
    seed: int = 0


@dataclass(frozen=True)
class TriedPoint:
    """One choice of hyperparameters, and what it reached on validation rows.

    The log loss, in nats, is that at the temperature, which is the best there, over the rows whose
    class the probe knows; the accuracy, in [0, 1], is over all rows. The temperature of a logistic
    regression is 1: it needs none.
    """

    hyperparameters: Mapping[str, Any]
    accuracy: float
    log_loss: float
    temperature: float


@dataclass(frozen=True)
class TunedProbe:
    """The choice, and how it was made.

    Attributes
    ----------
    probe : fitted to the training rows alone; ``clone(probe).fit`` fits the choice to others. Its
        logits have been divided by the temperature, but for those of a Dense head
    hyperparameters : the choice
    points : everything that was tried, in order
    """

    probe: LogitsClassifier
    hyperparameters: Mapping[str, Any]
    points: tuple[TriedPoint, ...]

    @property
    def point(self) -> TriedPoint:
        """What the choice reached on validation: optimistic, for it was chosen by that."""
        return next(one for one in self.points if one.hyperparameters == self.hyperparameters)


Tune = Callable[[Rows, Rows, Tuning], TunedProbe]
"""Chooses a probe's hyperparameters: training rows, validation rows, how to choose."""


def measure(
    hyperparameters: Mapping[str, Any],
    logits: NDArray[np.floating],
    classes: NDArray,
    labels: NDArray[np.integer],
) -> TriedPoint:
    """Return what logits (n, k) of the classes (k,) reach on labels (n,)."""
    codes = np.searchsorted(classes, labels).clip(max=len(classes) - 1)
    known = classes[codes] == labels
    temperature, log_loss = 1.0, float("nan")
    if known.any():
        temperature = fit_temperature(logits[known], codes[known])
        scaled = apply_temperature(logits[known], temperature)
        log_loss = metrics.log_loss(codes[known], scaled)
    accuracy = metrics.accuracy(labels, classes[logits.argmax(axis=1)])
    return TriedPoint(dict(hyperparameters), accuracy, log_loss, temperature)


def choose(points: Sequence[TriedPoint], select_by: str) -> int:
    """Return the position of the best point; of equals the first."""

    def merit(position: int) -> tuple[float, float]:
        point = points[position]
        return (0.0 if select_by == "log_loss" else -point.accuracy), point.log_loss

    return min(range(len(points)), key=merit)
