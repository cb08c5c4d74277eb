"""Draws of test rows from a world whose true figures are known, to count how often intervals hold.

The world has k normal clouds of unit variance, ``separation`` apart, one for each class. The model
is the best there is, except that its logits are multiplied by ``sharpness``: 1 is calibrated, 2
too sure. The accuracy sets the separation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, norm

Interval = tuple[float, float]


@dataclass(frozen=True)
class World:
    """Where rows come from: the accuracy there, how sure the model is, and each class's share."""

    accuracy: float
    sharpness: float = 1.0
    shares: tuple[float, ...] = (0.1,) * 10

    @property
    def n_classes(self) -> int:
        return len(self.shares)

    def labels(self, n: int) -> NDArray[np.int64]:
        """Return n labels: the shares are those of the rows, not only those of the world."""
        ends = np.round(n * np.cumsum(self.shares)).astype(int)
        return np.searchsorted(ends, np.arange(n), side="right")

    def draw(self, n: int, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """Return labels (n,) and logits (n, k)."""
        return self.noisy(self.labels(n), rng.standard_normal((n, self.n_classes)))

    def draw_groups(
        self, n_groups: int, size: int, correlation: float, rng: np.random.Generator
    ) -> tuple[NDArray, NDArray, NDArray]:
        """Return labels, logits and groups; rows of a group have one label and like noise."""
        labels = np.repeat(rng.permutation(self.labels(n_groups)), size)
        shared = np.repeat(rng.standard_normal((n_groups, self.n_classes)), size, axis=0)
        own = rng.standard_normal(shared.shape)
        noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        groups = np.repeat(np.arange(n_groups), size)
        return *self.noisy(labels, noise), groups

    def noisy(self, labels: NDArray, noise: NDArray) -> tuple[NDArray, NDArray]:
        """Return the labels, and logits of noise (n, k) around their clouds."""
        distance = separation(self.accuracy, self.n_classes)
        noise[np.arange(len(labels)), labels] += distance
        return labels, noise * (distance * self.sharpness)


@cache
def separation(accuracy: float, n_classes: int) -> float:
    """Return the distance of clouds at which the nearest is right with this probability."""
    points = np.linspace(-9, 18, 6_001)

    def excess(distance: float) -> float:
        density = norm.pdf(points - distance) * norm.cdf(points) ** (n_classes - 1)
        return float(np.trapezoid(density, points)) - accuracy

    return brentq(excess, 0, 9)


@cache
def many(world: World) -> tuple[NDArray, NDArray]:
    """Return so many rows of a world that their figures are its true ones."""
    return world.draw(400_000, np.random.default_rng(99))


def covered(intervals: Iterator[tuple[Interval, float]]) -> float:
    """Return the share of intervals that hold the truth that comes with them."""
    return float(np.mean([low <= truth <= high for (low, high), truth in intervals]))


def repeat(
    n_repeats: int, seed: int, once: Callable[[np.random.Generator], tuple[Interval, float]]
) -> float:
    """Return the coverage over repeats of an experiment, each with its own draws."""
    children = np.random.default_rng(seed).spawn(n_repeats)
    return covered(once(rng) for rng in children)


def exact_coverage(ends: NDArray, shares: NDArray) -> NDArray:
    """Return how often intervals (n + 1, 2), one for each number right, hold each of the shares."""
    n, (low, high) = len(ends) - 1, ends.T
    first, beyond = np.searchsorted(high, shares), np.searchsorted(low, shares, side="right")
    return binom.cdf(beyond - 1, n, shares) - binom.cdf(first - 1, n, shares)


def beside_ends(ends: NDArray, lowest: float, highest: float) -> NDArray:
    """Return the shares within bounds at which the exact coverage can be least.

    Between two ends it is the chance of the same numbers right, which has no minimum inside.
    """
    shares = np.concatenate([ends.ravel() - 1e-12, ends.ravel() + 1e-12])
    return np.append(shares[(shares > lowest) & (shares < highest)], [lowest, highest])
