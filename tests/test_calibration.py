"""Temperature and reliability against brute force, finite differences and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from coverage_simulation import World
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from classify.statistics.calibration import (
    TEMPERATURE_RANGE,
    Reliability,
    apply_temperature,
    fit_temperature,
    reliability,
)

LOWEST, HIGHEST = TEMPERATURE_RANGE


@pytest.mark.parametrize("sharpness", [0.01, 0.5, 1, 3, 30])
def test_temperature_of_a_model_that_is_too_sure_is_how_much_so(sharpness: float) -> None:
    labels, logits = World(0.8, sharpness).draw(20_000, np.random.default_rng(0))
    assert fit_temperature(logits, labels) == pytest.approx(sharpness, rel=0.03)


@given(
    logits=arrays(np.float64, (12, 3), elements=st.floats(-20, 20)),
    labels=arrays(np.int64, 12, elements=st.integers(0, 2)),
)
def test_no_other_temperature_has_a_lower_log_loss(logits: np.ndarray, labels: np.ndarray) -> None:
    def loss(log_temperature: float) -> float:
        return smoothed_loss(labels, logits / np.exp(log_temperature))

    found = fit_temperature(logits, labels)
    searched = minimize_scalar(loss, bounds=np.log(TEMPERATURE_RANGE), method="bounded")
    assert LOWEST <= found <= HIGHEST
    assert loss(np.log(found)) <= min(searched.fun, loss(0)) + 1e-9


def test_temperature_is_where_the_loss_is_flat() -> None:
    labels, logits = World(0.7, sharpness=2).draw(500, np.random.default_rng(0))
    best = fit_temperature(logits, labels)
    step = 1e-4
    slope = smoothed_loss(labels, logits / best * (1 + step)) - smoothed_loss(
        labels, logits / best * (1 - step)
    )
    assert abs(slope / (2 * step)) < 1e-7


def test_temperature_of_data_without_a_best_one_is_the_end_next_to_it() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert fit_temperature(logits, logits.argmin(axis=1)) == HIGHEST
    assert fit_temperature(np.full((50, 4), 7.0), np.arange(50) % 4) == 1
    assert fit_temperature(1e30 * logits, logits.argmax(axis=1)) == HIGHEST
    assert fit_temperature(1e-30 * logits, logits.argmax(axis=1)) == LOWEST


@pytest.mark.parametrize("n", [1, 9, 500])
def test_rows_that_are_all_right_never_ask_for_certainty(n: int) -> None:
    logits, labels = np.tile([3.0, 0.0], (n, 1)), np.zeros(n, int)
    sure = softmax(logits / fit_temperature(logits, labels), axis=1)[:, 0]
    assert sure == pytest.approx((n + 0.5) / (n + 1), rel=1e-8)


def smoothed_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """The mean log loss with one more row, the mean of all, of each class in equal parts."""
    losses = -log_softmax(logits, axis=1)
    of_labels = np.take_along_axis(losses, labels[:, None], axis=1)
    return float((of_labels.sum() + losses.mean()) / (len(labels) + 1))


@pytest.mark.parametrize("logits", [np.empty((0, 3)), [[1.0, np.nan]], [[np.inf, 0.0]]])
def test_temperature_refuses_no_rows_and_logits_that_are_not_finite(logits: np.ndarray) -> None:
    logits = np.asarray(logits)
    with pytest.raises(ValueError, match="finite"):
        fit_temperature(logits, np.zeros(len(logits), int))


def test_temperature_changes_confidence_and_no_prediction() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 4))
    cooler = apply_temperature(logits, 2.0)
    np.testing.assert_array_equal(cooler.argmax(axis=1), logits.argmax(axis=1))
    assert (softmax(cooler, axis=1).max(axis=1) < softmax(logits, axis=1).max(axis=1)).all()


def binned_by_hand(logits: np.ndarray, labels: np.ndarray, n_bins: int) -> float:
    """Return the error, rows sorted by confidence and split into runs of equal length."""
    confidence = softmax(logits, axis=1).max(axis=1)
    right = logits.argmax(axis=1) == labels
    runs = np.array_split(np.argsort(confidence), n_bins)
    gaps = [len(run) * abs(confidence[run].mean() - right[run].mean()) for run in runs]
    return sum(gaps) / len(labels)


@pytest.mark.parametrize(("n", "n_bins"), [(40, 1), (120, 2), (600, 12), (3_000, 15)])
def test_calibration_error_equals_that_of_equal_runs_of_sorted_rows(n: int, n_bins: int) -> None:
    labels, logits = World(0.7, sharpness=2).draw(n, np.random.default_rng(0))
    found = reliability(logits, labels)
    assert found.n_rows.tolist() == [n // n_bins] * n_bins
    assert found.error == pytest.approx(binned_by_hand(logits, labels, n_bins))
    assert (np.diff(found.confidence) > 0).all()


@given(confidences=st.lists(st.sampled_from([0.6, 0.7, 0.9]), min_size=1, max_size=60))
def test_rows_of_equal_confidence_share_a_bin_in_any_order(confidences: list[float]) -> None:
    logits = np.log([[p, 1 - p] for p in confidences])
    labels = np.arange(len(confidences)) % 2
    found = reliability(logits, labels, n_bins=5)
    turned = reliability(logits[::-1], labels[::-1], n_bins=5)
    assert found.n_rows.sum() == len(confidences)
    assert len(found.n_rows) <= 3
    assert found.error == pytest.approx(turned.error)


def test_a_certain_and_right_model_has_no_calibration_error_but_a_doubt() -> None:
    labels = np.arange(30) % 3
    found = reliability(1e4 * np.eye(3)[labels], labels)
    assert found.error == 0
    low, high = found.error_interval()
    assert low == 0
    assert 0.03 < high < 0.2


def test_calibration_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        reliability(np.empty((0, 3)), np.empty(0, int))


def test_error_by_chance_is_what_a_calibrated_model_shows() -> None:
    world = World(0.7)
    found = [
        reliability(logits, labels)
        for labels, logits in (world.draw(1_000, rng) for rng in np.random.default_rng(0).spawn(60))
    ]
    seen = np.mean([one.error for one in found])
    assert np.mean([one.error_by_chance for one in found]) == pytest.approx(seen, rel=0.1)


def test_groups_of_one_row_have_about_the_variance_of_proportions() -> None:
    labels, logits = World(0.7).draw(3_000, np.random.default_rng(0))
    alone = reliability(logits, labels).covariance
    grouped = reliability(logits, labels, groups=np.arange(3_000)).covariance
    np.testing.assert_allclose(np.diag(grouped), np.diag(alone), rtol=0.1)
    assert np.abs(grouped - np.diag(np.diag(grouped))).max() < 1e-12


def test_groups_that_are_right_or_wrong_together_vary_more() -> None:
    labels, logits, groups = World(0.7).draw_groups(100, 30, 0.9, np.random.default_rng(0))
    alone = reliability(logits, labels).covariance
    grouped = reliability(logits, labels, groups).covariance
    assert np.diag(grouped).sum() > 2 * np.diag(alone).sum()


def test_rows_that_come_thrice_do_not_change_the_covariance_of_groups() -> None:
    labels, logits, _ = World(0.7).draw_groups(60, 10, 0.9, np.random.default_rng(0))
    once = reliability(logits, labels, groups=np.repeat(np.arange(60), 10), n_bins=4)
    thrice = reliability(
        np.tile(logits, (3, 1)),
        np.tile(labels, 3),
        groups=np.tile(np.repeat(np.arange(60), 10), 3),
        n_bins=4,
    )
    np.testing.assert_allclose(thrice.covariance, once.covariance)


def test_the_interval_of_one_bin_is_about_the_gap_and_its_standard_error() -> None:
    one = Reliability(np.array([0.9]), np.array([0.7]), np.array([400]), np.array([[0.0005]]))
    spread = 0.0005**0.5
    low, high = one.error_interval()
    assert high == pytest.approx(0.2 + 1.96 * spread, abs=1e-4)
    assert low == pytest.approx(0.2 - 2.24 * spread, abs=2e-3)
