"""Heads trained side by side, against Keras's ``fit`` one head at a time.

All train configurations drawn at random, of three seeds, for 5 epochs in batches of 64; Keras only
a few of them. ``fit`` is called as the lesson calls it, measuring accuracy and validating after
each epoch; and bare, with the rows of all epochs in one call and nothing measured, the least that
it can do. The bare heads are compared with ours before anything is reported.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import Report, Side, alternate, arguments, ratio

from classify.heads.batches import TrainingData
from classify.heads.dense import dropout_seed, epoch_order, initial_weights_seed
from classify.heads.many import train_many_heads
from classify.heads.spec import HeadSpec
from classify.sweep_heads.search import SearchSpace
from data_cache.cache import FeatureCache
from data_cache.console import import_keras

TOLERANCE = 1e-3
N_SEEDS = 3
BATCH_SIZE = 64


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=1000, help="configurations (default 1000)")
    parser.add_argument("--keras-heads", type=int, default=4, help="of them, by Keras (default 4)")
    parser.add_argument("--cache", type=Path, help="a feature cache; drawn features by default")
    options = parser.parse_args()
    data = read_data(options.cache) if options.cache else draw_data()
    n, d = data.features.shape
    report = Report(f"{options.heads} heads on {n} x {d} features, {data.n_classes} classes")
    print(report.title)

    space = SearchSpace(epochs=(5,), batch_size=(BATCH_SIZE,), class_weight=(None, "balanced"))
    drawn = space.draw(options.heads, seed=0)
    specs = [replace(spec, seed=number % N_SEEDS) for number, spec in enumerate(drawn)]
    sample = specs[:: max(1, len(specs) // options.keras_heads)][: options.keras_heads]
    check_equal(sample, data)

    seconds = alternate(sides(specs, sample, data), options.rounds)
    report.add("headstart, all of them", median(seconds["headstart"]), "s")
    for name, taken in seconds.items():
        count = len(specs) if name == "headstart" else len(sample)
        report.add(name, 60 * count / median(taken), "heads/min")
    for name in ("Keras fit", "Keras fit, bare"):
        times = ratio(seconds[name], seconds["headstart"]) * len(specs) / len(sample)
        report.add(f"headstart / {name}", times, "x")
    report.write(options.json)


def sides(specs: list[HeadSpec], sample: list[HeadSpec], data: TrainingData) -> dict[str, Side]:
    """Return the work of each side: ours on all configurations, Keras's on a sample of them."""

    def side_by_side() -> None:
        for _ in train_many_heads(specs, data):
            pass

    def fit() -> None:
        for spec in sample:
            fit_as_the_lesson(spec, data)

    def bare_fit() -> None:
        for spec in sample:
            fit_bare(spec, data)

    return {"headstart": side_by_side, "Keras fit": fit, "Keras fit, bare": bare_fit}


def read_data(path: Path) -> TrainingData:
    """Return a cache's training rows, the last fifth for validation."""
    with FeatureCache.open(path) as cache:
        features, labels = cache.features("train"), cache.rows("train").labels
        return divide(features, labels, len(cache.classes))


def draw_data() -> TrainingData:
    """Return 4,000 rows of features such as MobileNetV2's: 1,280 wide, in [0, 6], 10 classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 4000)
    centers = 0.6 * rng.random((10, 1280))
    features = rng.gamma(0.5, size=(4000, 1280)) * (0.3 + centers[labels])
    return divide(features.clip(0, 6).astype(np.float32), labels, 10)


def divide(features: np.ndarray, labels: np.ndarray, n_classes: int) -> TrainingData:
    """Return all rows but the last fifth for training, whole batches, the others for validation."""
    n = len(labels) * 4 // 5 // BATCH_SIZE * BATCH_SIZE
    return TrainingData(features[:n], labels[:n], n_classes, features[n:], labels[n:])


def check_equal(sample: list[HeadSpec], data: TrainingData) -> None:
    """See that both sides train the same heads."""
    for number, head in train_many_heads(sample, data):
        model = fit_bare(sample[number], data)
        expected = np.asarray(model(data.validation_features, training=False))
        error = np.abs(head.validation_logits - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE, (sample[number], error)
    print(f"  {len(sample)} heads agree within {TOLERANCE:g} of the largest logit")


def fit_as_the_lesson(spec: HeadSpec, data: TrainingData) -> None:
    """Let Keras train a head, shuffling and validating by itself."""
    one_hot = np.eye(data.n_classes, dtype=np.float32)
    model = compiled_model(spec, data, metrics=["accuracy"])
    model.fit(
        data.features,
        one_hot[data.labels],
        sample_weight=data.balanced_weights if spec.class_weight else None,
        validation_data=(data.validation_features, one_hot[data.validation_labels]),
        batch_size=spec.batch_size,
        epochs=spec.epochs,
        verbose=0,
    )


def fit_bare(spec: HeadSpec, data: TrainingData) -> Any:
    """Return the model that Keras trains on the rows of all epochs, in our order, in one call."""
    n = len(data.labels)
    order = np.concatenate([epoch_order(spec.seed, epoch, n) for epoch in range(spec.epochs)])
    model = compiled_model(spec, data)
    model.fit(
        data.features[order],
        np.eye(data.n_classes, dtype=np.float32)[data.labels[order]],
        sample_weight=data.balanced_weights[order] if spec.class_weight else None,
        batch_size=spec.batch_size,
        shuffle=False,
        verbose=0,
    )
    return model


def compiled_model(spec: HeadSpec, data: TrainingData, **more: Any) -> Any:
    """Return the Keras model of a configuration, with our initial weights and masks."""
    keras = import_keras()
    layers: list[Any] = [keras.layers.Input(data.features.shape[1:])]
    if spec.standardize:
        statistics = data.scaler.mean_, data.scaler.scale_**2
        layers.append(keras.layers.Normalization(mean=statistics[0], variance=statistics[1]))
    glorot = keras.initializers.GlorotUniform(initial_weights_seed(spec.seed))
    layers += [
        keras.layers.Dropout(spec.dropout, seed=dropout_seed(spec.seed)),
        keras.layers.Dense(data.n_classes, kernel_initializer=glorot),
    ]
    model = keras.Sequential(layers)
    optimizer = keras.optimizers.AdamW(spec.learning_rate, weight_decay=spec.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    smoothing = spec.label_smoothing
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(optimizer, loss, **more)
    return model


if __name__ == "__main__":
    main()
