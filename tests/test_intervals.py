"""Intervals against SciPy, closed forms and worlds whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from coverage_simulation import Interval, World, beside_ends, exact_coverage, many, repeat
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, norm, poisson

from classify.statistics import intervals, metrics
from classify.statistics.calibration import reliability
from classify.statistics.intervals import (
    accuracy_interval,
    balanced_accuracy_interval,
    brier_interval,
    highest_log_loss,
    log_loss_interval,
    macro_f1_interval,
    mean_interval,
    paired_difference_interval,
    wilson_interval,
)

ROWS = st.integers(2, 40).flatmap(
    lambda n: st.tuples(*(st.lists(st.integers(0, 2), min_size=n, max_size=n) for _ in range(2)))
)


@given(n=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95]))
def test_wilson_interval_equals_scipys_but_for_few_mistakes_or_few_right(
    n: int, share: float, confidence: float
) -> None:
    n_right = round(share * n)
    expected = binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    low, high = wilson_interval(n_right, n, confidence)
    if n_right not in {1, 2, 3}:
        assert low == pytest.approx(expected.low, abs=1e-12)
    if n - n_right not in {1, 2, 3}:
        assert high == pytest.approx(expected.high, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("n", "most"), [(20, 2), (50, 2), (51, 3), (100, 3), (10_000, 3)])
def test_wilson_interval_of_few_mistakes_ends_where_poissons_tail_is_the_whole_error(
    n: int, most: int, confidence: float
) -> None:
    for n_wrong in range(1, most + 1):
        mean = n * (1 - wilson_interval(n - n_wrong, n, confidence)[1])
        assert poisson.sf(n_wrong - 1, mean) == pytest.approx(1 - confidence)
        assert mean == pytest.approx(chi2.ppf(1 - confidence, 2 * n_wrong) / 2)
    expected = binomtest(most + 1, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(n - most - 1, n, confidence)[1] == pytest.approx(1 - expected.low)


@given(n=st.integers(1, 300), confidence=st.floats(0.01, 0.999))
def test_wilson_interval_is_symmetric_and_rises_with_the_number_right(
    n: int, confidence: float
) -> None:
    found = np.array([wilson_interval(n_right, n, confidence) for n_right in range(n + 1)])
    shares = np.arange(n + 1) / n
    assert found == pytest.approx(1 - found[::-1, ::-1])
    assert (np.diff(found, axis=0) > 0).all()
    assert (found[:, 0] <= shares).all()
    assert (found[:, 1] >= shares).all()
    assert found[0, 0] == 0
    assert found[n, 1] == 1


@pytest.mark.parametrize(("n_right", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(n_right: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{n_right} right of {n}"):
        wilson_interval(n_right, n)


@pytest.mark.parametrize("n", [100, 110, 132, 150, 300, 400, 1_000, 10_000])
def test_wilson_interval_covers_95_percent_on_average_and_hardly_ever_below_93(n: int) -> None:
    """Exactly, from the binomial distribution; the lowest is just beside an interval's end."""
    ends = np.array([wilson_interval(n_right, n) for n_right in range(n + 1)])
    even = exact_coverage(ends, np.linspace(0.6, 0.99, 40_000))
    lowest = exact_coverage(ends, beside_ends(ends, 0.6, 0.99)).min()
    assert even.mean() == pytest.approx(0.95, abs=0.003)
    assert (even < 0.93).mean() < 0.003
    assert lowest > (0.925 if n <= 400 else 0.937)
    assert exact_coverage(ends, np.array([0.6, 0.9, 0.99])).min() > 0.93


@pytest.mark.parametrize(("n_right", "n"), [(0, 20), (20, 20), (97, 100), (600, 1_000)])
def test_mean_interval_of_zeros_and_ones_is_clopper_and_pearsons(n_right: int, n: int) -> None:
    values = np.arange(n) < n_right
    expected = binomtest(n_right, n).proportion_ci(method="exact")
    assert mean_interval(values, (0, 1)) == pytest.approx(tuple(expected), abs=0.02 / np.sqrt(n))


def test_mean_interval_of_many_values_is_about_the_normal_one() -> None:
    values = np.random.default_rng(0).gamma(4, size=4_000)
    half_width = norm.ppf(0.975) * values.std() / np.sqrt(len(values))
    low, high = mean_interval(values, (0, values.max()))
    assert [low, high] == pytest.approx(
        [values.mean() - half_width, values.mean() + half_width], abs=0.3 * half_width
    )


def test_mean_interval_scales_with_its_values() -> None:
    values = np.random.default_rng(0).random(50)
    low, high = mean_interval(values, (0, 1))
    assert mean_interval(3 * values - 1, (-1, 2)) == pytest.approx((3 * low - 1, 3 * high - 1))


def test_equal_rows_in_one_group_count_once() -> None:
    values = np.random.default_rng(0).random(60)
    groups = np.repeat(np.arange(60), 5)
    assert mean_interval(np.repeat(values, 5), (0, 1), groups) == pytest.approx(
        mean_interval(values, (0, 1))
    )


@pytest.mark.parametrize("values", [[], [0.5, 1.5], [-0.1]])
def test_mean_interval_refuses_values_out_of_bounds(values: list[float]) -> None:
    with pytest.raises(ValueError, match="within 0 and 1"):
        mean_interval(np.array(values), (0, 1))


@given(rows=ROWS)
def test_intervals_hold_what_was_seen_and_stay_within_bounds(
    rows: tuple[list[int], list[int]],
) -> None:
    labels, predictions = map(np.array, rows)
    logits = 3.0 * np.eye(3)[predictions]
    for (low, high), seen, highest in [
        (accuracy_interval(labels, predictions), metrics.accuracy(labels, predictions), 1),
        (brier_interval(labels, logits), metrics.brier_score(labels, logits), 2),
        (log_loss_interval(labels, logits), metrics.log_loss(labels, logits), np.inf),
        (macro_f1_interval(labels, predictions, 3), metrics.macro_f1(labels, predictions, 3), 1),
        (
            balanced_accuracy_interval(labels, predictions, 3),
            metrics.balanced_accuracy(labels, predictions, 3),
            1,
        ),
    ]:
        assert -1e-9 <= low <= seen + 1e-9
        assert seen - 1e-9 <= high <= highest


@pytest.mark.parametrize("interval", [macro_f1_interval, balanced_accuracy_interval])
def test_no_mistake_among_few_rows_does_not_mean_that_none_is_possible(
    interval: Callable[..., Interval],
) -> None:
    labels = np.arange(40) % 2
    low, high = interval(labels, labels, 2)
    assert low < 0.96
    assert high == 1


@pytest.mark.parametrize("interval", [macro_f1_interval, balanced_accuracy_interval])
@pytest.mark.parametrize(("n_classes", "size"), [(50, 2), (20, 5), (10, 100)])
@pytest.mark.parametrize("n_wrong", [0, 1, 3])
def test_few_mistakes_in_classes_of_equal_size_have_about_the_low_end_of_clopper_and_pearson(
    interval: Callable[..., Interval], n_classes: int, size: int, n_wrong: int
) -> None:
    """Of equal classes the balanced accuracy is the accuracy, whose exact interval is known."""
    labels = np.repeat(np.arange(n_classes), size)
    predictions = labels.copy()
    predictions[: n_wrong * size : size] = n_classes - 1
    n = len(labels)
    expected = 1 - binomtest(n - n_wrong, n).proportion_ci(method="exact").low
    assert 1 - interval(labels, predictions, n_classes)[0] == pytest.approx(expected, rel=0.2)


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("left_out", ["bca_interval", "_smooth_ends"])
def test_both_intervals_of_small_classes_are_as_wide_as_unbiased_variances_say(
    left_out: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two whose union is the interval of the balanced accuracy, one is left out."""
    monkeypatch.setattr(intervals, left_out, lambda *_, **__: (1.0, 0.0))
    labels = np.repeat(np.arange(100 // size), size)
    right = np.random.default_rng(0).random((100 // size, size)) < 0.6
    error = np.sqrt((right.var(axis=1, ddof=1) / size).sum()) / len(right)
    predictions = np.where(right.ravel(), labels, (labels + 1) % len(right))
    low, high = balanced_accuracy_interval(labels, predictions, len(right))
    assert high - low == pytest.approx(2 * norm.ppf(0.975) * error, rel=0.1)


def test_macro_f1_interval_is_moved_against_the_bias_of_so_few_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    labels, logits = World(0.6, shares=(0.02,) * 50).draw(100, np.random.default_rng(0))
    predictions = logits.argmax(axis=1)
    observed = metrics.macro_f1(labels, predictions, 50)
    monkeypatch.setattr(intervals, "bca_interval", lambda *_, **__: (1.0, 0.0))
    ends = []
    for mean in (observed, observed - 0.01):
        monkeypatch.setattr(intervals, "stratified_mean", lambda *_, mean=mean: mean)
        ends.append(macro_f1_interval(labels, predictions, 50))
    assert ends[1] == pytest.approx((ends[0][0] + 0.01, ends[0][1] + 0.01))


@pytest.mark.parametrize("interval", [macro_f1_interval, balanced_accuracy_interval])
@pytest.mark.parametrize("accuracy", [0.6, 0.9])
def test_intervals_of_large_classes_are_no_wider_than_that_of_the_accuracy(
    interval: Callable[..., Interval], accuracy: float
) -> None:
    labels, logits = World(accuracy).draw(1_000, np.random.default_rng(0))
    predictions = logits.argmax(axis=1)
    low, high = interval(labels, predictions, 10)
    expected = accuracy_interval(labels, predictions)
    assert high - low == pytest.approx(expected[1] - expected[0], rel=0.07)


def test_groups_make_intervals_wider() -> None:
    labels, logits, groups = World(0.8).draw_groups(60, 20, 0.6, np.random.default_rng(0))
    predictions = logits.argmax(axis=1)
    for interval, rows in [
        (accuracy_interval, (labels, predictions)),
        (brier_interval, (labels, logits)),
        (log_loss_interval, (labels, logits)),
    ]:
        narrow, wide = interval(*rows), interval(*rows, groups=groups)
        assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    for interval in (macro_f1_interval, balanced_accuracy_interval):
        narrow = interval(labels, predictions, 10)
        wide = interval(labels, predictions, 10, groups=groups)
        assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_paired_difference_interval_equals_tangos_example() -> None:
    """Tango (1998), section 5: 44 pairs, of which 0 and 1 differ, at 90%."""
    low, high = paired_difference_interval(44, 0, 1, confidence=0.90)
    assert (low, high) == pytest.approx((-0.096, 0.037), abs=5e-4)


@given(n=st.integers(1, 500), shares=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_paired_difference_interval_ends_where_the_score_test_just_rejects(
    n: int, shares: tuple[float, float]
) -> None:
    only_first = int(n * shares[0])
    only_second = int((n - only_first) * shares[1])
    low, high = paired_difference_interval(n, only_first, only_second)
    difference = (only_first - only_second) / n
    assert -1 <= low <= difference <= high <= 1
    assert paired_difference_interval(n, only_second, only_first) == pytest.approx((-high, -low))
    for end in (low, high):
        if abs(end) < 1:
            assert abs(score(n, only_first, only_second, end)) == pytest.approx(1.96, abs=1e-3)


def score(n: int, only_first: int, only_second: int, difference: float) -> float:
    """Return the score statistic, its nuisance parameter found by maximizing the likelihood."""
    lowest, highest = max(0, -difference), (1 - difference) / 2

    def slope(share: float) -> float:
        """Return the derivative of the log likelihood, P(second alone) being the share."""
        both = n - only_first - only_second
        of_both = 2 * both / max(1 - 2 * share - difference, 1e-300)
        first = only_first / max(share + difference, 1e-300)
        return first + only_second / max(share, 1e-300) - of_both

    for _ in range(200):
        middle = (lowest + highest) / 2
        lowest, highest = (middle, highest) if slope(middle) > 0 else (lowest, middle)
    variance = n * (2 * middle + difference - difference**2)
    return (only_first - only_second - n * difference) / np.sqrt(variance)


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, 3, 3), (5, -1, 2)])
def test_paired_difference_interval_refuses_impossible_counts(counts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="impossible"):
        paired_difference_interval(*counts)


@pytest.mark.parametrize(
    ("n", "discordance", "difference"), [(100, 0.02, 0), (100, 0.3, 0.05), (10_000, 0.1, 0.01)]
)
def test_paired_difference_interval_covers_the_truth(
    n: int, discordance: float, difference: float
) -> None:
    first, second = (discordance + difference) / 2, (discordance - difference) / 2

    def once(rng: np.random.Generator) -> tuple[Interval, float]:
        counts = rng.multinomial(n, [first, second, 1 - first - second])
        return paired_difference_interval(n, int(counts[0]), int(counts[1])), difference

    assert repeat(600, 0, once) > 0.93


def test_the_highest_log_loss_is_that_of_the_surest_row_gone_wrong() -> None:
    logits = np.log([[0.9, 0.08, 0.02], [0.5, 0.3, 0.2]])
    assert highest_log_loss(np.array([0, 0]), logits) == pytest.approx(-np.log(0.08))
    assert highest_log_loss(np.array([2, 0]), logits) == pytest.approx(-np.log(0.02))


def test_interval_of_two_models_losses_covers_the_truth() -> None:
    world = World(0.9)
    labels, logits = many(world)
    truth = metrics.brier_score(labels, logits) - metrics.brier_score(labels, 3 * logits)

    def once(rng: np.random.Generator) -> tuple[Interval, float]:
        labels, logits = world.draw(200, rng)
        first, second = (metrics.brier_losses(labels, z) for z in (logits, 3 * logits))
        return mean_interval(first - second, (-2, 2)), truth

    assert repeat(150, 3, once) > 0.93


@pytest.mark.parametrize(
    ("world", "n"), [(World(0.6), 100), (World(0.9, sharpness=2), 300), (World(0.99), 100)]
)
def test_intervals_cover_the_truth(world: World, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 95% it is 54 hits of 60 or more in 97 of 100 such runs; ``make stress`` looks closer."""
    monkeypatch.setattr(intervals, "_N_DRAWS", 300)
    labels, logits = many(world)
    k, predictions = world.n_classes, logits.argmax(axis=1)
    truths = [
        metrics.log_loss(labels, logits),
        metrics.brier_score(labels, logits),
        world.accuracy,
        metrics.macro_f1(labels, predictions, k),
        reliability(logits, labels, n_bins=n // 50).error,
    ]
    hits = np.zeros(len(truths))
    for rng in np.random.default_rng(1).spawn(60):
        labels, logits = world.draw(n, rng)
        predictions = logits.argmax(axis=1)
        found = [
            log_loss_interval(labels, logits),
            brier_interval(labels, logits),
            balanced_accuracy_interval(labels, predictions, k),
            macro_f1_interval(labels, predictions, k),
            reliability(logits, labels).error_interval(),
        ]
        hits += [low <= truth <= high for (low, high), truth in zip(found, truths, strict=True)]
    assert (hits >= 54).all(), hits


def test_intervals_of_groups_cover_the_truth() -> None:
    world = World(0.8)

    def once(rng: np.random.Generator) -> tuple[Interval, float]:
        labels, logits, groups = world.draw_groups(50, 10, 0.6, rng)
        return accuracy_interval(labels, logits.argmax(axis=1), groups), world.accuracy

    assert repeat(150, 2, once) > 0.92
