"""Heads trained side by side are those that Keras trains one at a time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from classify.heads.batches import Batches, TrainingData
from classify.heads.dense import DenseHead, dropout_seed, epoch_order, initial_weights_seed
from classify.heads.many import TrainedHead, logits_of, train_many_heads
from classify.heads.spec import HeadSpec
from classify.heads.stack import BETA_1, BETA_2, HeadStack
from data_cache.console import import_keras
from data_cache.errors import DataError, ParameterError

N_TRAINING, N_VALIDATION, N_FEATURES, N_CLASSES = 330, 70, 96, 5

SPECS = {
    "defaults": HeadSpec(),
    "low learning rate": HeadSpec(learning_rate=1e-4),
    "high learning rate": HeadSpec(learning_rate=1e-2),
    "no dropout": HeadSpec(dropout=0.0, learning_rate=1e-2),
    "much dropout": HeadSpec(dropout=0.5, learning_rate=1e-2),
    "weight decay": HeadSpec(weight_decay=3.0, learning_rate=1e-2),
    "label smoothing": HeadSpec(label_smoothing=0.2, learning_rate=1e-2),
    "few epochs": HeadSpec(epochs=2, learning_rate=1e-2),
    "batches that leave a rest": HeadSpec(batch_size=37, learning_rate=1e-2),
    "one batch an epoch": HeadSpec(batch_size=1000, learning_rate=1e-2),
    "standardized": HeadSpec(standardize=True, learning_rate=1e-2),
    "balanced classes": HeadSpec(class_weight="balanced", learning_rate=1e-2),
    "hidden layer": HeadSpec(hidden_units=24, learning_rate=1e-2),
    "hidden layer without dropout": HeadSpec(hidden_units=24, dropout=0.0, learning_rate=1e-2),
    "another seed": HeadSpec(seed=3, learning_rate=1e-2),
    "everything": HeadSpec(
        learning_rate=5e-3,
        dropout=0.3,
        weight_decay=1.0,
        label_smoothing=0.1,
        epochs=4,
        batch_size=32,
        standardize=True,
        class_weight="balanced",
        hidden_units=16,
        seed=11,
    ),
}


def draw_data(n_validation: int = N_VALIDATION) -> TrainingData:
    """Return features as a backbone makes them: not negative, uneven in scale, some never on."""
    rng = np.random.default_rng(5)
    n = N_TRAINING + n_validation
    labels = rng.choice(N_CLASSES, n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    centers = rng.random((N_CLASSES, N_FEATURES))
    features = rng.gamma(0.5, size=(n, N_FEATURES)) * (0.3 + centers[labels])
    features *= np.geomspace(0.05, 3, N_FEATURES)
    features[:, :6] = 0
    features = features.clip(0, 6).astype(np.float32)
    return TrainingData(
        features[:N_TRAINING],
        labels[:N_TRAINING],
        N_CLASSES,
        features[N_TRAINING:],
        labels[N_TRAINING:],
    )


@pytest.fixture(scope="module")
def data() -> TrainingData:
    return draw_data()


@pytest.fixture(scope="module")
def swept(data: TrainingData) -> dict[str, TrainedHead]:
    """All the heads, trained in one call."""
    heads = dict(train_many_heads(list(SPECS.values()), data))
    return {name: heads[position] for position, name in enumerate(SPECS)}


def keras_model(spec: HeadSpec, data: TrainingData) -> Any:
    """Return the compiled Keras model of a configuration, written with nothing of ours."""
    keras = import_keras()
    layers = [keras.layers.Input((N_FEATURES,))]
    if spec.standardize:
        layers.append(keras.layers.Normalization())
        layers[-1].adapt(data.features)
    widths = [spec.hidden_units, N_CLASSES] if spec.hidden_units else [N_CLASSES]
    for number, units in enumerate(widths):
        layers += [
            keras.layers.Dropout(spec.dropout, seed=dropout_seed(spec.seed, number)),
            keras.layers.Dense(
                units,
                activation="relu" if number < len(widths) - 1 else None,
                kernel_initializer=keras.initializers.GlorotUniform(
                    initial_weights_seed(spec.seed, number)
                ),
            ),
        ]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.AdamW(spec.learning_rate, weight_decay=spec.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=spec.label_smoothing
    )
    model.compile(optimizer, loss, jit_compile=False)
    return model


def keras_batches(spec: HeadSpec, data: TrainingData) -> Iterator[tuple[NDArray, ...]]:
    """Yield features, one-hot labels and weights of every step, in the order the seed gives."""
    weights = np.ones(N_TRAINING)
    if spec.class_weight:
        weights = N_TRAINING / (N_CLASSES * np.bincount(data.labels)[data.labels])
    one_hot = np.eye(N_CLASSES, dtype=np.float32)[data.labels]
    for epoch in range(spec.epochs):
        order = epoch_order(spec.seed, epoch, N_TRAINING)
        for start in range(0, N_TRAINING, spec.batch_size):
            rows = order[start : start + spec.batch_size]
            yield data.features[rows], one_hot[rows], weights[rows]


def train_keras(spec: HeadSpec, data: TrainingData, *callbacks: Any) -> Any:
    """Return the model that Keras trains alone."""
    model = keras_model(spec, data)
    one_hot = np.eye(N_CLASSES, dtype=np.float32)[data.validation_labels]
    model.fit(
        keras_batches(spec, data),
        epochs=spec.epochs,
        steps_per_epoch=-(-N_TRAINING // spec.batch_size),
        validation_data=(data.validation_features, one_hot) if callbacks else None,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model


def relative_difference(found: NDArray, expected: NDArray) -> float:
    """Return max|found - expected| / max|expected|."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", SPECS)
def test_a_swept_head_is_the_one_that_keras_trains_alone(
    name: str, data: TrainingData, swept: dict[str, TrainedHead]
) -> None:
    expected = train_keras(SPECS[name], data)(data.validation_features, training=False)
    assert relative_difference(swept[name].validation_logits, np.asarray(expected)) < 1e-4


@pytest.mark.parametrize("name", ["defaults", "weight decay", "label smoothing", "everything"])
def test_a_swept_head_is_the_dense_head_of_the_same_parameters(
    name: str, data: TrainingData, swept: dict[str, TrainedHead]
) -> None:
    head = DenseHead(**asdict(SPECS[name])).fit(data.features, data.labels)
    logits = head.logits(data.validation_features)
    assert relative_difference(swept[name].validation_logits, logits) < 1e-4


@pytest.mark.parametrize("patience", [1, 3])
def test_a_head_stops_early_where_keras_stops_it(patience: int, data: TrainingData) -> None:
    spec = HeadSpec(learning_rate=1e-2, dropout=0.0, epochs=60, patience=patience)
    ((_, head),) = train_many_heads([spec], data)
    callback = import_keras().callbacks.EarlyStopping(
        "val_loss", patience=patience, restore_best_weights=True
    )
    expected = train_keras(spec, data, callback)(data.validation_features, training=False)
    assert 1 < head.n_epochs == callback.best_epoch + 1 < spec.epochs - patience
    assert relative_difference(head.validation_logits, np.asarray(expected)) < 1e-3


def test_a_dense_head_stops_early_as_swept_heads_do(data: TrainingData) -> None:
    spec = HeadSpec(learning_rate=1e-2, dropout=0.1, hidden_units=16, epochs=60, patience=2)
    ((_, swept),) = train_many_heads([spec], data)
    validation = (data.validation_features, data.validation_labels)
    head = DenseHead(**asdict(spec)).fit(data.features, data.labels, validation_data=validation)
    assert 1 < head.best_epoch_ == swept.n_epochs == len(head.history_["loss"]) - 2
    logits = head.logits(data.validation_features)
    assert relative_difference(swept.validation_logits, logits) < 1e-3


def test_a_dense_head_with_patience_needs_validation_rows(data: TrainingData) -> None:
    with pytest.raises(ParameterError, match="patience needs validation data"):
        DenseHead(patience=1).fit(data.features, data.labels)


def test_heads_that_stop_leave_the_others_alone(data: TrainingData) -> None:
    stopping = HeadSpec(learning_rate=1e-2, dropout=0.0, epochs=60, patience=1)
    going_on = replace(stopping, patience=None)
    both = dict(train_many_heads([stopping, going_on], data))
    ((_, alone),) = train_many_heads([going_on], data)
    assert both[0].n_epochs < both[1].n_epochs == 60
    assert relative_difference(both[1].validation_logits, alone.validation_logits) < 1e-4


@pytest.mark.parametrize("learning_rate", [0.05, 1.0])
@pytest.mark.parametrize("hidden_units", [0, 12])
def test_at_high_learning_rates_each_step_is_that_of_keras_from_the_same_state(
    learning_rate: float, hidden_units: int, data: TrainingData
) -> None:
    spec = HeadSpec(
        learning_rate, dropout=0.3, weight_decay=0.1, hidden_units=hidden_units, epochs=2
    )
    model = keras_model(spec, data)
    kernels = [np.asarray(layer.kernel) for layer in model.layers if layer.weights]
    stack = HeadStack([spec, spec], kernels)
    steps = [batch for stretch in Batches(data, [spec]).stretches() for batch in stretch.batches]
    for ours, theirs in zip(steps, keras_batches(spec, data), strict=True):
        copy_state(model, stack)
        stack.train([ours])
        model.train_on_batch(*theirs)
        for layer, (kernel, bias) in zip(
            [layer for layer in model.layers if layer.trainable_weights],
            stack.dense_layers(1),
            strict=True,
        ):
            assert relative_difference(kernel, np.asarray(layer.kernel)) < 1e-5
            assert relative_difference(bias, np.asarray(layer.bias)) < 1e-5


def copy_state(model: Any, stack: HeadStack) -> None:
    """Give every head of a stack a Keras model's weights and its optimizer's moments."""
    dense = [layer for layer in model.layers if layer.trainable_weights]
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    for stacked, layer in zip(stack._layers, dense, strict=True):
        kernel, bias = (model.optimizer._get_variable_index(v) for v in layer.trainable_weights)
        means, squares = model.optimizer._momentums, model.optimizer._velocities
        stacked.weights[:] = joined(layer.kernel, layer.bias)
        stacked._mean[:] = joined(means[kernel], means[bias]) / (1 - BETA_1)
        stacked._square[:] = joined(squares[kernel], squares[bias]) / (1 - BETA_2)


def joined(kernel: Any, bias: Any) -> NDArray[np.float32]:
    """Return a kernel (inputs, units) and a bias as (units, inputs + 1)."""
    return np.vstack([np.asarray(kernel), np.asarray(bias)]).T


def test_a_head_does_not_depend_on_threads_memory_or_company(
    data: TrainingData, swept: dict[str, TrainedHead]
) -> None:
    names = ["everything", "defaults", "hidden layer", "another seed", "much dropout"]
    specs = [SPECS[name] for name in names]
    again = dict(train_many_heads(specs, data, n_threads=3, memory=1))
    for position, name in enumerate(names):
        found, expected = again[position], swept[name]
        assert found.spec == expected.spec
        assert relative_difference(found.validation_logits, expected.validation_logits) < 1e-4


def test_the_same_call_gives_the_same_heads(data: TrainingData) -> None:
    specs = [HeadSpec(dropout=dropout) for dropout in (0.1, 0.2)]
    first, second = (dict(train_many_heads(specs, data)) for _ in range(2))
    for position in range(2):
        np.testing.assert_array_equal(
            first[position].validation_logits, second[position].validation_logits
        )


@pytest.mark.parametrize("name", ["defaults", "standardized", "everything"])
def test_the_layers_give_the_validation_logits_of_features_as_they_come(
    name: str, data: TrainingData, swept: dict[str, TrainedHead]
) -> None:
    head = swept[name]
    logits = logits_of(head.layers, data.validation_features)
    assert relative_difference(logits, head.validation_logits) < 1e-5


def test_a_head_that_diverges_costs_the_others_nothing(data: TrainingData) -> None:
    wild = HeadSpec(learning_rate=1e38, hidden_units=8)
    calm = HeadSpec(hidden_units=8)
    heads = dict(train_many_heads([wild, calm], data))
    ((_, alone),) = train_many_heads([calm], data)
    assert not np.isfinite(heads[0].validation_logits).any()
    assert relative_difference(heads[1].validation_logits, alone.validation_logits) < 1e-5


def test_a_head_that_diverges_stops_early(data: TrainingData) -> None:
    spec = HeadSpec(learning_rate=1e38, hidden_units=8, patience=2, epochs=50)
    told: list[int] = []
    ((_, head),) = train_many_heads([spec], data, advance=told.append)
    assert head.n_epochs == 1
    assert told == [1, 1, 48]


def test_every_epoch_of_every_head_is_told_once(data: TrainingData) -> None:
    specs = [HeadSpec(epochs=epochs, seed=seed) for epochs in (1, 3) for seed in (0, 1)]
    told: list[int] = []
    list(train_many_heads(specs, data, advance=told.append))
    assert sum(told) == 8


def test_memory_is_bounded_by_what_is_given(data: TrainingData) -> None:
    specs = [HeadSpec(epochs=1, learning_rate=rate) for rate in np.geomspace(1e-4, 1e-2, 2000)]
    state = 16 * N_CLASSES * (N_FEATURES + 1) * len(specs)
    list(train_many_heads(specs[:1], data))
    tracemalloc.start()
    for _ in train_many_heads(specs, data, memory=state // 20):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < state / 4


def test_blas_leaves_the_cores_to_the_tiles(
    data: TrainingData, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    train = HeadStack.train

    def look(stack: HeadStack, batches: Any) -> None:
        seen.update(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        train(stack, batches)

    monkeypatch.setattr(HeadStack, "train", look)
    list(train_many_heads([HeadSpec(epochs=1)], data))
    assert seen == {1}


def test_blas_has_its_threads_back_afterwards(data: TrainingData) -> None:
    before = [pool["num_threads"] for pool in threadpool_info()]
    for _ in train_many_heads([HeadSpec(epochs=1)], data):
        assert [pool["num_threads"] for pool in threadpool_info()] == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"dropout": 1.0},
        {"weight_decay": -1.0},
        {"label_smoothing": 1.0},
        {"epochs": 0},
        {"batch_size": 0},
        {"class_weight": "uneven"},
        {"hidden_units": -1},
        {"patience": 0},
        {"seed": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_value_out_of_its_range_is_refused(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong))
    with pytest.raises(ParameterError, match=f"^{name} is {wrong[name]!r}: expected"):
        HeadSpec(**wrong)


def test_labels_of_one_class_are_refused(data: TrainingData) -> None:
    with pytest.raises(DataError, match="one class: expected two or more"):
        replace(data, labels=np.zeros(N_TRAINING, np.int64))


def test_labels_that_do_not_match_the_rows_are_refused(data: TrainingData) -> None:
    with pytest.raises(DataError, match="329 labels for 330 rows: expected as many"):
        replace(data, labels=data.labels[1:])
