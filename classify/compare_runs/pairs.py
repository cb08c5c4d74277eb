"""Which models differ beyond chance: every pair, on the test images that both were scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations

import numpy as np

from classify.compare_runs.entries import Entry
from classify.results.runs import ScoredRows
from classify.statistics.paired_tests import holm
from classify.train_head.comparison import compare

LEVEL = 0.05
"""Adjusted p-values below this are beyond chance."""

FEWEST_COMMON = 30
"""Two tests that differ are compared on the images they share, if they share so many."""


@dataclass(frozen=True)
class Pair:
    """Two models, by their positions in the table, and how they differ.

    Attributes
    ----------
    n_common : test images that both were scored on
    is_whole : whether those are all that either was scored on
    difference : the first's accuracy on those less the second's, in [-1, 1]; None where they are
        not compared
    p_value : of the exact McNemar test, mid-p; then adjusted for all pairs. None as above
    why_not : why they are not compared, in words
    """

    first: int
    second: int
    n_common: int = 0
    is_whole: bool = False
    difference: float | None = None
    p_value: float | None = None
    why_not: str = ""

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the difference is beyond what chance alone would often give."""
        return self.p_value is not None and self.p_value < LEVEL

    @property
    def verdict(self) -> str:
        """What is to be said of the pair."""
        if self.p_value is None:
            return f"not compared: {self.why_not}"
        return "beyond chance" if self.is_beyond_chance else "not distinguishable"


def compare_pairs(entries: Sequence[Entry]) -> tuple[Pair, ...]:
    """Compare every two models, paired; see :func:`classify.statistics.paired_tests.mcnemar_mid_p`.

    The p-values are adjusted together by Holm's method, so the chance that any pair of equally good
    models is called different stays below :data:`LEVEL`. Images are matched by id; two runs whose
    tests name different classes for one id are of different data and not compared. A head that
    fine-tuning kept is paired with the model it is a copy of alone, where that is there too.
    """
    copied = _originals(entries)
    models = [i for i in range(len(entries)) if i not in copied]
    pairs = [_compare(i, j, entries[i].test, entries[j].test) for i, j in combinations(models, 2)]
    pairs += [Pair(i, j, why_not="they are one and the same model") for j, i in copied.items()]
    raw = [pair.p_value for pair in pairs if pair.p_value is not None]
    adjusted = iter(holm(raw)) if raw else iter(())
    return tuple(
        pair if pair.p_value is None else replace(pair, p_value=float(next(adjusted)))
        for pair in pairs
    )


def _originals(entries: Sequence[Entry]) -> dict[int, int]:
    """Return, by the position of each copy of another entry's model, the position of that."""
    found: dict[int, int] = {}
    for copy, original in permutations(range(len(entries)), 2):
        if entries[copy].is_model_of(entries[original]) and original not in found:
            found.setdefault(copy, original)
    return found


def _compare(i: int, j: int, first: ScoredRows | None, second: ScoredRows | None) -> Pair:
    """Compare two models; the p-value is not adjusted."""
    if first is None or second is None:
        return Pair(
            i, j, why_not="a test was left alone, or learned from, or nothing was kept of it"
        )
    common, in_first, in_second = np.intersect1d(first.ids, second.ids, return_indices=True)
    n_common, sizes = len(common), {len(first.ids), len(second.ids)}
    pair = Pair(i, j, n_common, is_whole=sizes == {n_common})
    if not n_common or (n_common < FEWEST_COMMON and not pair.is_whole):
        return replace(pair, why_not=f"their tests share {n_common} images")
    labels = np.array(first.classes)[in_first]
    if (labels != np.array(second.classes)[in_second]).any():
        return replace(pair, why_not="their tests name different classes for the same ids")
    found = compare(
        labels, np.array(first.predictions)[in_first], np.array(second.predictions)[in_second]
    )
    return replace(pair, difference=found.difference, p_value=found.mid_p)
