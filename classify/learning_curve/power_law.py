"""How many images a target accuracy would take, by the law that learning curves tend to follow."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

EXPONENTS = np.geomspace(0.05, 2, 400)
FEWEST_SIZES = 4
MOST_TIMES = 10
"""Nothing is said of more images than so many times those that were measured."""

_N_DRAWS = 1_000


@dataclass(frozen=True)
class PowerLaw:
    """Curves a - b n^-c: arrays (m,), with a in [0, 1], b 0 or more, c in :data:`EXPONENTS`.

    C. Cortes et al. (1994), "Learning curves: asymptotic values and rate of convergence", NIPS 6.
    """

    limit: NDArray[np.float64]
    scale: NDArray[np.float64]
    exponent: NDArray[np.float64]

    def accuracy(self, n: ArrayLike) -> NDArray[np.float64]:
        """Return the accuracies (m, s) at s numbers of images."""
        sizes = np.asarray(n, np.float64)[None]
        return self.limit[:, None] - self.scale[:, None] * sizes ** -self.exponent[:, None]

    def images_for(self, target: float) -> NDArray[np.float64]:
        """Return how many images reach a target, (m,); infinity where a curve never does."""
        gap = self.limit - target
        n = np.full(len(gap), inf)
        reached = gap > 0
        ratio = self.scale[reached] / gap[reached]
        n[reached] = ratio ** (1 / self.exponent[reached])
        return n


def fit_power_law(sizes: NDArray[np.integer], accuracies: NDArray[np.floating]) -> PowerLaw:
    """Return the curves of least squares through accuracies (m, s) at s sizes.

    The j-th size weighs j: what is to be known lies beyond the large ones. R. L. Figueroa et al.
    (2012), "Predicting sample size required for classification performance", BMC Med Inform Decis
    Mak 12:8. For each exponent that is tried the rest is a straight line.
    """
    weights = np.arange(1, len(sizes) + 1) / np.arange(1, len(sizes) + 1).sum()
    x = sizes.astype(np.float64)[None] ** -EXPONENTS[:, None]
    y = accuracies.astype(np.float64)
    mean_x, mean_y = x @ weights, y @ weights
    around_x = x - mean_x[:, None]
    covariance = (around_x * weights) @ (y - mean_y[:, None]).T
    scale = np.maximum(-covariance / ((around_x**2) @ weights)[:, None], 0)
    limit = mean_y[None] + scale * mean_x[:, None]
    at_one = ((x * weights) @ (1 - y).T) / ((x**2) @ weights)[:, None]
    scale = np.where(limit > 1, np.maximum(at_one, 0), scale)
    limit = np.minimum(limit, 1)
    fitted = limit[:, :, None] - scale[:, :, None] * x[:, None, :]
    best = (((fitted - y[None]) ** 2) @ weights).argmin(axis=0)
    curves = np.arange(len(y))
    return PowerLaw(limit[best, curves], scale[best, curves], EXPONENTS[best])


@dataclass(frozen=True)
class ImagesNeeded:
    """How many images reach a target accuracy.

    ``n`` and the ends of its 95% band are None where they lie beyond :data:`MOST_TIMES` the
    images that were measured, or nowhere: these curves cannot tell.
    """

    target: float
    n: int | None
    low: int | None
    high: int | None


def images_needed(
    sizes: NDArray[np.integer], accuracies: NDArray[np.floating], target: float, seed: int = 0
) -> ImagesNeeded:
    """Return how many images a target takes, from the accuracies (draws, s) at s sizes.

    The band is that of draws drawn again, with all their sizes: it does not cover that the law may
    be another.

    Raises
    ------
    ValueError
        There are fewer than :data:`FEWEST_SIZES` sizes.
    """
    if len(sizes) < FEWEST_SIZES:
        raise ValueError(f"{len(sizes)} sizes: expected {FEWEST_SIZES} or more to fit a curve to")
    rng = np.random.default_rng(seed)
    again = rng.integers(0, len(accuracies), (_N_DRAWS, len(accuracies)))
    means = np.concatenate([accuracies.mean(axis=0)[None], accuracies[again].mean(axis=1)])
    needed = fit_power_law(sizes, means).images_for(target)
    low, high = np.quantile(needed[1:], [0.025, 0.975], method="closest_observation")
    most = MOST_TIMES * int(sizes[-1])
    n, low, high = (_whole(value, int(sizes[0]), most) for value in (needed[0], low, high))
    return ImagesNeeded(target, n, low, high)


def _whole(value: float, fewest: int, most: int) -> int | None:
    """Return a number of images, not less than were measured; None above ``most``."""
    return None if value > most else max(fewest, int(np.ceil(value)))
