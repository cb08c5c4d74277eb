"""The training loop of fine-tuning: Adam on whatever is trainable, a checkpoint after each epoch.

The loop knows nothing of images: a trunk may take pixels, or activations that were computed before.
Whatever is drawn comes from the seed alone, by the functions of :mod:`classify.heads.dense`: the
order of the rows (:func:`~classify.heads.dense.epoch_order`) and the dropout masks
(:func:`~classify.heads.dense.dropout_seed`). So two trunks that compute the same from different
inputs follow the same path, and a run that goes on from a checkpoint ends where it would have
ended.

Keras's ``fit`` is not used: it calls the whole model in training mode, in which batch
normalization moves its statistics and dropout layers inside a backbone draw from seeds of their
own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.checkpoints import Checkpoints, Progress
from classify.fine_tune.network import LabeledRows, Network, batches, make_forward, seed_dropout
from classify.heads.dense import epoch_order
from classify.heads.spec import check_ranges
from classify.statistics import metrics
from data_cache.console import import_keras
from data_cache.errors import ParameterError, TrainingError

Schedule = Literal["constant", "cosine"]

Choose = Callable[[NDArray[np.float32]], tuple[float, ...]]
"""Judges an epoch by its logits (m, k) on the validation rows; the lowest figures are the best."""

Step = Callable[..., tuple[Any, Any]]
"""Trains on a batch: weights (m,), labels (m,), inputs -> loss, rows that were right."""


@dataclass(frozen=True)
class TrainingSpec:
    """How the unfrozen layers are trained.

    Attributes
    ----------
    learning_rate : Adam's, above 0
    epochs : passes over the training rows, 1 or more
    batch_size : rows in a step, 1 or more; the last step of an epoch takes what is left
    schedule : ``constant``, or ``cosine``: from the learning rate down to 0 over all steps, along
        half a cosine. I. Loshchilov, F. Hutter (2017), "SGDR", ICLR, equation 5
    label_smoothing : share of each label's probability spread evenly over all classes, in [0, 1)
    seed : of the order of the rows and the dropout masks; 0 or more

    Raises
    ------
    ParameterError
        A value is out of its range.
    """

    learning_rate: float = 1e-5
    epochs: int = 5
    batch_size: int = 64
    schedule: Schedule = "constant"
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.schedule not in {"constant", "cosine"}:
            raise ParameterError(f"schedule is {self.schedule!r}: expected constant or cosine")


@dataclass(frozen=True)
class Listener:
    """Is told how training goes on: rows that a step took; an epoch, from 1, and its figures."""

    on_rows: Callable[[int], None] = lambda _n: None
    on_epoch: Callable[[int, Mapping[str, float]], None] = lambda _epoch, _row: None


@dataclass(frozen=True)
class Trained:
    """What training brought forth.

    Attributes
    ----------
    history : an entry an epoch of ``loss`` and ``accuracy``, running means over the epoch with
        dropout active, and of ``val_loss`` and ``val_accuracy`` after it
    logits : (epochs, m, k) float32, on the validation rows after each epoch
    best_epoch : the epoch, from 1, that ``choose`` judged best
    """

    history: Mapping[str, list[float]]
    logits: NDArray[np.float32]
    best_epoch: int


def train(
    network: Network,
    training: LabeledRows,
    validation: LabeledRows,
    spec: TrainingSpec,
    *,
    choose: Choose | None = None,
    checkpoints: Checkpoints | None = None,
    listener: Listener | None = None,
) -> Trained:
    """Train a network, and leave it with the weights of the best epoch.

    Parameters
    ----------
    network : its trainable flags say what is trained
    training, validation : labels are columns of the logits
    choose : judges each epoch; by default the log loss on all validation rows
    checkpoints : keep the state after each epoch. What is there already is gone on from: on a CPU
        to the same weights, bit for bit, as without the interruption

    Raises
    ------
    TrainingError
        The loss, of training or of validation rows, became NaN or infinite. The checkpoint of the
        last good epoch stays.
    """
    choose = choose or (lambda logits: (metrics.log_loss(validation.labels, logits),))
    listener = listener or Listener()
    trainer = _Trainer(network, spec, n_steps=-(-len(training) // spec.batch_size))
    progress = checkpoints.load(trainer.variables) if checkpoints else Progress()
    listener.on_rows(progress.n_epochs * len(training))
    for epoch in range(progress.n_epochs, spec.epochs):
        row = trainer.run_epoch(training, epoch, listener)
        logits = trainer.forward(validation.inputs, len(validation))
        row |= _validate(validation.labels, logits)
        _refuse_none(row, epoch + 1, spec, checkpoints)
        progress.add(row, logits, choose(logits), network.trained_variables)
        if checkpoints:
            checkpoints.save(progress, trainer.variables)
        listener.on_epoch(epoch + 1, row)
    for variable, value in zip(network.trained_variables, progress.best, strict=True):
        variable.assign(value)
    return Trained(progress.history, np.stack(progress.logits), progress.best_epoch)


class _Trainer:
    """A network with its optimizer and its graphs, which are made after the layers are unfrozen."""

    def __init__(self, network: Network, spec: TrainingSpec, n_steps: int) -> None:
        self._network, self._spec = network, spec
        self._optimizer = _optimizer(spec, n_steps, is_mixed=_is_mixed(network.trunk))
        self._optimizer.build(network.trained_variables)
        self._step = _make_step(network, self._optimizer, spec)
        self.forward = make_forward(network, spec.batch_size)
        seed_dropout(network.head, spec.seed)

    @property
    def variables(self) -> list[Any]:
        """Return all that changes while training: weights, where dropout stands, Adam's moments."""
        network = self._network
        return [
            *network.trained_variables,
            *network.head.non_trainable_variables,
            *self._optimizer.variables,
        ]

    def run_epoch(self, rows: LabeledRows, epoch: int, listener: Listener) -> dict[str, float]:
        """Take every row once, in the epoch's order; return running means.

        It stops as soon as the loss is none: the weights are of no use from there on.
        """
        order = epoch_order(self._spec.seed, epoch, len(rows))
        weights = np.ones(len(rows), np.float32) if rows.weights is None else rows.weights
        total, n_right = 0.0, 0
        with closing(batches(rows.inputs, order, self._spec.batch_size, epoch)) as parts:
            for chosen, batch in parts:
                loss, right = self._step(weights[chosen], rows.labels[chosen], *batch)
                total += float(loss) * len(chosen)
                n_right += int(right)
                if not np.isfinite(total):
                    break
                listener.on_rows(len(chosen))
        return {"loss": total / len(rows), "accuracy": n_right / len(rows)}


def _optimizer(spec: TrainingSpec, n_steps: int, *, is_mixed: bool) -> Any:
    """Return Adam; with float16 it scales the loss, or small gradients would vanish."""
    optimizers = import_keras().optimizers
    rate: Any = spec.learning_rate
    if spec.schedule == "cosine":
        rate = optimizers.schedules.CosineDecay(rate, decay_steps=spec.epochs * n_steps)
    adam = optimizers.Adam(rate)
    return optimizers.LossScaleOptimizer(adam) if is_mixed else adam


def _is_mixed(model: Any) -> bool:
    """Tell whether a model computes in another type than it keeps its weights in."""
    return any(one.compute_dtype != one.variable_dtype for one in model.layers)


def _make_step(network: Network, optimizer: Any, spec: TrainingSpec) -> Step:
    """Return the graph of a training step."""
    import tensorflow as tf

    signature = (
        tf.TensorSpec((None,), tf.float32),
        tf.TensorSpec((None,), tf.int64),
        *network.signature,
    )
    variables = network.trained_variables

    @tf.function(input_signature=signature, autograph=False)
    def step(weights: tf.Tensor, labels: tf.Tensor, *batch: tf.Tensor) -> tuple[Any, Any]:
        with tf.GradientTape() as tape:
            logits = network(batch, training=True)
            loss = tf.reduce_mean(weights * _cross_entropy(labels, logits, spec.label_smoothing))
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss, tf.reduce_sum(tf.cast(tf.argmax(logits, axis=1) == labels, tf.int32))

    return step


def _cross_entropy(labels: Any, logits: Any, smoothing: float) -> Any:
    """Return -sum_j q_j ln softmax(z)_j of each row, (m,), with q the smoothed label."""
    import tensorflow as tf

    n_classes = logits.shape[1]
    targets = tf.one_hot(labels, n_classes) * (1 - smoothing) + smoothing / n_classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


def _validate(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> dict[str, float]:
    """Return the loss and the accuracy on validation rows."""
    return {
        "val_loss": metrics.log_loss(labels, logits),
        "val_accuracy": metrics.accuracy(labels, logits.argmax(axis=1)),
    }


def _refuse_none(
    row: Mapping[str, float], epoch: int, spec: TrainingSpec, checkpoints: Checkpoints | None
) -> None:
    """Raise :class:`TrainingError` where a loss is no number."""
    for name, place in (("loss", "loss"), ("val_loss", "validation loss")):
        if not np.isfinite(row[name]):
            kept = ""
            if checkpoints and epoch > 1:
                kept = f"; the checkpoint of epoch {epoch - 1} is kept in {checkpoints.folder}"
            raise TrainingError(
                f"the {place} became {row[name]} in epoch {epoch} at learning rate "
                f"{spec.learning_rate:g}: try a smaller one{kept}"
            )
