"""The measuring: at every number of images a probe is tuned anew, fitted, and scored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from classify.compare_probes.refits import refit
from classify.learning_curve.options import CurveOptions
from classify.learning_curve.subsets import divide_subset, nested_order, subset_sizes
from classify.probes import PROBES, Tuning
from classify.selection.division import Part
from classify.selection.folds import ALWAYS_TRAINED, draw_folds
from classify.statistics import metrics
from data_cache.console import progress, warn
from data_cache.errors import DataError

N_FOLDS = 5


@dataclass(frozen=True)
class Draw:
    """One draw of the images: those to learn from, in the order in which they are taken.

    Attributes
    ----------
    number : from 0
    pool : the rows, in a nested order
    scored : the rows to score on, features (m, d)
    labels : theirs, (m,); None while they are under seal
    """

    number: int
    pool: Part
    scored: NDArray[np.float32]
    labels: NDArray[np.int64] | None


@dataclass(frozen=True)
class Fitted:
    """A probe fitted to the first ``n`` images of a draw: what it chose, what it predicts (m,).

    ``labels`` (m,) are those of what it predicts; None while they are under seal.
    """

    probe: str
    n: int
    draw: int
    hyperparameters: Mapping[str, Any]
    predictions: NDArray[np.int64]
    labels: NDArray[np.int64] | None

    def accuracy(self, sealed: NDArray[np.int64] | None) -> float:
        """Return the accuracy, in [0, 1]; ``sealed`` are the labels of the test, if that it was."""
        labels = sealed if self.labels is None else self.labels
        return float("nan") if labels is None else metrics.accuracy(labels, self.predictions)


@dataclass(frozen=True)
class Curve:
    """Accuracies of a probe, (draws, s), at s numbers of images (s,)."""

    probe: str
    sizes: NDArray[np.int64]
    accuracies: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean over draws, (s,)."""
        return self.accuracies.mean(axis=0)

    @property
    def sd(self) -> NDArray[np.float64]:
        """The standard deviation over draws, (s,)."""
        return self.accuracies.std(axis=0, ddof=1)

    @property
    def band(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the accuracy of one more draw would lie, 95 times of 100: low and high, (s,).

        Student's prediction interval: mean ± t sd sqrt(1 + 1/draws), within [0, 1]. NaN where all
        draws reached the same: that shows no spread, and is no proof that there is none.
        """
        n_draws = len(self.accuracies)
        half = t.ppf(0.975, n_draws - 1) * self.sd * np.sqrt(1 + 1 / n_draws)
        half[np.ptp(self.accuracies, axis=0) == 0] = np.nan
        return (self.mean - half).clip(0, 1), (self.mean + half).clip(0, 1)


def draws_of_folds(rows: Part, n_draws: int, seed: int) -> Iterator[Draw]:
    """Yield draws that are scored on the fold that they leave out, each fold in turn.

    Raises
    ------
    DataError
        There are too few rows for :data:`N_FOLDS` folds.
    """
    for number in range(n_draws):
        repeat, fold = divmod(number, N_FOLDS)
        fold_of = draw_folds(rows.labels, rows.groups, n_folds=N_FOLDS, seed=seed + repeat)
        held_out = rows.take(fold_of == fold)
        pool = rows.take((fold_of != fold) | (fold_of == ALWAYS_TRAINED))
        order = nested_order(pool.labels, (seed, number))
        yield Draw(number, pool.take(order), held_out.features, held_out.labels)


def draws_of_all(rows: Part, test: NDArray[np.float32], n_draws: int, seed: int) -> Iterator[Draw]:
    """Yield draws of all rows that are scored on a test (m, d), whose labels are not known yet."""
    for number in range(n_draws):
        order = nested_order(rows.labels, (seed, number))
        yield Draw(number, rows.take(order), test, None)


def fit_draws(
    draws: Iterator[Draw],
    sizes: Sequence[int],
    n_classes: int,
    options: CurveOptions,
) -> Iterator[Fitted]:
    """Fit every probe to every number of images of every draw.

    Hyperparameters are chosen within the images of that number, some of which are kept back for
    it; then all of them are fitted to.
    """
    total = options.n_draws * len(sizes) * len(options.probes)
    with progress("Learning curve", total=total, unit="fits") as advance:
        for draw in draws:
            for n in sizes:
                for probe in options.probes:
                    fitted = _fit(draw, n, probe, n_classes, options)
                    if fitted is not None:
                        yield fitted
                    advance(1)


def _fit(draw: Draw, n: int, probe: str, n_classes: int, options: CurveOptions) -> Fitted | None:
    """Tune and fit a probe within the first ``n`` images of a draw; None where they are too few."""
    rows = draw.pool.take(np.arange(n))
    seed = options.seed + draw.number
    parts = divide_subset(rows, options.validation_split, seed)
    fitting, choosing = ((one.features, one.labels) for one in parts)
    try:
        tuned = PROBES[probe](fitting, choosing, Tuning(options.select_by, seed=seed))
    except DataError as error:
        if n == len(draw.pool):
            raise
        warn(f"{probe} cannot be fitted to {n} images in draw {draw.number + 1}: {error}")
        return None
    predictions = refit(tuned.probe, rows, n_classes).predict(draw.scored)
    return Fitted(probe, n, draw.number, tuned.hyperparameters, predictions, draw.labels)


def curve_sizes(rows: Part, options: CurveOptions, *, on_folds: bool) -> tuple[int, ...]:
    """Return the numbers of images to measure at, the last of them all that a draw has."""
    n_most = len(rows)
    if on_folds:
        draws = draws_of_folds(replace(rows, features=rows.labels), options.n_draws, options.seed)
        n_most = min(len(draw.pool) for draw in draws)
    return subset_sizes(rows.labels, n_most)


def curves_of(fitted: Sequence[Fitted], labels: NDArray[np.int64] | None) -> tuple[Curve, ...]:
    """Return the curve of each probe; ``labels`` (m,) are those of draws that have none.

    A number of images that a probe could not be fitted to in every draw is left out.
    """
    probes = dict.fromkeys(one.probe for one in fitted)
    return tuple(_curve([one for one in fitted if one.probe == probe], labels) for probe in probes)


def _curve(fitted: Sequence[Fitted], labels: NDArray[np.int64] | None) -> Curve:
    """Return the curve of one probe."""
    found: dict[int, dict[int, float]] = {}
    for one in fitted:
        found.setdefault(one.n, {})[one.draw] = one.accuracy(labels)
    n_draws = max(map(len, found.values()))
    sizes = sorted(n for n, reached in found.items() if len(reached) == n_draws)
    rows = [[found[n][draw] for n in sizes] for draw in sorted(found[sizes[-1]])]
    return Curve(fitted[0].probe, np.array(sizes), np.array(rows))
