"""Every formula against scikit-learn or SciPy."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax as scipy_softmax

from classify.statistics.metrics import (
    accuracy,
    balanced_accuracy,
    balanced_accuracy_of_counts,
    brier_score,
    class_figures,
    confusion_matrix,
    log_loss,
    macro_f1,
    macro_f1_of_counts,
    missing_classes,
    softmax,
)

finite_logits = arrays(np.float64, (5, 3), elements=st.floats(-50, 50))
labels_of_three = arrays(np.int64, 5, elements=st.integers(0, 2))


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
    assert np.isnan(log_loss(none, np.empty((0, 3))))
    assert np.isnan(brier_score(none, np.empty((0, 3))))


@given(counts=arrays(np.int64, (4, 3, 3), elements=st.integers(0, 9)))
def test_figures_of_many_confusion_matrices_are_those_of_each(counts: np.ndarray) -> None:
    for figure, of_counts in [
        (balanced_accuracy, balanced_accuracy_of_counts),
        (macro_f1, macro_f1_of_counts),
    ]:
        expected = []
        for matrix in counts:
            labels, predictions = np.repeat(np.indices((3, 3)).reshape(2, 9), matrix.ravel(), 1)
            expected.append(figure(labels, predictions, 3))
        np.testing.assert_allclose(of_counts(counts), expected)


@given(labels=labels_of_three, logits=finite_logits)
def test_brier_score_equals_scikit_learns(labels: np.ndarray, logits: np.ndarray) -> None:
    expected = sklearn.metrics.brier_score_loss(
        labels, scipy_softmax(logits, axis=1), labels=range(3), scale_by_half=False
    )
    assert brier_score(labels, logits) == pytest.approx(expected, abs=1e-12)


@given(labels=labels_of_three, predictions=labels_of_three)
def test_class_figures_equal_scikit_learns(labels: np.ndarray, predictions: np.ndarray) -> None:
    found = class_figures(labels, predictions, 4)
    precision, recall, f1, support = sklearn.metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(4), zero_division=np.nan
    )
    np.testing.assert_allclose(found.precision, precision)
    np.testing.assert_allclose(found.recall, recall)
    np.testing.assert_allclose(found.f1, f1)
    np.testing.assert_array_equal(found.support, support)
    np.testing.assert_array_equal(found.n_predicted, np.bincount(predictions, minlength=4))


def test_missing_classes_are_those_without_rows() -> None:
    assert missing_classes(np.array([3, 1, 1]), 5).tolist() == [0, 2, 4]
    assert missing_classes(np.empty(0, np.int64), 2).tolist() == [0, 1]
