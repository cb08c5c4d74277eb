"""Models across data sets: ranks, Friedman's test, and Wilcoxon's for pairs, Holm-corrected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from classify.statistics.paired_tests import friedman_p, holm, verdict, wilcoxon_p

FEWEST_SETS = 6
"""With fewer data sets Wilcoxon's test can find nothing at the usual level."""

_FEWEST_MODELS = 3


@dataclass(frozen=True)
class PairAcross:
    """Two models over all data sets.

    ``difference`` is the mean of the first's figure less the second's, ``p_value_holm`` Wilcoxon's
    signed-rank p-value, corrected for all pairs that are tested.
    """

    first: str
    second: str
    difference: float
    p_value_holm: float
    verdict: str


@dataclass(frozen=True)
class Across:
    """What data sets together say of models.

    Attributes
    ----------
    models : those that every data set has
    ranks : the mean rank of each, 1 for the best, ties shared
    friedman : the p-value that all are alike; None for fewer than three models
    pairs : the tests between two
    n_sets : data sets
    """

    models: tuple[str, ...]
    ranks: tuple[float, ...]
    friedman: float | None
    pairs: tuple[PairAcross, ...]
    n_sets: int

    def sentences(self) -> Iterator[str]:
        """Yield what may be said: of all models, then of every pair."""
        yield from self.how()
        for pair in self.pairs:
            yield (
                f"{pair.first} over {pair.second}: {pair.difference:+.4f} on average, p = "
                f"{pair.p_value_holm:.2g}, {pair.verdict}"
            )

    def how(self) -> Iterator[str]:
        """Yield what may be said of all models, and how pairs were tested."""
        if self.friedman is not None:
            yield (
                f"Friedman's test over {self.n_sets} data sets, that all {len(self.models)} models "
                f"are alike: p = {self.friedman:.2g}."
            )
        yield (
            f"Wilcoxon's signed-rank test of pairs, Holm-corrected for {len(self.pairs)}"
            + (
                f": with fewer than {FEWEST_SETS} data sets it can find no difference."
                if self.n_sets < FEWEST_SETS
                else ":"
            )
        )


def compare_across(
    models: Sequence[str],
    figures: NDArray[np.floating],
    *,
    lower_is_better: bool,
    baseline: str | None,
) -> Across | None:
    """Compare models over data sets, of which ``figures`` (n_sets, n_models) are independent.

    Every model is tested against ``baseline``, or where there is none every two. None where there
    are fewer than two data sets or models, or the baseline is none of them.
    """
    n_sets, n_models = figures.shape
    if min(n_sets, n_models) < 2 or baseline not in {None, *models}:  # noqa: PLR2004
        return None
    merits = -figures if lower_is_better else figures
    ranks = rankdata(-merits, axis=1).mean(axis=0)
    friedman = friedman_p(merits) if n_models >= _FEWEST_MODELS else None
    tried = list(combinations(range(n_models), 2))
    if baseline is not None:
        second = list(models).index(baseline)
        tried = [(first, second) for first in range(n_models) if first != second]
    sign = -1 if lower_is_better else 1
    pairs = _test_pairs(models, merits, tried, sign)
    return Across(tuple(models), tuple(map(float, ranks)), friedman, pairs, n_sets)


def _test_pairs(
    models: Sequence[str],
    merits: NDArray[np.floating],
    tried: Sequence[tuple[int, int]],
    sign: int,
) -> tuple[PairAcross, ...]:
    """Test pairs of models on merits (n_sets, n_models), of which more is better."""
    gains = [merits[:, first] - merits[:, second] for first, second in tried]
    raw = [wilcoxon_p(merits[:, first], merits[:, second]) for first, second in tried]
    return tuple(
        PairAcross(
            models[first],
            models[second],
            sign * float(gain.mean()),
            float(p_value),
            verdict(float(gain.mean()), float(p_value)),
        )
        for (first, second), gain, p_value in zip(tried, gains, holm(raw), strict=True)
    )
