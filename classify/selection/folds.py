"""Folds: which rows are held out together, stratified and with every group whole."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from classify.selection.division import RareClass
from data_cache.errors import DataError, ParameterError

ALWAYS_TRAINED = -1
"""In place of a fold's number: a row that every fold's models learn from."""


@dataclass(frozen=True)
class FoldPlan:
    """How to cross-validate.

    Attributes
    ----------
    n_folds : 2 or more
    n_repeats : times that folds are drawn, 1 or more
    seed : draws the first repeat's folds, initial weights and batches; the next repeat has the next
    validation_split : share of a fold's training rows on which it chooses C and epochs
    rare_class : what becomes of a class that lies in one fold whole: its rows always train, they
        take no part, or it is refused

    Raises
    ------
    ParameterError
        A number is out of its range.
    """

    n_folds: int
    n_repeats: int = 1
    seed: int = 0
    validation_split: float = 0.2
    rare_class: RareClass = "keep"

    def __post_init__(self) -> None:
        if self.n_folds < 2:  # noqa: PLR2004
            raise ParameterError(f"folds is {self.n_folds}: expected 2 or more")
        if self.n_repeats < 1:
            raise ParameterError(f"repeats is {self.n_repeats}: expected 1 or more")


def draw_folds(
    labels: NDArray[np.int64], groups: NDArray[np.bytes_] | None, *, n_folds: int, seed: int
) -> NDArray[np.int64]:
    """Return the fold, from 0, of each row, (n,): stratified, every group whole.

    A class that would be held out whole could not be learnt then. Its rows, and the groups that
    they are in, are ``ALWAYS_TRAINED`` instead. See scikit-learn's ``StratifiedKFold`` and
    ``StratifiedGroupKFold`` for the rest.

    Raises
    ------
    DataError
        There are fewer groups, or rows of the largest class, than folds.
    """
    n_most = int(np.bincount(labels).max())
    if n_most < n_folds:
        raise DataError(f"{n_folds} folds, and no class has more than {n_most} rows: fold less")
    if groups is not None and (n_groups := len(np.unique(groups))) < n_folds:
        raise DataError(f"{n_folds} folds of {n_groups} groups: fold less, groups stay whole")
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splitter = kind(n_folds, shuffle=True, random_state=seed)
    fold_of = np.full(len(labels), ALWAYS_TRAINED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held_out) in enumerate(splitter.split(labels, labels, groups)):
            fold_of[held_out] = fold
    always = np.isin(labels, _confined(labels, fold_of))
    if groups is not None:
        always = np.isin(groups, groups[always])
    fold_of[always] = ALWAYS_TRAINED
    if len(np.unique(fold_of[fold_of >= 0])) < n_folds:
        raise DataError(f"{n_folds} folds leave one of them without rows: fold less")
    return fold_of


def _confined(labels: NDArray[np.int64], fold_of: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the classes whose rows are all in one fold."""
    pairs = np.unique(np.stack([labels, fold_of]), axis=1)
    present, n_folds = np.unique(pairs[0], return_counts=True)
    return present[n_folds == 1]
