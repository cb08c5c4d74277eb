"""k nearest neighbors by cosine similarity, in blocks of rows, so memory does not grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.preprocessing import normalize
from sklearn.utils.validation import check_is_fitted, validate_data

from classify.estimators import LogitsClassifier, check_rows
from classify.probes.linear import check_targets, expect_positive, refuse_one_class
from classify.probes.tuning import Rows, TunedProbe, Tuning, choose, measure
from classify.stored.arrays import RowsToWrite, load_arrays, save_arrays
from classify.streams import StreamedFeatures
from data_cache.errors import ParameterError

NUMBERS_OF_NEIGHBORS: tuple[int, ...] = (1, 3, 5, 10, 20, 50, 100, 200)
VOTE_TEMPERATURES: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)
"""What :func:`tune_neighbors` tries; 0.07 is usual, see :class:`NeighborsProbe`."""

_VALUES_AT_ONCE = 2**22
_UNCERTAIN = 0.05
_SHAPES = {"classes": ("k",), "rows": ("n", "d"), "codes": ("n",), "settings": ("s",)}


class Neighbors(NamedTuple):
    """The nearest training rows of rows: similarities (m, n_neighbors) and their class's codes.

    The nearest comes first; of equals the first in training.
    """

    similarities: NDArray[np.float32]
    codes: NDArray[np.int64]


class NeighborsProbe(LogitsClassifier):
    """The nearest training rows by cosine similarity vote, each with exp(similarity / t).

    The weights are those of Z. Wu et al. (2018), "Unsupervised feature learning via
    non-parametric instance discrimination", CVPR, arXiv:1805.01978, with t = 0.07. A class's
    probability is its share of the votes, 0.05 of it spread evenly over all classes, and its
    logit the logarithm of that, divided by ``temperature``, which changes no prediction.

    Parameters
    ----------
    n_neighbors : 1 or more; all training rows vote where there are fewer
    vote_temperature : t, above 0; the smaller, the more the nearest count
    temperature : what the logits are divided by, above 0

    Attributes
    ----------
    classes_ : (k,) the labels, sorted
    n_features_in_ : d
    rows_ : (n, d) float32, the training rows, each of length 1, or 0 where it is all zeros; where
        they were streamed, the stream, as it is
    codes_ : (n,) int64, their labels' positions in ``classes_``
    """

    kind: ClassVar[str] = "neighbors"
    takes_streams: ClassVar[bool] = True

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        vote_temperature: float = 0.07,
        temperature: float = 1.0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.vote_temperature = vote_temperature
        self.temperature = temperature

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Keep features ``X`` (n, d) and labels ``y`` (n,); return self.

        Raises
        ------
        ParameterError
            A parameter is out of its range.
        ValueError
            Features are not (n, d), or hold NaN or infinity.
        DataError
            ``y`` has one class only.
        """
        features, labels = check_rows(self, X, y, dtype=[np.float32, np.float64])
        check_targets(labels)
        refuse_one_class(labels)
        if self.n_neighbors < 1:
            raise ParameterError(f"n_neighbors is {self.n_neighbors}: expected 1 or more")
        expect_positive(self, "vote_temperature", "temperature")
        self.classes_, self.codes_ = np.unique(labels, return_inverse=True)
        is_streamed = isinstance(features, StreamedFeatures)
        self.rows_ = features if is_streamed else normalize(features).astype(np.float32)
        return self

    def logits(self, X: ArrayLike | StreamedFeatures) -> NDArray[np.float64]:
        """Return the logits of features (n, d): (n, k) float64; see the base class."""
        return self.vote(self.neighbors(X, self.n_neighbors))

    def neighbors(self, X: ArrayLike | StreamedFeatures, n_neighbors: int) -> Neighbors:
        """Return the nearest training rows of features (m, d).

        Training rows that are streamed are read once, or if the features are streamed too, once
        for each part of these that fits in memory.
        """
        check_is_fitted(self)
        if isinstance(X, StreamedFeatures):
            size = X.budget.shuffle(X.shape[1]).window_rows
            starts = range(0, len(X), size)
            parts = (X.read(slice(start, start + size)) for start in starts)
            return _one_after_another([self.neighbors(one, n_neighbors) for one in parts])
        features = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        rows, most = normalize(features).astype(np.float32), min(n_neighbors, len(self.codes_))
        if isinstance(self.rows_, StreamedFeatures):
            return self._nearest_streamed(rows, most)
        n_rows = max(1, _VALUES_AT_ONCE // len(self.rows_))
        starts = range(0, len(rows), n_rows)
        return _one_after_another(
            [self._named(_nearest(rows[at : at + n_rows], self.rows_, most)) for at in starts]
        )

    def vote(self, neighbors: Neighbors) -> NDArray[np.float64]:
        """Return the logits (m, k) that the votes of neighbors give."""
        nearness = neighbors.similarities.astype(np.float64) - neighbors.similarities[:, :1]
        weights = np.exp(nearness / self.vote_temperature)
        m, k = len(weights), len(self.classes_)
        cells = (neighbors.codes + k * np.arange(m)[:, None]).ravel()
        votes = np.bincount(cells, weights.ravel(), minlength=m * k).reshape(m, k)
        shares = votes / votes.sum(axis=1, keepdims=True)
        return np.log((1 - _UNCERTAIN) * shares + _UNCERTAIN / k) / self.temperature

    def save(self, path: Path) -> None:
        """Write the arrays classes, rows, codes and settings (the parameters) to an ``.npz``.

        Rows that are streamed are read once more, and written as they come; what reads the file
        has to hold them all.
        """
        check_is_fitted(self)
        rows = self.rows_
        if isinstance(rows, StreamedFeatures):
            rows = RowsToWrite(rows.shape, map(normalize, rows.in_order()))
        settings = np.array([self.n_neighbors, self.vote_temperature, self.temperature], np.float64)
        save_arrays(
            path,
            self.kind,
            {
                "classes": self.classes_,
                "rows": rows,
                "codes": self.codes_,
                "settings": settings,
            },
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote, with its parameters.

        Raises
        ------
        RunError
            The file is no such thing. Nothing in it is ever unpickled.
        """
        arrays = load_arrays(path, cls.kind, _SHAPES, check=_check)
        n_neighbors, vote_temperature, temperature = arrays["settings"].tolist()
        probe = cls(int(n_neighbors), vote_temperature=vote_temperature, temperature=temperature)
        probe.classes_, probe.rows_ = arrays["classes"], arrays["rows"]
        probe.codes_, probe.n_features_in_ = arrays["codes"], arrays["rows"].shape[1]
        return probe

    def _nearest_streamed(self, rows: NDArray[np.float32], n_neighbors: int) -> Neighbors:
        """Return the nearest of training rows that are read block by block."""
        best = _Nearest(np.empty((len(rows), 0), np.float32), np.empty((len(rows), 0), np.int64))
        positions = np.arange(len(self.codes_))
        for block, place in self.rows_.blocks():
            unit = normalize(block)
            n_rows = max(1, _VALUES_AT_ONCE // len(unit))
            found = [
                _nearest(rows[at : at + n_rows], unit, min(n_neighbors, len(unit)))
                for at in range(0, len(rows), n_rows)
            ]
            best = best.merge(found, positions[place], n_neighbors)
        return self._named(best)

    def _named(self, nearest: _Nearest) -> Neighbors:
        """Return the classes of training rows that are known by their positions."""
        return Neighbors(nearest.similarities, self.codes_[nearest.positions])


class _Nearest(NamedTuple):
    """The nearest training rows: similarities and positions, each (m, n_neighbors)."""

    similarities: NDArray[np.float32]
    positions: NDArray[np.int64]

    def merge(
        self, later: Sequence[_Nearest], places: NDArray[np.int64], n_neighbors: int
    ) -> _Nearest:
        """Return the nearest of these and of others, whose positions count among ``places``."""
        near = np.concatenate([one.similarities for one in later])
        positions = places[np.concatenate([one.positions for one in later])]
        return _sorted(
            np.concatenate([self.similarities, near], axis=1),
            np.concatenate([self.positions, positions], axis=1),
            n_neighbors,
        )


def _nearest(rows: NDArray[np.float32], known: NDArray[np.float32], n_neighbors: int) -> _Nearest:
    """Return the nearest of known rows to rows, all of length 1."""
    similarities = rows @ known.T
    n = similarities.shape[1]
    nearest = np.argpartition(similarities, n - n_neighbors, axis=1)[:, n - n_neighbors :]
    nearest.sort(axis=1)
    return _sorted(np.take_along_axis(similarities, nearest, axis=1), nearest, n_neighbors)


def _sorted(
    similarities: NDArray[np.float32], positions: NDArray[np.int64], n_neighbors: int
) -> _Nearest:
    """Return the first few, the nearest first; of equals the one that comes first here."""
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :n_neighbors]
    return _Nearest(
        np.take_along_axis(similarities, order, axis=1),
        np.take_along_axis(positions, order, axis=1),
    )


def _one_after_another(parts: Sequence[Neighbors]) -> Neighbors:
    """Return the neighbors of all rows."""
    return Neighbors(
        np.concatenate([one.similarities for one in parts]),
        np.concatenate([one.codes for one in parts]),
    )


def _check(arrays: dict[str, NDArray]) -> None:
    """Raise ``ValueError`` where codes or settings of a file are out of range."""
    codes, settings = arrays["codes"], arrays["settings"]
    if codes.dtype.kind not in "iu" or codes.min() < 0 or codes.max() >= len(arrays["classes"]):
        raise ValueError("codes are not positions among the classes")
    if settings.shape != (3,) or not (settings > 0).all() or settings[0] < 1:
        raise ValueError(f"settings are {settings}: expected three numbers above 0")


def tune_neighbors(
    training: Rows,
    validation: Rows,
    tuning: Tuning,
    *,
    numbers: Sequence[int] = NUMBERS_OF_NEIGHBORS,
    vote_temperatures: Sequence[float] = VOTE_TEMPERATURES,
) -> TunedProbe:
    """Choose the number of neighbors and how their votes fall off, from one pass for all numbers.

    Raises
    ------
    DataError
        The training rows have one class only.
    """
    probe = NeighborsProbe().fit(*training)
    most = probe.neighbors(validation[0], max(numbers))
    points = []
    for n_neighbors in numbers:
        fewer = Neighbors(most.similarities[:, :n_neighbors], most.codes[:, :n_neighbors])
        for one in vote_temperatures if n_neighbors > 1 else vote_temperatures[:1]:
            hyperparameters = {"n_neighbors": n_neighbors, "vote_temperature": one}
            logits = probe.set_params(**hyperparameters).vote(fewer)
            points.append(measure(hyperparameters, logits, probe.classes_, validation[1]))
    best = points[choose(points, tuning.select_by)]
    probe.set_params(**best.hyperparameters, temperature=best.temperature)
    return TunedProbe(probe, best.hyperparameters, tuple(points))
