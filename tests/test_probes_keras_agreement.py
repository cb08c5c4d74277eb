"""Keras and scikit-learn, minimizing the same penalized loss to convergence, find one optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
from probe_data import activations
from sklearn.preprocessing import StandardScaler

from classify.probes import LogisticRegressionProbe
from classify.statistics import metrics
from data_cache.console import import_keras

C = 0.05
N_STEPS, STEPS_AT_ONCE = 1500, 250


def converged_keras_model(inputs: np.ndarray, y: np.ndarray) -> Any:
    """One dense layer, its mean cross-entropy plus ||W||² / (2 C n), by Adam on all rows."""
    keras = import_keras()
    penalty = keras.regularizers.L2(1 / (2 * C * len(y)))
    model = keras.Sequential(
        [keras.layers.Input(inputs.shape[1:]), keras.layers.Dense(4, kernel_regularizer=penalty)]
    )
    rate = keras.optimizers.schedules.ExponentialDecay(0.05, N_STEPS, 1e-3)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=STEPS_AT_ONCE,
    )
    import tensorflow as tf

    rows = tf.data.Dataset.from_tensors((inputs, y)).repeat(N_STEPS)
    model.fit(rows, shuffle=False, verbose=0)
    return model


def loss(logits: np.ndarray, kernel: np.ndarray, y: np.ndarray) -> float:
    return metrics.log_loss(y, logits) + float((kernel.astype(float) ** 2).sum()) / (2 * C * len(y))


def test_keras_and_scikit_learn_arrive_at_one_optimum() -> None:
    X, y = activations(400)
    others, _ = activations(400, seed=1)
    scaler = StandardScaler().fit(X.astype(np.float64))
    inputs, other_inputs = (scaler.transform(one).astype(np.float32) for one in (X, others))
    model = converged_keras_model(inputs, y)
    probe = LogisticRegressionProbe(C, tol=1e-9).fit(X, y)
    by_keras = loss(np.asarray(model(inputs)), model.get_weights()[0], y)
    by_scikit_learn = loss(probe.logits(X), probe.coef_, y)
    assert abs(by_keras - by_scikit_learn) < 1e-4
    predictions = np.asarray(model(other_inputs)).argmax(axis=1)
    assert (predictions == probe.predict(others)).mean() >= 0.995
