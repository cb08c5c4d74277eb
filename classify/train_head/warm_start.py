"""Train on from the head of an earlier run, and stay honest: what that head learned is known.

The Dense head starts from another's weights, so rows that those were fitted to say nothing about it
any more: they are never drawn for validation, and none of them may be a test row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from classify.heads.dense import DenseHead
from classify.heads.weights import hidden_units
from classify.results.runs import DENSE, Run, load_run
from classify.selection.division import VALIDATION_SPLIT
from classify.streams import Splits
from data_cache.errors import RunError
from data_cache.recipe import Recipe


@dataclass(frozen=True)
class WarmStart:
    """The head to start from, and the ids of the rows that it learned from.

    Of ids in ``learned``, those in ``spared`` too are also of a row that it did not learn from, in
    another split of the same names.
    """

    head: DenseHead
    learned: frozenset[str]
    spared: frozenset[str]

    def learned_mask(self, ids: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Return which training rows, by their ids (n,), the head may have learned from."""
        return np.isin(ids, _encoded(self.learned))

    def n_learned(self, ids: NDArray[np.bytes_]) -> int:
        """Return how many rows of another split, by their ids (n,), the head learned from."""
        return int(np.isin(ids, _encoded(self.learned - self.spared)).sum())


def open_warm_start(path: Path, cache: Splits, n_hidden: int) -> WarmStart:
    """Return the Dense head of the run at ``path`` as a start on a cache.

    The cache may have more classes than the run, after those of the run: their logits start as in
    any new head.

    Raises
    ------
    RunError
        It is no run with a Dense head; or that has other classes, another recipe, or another hidden
        layer than ``n_hidden`` units.
    """
    run = load_run(path)
    check_recipe(run, cache.path, cache.recipe, "--init-from")
    if run.classes != cache.classes[: len(run.classes)]:
        raise RunError(
            f"{path} tells apart {_listed(run.classes)}, and {cache.path} has "
            f"{_listed(cache.classes)}: --init-from takes a cache of the same classes in the same "
            "order, after which others may follow"
        )
    head = cast(DenseHead, run.model(DENSE))
    found = hidden_units(head.model_)
    if found != n_hidden:
        raise RunError(
            f"the head of {path} has {found} hidden units, and {n_hidden} were asked for: give "
            f"--hidden-units {found}, or leave out --init-from"
        )
    learned, spared = run.learned_ids(DENSE)
    return WarmStart(head, learned, spared)


def check_recipe(run: Run, cache: Path, recipe: Recipe, option: str) -> None:
    """Raise :class:`RunError` unless a run learned from features of a cache's recipe."""
    if differences := run.recipe.differences(recipe):
        raise RunError(
            f"{run.path} learned from features of another recipe than those in {cache}: "
            f"{'; '.join(differences)}: {option} takes a run of the same recipe"
        )


def check_unlearned(start: WarmStart, cache: Splits, test_split: str | None) -> None:
    """Raise :class:`RunError` where a head to start from learned from validation or test rows.

    Rows that are drawn for validation are none of those: see
    :func:`classify.selection.division.divide`.
    """
    splits = {VALIDATION_SPLIT, test_split} & set(cache.split_names)
    for split in sorted(filter(None, splits)):
        if n := start.n_learned(cache.rows(split).ids):
            raise RunError(
                f"the head to start from learned from {n:,} rows of {split}, which would then say "
                "nothing about it: start from a run that left them alone, or leave out --init-from"
            )


def _encoded(ids: frozenset[str]) -> NDArray[np.bytes_]:
    """Return ids as UTF-8 bytes."""
    return np.array([one.encode() for one in ids] or [b""], "S")


def _listed(names: Sequence[str]) -> str:
    """Return the number of classes and their names, the first few of many."""
    most = 8
    shown = ", ".join(map(repr, names[:most]))
    return f"{len(names)} classes ({shown}{', …' if len(names) > most else ''})"
