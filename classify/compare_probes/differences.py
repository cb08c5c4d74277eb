"""Which candidates differ from one of them beyond chance: a family of tests fixed beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classify.statistics.intervals import mean_interval, paired_difference_interval
from classify.statistics.paired_tests import (
    cluster_permutation_p,
    detectable_difference,
    holm,
    mcnemar_mid_p,
    verdict,
)
from classify.train_head.comparison import compare
from data_cache.errors import ParameterError

_SMALLEST_SHOWN = 1e-4
LEVEL, POWER = 0.05, 0.8
"""Differences are called at this level, over the whole family; :attr:`Difference.detectable` is
what is found so often."""


@dataclass(frozen=True)
class Difference:
    """A model and the baseline on the same n test rows.

    Attributes
    ----------
    model, baseline : their names
    difference : the model's accuracy less the baseline's, in [-1, 1]
    ci95 : the interval for it, on its own
    p_value : McNemar's mid-p, or with groups that of the cluster permutation test
    p_value_holm : the same, corrected for the family
    detectable : the smallest difference that a test of this size finds four times in five, at the
        level that the hardest test of the family has; NaN where none would be
    """

    model: str
    baseline: str
    difference: float
    ci95: tuple[float, float]
    p_value: float
    p_value_holm: float
    detectable: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``not distinguishable``: what may be said of the model."""
        return verdict(self.difference, self.p_value_holm, LEVEL)


def find_baseline(wanted: str | None, names: Mapping[str, str], winner: str) -> str:
    """Return the model that the others are tested against; ``names`` maps models to their probes.

    Raises
    ------
    ParameterError
        No model, or several, have the name or the probe that is wanted.
    """
    if wanted is None:
        return winner
    if wanted in names:
        return wanted
    fitting = [name for name, probe in names.items() if probe == wanted]
    if len(fitting) != 1:
        found = "several models have" if fitting else "no model has"
        raise ParameterError(
            f"{found} the name or the probe {wanted!r}: expected one of {', '.join(names)}"
        )
    return fitting[0]


def differences_from(
    labels: NDArray[np.int64],
    groups: NDArray[np.bytes_] | None,
    predictions: Mapping[str, NDArray[np.int64]],
    baseline: str,
) -> tuple[Difference, ...]:
    """Test every model against the baseline, all on the same rows (n,)."""
    others = [name for name in predictions if name != baseline]
    if not others:
        return ()
    pairs = [_Pair(labels, groups, predictions[name], predictions[baseline]) for name in others]
    raw = [pair.p_value() for pair in pairs]
    return tuple(
        Difference(
            model=name,
            baseline=baseline,
            difference=pair.difference,
            ci95=pair.interval(),
            p_value=p_value,
            p_value_holm=float(corrected),
            detectable=pair.detectable(LEVEL / len(others)),
        )
        for name, pair, p_value, corrected in zip(others, pairs, raw, holm(raw), strict=True)
    )


@dataclass(frozen=True)
class _Pair:
    """Two models' predictions (n,) of the same rows."""

    labels: NDArray[np.int64]
    groups: NDArray[np.bytes_] | None
    first: NDArray[np.int64]
    second: NDArray[np.int64]

    @property
    def gains(self) -> NDArray[np.float64]:
        """1, 0 or -1 for each row, (n,): right with the first model less right with the second."""
        return (self.first == self.labels) * 1.0 - (self.second == self.labels)

    @property
    def difference(self) -> float:
        """The first's accuracy less the second's."""
        return float(self.gains.mean())

    def p_value(self) -> float:
        """Return how often chance alone would give as much."""
        if self.groups is not None:
            return cluster_permutation_p(self.gains, self.groups)
        return mcnemar_mid_p(*self._counts())

    def interval(self) -> tuple[float, float]:
        """Return the 95% interval for the difference."""
        if self.groups is not None:
            return mean_interval(self.gains, (-1, 1), self.groups)
        return paired_difference_interval(len(self.labels), *self._counts())

    def detectable(self, level: float) -> float:
        """Return the smallest difference that would be found; rows of one group count for less."""
        n = len(self.labels)
        if self.groups is not None:
            n = max(1, round(n / design_effect(self.gains, self.groups)))
        return detectable_difference(n, float(np.abs(self.gains).mean()), POWER, level)

    def _counts(self) -> tuple[int, int]:
        """Return how many rows the first alone gets right, and the second alone."""
        found = compare(self.labels, self.first, self.second)
        return found.n_only_first, found.n_only_second


def design_effect(values: NDArray[np.float64], groups: NDArray) -> float:
    """Return how many times the variance of a mean is larger for rows in groups; 1 or more.

    The variance of the mean of the values (n,) if groups are drawn whole, over that if rows are.
    L. Kish (1965), Survey Sampling.
    """
    members = np.unique(groups, return_inverse=True)[1]
    distances = values - values.mean()
    of_rows = float(np.square(distances).sum())
    of_groups = float(np.square(np.bincount(members, weights=distances)).sum())
    return max(1.0, of_groups / of_rows) if of_rows else 1.0


def summarize_differences(differences: Sequence[Difference], *, groups: bool) -> list[str]:
    """Say how the models were tested, then what may be said of each."""
    if not differences:
        return []
    test = "permutation of whole groups" if groups else "exact McNemar test, mid-p"
    m = len(differences)
    how = f"Against {differences[0].baseline} on the test, paired by row: {test}"
    if m > 1:
        how += (
            f", Holm-corrected for {m} tests. The 95% intervals are not adjusted for their number"
        )
    return [f"{how}.", *map(_sentence, differences)]


def _sentence(found: Difference) -> str:
    """Say what may be said of a model."""
    low, high = found.ci95
    p = f"p = {found.p_value_holm:.2g}"
    if found.p_value_holm < _SMALLEST_SHOWN:
        p = f"p < {_SMALLEST_SHOWN:g}"
    said = (
        f"{found.model}: {found.difference:+.4f} ({low:+.4f} to {high:+.4f}), {p}, {found.verdict}"
    )
    if found.verdict != "not distinguishable":
        return said
    if np.isnan(found.detectable):
        return f"{said}; they differ on too few rows for any difference to be found"
    return f"{said}; this test would find a difference of {found.detectable:.4f}"
