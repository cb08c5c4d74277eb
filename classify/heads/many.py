"""Hundreds of heads trained in one pass, each as if Keras had trained it alone.

Heads that share a seed and a batch size see the same rows in the same order, so their weight
matrices stand side by side and a step of them all is one matrix product; heads that share a dropout
rate share its masks too. Order, masks and initial weights are those of
:class:`classify.heads.dense.DenseHead`, and so are the loss and the optimizer, but for rounding.

The heads are cut into tiles, each small enough for the processor's cache. Threads train a tile
through a stretch of steps at a time while the batches of the next stretch are made.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, compress, groupby, pairwise, repeat
from math import inf, isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from classify.heads.batches import Batches, InputView, Stretch, TrainingData
from classify.heads.dense import initial_weights_seed
from classify.heads.spec import HeadSpec
from classify.heads.stack import Dense, HeadStack
from classify.statistics import metrics
from classify.streams import StreamedFeatures
from data_cache.console import Advance, import_keras
from data_cache.cores import n_cores

_VALUES_IN_A_TILE = 2**18
_MOST_BYTES = 2**30
_BYTES_PER_WEIGHT = 16
"""The weight, Adam's two moments and the gradient."""


@dataclass(frozen=True)
class TrainedHead:
    """What became of one configuration.

    Attributes
    ----------
    spec : the configuration
    layers : the dense layers in order, each a kernel (inputs, units) and a bias (units,), float32;
        they take features as they come: what standardizes them is part of the first layer
    n_epochs : epochs that made it: all, or with ``patience`` those up to the best
    validation_logits : (m, k) float32, on the validation rows
    """

    spec: HeadSpec
    layers: tuple[Dense, ...]
    n_epochs: int
    validation_logits: NDArray[np.float32]


def train_many_heads(
    specs: Sequence[HeadSpec],
    data: TrainingData,
    *,
    n_threads: int | None = None,
    memory: int | None = None,
    advance: Advance | None = None,
) -> Iterator[tuple[int, TrainedHead]]:
    """Train a head for each configuration; yield its position in ``specs`` and the head.

    Heads come in the order in which they are done. ``n_threads`` is by default the number of
    cores; ``memory``, in bytes, is about what the heads trained at one time may take, by default 1
    GiB, or what streamed features may take where that is less. ``advance`` is told of every epoch
    of every head; epochs that a head is spared count when it stops. A head whose weights overflow
    goes on with NaN and costs the others nothing.
    """
    for members in _groups(specs, data, memory or _memory(data)):
        yield from _train_group(members, data, n_threads or n_cores(), advance)


def logits_of(layers: Sequence[Dense], features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits (n, k) of features (n, d) after dense layers, rectified in between."""
    *hidden, (kernel, bias) = layers
    for hidden_kernel, hidden_bias in hidden:
        features = np.maximum(features @ hidden_kernel + hidden_bias, 0)
    return features @ kernel + bias


def _memory(data: TrainingData) -> int:
    """Return how many bytes the heads trained at one time may take by default."""
    features = data.features
    n_bytes = features.budget.n_bytes if isinstance(features, StreamedFeatures) else _MOST_BYTES
    return min(n_bytes, _MOST_BYTES)


class _Member(NamedTuple):
    """A configuration and its position in what was asked for."""

    position: int
    spec: HeadSpec


class _Best(NamedTuple):
    """The best that a head was yet, and the validation log loss that says so."""

    loss: float
    head: TrainedHead


class _Tile:
    """Heads that see their inputs alike and fit the cache together."""

    def __init__(self, members: Sequence[_Member], data: TrainingData) -> None:
        self.members = tuple(members)
        self._data = data
        self._standardize = members[0].spec.standardize
        self._stack = HeadStack(
            [spec for _, spec in members], _initial_kernels(members[0].spec, data)
        )
        self._best: dict[int, _Best] = {}

    def train(self, stretch: Stretch) -> list[tuple[int, TrainedHead]]:
        """Train through a stretch; return the heads that are done with it, and forget them."""
        self._stack.train(stretch.batches)
        return self._end_epoch(stretch.ends_epoch) if stretch.ends_epoch else []

    def _end_epoch(self, epoch: int) -> list[tuple[int, TrainedHead]]:
        """Return the heads that end with this epoch, each at its best, and forget them."""
        watched = [spec.patience is not None or spec.epochs == epoch for _, spec in self.members]
        if not any(watched):
            return []
        logits = self._data.on_validation(self._stack.logits, standardize=self._standardize)
        for number in compress(range(len(watched)), watched):
            self._remember(number, epoch, np.ascontiguousarray(logits[:, number]))
        ends = [self._ends(member, epoch) for member in self.members]
        done = [
            (position, self._best.pop(position).head)
            for position, _ in compress(self.members, ends)
        ]
        goes_on = np.logical_not(ends)
        self.members = tuple(compress(self.members, goes_on))
        self._stack.keep(goes_on)
        return done

    def _remember(self, number: int, epoch: int, logits: NDArray[np.float32]) -> None:
        """Keep a head as it is now, unless it may stop early and has been better."""
        position, spec = self.members[number]
        loss = 0.0
        if spec.patience is not None:
            loss = metrics.log_loss(self._data.validation_labels, logits)
            loss = loss if isfinite(loss) else inf
            if position in self._best and loss >= self._best[position].loss:
                return
        layers = self._stack.dense_layers(number)
        if spec.standardize:
            layers = (_fold(self._data.scaler, layers[0]), *layers[1:])
        self._best[position] = _Best(loss, TrainedHead(spec, layers, epoch, logits))

    def _ends(self, member: _Member, epoch: int) -> bool:
        """Tell whether a head ends with this epoch."""
        position, spec = member
        if spec.patience is None or epoch == spec.epochs:
            return epoch == spec.epochs
        return epoch - self._best[position].head.n_epochs >= spec.patience


def _groups(specs: Sequence[HeadSpec], data: TrainingData, memory: int) -> Iterator[list[_Member]]:
    """Yield heads that share a seed and a batch size, as many at a time as the memory holds."""
    together: dict[tuple[int, int], list[_Member]] = defaultdict(list)
    for position, spec in enumerate(specs):
        together[spec.seed, spec.batch_size].append(_Member(position, spec))
    for members in together.values():
        group: list[_Member] = []
        n_bytes = 0
        for member in sorted(members, key=_tile_key):
            if n_bytes > memory:
                yield group
                group, n_bytes = [], 0
            is_first = not group or _tile_key(group[-1]) != _tile_key(member)
            n_bytes += _n_bytes(member.spec, data, with_inputs=is_first)
            group.append(member)
        yield group


def _tile_key(member: _Member) -> tuple[InputView, int]:
    """Return what heads of one tile have in common."""
    return InputView.of(member.spec), member.spec.hidden_units


def _train_group(
    members: Sequence[_Member], data: TrainingData, n_threads: int, advance: Advance | None
) -> list[tuple[int, TrainedHead]]:
    """Return every head of a group."""
    tiles = _tiles(members, data, n_threads)
    stretches = Batches(data, [spec for _, spec in members]).stretches()
    done: list[tuple[int, TrainedHead]] = []
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(n_threads) as pool:
        for stretch in _made_ahead(stretches, pool):
            n_before = sum(len(tile.members) for tile in tiles)
            ended = list(chain.from_iterable(pool.map(_Tile.train, tiles, repeat(stretch))))
            done += ended
            if stretch.ends_epoch and advance:
                n_spared = sum(head.spec.epochs - stretch.ends_epoch for _, head in ended)
                advance(n_before + n_spared)
            tiles = [tile for tile in tiles if tile.members]
            if not tiles:
                break
    return done


def _made_ahead(stretches: Iterator[Stretch], pool: Executor) -> Iterator[Stretch]:
    """Yield the stretches, each of them made by the pool while the one before is in use."""
    upcoming = pool.submit(next, stretches, None)
    while (stretch := upcoming.result()) is not None:
        upcoming = pool.submit(next, stretches, None)
        yield stretch


def _tiles(members: Iterable[_Member], data: TrainingData, n_threads: int) -> list[_Tile]:
    """Return the members in tiles, about evenly filled, work for every thread where it can be."""
    alike = [list(group) for _, group in groupby(members, _tile_key)]
    tiles = []
    for group in alike:
        capacity = max(1, _VALUES_IN_A_TILE // _n_weights(group[0].spec, data))
        n_tiles = min(len(group), max(-(-len(group) // capacity), n_threads // len(alike)))
        tiles += [_Tile(group[number::n_tiles], data) for number in range(n_tiles)]
    return tiles


def _initial_kernels(spec: HeadSpec, data: TrainingData) -> list[NDArray[np.float32]]:
    """Return the initial kernel (inputs, units) of each layer: Glorot's uniform, as Keras draws."""
    initializers = import_keras().initializers
    widths = spec.widths(data.features.shape[1], data.n_classes)
    return [
        np.asarray(initializers.GlorotUniform(initial_weights_seed(spec.seed, layer))(shape))
        for layer, shape in enumerate(pairwise(widths))
    ]


def _fold(scaler: StandardScaler, layer: Dense) -> Dense:
    """Return the layer that does to raw features what ``layer`` does to standardized ones."""
    kernel, bias = layer
    folded = kernel / scaler.scale_[:, None]
    shift = scaler.mean_ @ folded
    return folded.astype(np.float32), (bias - shift).astype(np.float32)


def _n_weights(spec: HeadSpec, data: TrainingData) -> int:
    """Return the number of a head's weights and biases."""
    widths = spec.widths(data.features.shape[1], data.n_classes)
    return sum((inputs + 1) * units for inputs, units in pairwise(widths))


def _n_bytes(spec: HeadSpec, data: TrainingData, *, with_inputs: bool) -> int:
    """Return what a head takes in training: state, validation logits, perhaps two batches."""
    n_logits = len(data.validation_labels) * data.n_classes
    n_inputs = 2 * spec.batch_size * (data.features.shape[1] + 1) if with_inputs else 0
    return _BYTES_PER_WEIGHT * _n_weights(spec, data) + 4 * (n_logits + n_inputs)
