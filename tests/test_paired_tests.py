"""Paired tests against enumeration, SciPy, formulas written out, and simulated power."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import comb

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from classify.statistics.paired_tests import (
    cluster_permutation_p,
    detectable_difference,
    friedman_p,
    holm,
    mcnemar_mid_p,
    verdict,
    wilcoxon_p,
)


@given(only_first=st.integers(0, 40), only_second=st.integers(0, 40))
def test_mcnemar_mid_p_equals_enumeration_of_every_outcome(
    only_first: int, only_second: int
) -> None:
    n = only_first + only_second
    seen = abs(only_first - only_second)
    chances = {b: Fraction(comb(n, b), 2**n) for b in range(n + 1)}
    more_extreme = sum(chance for b, chance in chances.items() if abs(2 * b - n) > seen)
    as_extreme = sum(chance for b, chance in chances.items() if abs(2 * b - n) == seen)
    expected = 1.0 if n == 0 else float(more_extreme + as_extreme / 2)
    assert mcnemar_mid_p(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_mid_p_does_not_care_which_model_comes_first() -> None:
    assert mcnemar_mid_p(3, 11) == mcnemar_mid_p(11, 3)


@given(sums=st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_cluster_permutation_equals_enumeration_of_every_exchange(sums: list[int]) -> None:
    differences = np.concatenate([np.sign(s) * np.ones(max(1, abs(s))) for s in sums])
    groups = np.repeat(np.arange(len(sums)), [max(1, abs(s)) for s in sums])
    flips = product([-1, 1], repeat=len(sums))
    as_far = [abs(np.dot(signs, sums)) >= abs(sum(sums)) for signs in flips]
    assert cluster_permutation_p(differences, groups) == pytest.approx(np.mean(as_far))


def test_cluster_permutation_of_many_groups_equals_scipys() -> None:
    sums = np.random.default_rng(0).normal(0.25, 1, 60)
    expected = scipy.stats.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=50_000, rng=1
    ).pvalue
    found = cluster_permutation_p(sums, np.arange(60))
    assert found == pytest.approx(expected, abs=0.01)


def test_cluster_permutation_of_rows_on_their_own_agrees_with_mcnemar() -> None:
    differences = np.repeat([1, -1, 0], [60, 40, 300])
    p = cluster_permutation_p(differences, np.arange(400))
    as_seen = scipy.stats.binom.pmf(40, 100, 0.5)
    assert p == pytest.approx(mcnemar_mid_p(60, 40) + as_seen, abs=0.01)


def test_cluster_permutation_rejects_equal_models_no_more_often_than_said() -> None:
    """50 groups whose 20 rows lean one way together: a test of rows would reject half of these."""
    rng = np.random.default_rng(0)
    groups, values = np.repeat(np.arange(50), 20), []
    for _ in range(100):
        lean = np.repeat(rng.choice([-0.4, 0.4], 50), 20)
        values.append(cluster_permutation_p(np.sign(rng.normal(lean)), groups))
    assert np.mean(np.array(values) < 0.05) <= 0.12


def test_models_that_never_differ_have_p_1() -> None:
    assert cluster_permutation_p(np.zeros(40), np.arange(40) // 2) == 1
    assert cluster_permutation_p([], np.empty(0, int)) == 1
    assert wilcoxon_p(np.ones(8), np.ones(8)) == 1
    assert friedman_p(np.ones((4, 3))) == 1


@given(values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_its_definition(values: list[float]) -> None:
    expected = []
    for p in values:
        smaller = [q for q in values if q <= p]
        steps = [q * (len(values) - sum(r < q for r in values)) for q in smaller]
        expected.append(min(1, max(steps)))
    np.testing.assert_allclose(holm(values), expected)


def test_holm_equals_a_published_example() -> None:
    """The value of R: p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm")."""
    np.testing.assert_allclose(holm([0.04, 0.01, 0.03, 0.02]), [0.06, 0.04, 0.06, 0.06])


@given(n=st.integers(50, 20_000), discordance=st.floats(0.02, 0.5), power=st.floats(0.55, 0.95))
def test_detectable_difference_solves_connors_equation(
    n: int, discordance: float, power: float
) -> None:
    difference = detectable_difference(n, discordance, power)
    z_level, z_power = scipy.stats.norm.ppf([0.975, power])
    if np.isnan(difference):
        needed = (z_level * discordance**0.5 + z_power * (discordance - discordance**2) ** 0.5) ** 2
        assert needed / discordance**2 > n * (1 - 1e-9)
        return
    needed = z_level * discordance**0.5 + z_power * (discordance - difference**2) ** 0.5
    assert 0 < difference <= discordance * (1 + 1e-9)
    assert (needed / difference) ** 2 == pytest.approx(n)


def test_a_detectable_difference_is_found_about_as_often_as_promised() -> None:
    n, discordance = 3_000, 0.1
    difference = detectable_difference(n, discordance)
    first, second = (discordance + difference) / 2, (discordance - difference) / 2
    draws = np.random.default_rng(0).multinomial(n, [first, second, 1 - discordance], 1_500)
    found = np.mean([mcnemar_mid_p(int(b), int(c)) < 0.05 for b, c, _ in draws])
    assert found == pytest.approx(0.8, abs=0.04)


def test_nothing_is_detectable_with_no_rows_or_no_discordance() -> None:
    assert np.isnan(detectable_difference(0, 0.1))
    assert np.isnan(detectable_difference(20, 0.05))
    assert np.isnan(detectable_difference(1_000, 0.0))


def test_friedman_equals_its_formula() -> None:
    scores = np.random.default_rng(0).random((7, 4)) + 0.1 * np.arange(4)
    ranks = scores.argsort(axis=1).argsort(axis=1) + 1
    statistic = 12 / (7 * 4 * 5) * (ranks.sum(axis=0) ** 2).sum() - 3 * 7 * 5
    assert friedman_p(scores) == pytest.approx(scipy.stats.chi2.sf(statistic, 3))


@pytest.mark.parametrize("shape", [(1, 3), (5, 2)])
def test_friedman_refuses_too_few(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected two and three or more"):
        friedman_p(np.ones(shape))


def test_wilcoxon_equals_enumeration_of_every_sign() -> None:
    first = np.array([0.9, 0.8, 0.75, 0.6, 0.95, 0.5, 0.81])
    second = first - np.array([0.05, -0.01, 0.02, 0.03, 0.04, -0.06, 0.07])
    ranks = np.abs(first - second).argsort().argsort() + 1
    seen = abs(ranks @ np.sign(first - second))
    as_far = [abs(ranks @ np.array(signs)) >= seen for signs in product([-1, 1], repeat=7)]
    assert wilcoxon_p(first, second) == pytest.approx(np.mean(as_far))


@pytest.mark.parametrize(
    ("difference", "p_value", "said"),
    [
        (0.02, 0.01, "better"),
        (-0.02, 0.01, "worse"),
        (0.02, 0.05, "not distinguishable"),
        (0.0, 1.0, "not distinguishable"),
        (0.02, float("nan"), "not distinguishable"),
    ],
)
def test_a_verdict_never_says_equal(difference: float, p_value: float, said: str) -> None:
    assert verdict(difference, p_value) == said
