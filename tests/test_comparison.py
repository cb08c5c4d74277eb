"""The paired comparison, and the cause that is named for a difference."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from classify.probes import LogisticPath, LogisticRegressionProbe, PathPoint
from classify.statistics.paired_tests import mcnemar_mid_p
from classify.train_head.comparison import PairedComparison, compare, likely_cause

AHEAD = PairedComparison(n=100, n_only_first=20, n_only_second=2, difference=0.18, mid_p=1e-4)
BEHIND = replace(AHEAD, n_only_first=2, n_only_second=20, difference=-0.18)
SETTLED = [1.0, 0.9, 0.895]
three = arrays(np.int64, 20, elements=st.integers(0, 2))


@given(labels=three, first=three, second=three)
def test_the_difference_is_that_of_the_accuracies_and_the_test_mcnemars(
    labels: np.ndarray, first: np.ndarray, second: np.ndarray
) -> None:
    found = compare(labels, first, second)
    assert found.difference == pytest.approx((first == labels).mean() - (second == labels).mean())
    only_first = sum(a == c != b for a, b, c in zip(first, second, labels, strict=True))
    only_second = sum(b == c != a for a, b, c in zip(first, second, labels, strict=True))
    assert found.mid_p == mcnemar_mid_p(only_first, only_second)
    assert found.is_beyond_noise == (found.mid_p < 0.05)


def head(loss: list[float], val_loss: list[float], **more: Any) -> Any:
    history = {"loss": loss, "val_loss": val_loss}
    defaults = {
        "standardize": True,
        "hidden_units": 0,
        "dropout": 0.2,
        "weight_decay": 0.0,
        "label_smoothing": 0.0,
        "best_epoch_": len(loss),
    }
    return SimpleNamespace(history_=history, **defaults | more)


def path(best: float = 0.01, *, converged: bool = True) -> LogisticPath:
    probe = LogisticRegressionProbe(best)
    probe.converged_ = converged
    return LogisticPath(tuple(PathPoint(C, 0.5, 0.8) for C in (0.001, 0.01, 0.1)), probe)


@pytest.mark.parametrize(
    ("loss", "val_loss", "standardize", "cause"),
    [
        (
            [1.0, 0.9],
            [1.0, 0.9],
            False,
            r"short of convergence \(.* fell by 10% in epoch 2\), on f",
        ),
        ([1.0, 0.9], [1.0, 0.9], True, r"short of convergence \(.* fell by 10% in epoch 2\)$"),
        ([1.0], [1.0], True, "short of convergence, after a single epoch$"),
        ([1.0, 0.5, 0.2], [0.9, 0.5, 0.6], True, "overfitted: .* least in epoch 2"),
        (SETTLED, SETTLED, False, "features are not standardized"),
        (SETTLED, SETTLED, True, "has converged, but no penalty holds it"),
    ],
)
def test_the_cause_of_a_trailing_head_is_read_from_its_history(
    loss: list[float], val_loss: list[float], standardize: bool, cause: str
) -> None:
    found = likely_cause(BEHIND, head(loss, val_loss, standardize=standardize), path())
    assert found is not None
    assert re.search(cause, found)


@pytest.mark.parametrize(
    ("tried", "cause"),
    [
        (path(converged=False), "did not converge in 1,000 iterations"),
        (path(0.1), "best C, 0.1, is an end of what was tried"),
        (path(), "^dropout, stopping after epoch 3 may suit"),
    ],
)
def test_the_cause_of_a_trailing_logistic_regression_is_read_from_its_path(
    tried: LogisticPath, cause: str
) -> None:
    found = likely_cause(AHEAD, head(SETTLED, SETTLED, standardize=True), tried)
    assert found is not None
    assert re.search(cause, found)


def test_weights_of_the_best_epoch_are_neither_overfitted_nor_short_of_convergence() -> None:
    stopped = head([1.0, 0.5, 0.2], [0.9, 0.5, 0.6], best_epoch_=2)
    found = likely_cause(BEHIND, stopped, path())
    assert found == "the Dense head was at its best in epoch 2, and training longer did not help"


def test_what_holds_the_head_is_named_as_it_was_set() -> None:
    decayed = head(SETTLED, SETTLED, weight_decay=0.1, dropout=0.0)
    trailing, leading = (likely_cause(one, decayed, path()) for one in (BEHIND, AHEAD))
    assert trailing is not None
    assert "no penalty" not in trailing
    assert leading is not None
    assert leading.startswith("weight decay, stopping after epoch 3 ")


@pytest.mark.parametrize("comparison", [AHEAD, BEHIND])
def test_no_cause_is_claimed_for_a_head_with_a_hidden_layer(comparison: PairedComparison) -> None:
    deep = head([1.0, 0.9], [1.0, 0.9], hidden_units=8)
    assert likely_cause(comparison, deep, path()) is None


def test_no_cause_is_named_for_noise() -> None:
    noise = replace(BEHIND, mid_p=0.3)
    assert likely_cause(noise, head([1.0], [1.0], standardize=False), path()) is None
