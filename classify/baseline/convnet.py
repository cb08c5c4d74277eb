"""A small convolutional network from scratch: pixels in, logits out, trained by Keras."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from classify.estimators import LogitsClassifier
from classify.heads.dense import OnEpoch, dropout_seed, initial_weights_seed, shuffled_batches
from classify.heads.spec import check_ranges
from classify.statistics import metrics
from data_cache.console import import_keras
from data_cache.errors import TrainingError

Labeled = tuple[NDArray[np.uint8], NDArray[np.integer]]
"""Images (n, h, w, c) and their labels (n,)."""

_N_FILTERS = (32, 64)
_N_UNITS = 64
_IMAGES_PER_CALL = 512


class ConvNet(LogitsClassifier):
    """Two convolutions, each pooled, and two dense layers, as a classifier of images.

    The network scales pixels to [0, 1] itself; then come 32 filters of 3 x 3, the maximum of each
    2 x 2, 64 filters, the maximum again, dropout, 64 rectified linear units, dropout, and a logit
    for each class. It minimizes the cross-entropy with Adam, in batches of a new order each epoch.
    The same seed, data and machine give the same network.

    Parameters
    ----------
    epochs : passes over the training images
    batch_size : images in a step; the last step of an epoch takes what is left
    learning_rate : Adam's, above 0
    dropout : share of the inputs of each dense layer set to zero in a training step, in [0, 1)
    seed : of the initial weights, the order of the images and the dropout; 0 or more

    Attributes
    ----------
    classes_ : (k,) 0 to k - 1
    model_ : the Keras model, pixels (n, h, w, c) in [0, 255] -> logits (n, k) float32
    history_ : an entry an epoch of ``loss`` and ``accuracy``, running means over the epoch with
        dropout active, and of ``val_loss`` and ``val_accuracy`` after it
    """

    def __init__(
        self,
        epochs: int = 10,
        batch_size: int = 64,
        learning_rate: float = 1e-3,
        dropout: float = 0.25,
        *,
        seed: int = 0,
    ) -> None:
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.dropout = dropout
        self.seed = seed

    def fit(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer],
        *,
        n_classes: int,
        validation: Labeled,
        on_epoch: OnEpoch | None = None,
    ) -> Self:
        """Train on images (n, h, w, c) uint8 and labels (n,), positions below ``n_classes``.

        ``validation`` is measured after each epoch, and nothing else is done with it.

        Raises
        ------
        ParameterError
            A parameter is out of its range.
        TrainingError
            The loss became NaN or infinite.
        """
        check_ranges(self)
        self.classes_ = np.arange(n_classes)
        self.model_ = build_convnet(images.shape[1:], n_classes, self)
        self.history_: dict[str, list[float]] = {}
        self._train((images, labels), validation, on_epoch)
        return self

    def logits(self, X: ArrayLike) -> NDArray[np.float32]:
        """Return the logits, (n, k) float32, of images (n, h, w, c) of pixels in [0, 255]."""
        check_is_fitted(self)
        images = np.asarray(X)
        starts = range(0, len(images), _IMAGES_PER_CALL)
        blocks = (images[start : start + _IMAGES_PER_CALL] for start in starts)
        return np.concatenate([self._forward(block) for block in blocks])

    def save(self, path: Path) -> None:
        """Write the Keras model to ``path``, which ends in ``.keras``."""
        check_is_fitted(self)
        self.model_.save(path)

    def _train(self, training: Labeled, validation: Labeled, on_epoch: OnEpoch | None) -> None:
        """Run Keras's ``fit`` over our own order of the images; fill ``history_``."""
        keras = import_keras()
        self.model_.compile(
            optimizer=keras.optimizers.Adam(self.learning_rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=False,
        )

        def record(epoch: int, logs: Mapping[str, float]) -> None:
            row = {name: float(logs[name]) for name in ("loss", "accuracy")}
            self._add_to_history(epoch + 1, row | self._validate(validation))
            if on_epoch:
                on_epoch(epoch + 1, row)

        self.model_.fit(
            shuffled_batches(
                training, seed=self.seed, epochs=self.epochs, batch_size=self.batch_size
            ),
            epochs=self.epochs,
            steps_per_epoch=-(-len(training[1]) // self.batch_size),
            shuffle=False,
            verbose=0,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=record)],
        )

    def _forward(self, images: NDArray) -> NDArray[np.float32]:
        """Return the logits of a few images."""
        return np.asarray(self.model_(images.astype(np.float32), training=False))

    def _validate(self, validation: Labeled) -> dict[str, float]:
        """Return the loss and the accuracy on validation images."""
        images, labels = validation
        logits = self.logits(images)
        return {
            "val_loss": metrics.log_loss(labels, logits),
            "val_accuracy": metrics.accuracy(labels, logits.argmax(axis=1)),
        }

    def _add_to_history(self, epoch: int, row: Mapping[str, float]) -> None:
        """Append an epoch's figures; stop where the loss is none."""
        if not np.isfinite(row["loss"]):
            raise TrainingError(
                f"the loss became {row['loss']} in epoch {epoch} at learning rate "
                f"{self.learning_rate:g}: try a smaller one"
            )
        for name, value in row.items():
            self.history_.setdefault(name, []).append(value)


def build_convnet(shape: tuple[int, ...], n_classes: int, net: ConvNet) -> Any:
    """Return the untrained Keras model for images of a shape (h, w, c)."""
    keras = import_keras()
    layers = keras.layers

    def start(layer: int) -> Any:
        return keras.initializers.GlorotUniform(initial_weights_seed(net.seed, layer))

    convolutions = []
    for number, n_filters in enumerate(_N_FILTERS):
        convolutions += [
            layers.Conv2D(
                n_filters, 3, padding="same", activation="relu", kernel_initializer=start(number)
            ),
            layers.MaxPooling2D(),
        ]
    hidden, last = len(_N_FILTERS), len(_N_FILTERS) + 1
    return keras.Sequential(
        [
            layers.Input(shape, name="pixels"),
            layers.Rescaling(1 / 255),
            *convolutions,
            layers.Flatten(),
            layers.Dropout(net.dropout, seed=dropout_seed(net.seed, hidden)),
            layers.Dense(_N_UNITS, activation="relu", kernel_initializer=start(hidden)),
            layers.Dropout(net.dropout, seed=dropout_seed(net.seed, last)),
            layers.Dense(n_classes, kernel_initializer=start(last), name="logits"),
        ],
        name="baseline",
    )
