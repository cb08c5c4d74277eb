"""The Dense head against Keras called directly, and against what scikit-learn asks of an estimator.

Every fit traces a graph, about a second, so fits are shared where they can be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_checks

from classify.heads.dense import (
    DenseHead,
    _steps_per_call,
    build_dense_head,
    dropout_seed,
    epoch_order,
    initial_weights_seed,
)
from data_cache.console import import_keras
from data_cache.errors import DataError, ParameterError, TrainingError

N_ROWS, N_FEATURES = 130, 12
PLAIN = {"epochs": 3, "batch_size": 32, "learning_rate": 0.01, "seed": 7}
VARIANTS = {
    "plain": {},
    "standardized": {"standardize": True},
    "balanced": {"class_weight": "balanced"},
}


def blobs(n_rows: int = N_ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes around three points, (n, 12), the last feature constant; half are class 0."""
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n_rows, p=[0.5, 0.3, 0.2])
    centers = np.random.default_rng(42).normal(size=(3, N_FEATURES))
    X = centers[y] + rng.normal(scale=0.8, size=(n_rows, N_FEATURES))
    X[:, -1] = 2.5
    return X.astype(np.float32), y


@pytest.fixture(scope="module")
def heads() -> dict[str, DenseHead]:
    return {name: fit(**variant) for name, variant in VARIANTS.items()}


def fit(**parameters: Any) -> DenseHead:
    return DenseHead(**PLAIN | parameters).fit(*blobs(), validation_data=blobs(50, seed=1))


def fit_with_keras(head: DenseHead) -> tuple[Any, dict[str, list[float]]]:
    """Train the same model by one plain call of Keras's ``fit`` an epoch, on permuted arrays."""
    keras = import_keras()
    X, y = blobs()
    scaler = StandardScaler().fit(X) if head.standardize else None
    model = build_dense_head(N_FEATURES, 3, head, scaler)
    model.compile(
        optimizer=keras.optimizers.Adam(head.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    weights = {k: len(y) / (3 * (y == k).sum()) for k in range(3)}
    history: dict[str, list[float]] = {}
    for epoch in range(head.epochs):
        order = epoch_order(head.seed, epoch, len(y))
        done = model.fit(
            X[order],
            y[order],
            batch_size=head.batch_size,
            shuffle=False,
            verbose=0,
            class_weight=weights if head.class_weight else None,
            validation_data=blobs(50, seed=1),
        )
        for name, values in done.history.items():
            history.setdefault(name, []).extend(values)
    return model, history


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_head_equals_the_one_that_plain_keras_trains(
    heads: dict[str, DenseHead], variant: str
) -> None:
    model, history = fit_with_keras(heads[variant])
    for ours, theirs in zip(heads[variant].model_.weights, model.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert heads[variant].history_.keys() == history.keys()
    for name, values in history.items():
        np.testing.assert_allclose(heads[variant].history_[name], values, rtol=1e-5, err_msg=name)


def test_the_same_seed_gives_the_same_head_bit_for_bit(heads: dict[str, DenseHead]) -> None:
    for first, again in zip(heads["plain"].model_.weights, fit().model_.weights, strict=True):
        np.testing.assert_array_equal(first, again)


def test_another_seed_gives_another_head(heads: dict[str, DenseHead]) -> None:
    X, _ = blobs()
    assert (heads["plain"].logits(X) != fit(seed=8).logits(X)).any()


@given(seed=st.integers(0, 2**32), epoch=st.integers(0, 100), n=st.integers(1, 500))
def test_an_epoch_takes_every_row_once(seed: int, epoch: int, n: int) -> None:
    np.testing.assert_array_equal(np.sort(epoch_order(seed, epoch, n)), np.arange(n))


def test_orders_and_seeds_are_drawn_apart() -> None:
    orders = {tuple(epoch_order(seed, epoch, 20)) for seed in range(10) for epoch in range(10)}
    seeds = {draw(seed) for seed in range(50) for draw in (initial_weights_seed, dropout_seed)}
    assert (len(orders), len(seeds)) == (100, 100)


@given(n_steps=st.integers(1, 5000))
def test_steps_in_one_call_never_run_into_the_next_epoch(n_steps: int) -> None:
    assert n_steps % _steps_per_call(n_steps) == 0
    assert _steps_per_call(n_steps) <= 256


def test_the_model_is_one_dense_layer_with_a_weight_for_each_feature_and_class(
    heads: dict[str, DenseHead],
) -> None:
    assert [w.shape for w in heads["plain"].model_.trainable_weights] == [(N_FEATURES, 3), (3,)]


def test_a_standardized_head_does_what_a_scaler_before_it_would(
    heads: dict[str, DenseHead],
) -> None:
    X, _ = blobs()
    kernel, bias = heads["standardized"].model_.trainable_weights
    expected = StandardScaler().fit_transform(X) @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_allclose(heads["standardized"].logits(X), expected, atol=1e-5)


def test_a_feature_that_never_varied_in_training_does_not_explode(
    heads: dict[str, DenseHead],
) -> None:
    X, _ = blobs()
    X[:, -1] += 1
    assert np.abs(heads["standardized"].logits(X)).max() < 100


def test_probabilities_and_predictions_are_those_of_the_keras_model(
    heads: dict[str, DenseHead],
) -> None:
    X, y = blobs()
    probabilities = import_keras().ops.softmax(heads["plain"].model_.predict(X, verbose=0))
    np.testing.assert_allclose(heads["plain"].predict_proba(X), probabilities, atol=1e-6)
    np.testing.assert_array_equal(heads["plain"].predict(X), np.argmax(probabilities, axis=1))
    assert heads["plain"].score(X, y) == np.mean(np.argmax(probabilities, axis=1) == y)


def test_more_rows_than_one_call_takes_are_predicted_alike(
    heads: dict[str, DenseHead], monkeypatch: pytest.MonkeyPatch
) -> None:
    X, _ = blobs()
    whole = heads["plain"].logits(X)
    monkeypatch.setattr("classify.heads.dense._ROWS_PER_CALL", 7)
    np.testing.assert_allclose(heads["plain"].logits(X), whole, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "standardized"])
def test_a_saved_head_predicts_the_same(
    heads: dict[str, DenseHead], variant: str, tmp_path: Path
) -> None:
    X, _ = blobs()
    heads[variant].save(tmp_path / "head.keras")
    loaded = DenseHead.load(tmp_path / "head.keras", classes=["a", "b", "c"])
    np.testing.assert_array_equal(loaded.logits(X), heads[variant].logits(X))
    assert set(loaded.predict(X)) <= {"a", "b", "c"}


def test_each_epoch_is_reported_as_it_ends() -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    head = DenseHead(epochs=2, batch_size=64)
    head.fit(*blobs(), on_epoch=lambda epoch, row: seen.append((epoch, dict(row))))
    assert [epoch for epoch, _ in seen] == [1, 2]
    assert [row["loss"] for _, row in seen] == head.history_["loss"]
    assert head.history_.keys() == {"loss", "accuracy"}


def test_classes_without_a_training_row_have_a_logit() -> None:
    X, y = blobs()
    head = DenseHead(epochs=1).fit(X, y, classes=range(6))
    assert head.logits(X).shape == (len(X), 6)


def test_two_classes_have_one_decision_value_and_any_labels() -> None:
    X, y = blobs()
    labels = np.where(y == 0, "ant", "bee")
    head = DenseHead(epochs=20, learning_rate=0.05).fit(X, labels)
    values = head.decision_function(X)
    assert values.shape == (len(X),)
    np.testing.assert_array_equal(head.predict(X), np.where(values > 0, "bee", "ant"))
    assert head.score(X, labels) > 0.9


def test_a_head_works_in_a_pipeline_in_a_grid_search() -> None:
    pipeline = make_pipeline(StandardScaler(), DenseHead(batch_size=32, learning_rate=0.05))
    search = GridSearchCV(pipeline, {"densehead__epochs": [1, 15]}, cv=2).fit(*blobs())
    assert search.best_params_ == {"densehead__epochs": 15}
    assert search.best_score_ > 0.8


def test_a_clone_has_the_parameters_and_nothing_learnt(heads: dict[str, DenseHead]) -> None:
    copy = clone(heads["plain"])
    assert copy.get_params() == heads["plain"].get_params()
    with pytest.raises(NotFittedError):
        copy.predict(blobs()[0])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dropout": 1.0}, r"dropout is 1.0: expected within \[0, 1\)"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: expected above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"epochs": 0}, "epochs is 0: expected 1 or more"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        DenseHead(**parameters).fit(*blobs())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_no_numbers_are_refused(value: float) -> None:
    X, y = blobs()
    X[3, 4] = value
    with pytest.raises(ValueError, match="Input X contains"):
        DenseHead().fit(X, y)


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="all 130 rows have one class"):
        DenseHead().fit(blobs()[0], np.ones(N_ROWS))


def test_a_label_that_is_no_class_is_refused() -> None:
    with pytest.raises(DataError, match="is none of the 2 classes"):
        DenseHead().fit(*blobs(), classes=[0, 1])


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    X, y = blobs()
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1 at learning rate"):
        DenseHead(learning_rate=1e38).fit(X * 1e6, y)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_classifiers_one_label,
        estimator_checks.check_classifiers_regression_target,
        estimator_checks.check_complex_data,
        estimator_checks.check_dict_unchanged,
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_sparse_array,
        estimator_checks.check_estimator_tags_renamed,
        estimator_checks.check_estimators_dtypes,
        estimator_checks.check_estimators_empty_data_messages,
        estimator_checks.check_estimators_nan_inf,
        estimator_checks.check_estimators_unfitted,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_n_features_in_after_fitting,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_requires_y_none,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_scikit_learns_checks_of_an_estimator_pass(check: Any) -> None:
    check("DenseHead", DenseHead(epochs=1))
