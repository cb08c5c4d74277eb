"""Whether models that were measured on the same rows, or data sets, can be told apart.

Every test returns a p-value: how often chance alone would give a difference as large as the one
that was seen, if no model were better. A large one does not say that models are equal, only that
these rows cannot tell: see :func:`verdict` and :func:`detectable_difference`.
"""

from __future__ import annotations

from math import isclose, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

_MOST_FLIPPED_EXACTLY = 16
_N_DRAWS = 10_000
_BLOCK = 2**21
_ROUNDING = 1e-9
_FEWEST_SETS, _FEWEST_MODELS = 2, 3


def mcnemar_mid_p(n_only_first: int, n_only_second: int) -> float:
    """Return the exact McNemar mid-p value of two models on the same rows, in (0, 1].

    Of the rows that exactly one model gets right, ``n_only_first`` are the first's. If neither
    model is better, their number B is binomial(n, 1/2), with n both counts' sum. The value is
    P(|B - n/2| > d) + P(|B - n/2| = d) / 2, d being what was seen; 1 where the models never
    differ. Rows are taken to be independent.

    M. W. Fagerland, S. Lydersen, P. Laake (2013), "The McNemar test for binary matched-pairs
    data: mid-p and asymptotic are better than exact conditional", BMC Med Res Methodol 13:91.
    """
    from scipy.stats import binom

    n, fewer = n_only_first + n_only_second, min(n_only_first, n_only_second)
    if n == 0:
        return 1.0
    as_seen = float(binom.pmf(fewer, n, 0.5))
    if n_only_first == n_only_second:
        return 1 - as_seen / 2
    return 2 * float(binom.cdf(fewer, n, 0.5)) - as_seen


def cluster_permutation_p(differences: ArrayLike, groups: NDArray, seed: int = 0) -> float:
    """Return the p-value of two models on rows that come in groups, in (0, 1].

    ``differences`` (n,) are what the first model reaches on each row less the second (1, 0 or -1
    for right and wrong), ``groups`` (n,) name the rows that belong together. If neither model is
    better, either could have had the other's results on any whole group: the value is the share
    of all such exchanges, the identity among them, whose summed difference is at least as far from
    0. All are tried where at most 16 groups have a difference other than 0; otherwise 10,000 are
    drawn, and what was seen counts as one more. B. Phipson, G. K. Smyth (2010), "Permutation
    p-values should never be zero", Stat Appl Genet Mol Biol 9:39.
    """
    group_of_row = np.unique(groups, return_inverse=True)[1]
    sums = np.bincount(group_of_row, weights=np.asarray(differences, np.float64))
    sums = sums[np.abs(sums) > _ROUNDING * np.abs(sums).max(initial=0)]
    limit = abs(sums.sum()) - _ROUNDING * np.abs(sums).sum()
    if len(sums) <= _MOST_FLIPPED_EXACTLY:
        exchanges = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((1 - 2 * exchanges) @ sums) >= limit).mean())
    rng = np.random.default_rng(seed)
    n_at_once = max(1, _BLOCK // len(sums))
    n_as_far = 1
    for start in range(0, _N_DRAWS, n_at_once):
        size = min(n_at_once, _N_DRAWS - start)
        signs = 1 - 2 * rng.integers(0, 2, (size, len(sums)), dtype=np.int8)
        n_as_far += int((np.abs(signs @ sums) >= limit).sum())
    return n_as_far / (_N_DRAWS + 1)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values (m,) corrected for there being m tests, each in [0, 1].

    Where those below 0.05 are called differences, the chance of even one false call is at most
    0.05. S. Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6, 65-70: the i-th smallest times m - i + 1, never below a smaller one's.
    """
    values = np.asarray(p_values, np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected


def detectable_difference(
    n: int, discordance: float, power: float = 0.8, level: float = 0.05
) -> float:
    """Return the smallest difference in accuracy that n rows would show, in (0, discordance].

    ``discordance``, in [0, 1], is the share of rows that exactly one of the two models gets right.
    A true difference d is found by McNemar's test at ``level`` with probability ``power`` where
    d sqrt(n) = z(1 - level/2) sqrt(discordance) + z(power) sqrt(discordance - d²). R. J. Connor
    (1987), "Sample size for testing differences in proportions for the paired-sample design",
    Biometrics 43, 207-211. NaN where even one model being right on all of these rows would be
    missed that often: there are too few.
    """
    of_level = NormalDist().inv_cdf(1 - level / 2) * sqrt(discordance)
    of_power = NormalDist().inv_cdf(power)
    if discordance == 0 or discordance * sqrt(n) < of_level + of_power * sqrt(
        discordance - discordance**2
    ):
        return float("nan")
    # The square root on the right turns the equation into a quadratic one in d.
    scale = n + of_power**2
    root = sqrt(max(n * of_level**2 - scale * (of_level**2 - of_power**2 * discordance), 0))
    return (sqrt(n) * of_level + root) / scale


def friedman_p(scores: NDArray[np.floating]) -> float:
    """Return Friedman's p-value that all models are alike, from scores (n_data_sets, n_models).

    For three models or more, over data sets that have nothing in common. J. Demšar (2006),
    "Statistical comparisons of classifiers over multiple data sets", JMLR 7, 1-30. It is 1 where
    every model has the same score on each data set.

    Raises
    ------
    ValueError
        There are fewer than two data sets or three models.
    """
    from scipy.stats import friedmanchisquare

    n_sets, n_models = scores.shape
    if n_sets < _FEWEST_SETS or n_models < _FEWEST_MODELS:
        raise ValueError(f"{n_sets} data sets of {n_models} models: expected two and three or more")
    if (scores == scores[:, :1]).all():
        return 1.0
    return float(friedmanchisquare(*scores.T).pvalue)


def wilcoxon_p(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Return Wilcoxon's signed-rank p-value of two models' scores (n,) on n data sets.

    SciPy's, exact for up to 50 data sets without ties; data sets of equal scores say nothing and
    are left out. With fewer than 6 data sets the value cannot be below 0.05. It is 1 where all
    scores are equal.
    """
    from scipy.stats import wilcoxon

    return 1.0 if np.array_equal(first, second) else float(wilcoxon(first, second).pvalue)


def verdict(difference: float, p_value: float, level: float = 0.05) -> str:
    """Return what a test allows to be said of the first model: never that two are equal."""
    if not p_value < level or isclose(difference, 0, abs_tol=1e-15):
        return "not distinguishable"
    return "better" if difference > 0 else "worse"
