"""What fine-tuning trains: a trunk and a head, and how rows reach them.

The trunk is the backbone, or its last layers; the head gives the logits. Both are Keras models.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from classify.heads.dense import dropout_seed
from data_cache.console import import_keras
from data_cache.cores import n_cores

if TYPE_CHECKING:
    import tensorflow as tf

Batch = tuple[NDArray[np.float32], ...]
"""The inputs of m rows: an array (m, ...) for each input of the trunk."""

MEASURING = -1
"""Stands for the epoch where inputs are asked for to measure, not to train."""

_BATCHES_AHEAD = 4


class Inputs(Protocol):
    """What a trunk takes, by row; safe to use from many threads."""

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Return the inputs of rows (m,) as an epoch, from 0, sees them, or :data:`MEASURING`."""


@dataclass(frozen=True)
class LabeledRows:
    """Rows to train on or to measure: inputs, labels (n,) int64, weights (n,) or None for 1."""

    inputs: Inputs
    labels: NDArray[np.int64]
    weights: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Network:
    """Two Keras models in a row: the trunk's output (n, d) is the head's input.

    The trunk is always called in inference mode, whether its layers are trained or not; the head
    is in training mode while it trains. What is trained is what is ``trainable`` when training
    begins.
    """

    trunk: Any
    head: Any

    def __call__(self, batch: Sequence[Any], *, training: bool) -> tf.Tensor:
        """Return the logits, (n, k) float32, of a batch of tensors."""
        import tensorflow as tf

        features = self.trunk(batch[0] if len(batch) == 1 else list(batch), training=False)
        logits = self.head(features, training=training)
        return tf.cast(logits, tf.float32)

    @property
    def trained_variables(self) -> list[Any]:
        """Return the variables that training changes, in a fixed order."""
        return [*self.trunk.trainable_variables, *self.head.trainable_variables]

    @property
    def n_trained(self) -> int:
        """How many numbers training changes."""
        return sum(int(np.prod(one.shape)) for one in self.trained_variables)

    @property
    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """The specification of a batch of any number of rows."""
        import tensorflow as tf

        return tuple(tf.TensorSpec((None, *one.shape[1:]), tf.float32) for one in self.trunk.inputs)


def make_forward(network: Network, batch_size: int) -> Callable[[Inputs, int], NDArray[np.float32]]:
    """Return what gives the logits, (n, k) float32, of inputs and their number n, to measure."""
    import tensorflow as tf

    graph = tf.function(
        lambda *batch: network(batch, training=False),
        input_signature=network.signature,
        autograph=False,
    )

    def forward(inputs: Inputs, n_rows: int) -> NDArray[np.float32]:
        with closing(batches(inputs, np.arange(n_rows), batch_size, MEASURING)) as parts:
            return np.concatenate([graph(*batch).numpy() for _, batch in parts])

    return forward


def batches(
    inputs: Inputs, order: NDArray[np.int64], batch_size: int, epoch: int
) -> Generator[tuple[NDArray[np.int64], Batch]]:
    """Yield the rows of each batch and their inputs, which threads prepare a few batches ahead.

    Closing the generator drops what was not yet begun.
    """
    waiting: deque[tuple[NDArray[np.int64], Future[Batch]]] = deque()
    with ThreadPoolExecutor(min(n_cores(), _BATCHES_AHEAD), "inputs") as pool:
        try:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                waiting.append((rows, pool.submit(inputs.batch, rows, epoch)))
                if len(waiting) > _BATCHES_AHEAD:
                    rows, future = waiting.popleft()
                    yield rows, future.result()
            while waiting:
                rows, future = waiting.popleft()
                yield rows, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def seed_dropout(head: Any, seed: int) -> None:
    """Set each dropout layer of a head to the start that the seed gives it."""
    layers = [one for one in head.layers if isinstance(one, import_keras().layers.Dropout)]
    for number, layer in enumerate(layers):
        if layer.rate:
            layer.seed_generator.state.assign([dropout_seed(seed, number), 0])
