"""The bootstrap against SciPy's, and where it has nothing to resample."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from classify.statistics.bootstrap import (
    Statistic,
    _acceleration,
    bca_interval,
    cluster_bca_interval,
    stratified_mean,
)


def mean_of(values: NDArray) -> Statistic:
    return lambda weights: weights @ values / weights.sum(axis=1)


def squared_mean_of(values: NDArray) -> Statistic:
    return lambda weights: mean_of(values)(weights) ** 2


def test_interval_of_one_stratum_equals_scipys() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    expected = scipy.stats.bootstrap(
        (values,),
        lambda x, axis: x.mean(axis=axis) ** 2,
        n_resamples=60_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    found = bca_interval(squared_mean_of(values), np.zeros(80, int), n_draws=60_000)
    assert found == pytest.approx(tuple(expected), rel=0.01)


def test_interval_of_two_strata_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.exponential(size=30), 3 * rng.exponential(size=50)
    expected = scipy.stats.bootstrap(
        (first, second),
        lambda x, y, axis: x.mean(axis=axis) - y.mean(axis=axis),
        n_resamples=60_000,
        method="BCa",
        rng=np.random.default_rng(1),
    ).confidence_interval
    order = rng.permutation(80)
    values = np.concatenate([first, second])[order]
    strata = np.repeat([7, 3], [30, 50])[order]

    def difference(weights: NDArray) -> NDArray:
        means = [mean_of(values[strata == s])(weights[:, strata == s]) for s in (7, 3)]
        return means[0] - means[1]

    found = bca_interval(difference, strata, n_draws=60_000)
    assert found == pytest.approx(tuple(expected), rel=0.02)


def test_acceleration_weighs_strata_as_efrons_formula_of_several_samples() -> None:
    small, large = np.array([1.0, 4.0, 9.0]), np.random.default_rng(0).exponential(size=30)
    cubes = squares = 0.0
    for left_out in (small, large):
        n = len(left_out)
        influence = (n - 1) * (left_out.mean() - left_out)
        cubes += (influence**3).sum() / n**3
        squares += (influence**2).sum() / n**2
    parts = [np.arange(3), np.arange(3, 33)]
    found = _acceleration(np.concatenate([small, large]), parts, np.ones(33, int))
    assert found == pytest.approx(cubes / (6 * squares**1.5))


@pytest.mark.parametrize("rescaled", [False, True])
def test_rows_that_stand_for_many_give_the_interval_of_the_many(rescaled: bool) -> None:
    values, counts = np.array([0.0, 1.0, 4.0]), np.array([30, 20, 10])
    many = np.repeat(values, counts)
    strata = np.zeros(60, int)
    few = bca_interval(
        squared_mean_of(values), strata[:3], counts=counts, rescaled=rescaled, n_draws=30_000
    )
    expected = bca_interval(squared_mean_of(many), strata, rescaled=rescaled, n_draws=30_000)
    assert few == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("size", [2, 3, 10])
def test_rescaled_interval_of_many_small_strata_is_as_wide_as_unbiased_variances_say(
    size: int,
) -> None:
    values = np.random.default_rng(0).normal(size=(300, size))
    strata = np.repeat(np.arange(300), size)
    error = np.sqrt((values.var(axis=1, ddof=1) / size).sum()) / 300
    statistic = mean_of(values.ravel())
    low, high = bca_interval(statistic, strata, rescaled=True, n_draws=20_000)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * error, rel=0.03)
    low, high = bca_interval(statistic, strata, n_draws=20_000)
    short = np.sqrt((size - 1) / size)
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * error * short, rel=0.03)


def test_rescaled_draws_leave_one_row_out_and_keep_the_weight_of_every_stratum() -> None:
    strata, counts = np.array([5, 7, 7, 8, 8, 8, 9, 9]), np.array([1, 1, 1, 1, 1, 1, 3, 1])
    seen = []

    def spy(weights: NDArray) -> NDArray:
        seen.append(weights)
        return weights @ np.arange(8.0)

    bca_interval(spy, strata, counts=counts, rescaled=True, n_draws=500)
    for stratum, units in [(5, [1]), (7, [0, 2]), (8, [0, 1.5, 3]), (9, [0, 4 / 3, 8 / 3, 4])]:
        weights, size = seen[0][:, strata == stratum], counts[strata == stratum].sum()
        assert np.unique(weights) == pytest.approx(units)
        assert weights.sum(axis=1) == pytest.approx(np.full(500, size))


def test_mean_over_resamples_shows_the_bias_of_a_squared_mean() -> None:
    values, counts = np.array([0.0, 1.0, 4.0]), np.array([3, 2, 1])
    rows = np.repeat(values, counts)
    found = stratified_mean(squared_mean_of(values), np.zeros(3, int), counts, n_draws=40_000)
    assert found == pytest.approx(rows.mean() ** 2 + rows.var() / 6, rel=0.02)


def test_draws_that_differ_from_what_was_seen_by_rounding_alone_are_ties() -> None:
    strata, right = np.repeat(np.arange(25), 4), np.arange(100) % 7 > 0

    def share(weights: NDArray) -> NDArray:
        recalls = (weights * right).reshape(-1, 25, 4).sum(axis=2) / 4
        return recalls.mean(axis=1)

    def rounded(weights: NDArray) -> NDArray:
        return share(weights).round(9)

    found = bca_interval(share, strata, rescaled=True)
    assert found == pytest.approx(bca_interval(rounded, strata, rescaled=True), abs=1e-8)


def test_groups_of_equal_rows_give_the_interval_of_one_row_each() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    found = cluster_bca_interval(squared_mean_of(np.tile(values, 3)), np.tile(np.arange(40), 3))
    assert found == pytest.approx(bca_interval(squared_mean_of(values), np.zeros(40, int)))


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values, strata = np.random.default_rng(0).random(30), np.zeros(30, int)
    first = bca_interval(mean_of(values), strata)
    assert first == bca_interval(mean_of(values), strata)
    assert first != bca_interval(mean_of(values), strata, seed=1)


@given(n=st.integers(2, 30), value=st.floats(-10, 10))
def test_a_constant_statistic_has_the_interval_of_its_value(n: int, value: float) -> None:
    found = bca_interval(lambda weights: np.full(len(weights), value), np.arange(n) % 2)
    assert found == (value, value)


@given(values=st.lists(st.floats(-5, 5), min_size=2, max_size=12), data=st.data())
def test_tiny_samples_give_an_interval_within_their_range(
    values: list[float], data: st.DataObject
) -> None:
    n = len(values)
    strata = np.array(data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)))
    low, high = bca_interval(mean_of(np.array(values)), strata, n_draws=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_a_statistic_that_is_unknown_in_a_resample_has_no_interval() -> None:
    def share(weights: NDArray) -> NDArray:
        with np.errstate(invalid="ignore"):
            return weights[:, 0] / (weights[:, 0] + weights[:, 1])

    assert np.isnan(bca_interval(share, np.zeros(5, int))).all()


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_rows_or_groups_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"{n} rows"):
        bca_interval(mean_of(np.ones(n)), np.zeros(n, int))
    with pytest.raises(ValueError, match=f"{n} groups"):
        cluster_bca_interval(mean_of(np.ones(3 * n)), np.zeros(3 * n, int))


def test_memory_is_bounded_by_blocks() -> None:
    n = 3_000
    sizes = []

    def seen(weights: NDArray) -> NDArray:
        sizes.append(weights.size)
        return weights[:, 0]

    bca_interval(seen, np.arange(n) % 3)
    assert max(sizes) <= 2**21
