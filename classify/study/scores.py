"""Scores: what every cell of a study reaches on the test, counted once each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.selection.sealed_test import SealedTest
from classify.selection.test_log import Scorings
from classify.statistics import metrics
from classify.study.cells import Cell
from classify.study.plan import FIGURES
from data_cache.files import whole_file

SCORES_FILE = "scores.json"

Scores = dict[str, dict[str, float | None]]
"""The figures of cells, by key."""


def read_scores(folder: Path) -> Scores:
    """Return the figures that a study's folder has by now; none where they cannot be read."""
    try:
        told = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def write_scores(folder: Path, scores: Mapping[str, Mapping[str, float | None]]) -> None:
    """Write the figures of all cells."""
    text = json.dumps(scores, indent=1, sort_keys=True, allow_nan=False)
    with whole_file(folder / SCORES_FILE) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def score_cells(
    cells: Sequence[Cell], test: SealedTest, folder: Path
) -> tuple[Scores, Scorings | None]:
    """Open the seal of a data set's test, and score the cells of it that were not scored yet.

    Returned with their figures is how often the test was scored; None where that is not known.
    """
    names = [f"{one.unit.model} seed {one.unit.seed}" for one in cells]
    opened = test.open(names, folder)
    return {one.key: measure(opened.labels, one.logits) for one in cells}, opened.scorings


def measure(labels: NDArray[np.int64], logits: NDArray[np.floating]) -> dict[str, float | None]:
    """Return the figures of logits (n, k), minus infinity for classes never seen.

    The log loss is over the rows of classes that were seen; None where there are none.
    """
    predictions, k = logits.argmax(axis=1), logits.shape[1]
    known = np.isfinite(np.take_along_axis(logits, labels[:, None], axis=1))[:, 0]
    found = {
        "accuracy": metrics.accuracy(labels, predictions),
        "balanced_accuracy": metrics.balanced_accuracy(labels, predictions, k),
        "macro_f1": metrics.macro_f1(labels, predictions, k),
        "log_loss": metrics.log_loss(labels[known], logits[known]),
    }
    return {name: found[name] if np.isfinite(found[name]) else None for name in FIGURES}
