"""Every formula against enumeration, scikit-learn or SciPy."""

from __future__ import annotations

from fractions import Fraction
from math import comb, log

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax as scipy_softmax
from scipy.stats import binomtest

from classify.metrics import (
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    log_loss,
    macro_f1,
    mcnemar_mid_p,
    softmax,
    wilson_interval,
)

finite_logits = arrays(np.float64, (5, 3), elements=st.floats(-50, 50))
labels_of_three = arrays(np.int64, 5, elements=st.integers(0, 2))


@given(n=st.integers(1, 20_000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.95]))
def test_wilson_interval_equals_scipys(n: int, share: float, confidence: float) -> None:
    n_right = round(share * n)
    expected = binomtest(n_right, n).proportion_ci(confidence, method="wilson")
    assert wilson_interval(n_right, n, confidence) == pytest.approx(tuple(expected), abs=1e-12)


@pytest.mark.parametrize(("n_right", "n"), [(1, 0), (0, 0), (-1, 5), (6, 5)])
def test_wilson_interval_refuses_impossible_counts(n_right: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{n_right} right of {n}"):
        wilson_interval(n_right, n)


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


@given(logits=finite_logits)
def test_softmax_equals_scipys(logits: np.ndarray) -> None:
    np.testing.assert_allclose(softmax(logits), scipy_softmax(logits, axis=1), atol=1e-12)


def test_softmax_of_huge_logits_does_not_overflow() -> None:
    np.testing.assert_array_equal(softmax(np.array([[1e30, 0.0]], np.float32)), [[1.0, 0.0]])


@given(labels=labels_of_three, logits=finite_logits)
def test_log_loss_is_the_mean_negative_logarithm_of_the_labels_softmax(
    labels: np.ndarray, logits: np.ndarray
) -> None:
    probabilities = scipy_softmax(logits, axis=1).clip(1e-300)
    expected = -np.log(probabilities[np.arange(5), labels]).mean()
    assert log_loss(labels, logits) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_log_loss_of_guessing_is_the_logarithm_of_the_number_of_classes() -> None:
    assert log_loss(np.array([0, 3, 1]), np.zeros((3, 4))) == pytest.approx(log(4))


@given(labels=labels_of_three, predictions=labels_of_three)
def test_accuracy_and_confusion_matrix_equal_scikit_learns(
    labels: np.ndarray, predictions: np.ndarray
) -> None:
    assert accuracy(labels, predictions) == sklearn.metrics.accuracy_score(labels, predictions)
    np.testing.assert_array_equal(
        confusion_matrix(labels, predictions, 3),
        sklearn.metrics.confusion_matrix(labels, predictions, labels=range(3)),
    )


def test_accuracy_of_no_rows_is_not_a_number() -> None:
    assert np.isnan(accuracy([], []))


@pytest.mark.filterwarnings(
    "ignore:y_pred contains classes not in y_true:UserWarning",
    "ignore:A single label was found:UserWarning",
)
@given(labels=labels_of_three, predictions=labels_of_three)
def test_balanced_accuracy_and_macro_f1_equal_scikit_learns(
    labels: np.ndarray, predictions: np.ndarray
) -> None:
    assert balanced_accuracy(labels, predictions, 4) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(labels, predictions)
    )
    assert macro_f1(labels, predictions, 4) == pytest.approx(
        sklearn.metrics.f1_score(labels, predictions, average="macro")
    )


def test_balanced_accuracy_and_macro_f1_of_no_rows_are_unknown() -> None:
    none = np.empty(0, np.int64)
    assert np.isnan(balanced_accuracy(none, none, 3))
    assert np.isnan(macro_f1(none, none, 3))
