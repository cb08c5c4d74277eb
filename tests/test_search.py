"""The configurations that a sweep tries."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from classify.heads.spec import HeadSpec
from classify.sweep_heads.search import LogUniform, SearchSpace
from data_cache.errors import ParameterError

ONE_OF_EACH = {
    "learning_rate": (1e-3,),
    "dropout": (0.2,),
    "weight_decay": (0.0,),
    "label_smoothing": (0.0,),
    "epochs": (5,),
    "batch_size": (64,),
    "standardize": (False,),
}


def space(**values: Any) -> SearchSpace:
    """Return a space of one configuration, but for the values given."""
    return SearchSpace(**ONE_OF_EACH | values)


def test_a_grid_has_every_combination_once() -> None:
    rates, dropouts, units = (1e-3, 1e-2), (0.0, 0.2, 0.5), (0, 8)
    grid = space(learning_rate=rates, dropout=dropouts, hidden_units=units).grid()
    found = [(spec.learning_rate, spec.dropout, spec.hidden_units) for spec in grid]
    assert found == list(product(rates, dropouts, units))
    assert all(spec.epochs == 5 for spec in grid)


def test_a_value_named_twice_is_tried_once() -> None:
    twice = space(dropout=(0.2, 0.2))
    assert len(twice.grid()) == twice.size == 1


def test_a_grid_over_a_range_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"learning_rate is the range 0\.0001:0\.01: a grid"):
        space(learning_rate=LogUniform(1e-4, 1e-2)).grid()


def test_the_same_seed_draws_the_same_configurations() -> None:
    assert SearchSpace().draw(50, seed=3) == SearchSpace().draw(50, seed=3)
    assert SearchSpace().draw(50, seed=3) != SearchSpace().draw(50, seed=4)


def test_draws_differ_and_come_from_the_space() -> None:
    whole = space(dropout=(0.0, 0.2, 0.5), epochs=(1, 2, 3), standardize=(False, True))
    drawn = whole.draw(17, seed=0)
    assert len(set(drawn)) == 17
    assert set(drawn) < set(whole.grid())


def test_a_space_smaller_than_the_number_of_trials_is_tried_whole() -> None:
    few = space(dropout=(0.0, 0.2, 0.5))
    assert few.draw(3, seed=0) == few.draw(100, seed=0) == few.grid()


def test_each_value_is_as_likely_as_the_next() -> None:
    drawn = SearchSpace(label_smoothing=(0.0, 0.05, 0.1, 0.2)).draw(4000, seed=1)
    counts = Counter(spec.label_smoothing for spec in drawn)
    assert set(counts) == {0.0, 0.05, 0.1, 0.2}
    assert all(abs(count - 1000) < 4 * np.sqrt(750) for count in counts.values())


def test_a_range_is_drawn_log_uniformly() -> None:
    drawn = space(learning_rate=LogUniform(1e-5, 1e-1)).draw(2000, seed=2)
    exponents = np.log10([spec.learning_rate for spec in drawn])
    assert kstest(exponents, "uniform", args=(-5, 4)).pvalue > 1e-3


@given(st.floats(1e-9, 1e3), st.floats(1.0001, 1e6), st.integers(0, 2**32))
def test_draws_stay_within_their_range(low: float, factor: float, seed: int) -> None:
    numbers = LogUniform(low, low * factor)
    assert numbers.low <= numbers.draw(np.random.default_rng(seed)) <= numbers.high


def test_the_default_space_leaves_the_hidden_layer_and_the_weights_alone() -> None:
    drawn = SearchSpace().draw(200, seed=0)
    assert {spec.hidden_units for spec in drawn} == {0}
    assert {spec.class_weight for spec in drawn} == {None}
    assert {spec.seed for spec in drawn} == {HeadSpec().seed}


def test_texts_make_a_space() -> None:
    found = SearchSpace.from_text(
        learning_rate="1e-4:1e-2",
        dropout="0, 0.25",
        epochs="3,30",
        standardize="yes",
        class_weight="none,Balanced",
        patience="none,2",
        hidden_units=None,
    )
    assert found == SearchSpace(
        learning_rate=LogUniform(1e-4, 1e-2),
        dropout=(0.0, 0.25),
        epochs=(3, 30),
        standardize=(True,),
        class_weight=(None, "balanced"),
        patience=(None, 2),
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("learning_rate", "fast", "learning_rate is 'fast': expected numbers such as 1e-3"),
        ("learning_rate", "1e-2:1e-4", "range 0.01:0.0001: expected 0 < low < high"),
        ("learning_rate", "1:", "learning_rate is '1:': expected numbers"),
        ("learning_rate", "0", "learning_rate is 0.0: expected above 0"),
        ("dropout", "0.1:2", r"dropout is 2.0: expected within \[0, 1\)"),
        ("epochs", "2.5", "epochs is '2.5': expected whole numbers"),
        ("epochs", "1:5", "epochs is '1:5': expected whole numbers"),
        ("standardize", "maybe", "standardize is 'maybe': expected yes, no"),
        ("class_weight", "heavy", "class_weight is 'heavy': expected 'balanced' or None"),
        ("patience", "0", "patience is 0: expected 1 or more"),
        ("batch_size", "", "batch_size is '': expected whole numbers"),
    ],
)
def test_a_text_that_means_nothing_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ParameterError, match=f"^{message}"):
        SearchSpace.from_text(**{name: text})


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ParameterError, match="dropout has no values to choose from"):
        SearchSpace(dropout=())
