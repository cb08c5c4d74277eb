"""The Dense head: dropout and dense layers on cached features, trained by Keras.

Whatever is drawn comes from the seed alone, by functions that others can call: the initial weights
(:func:`initial_weights_seed`), the dropout masks (:func:`dropout_seed`) and the order of the rows
(:func:`epoch_order`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from classify.estimators import LogitsClassifier, check_rows
from classify.export.safety import check_keras_file
from classify.heads.spec import check_ranges
from classify.heads.weights import carry_weights, hidden_units
from classify.statistics import metrics
from classify.streams import (
    Features,
    StreamedFeatures,
    WindowShuffle,
    cut_batches,
    fit_scaler,
    map_rows,
)
from data_cache.console import import_keras
from data_cache.errors import DataError, ParameterError, TrainingError

if TYPE_CHECKING:
    import tensorflow as tf

OnEpoch = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, from 1, and its row of the history."""

_MOST_STEPS_PER_CALL = 256
_ROWS_PER_CALL = 8192


class DenseHead(LogitsClassifier):
    """Dropout and a dense layer of logits, as a scikit-learn classifier.

    It minimizes the cross-entropy of the softmax with Adam, in batches of a new order each epoch.
    A hidden layer may come first. The same seed, data and machine give the same head.

    Parameters
    ----------
    dropout : share of each dense layer's inputs set to zero in a training step, in [0, 1)
    learning_rate : Adam's, above 0
    epochs : passes over the training rows
    batch_size : rows in a step; the last step of an epoch takes what is left
    standardize : give the model a first layer that brings each feature to mean 0 and standard
        deviation 1 over the training rows
    class_weight : ``"balanced"`` weighs each row by n / (k * rows of its class); or a mapping
        from label to weight; or None
    weight_decay : each step takes ``learning_rate * weight_decay`` of every kernel away from it,
        apart from the gradient, as AdamW does; biases do not decay. 0 or more
    label_smoothing : share of each label's probability spread evenly over all classes, in [0, 1)
    hidden_units : width of a hidden layer of rectified linear units; 0 for no such layer
    patience : stop after so many epochs without a lower ``val_loss``, and go back to the weights
        of the epoch that had the lowest; None to run all epochs
    seed : 0 or more

    Attributes
    ----------
    classes_ : (k,) the labels, sorted
    n_features_in_ : d
    model_ : the Keras model, features (n, d) float32 -> logits (n, k) float32
    history_ : an entry an epoch of ``loss`` and ``accuracy``, running means over the epoch with
        dropout active, and, where validation data were given, of ``val_loss`` and ``val_accuracy``
        after it
    best_epoch_ : the epoch, from 1, whose weights the model has: the last one without ``patience``
    """

    def __init__(  # noqa: PLR0913 (scikit-learn's estimators name every parameter)
        self,
        dropout: float = 0.2,
        learning_rate: float = 1e-3,
        epochs: int = 5,
        batch_size: int = 64,
        *,
        standardize: bool = False,
        class_weight: str | Mapping[Any, float] | None = None,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        hidden_units: int = 0,
        patience: int | None = None,
        seed: int = 0,
    ) -> None:
        self.dropout = dropout
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.standardize = standardize
        self.class_weight = class_weight
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.hidden_units = hidden_units
        self.patience = patience
        self.seed = seed

    def fit(
        self,
        X: ArrayLike | StreamedFeatures,
        y: ArrayLike,
        *,
        classes: ArrayLike | None = None,
        validation_data: tuple[Any, ArrayLike] | None = None,
        on_epoch: OnEpoch | None = None,
        start: DenseHead | None = None,
        shuffle: WindowShuffle | None = None,
    ) -> Self:
        """Train on features ``X`` (n, d) and labels ``y`` (n,); return self.

        ``classes`` are the labels there can be, where some may have no training row; by default
        those in ``y``. ``validation_data`` are measured after each epoch; with ``patience`` they
        say when to stop, and nothing else is done with them. ``start`` is a fitted head of the same
        hidden width to begin from: before the first step the logits of its classes are its own,
        those of other classes are as in any new head.

        Features may be streamed, see :mod:`classify.streams`; they are then shuffled by
        ``shuffle``, by default as their budget allows. Rows in memory are shuffled as a whole, or
        with ``shuffle`` in its order, which gives the same head as streaming does.

        Raises
        ------
        ParameterError
            A parameter is out of its range, or ``patience`` has no validation data.
        ValueError
            Features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only, or a label that is not among ``classes``; or ``start`` has a
            class that is not among them, or another width of features or hidden layer.
        TrainingError
            The loss became NaN or infinite.
        """
        self.check_parameters()
        features, labels = check_rows(self, X, y, dtype=np.float32)
        check_classification_targets(labels)
        self.classes_ = np.unique(labels if classes is None else np.asarray(classes))
        rows = _Rows(features, self._codes(labels), self._row_weights(labels), shuffle)
        rows.refuse_one_class(self.classes_)
        validation = None if validation_data is None else self._checked(*validation_data)
        if self.patience is not None and validation is None:
            raise ParameterError("patience needs validation data: give them, or run all epochs")
        scaler = fit_scaler(features) if self.standardize else None
        self.model_ = build_dense_head(features.shape[1], len(self.classes_), self, scaler)
        if start is not None:
            self._start_from(start)
        self._train(rows, validation, on_epoch)
        return self

    def check_parameters(self) -> None:
        """Raise :class:`ParameterError` if a parameter is out of its range."""
        check_ranges(self)

    def logits(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the logits of features (n, d): (n, k) float32; see the base class."""
        check_is_fitted(self)
        return self._logits(validate_data(self, X, dtype=np.float32, reset=False))

    def save(self, path: Path) -> None:
        """Write the Keras model to ``path``, which ends in ``.keras``."""
        check_is_fitted(self)
        self.model_.save(path)

    @classmethod
    def load(cls, path: Path, classes: ArrayLike) -> Self:
        """Read what :meth:`save` wrote; it predicts, and its parameters are the defaults.

        ``classes`` are the labels of the logits' columns. No code in the file can run: Keras
        loads it in its safe mode, and only classes that are on a list.
        """
        check_keras_file(path)
        head = cls()
        head.model_ = import_keras().saving.load_model(path, compile=False, safe_mode=True)
        head.classes_ = np.asarray(classes)
        if head.model_.output_shape != (None, len(head.classes_)):
            raise ValueError(
                f"its output is {head.model_.output_shape}, expected (None, {len(head.classes_)})"
            )
        head.n_features_in_ = int(head.model_.input_shape[1])
        return head

    def _start_from(self, start: DenseHead) -> None:
        """Take over the weights of another head."""
        found = (start.n_features_in_, hidden_units(start.model_))
        if found != (expected := (self.n_features_in_, self.hidden_units)):
            raise DataError(
                f"the head to start from has {found[0]} features and {found[1]} hidden units: "
                f"expected {expected[0]} and {expected[1]}"
            )
        carry_weights(start.model_, self.model_, self._codes(start.classes_))

    def _codes(self, y: NDArray) -> NDArray[np.int64]:
        """Return the positions of labels (n,) in ``classes_``."""
        codes = np.searchsorted(self.classes_, y).clip(max=len(self.classes_) - 1)
        foreign = self.classes_[codes] != y
        if foreign.any():
            raise DataError(
                f"label {y[foreign][0]!r} is none of the {len(self.classes_)} classes: "
                "give every label in `classes`"
            )
        return codes

    def _checked(self, X: ArrayLike | StreamedFeatures, y: ArrayLike) -> _Rows:
        """Return validation rows after the checks that training rows undergo."""
        features, labels = check_rows(self, X, y, dtype=np.float32, reset=False)
        return _Rows(features, self._codes(labels))

    def _row_weights(self, labels: NDArray) -> NDArray[np.float32] | None:
        """Return the weight of each row, (n,), or None where all are 1."""
        if self.class_weight is None:
            return None
        return compute_sample_weight(self.class_weight, labels).astype(np.float32)

    def _logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of checked features; eagerly, for tracing would take longer."""
        starts = range(0, len(features), _ROWS_PER_CALL)
        blocks = (features[start : start + _ROWS_PER_CALL] for start in starts)
        return np.concatenate([np.asarray(self.model_(b, training=False)) for b in blocks])

    def _train(self, rows: _Rows, validation: _Rows | None, on_epoch: OnEpoch | None) -> None:
        """Run Keras's ``fit`` over our own order of the rows; fill ``history_``."""
        keras = import_keras()
        n_steps = -(-len(rows.codes) // self.batch_size)
        self.model_.compile(
            optimizer=self._optimizer(),
            loss=self._loss(),
            metrics=["accuracy"],
            steps_per_execution=_steps_per_call(n_steps),
            jit_compile=False,
        )
        self.history_: dict[str, list[float]] = {}
        best = _Best()

        def record(epoch: int, logs: Mapping[str, float]) -> None:
            row = {name: float(logs[name]) for name in ("loss", "accuracy")}
            if validation is not None:
                row |= self._validate(validation)
            self._add_to_history(epoch + 1, row)
            if self.patience is not None:
                best.update(epoch + 1, row["val_loss"], self.model_)
                self.model_.stop_training = epoch + 1 - best.epoch >= self.patience
            if on_epoch:
                on_epoch(epoch + 1, row)

        self.model_.fit(
            _batches(rows, self),
            epochs=self.epochs,
            steps_per_epoch=n_steps,
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=record)],
        )
        self.best_epoch_ = best.epoch or self.epochs
        if best.epoch:
            self.model_.set_weights(best.weights)

    def _optimizer(self) -> Any:
        """Return Adam, with the decay of the kernels."""
        optimizer = import_keras().optimizers.Adam(
            self.learning_rate, weight_decay=self.weight_decay or None
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    def _loss(self) -> Any:
        """Return the loss: of labels, or of their probabilities where these are smoothed."""
        losses = import_keras().losses
        if not self.label_smoothing:
            return losses.SparseCategoricalCrossentropy(from_logits=True)
        return losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=self.label_smoothing
        )

    def _validate(self, rows: _Rows) -> dict[str, float]:
        """Return the loss and the accuracy on validation rows."""
        logits = map_rows(self._logits, rows.features)
        return {
            "val_loss": metrics.log_loss(rows.codes, logits),
            "val_accuracy": metrics.accuracy(rows.codes, logits.argmax(axis=1)),
        }

    def _add_to_history(self, epoch: int, row: Mapping[str, float]) -> None:
        """Append an epoch's figures; stop where the loss is none."""
        if not np.isfinite(row["loss"]):
            raise TrainingError(
                f"the loss became {row['loss']} in epoch {epoch} at learning rate "
                f"{self.learning_rate:g}: try a smaller one, or standardized features"
            )
        for name, value in row.items():
            self.history_.setdefault(name, []).append(value)


@dataclass(frozen=True)
class _Rows:
    """Checked rows: features (n, d), positions of their labels (n,), weights (n,) or None.

    ``shuffle`` says how epochs are ordered; None as a whole, or of streamed rows by their budget.
    """

    features: Features
    codes: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None
    shuffle: WindowShuffle | None = None

    @property
    def columns(self) -> list[NDArray]:
        """What goes with the features of a batch."""
        return [self.codes] if self.weights is None else [self.codes, self.weights]

    def refuse_one_class(self, classes: NDArray) -> None:
        """Refuse rows from which nothing can be told apart."""
        if len(present := np.unique(self.codes)) == 1:
            raise DataError(
                f"all {len(self.codes)} rows have one class, {classes[present[0]]!r}: "
                "expected two classes or more"
            )


@dataclass
class _Best:
    """The epoch, from 1, with the lowest validation loss yet, and its weights; 0 before any."""

    epoch: int = 0
    loss: float = np.inf
    weights: Any = None

    def update(self, epoch: int, loss: float, model: Any) -> None:
        """Take note of an epoch; the first counts whatever its loss."""
        if self.epoch == 0 or loss < self.loss:
            self.epoch, self.loss, self.weights = epoch, loss, model.get_weights()


def build_dense_head(
    n_features: int, n_classes: int, head: DenseHead, scaler: StandardScaler | None = None
) -> Any:
    """Return the untrained Keras model: features (n, d) -> logits (n, k).

    Dense layers start from Glorot's uniform weights and no bias. With a fitted ``scaler`` the
    first layer standardizes as it does; a feature that never varied is only centered.
    """
    layers = import_keras().layers
    first = [layers.Input((n_features,), name="features")]
    if scaler is not None:
        first.append(layers.Normalization(mean=scaler.mean_, variance=scaler.scale_**2))
    if head.hidden_units:
        first += _dropout_and_dense(head, 0, head.hidden_units, activation="relu", name="hidden")
    last = _dropout_and_dense(head, 1 if head.hidden_units else 0, n_classes, name="logits")
    return import_keras().Sequential([*first, *last], name="dense_head")


def _dropout_and_dense(head: DenseHead, number: int, units: int, **more: Any) -> list[Any]:
    """Return the dense layer of a number, from 0, and the dropout before it."""
    keras = import_keras()
    initializer = keras.initializers.GlorotUniform(initial_weights_seed(head.seed, number))
    return [
        keras.layers.Dropout(head.dropout, seed=dropout_seed(head.seed, number)),
        keras.layers.Dense(units, kernel_initializer=initializer, **more),
    ]


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Return the order, a permutation of 0..n-1, in which an epoch (from 0) takes the rows."""
    drawn = np.random.SeedSequence(seed, spawn_key=(epoch,))
    return np.random.default_rng(drawn).permutation(n)


def initial_weights_seed(seed: int, layer: int = 0) -> int:
    """Return the seed, below 2**31, of the initial weights of a dense layer, counted from 0."""
    return _drawn_seeds(seed, layer)[0]


def dropout_seed(seed: int, layer: int = 0) -> int:
    """Return the seed, below 2**31, of the dropout masks before a dense layer, counted from 0."""
    return _drawn_seeds(seed, layer)[1]


def _drawn_seeds(seed: int, layer: int) -> tuple[int, int]:
    """Return two seeds: one for both would make the first mask a copy of the initial weights."""
    first, second = np.random.SeedSequence(seed).generate_state(2 * layer + 2)[-2:] >> 1
    return int(first), int(second)


def _batches(rows: _Rows, head: DenseHead) -> tf.data.Dataset:
    """Return every batch of every epoch: features, codes and, where there are any, weights."""
    import tensorflow as tf

    if isinstance(rows.features, StreamedFeatures):
        batches = _streamed_batches(rows.features, rows, head)
    else:
        batches = shuffled_batches(
            [rows.features, *rows.columns],
            seed=head.seed,
            epochs=head.epochs,
            batch_size=head.batch_size,
            order=rows.shuffle.order if rows.shuffle else epoch_order,
        )
    if not head.label_smoothing:
        return batches

    def smooth(features: tf.Tensor, codes: tf.Tensor, *weights: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (features, tf.one_hot(codes, len(head.classes_)), *weights)

    return batches.map(smooth)


def shuffled_batches(
    arrays: Sequence[NDArray],
    *,
    seed: int,
    epochs: int,
    batch_size: int,
    order: Callable[[int, int, int], NDArray[np.int64]] = epoch_order,
) -> tf.data.Dataset:
    """Return every batch of every epoch: the rows of each array, in the order of the epoch.

    ``order`` is called as :func:`epoch_order` is. Gathering rows as they are needed avoids a
    shuffled copy of the arrays for each epoch.
    """
    import tensorflow as tf

    n_rows = len(arrays[0])
    with tf.device("CPU:0"):
        columns = tuple(tf.constant(array) for array in arrays)

    def positions(epoch: tf.Tensor) -> tf.data.Dataset:
        indices = tf.numpy_function(
            lambda number: order(seed, int(number), n_rows), [epoch], tf.int64
        )
        return tf.data.Dataset.from_tensor_slices(tf.ensure_shape(indices, (n_rows,))).batch(
            batch_size
        )

    def take(indices: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(tf.gather(column, indices) for column in columns)

    return tf.data.Dataset.range(epochs).flat_map(positions).map(take).prefetch(2)


def _streamed_batches(features: StreamedFeatures, rows: _Rows, head: DenseHead) -> tf.data.Dataset:
    """Return every batch of every epoch, each window of rows read while the one before is used."""
    import tensorflow as tf

    shuffle = rows.shuffle or features.budget.shuffle(features.shape[1])

    def batches() -> Iterator[tuple[NDArray, ...]]:
        for epoch in range(head.epochs):
            windows = features.epoch(shuffle, head.seed, epoch)
            columns = ((block, *(one[at] for one in rows.columns)) for block, at in windows)
            yield from cut_batches(columns, head.batch_size)

    signature = (
        tf.TensorSpec((None, features.shape[1]), tf.float32),
        *(tf.TensorSpec((None,), one.dtype) for one in rows.columns),
    )
    return tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2)


def _steps_per_call(n_steps: int) -> int:
    """Return how many steps Keras runs in one call: a divisor, or it would run into an epoch."""
    limit = min(n_steps, _MOST_STEPS_PER_CALL)
    return next(steps for steps in range(limit, 0, -1) if n_steps % steps == 0)
