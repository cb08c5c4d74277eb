"""Rows that are likely mislabeled, by the confidence of models that were not fitted to them.

The rule is confident learning: C. Northcutt, L. Jiang, I. Chuang (2021), "Confident learning:
estimating uncertainty in dataset labels", JAIR 70, 1373-1411. With p_j the out-of-fold probability
of class j:

- the threshold of class j is the mean of p_j over the rows that are labeled j;
- a row confidently belongs to the likeliest of the classes whose threshold its p_j reaches, if any;
- a row that confidently belongs to another class than it is labeled is a suspect (an off-diagonal
  count of the paper's confident joint);
- suspects are ranked by normalized margin, p_given - max of the other p_j, the lowest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HEADER = (
    "rank",
    "split",
    "id",
    "class",
    "suggested_class",
    "confidence",
    "suggested_confidence",
    "margin",
)
"""The columns of ``suspects.csv``; ``train-head --exclude`` reads ``split`` and ``id``."""


@dataclass(frozen=True)
class Suspects:
    """The m suspects, the most suspect first.

    Attributes
    ----------
    rows : (m,) their positions among the rows that were judged
    labels : (m,) as given
    suggested : (m,) the classes that they confidently belong to
    confidences : (m,) probabilities of the given classes, in [0, 1]
    suggested_confidences : (m,) probabilities of the suggested ones
    margins : (m,) normalized, in [-1, 1]
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    suggested: NDArray[np.int64]
    confidences: NDArray[np.float64]
    suggested_confidences: NDArray[np.float64]
    margins: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rows)

    def table(
        self, splits: NDArray[np.str_], ids: NDArray[np.bytes_], classes: Sequence[str]
    ) -> Iterator[tuple[object, ...]]:
        """Yield the cells of ``suspects.csv``; ``splits`` and ``ids`` (n,) are of all rows."""
        columns = (
            self.rows,
            self.labels,
            self.suggested,
            self.confidences,
            self.suggested_confidences,
            self.margins,
        )
        for rank, (row, given, suggested, *figures) in enumerate(zip(*columns, strict=True), 1):
            rounded = (f"{figure:.4f}" for figure in figures)
            yield rank, splits[row], ids[row].decode(), classes[given], classes[suggested], *rounded


def find_suspects(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> Suspects:
    """Return the rows whose labels are likely wrong, from probabilities (n, k) and labels (n,).

    Rows of NaN, which no model judged, are never suspects.
    """
    judged = np.flatnonzero(np.isfinite(probabilities).all(axis=1))
    shares, given = probabilities[judged].astype(np.float64), labels[judged]
    confident = shares >= _thresholds(shares, given)
    suggested = np.where(confident, shares, -1).argmax(axis=1)
    margins = _margins(shares, given)
    found = np.flatnonzero(confident.any(axis=1) & (suggested != given))
    found = found[np.argsort(margins[found], kind="stable")]
    return Suspects(
        rows=judged[found],
        labels=given[found].astype(np.int64),
        suggested=suggested[found],
        confidences=shares[found, given[found]],
        suggested_confidences=shares[found, suggested[found]],
        margins=margins[found],
    )


def _thresholds(shares: NDArray[np.float64], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each class's mean probability over its own rows, (k,); infinite without any."""
    n_rows = np.bincount(labels, minlength=shares.shape[1])
    own = np.take_along_axis(shares, labels[:, None], axis=1)[:, 0]
    totals = np.bincount(labels, weights=own, minlength=shares.shape[1])
    return np.divide(totals, n_rows, out=np.full(len(n_rows), np.inf), where=n_rows > 0)


def _margins(shares: NDArray[np.float64], labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each row's probability of its label less the largest of the others, (n,)."""
    others = shares.copy()
    np.put_along_axis(others, labels[:, None], -np.inf, axis=1)
    own = np.take_along_axis(shares, labels[:, None], axis=1)[:, 0]
    return own - others.max(axis=1)
