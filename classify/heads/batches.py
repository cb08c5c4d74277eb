"""The batches that heads of one seed and batch size share, drawn as Keras draws them.

The order of the rows is :func:`classify.heads.dense.epoch_order`. A dropout mask keeps a value
where a uniform number is not below the rate; the numbers are those of Keras's dropout layer with
the seed :func:`classify.heads.dense.dropout_seed` in the same step, whatever the rate, so heads of
all rates share one draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from classify.heads.dense import dropout_seed, epoch_order
from classify.heads.spec import HeadSpec
from classify.streams import (
    Features,
    StreamedFeatures,
    WindowShuffle,
    cut_batches,
    fit_scaler,
    map_rows,
)
from data_cache.errors import DataError

_VALUES_AT_ONCE = 2**23


@dataclass(frozen=True)
class TrainingData:
    """What heads learn from.

    Attributes
    ----------
    features : (n, d) float32, in memory or streamed
    labels : (n,) integers, positions among the classes
    n_classes : k
    validation_features : (m, d) float32, in memory or streamed
    validation_labels : (m,) integers
    shuffle : how epochs are ordered; None as a whole, or of streamed rows as their budget allows

    Raises
    ------
    DataError
        The labels are all of one class, or not as many as the rows.
    """

    features: Features
    labels: NDArray[np.integer]
    n_classes: int
    validation_features: Features
    validation_labels: NDArray[np.integer]
    shuffle: WindowShuffle | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        if len(self.features) != n:
            raise DataError(f"{n} labels for {len(self.features)} rows: expected as many")
        if len(np.unique(self.labels)) == 1:
            raise DataError(f"all {n} rows have one class: expected two or more")

    @cached_property
    def scaler(self) -> StandardScaler:
        """The mean and the standard deviation of each feature; 1 for one that never varies."""
        return fit_scaler(self.features)

    @cached_property
    def balanced_weights(self) -> NDArray[np.float32]:
        """The weight of each row, (n,), that gives every class the same: n / (k * its rows)."""
        return compute_sample_weight("balanced", self.labels).astype(np.float32)

    def on_validation(
        self, function: Callable[[NDArray[np.float32]], NDArray[np.float32]], *, standardize: bool
    ) -> NDArray[np.float32]:
        """Return what ``function`` makes of the validation features, a row (m, ...) for each.

        They may be standardized with the training rows' statistics.
        """
        if not standardize:
            return map_rows(function, self.validation_features)
        if isinstance(self.validation_features, StreamedFeatures):
            return map_rows(lambda one: function(self.standardized(one)), self.validation_features)
        return function(self._standardized_validation)

    def standardized(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return features (n, d) with mean 0 and standard deviation 1 over the training rows."""
        mean, scale = self.scaler.mean_, self.scaler.scale_
        return (features - mean.astype(np.float32)) / scale.astype(np.float32)

    def epoch(
        self, seed: int, number: int, batch_size: int
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Yield the batches of an epoch, from 0: features (b, d) and positions (b,)."""
        n = len(self.labels)
        if isinstance(self.features, StreamedFeatures):
            shuffle = self.shuffle or self.features.budget.shuffle(self.features.shape[1])
            windows = self.features.epoch(shuffle, seed, number)
            for features, rows in cut_batches(windows, batch_size):
                yield features, rows
            return
        order = self.shuffle.order if self.shuffle else epoch_order
        rows = order(seed, number, n)
        for start in range(0, n, batch_size):
            batch = rows[start : start + batch_size]
            yield self.features[batch], batch

    @cached_property
    def _standardized_validation(self) -> NDArray[np.float32]:
        """The validation features in memory, standardized."""
        return self.standardized(self.validation_features)  # type: ignore[arg-type]


class InputView(NamedTuple):
    """How a head sees the features; heads that see them alike share their inputs."""

    standardize: bool
    dropout: float

    @classmethod
    def of(cls, spec: HeadSpec) -> InputView:
        """Return the view of a configuration."""
        return cls(spec.standardize, spec.dropout)


class HiddenView(NamedTuple):
    """How the outputs of a hidden layer are masked."""

    units: int
    dropout: float

    @classmethod
    def of(cls, spec: HeadSpec) -> HiddenView:
        """Return the view of a configuration."""
        return cls(spec.hidden_units, spec.dropout)


@dataclass(frozen=True)
class Batch:
    """The rows of one step as every head of a group needs them.

    Attributes
    ----------
    step : steps up to and with this one, from 1
    labels : (b,) integers
    balanced_weights : (b,) float32, for heads whose classes weigh the same
    inputs : (b, d + 1) float32 for each view: masked features, then a column of ones for the bias
    hidden_masks : (units, b) float32 for each view: 0, or 1 / (1 - dropout) where a value is kept
    """

    step: int
    labels: NDArray[np.integer]
    balanced_weights: NDArray[np.float32]
    inputs: Mapping[InputView, NDArray[np.float32]]
    hidden_masks: Mapping[HiddenView, NDArray[np.float32]]


class Stretch(NamedTuple):
    """Steps that follow one another.

    ``ends_epoch`` is the number, from 1, of the epoch that ends with them; 0 where none does.
    """

    batches: list[Batch]
    ends_epoch: int


class Batches:
    """Makes the batches of heads that share a seed and a batch size."""

    def __init__(self, data: TrainingData, specs: Sequence[HeadSpec]) -> None:
        self._data = data
        self._seed, self._batch_size = specs[0].seed, specs[0].batch_size
        self._n_epochs = max(spec.epochs for spec in specs)
        self._inputs = {InputView.of(spec) for spec in specs}
        self._hidden = {HiddenView.of(spec) for spec in specs if spec.hidden_units}

    def stretches(self) -> Iterator[Stretch]:
        """Yield all steps of all epochs in order, as many at a time as fit some 32 MiB."""
        n_steps = -(-len(self._data.labels) // self._batch_size)
        values = self._batch_size * self._data.features.shape[1] * len(self._inputs)
        together = max(1, _VALUES_AT_ONCE // values)
        for epoch in range(self._n_epochs):
            rows = self._data.epoch(self._seed, epoch, self._batch_size)
            numbered = enumerate(rows, epoch * n_steps)
            for first in range(0, n_steps, together):
                batches = [self._batch(*one) for one in islice(numbered, together)]
                yield Stretch(batches, 0 if first + together < n_steps else epoch + 1)

    def _batch(
        self, n_before: int, features_and_rows: tuple[NDArray[np.float32], NDArray[np.int64]]
    ) -> Batch:
        """Return the batch of features (b, d) and positions (b,) that ``n_before`` precede."""
        raw, rows = features_and_rows
        return Batch(
            n_before + 1,
            self._data.labels[rows],
            self._data.balanced_weights[rows],
            self._masked_features(n_before, raw),
            self._hidden_masks(n_before, len(rows)),
        )

    def _masked_features(
        self, n_before: int, raw: NDArray[np.float32]
    ) -> dict[InputView, NDArray[np.float32]]:
        """Return the inputs of each view."""
        seen = {False: raw}
        if any(view.standardize for view in self._inputs):
            seen[True] = self._data.standardized(raw)
        draws = None
        if any(view.dropout for view in self._inputs):
            draws = uniforms(dropout_seed(self._seed), n_before, raw.shape)
        inputs = {}
        for view in self._inputs:
            inputs[view] = np.ones((len(raw), raw.shape[1] + 1), np.float32)
            inputs[view][:, :-1] = _drop(seen[view.standardize], draws, view.dropout)
        return inputs

    def _hidden_masks(self, n_before: int, n_rows: int) -> dict[HiddenView, NDArray[np.float32]]:
        """Return the masks of each view of a hidden layer."""
        masks = {}
        for view in self._hidden:
            kept = np.ones((n_rows, view.units), np.float32)
            if view.dropout:
                draws = uniforms(dropout_seed(self._seed, layer=1), n_before, kept.shape)
                kept = _drop(kept, draws, view.dropout)
            masks[view] = np.ascontiguousarray(kept.T)
        return masks


def uniforms(seed: int, n_before: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return what Keras's dropout layer of ``seed`` compares with its rate, in [0, 1).

    ``n_before`` steps were trained before. Keras seeds TensorFlow's stateless generator with the
    layer's seed and a count of its draws.
    """
    import tensorflow as tf

    with tf.device("CPU:0"):
        return tf.random.stateless_uniform(shape, (seed, n_before)).numpy()


def _drop(
    values: NDArray[np.float32], draws: NDArray[np.float32] | None, rate: float
) -> NDArray[np.float32]:
    """Return values with zeros where a draw is below the rate, the others scaled to make up."""
    if not rate or draws is None:
        return values
    dropped = values * np.float32(1 / (1 - rate))
    dropped *= draws >= rate
    return dropped
