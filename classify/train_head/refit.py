"""Which rows the models of a run are fitted to in the end, once everything was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import compress
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from classify.estimators import LogitsClassifier
from classify.heads.dense import DenseHead
from classify.heads.spec import HeadSpec
from classify.probes import LogisticPath
from classify.results.runs import DENSE, LOGISTIC
from classify.selection.division import Division, Part
from classify.selection.sealed_test import SealedTest
from classify.train_head.fitting import fit_dense, for_epochs, refit_logistic
from data_cache.errors import DataError, ParameterError

Refit = Literal["train", "train+val", "all"]
"""The rows for the Dense head: those it was trained on, validation rows too, or all there are.

The logistic regression is refitted to training and validation rows, with ``all`` to the test too.
"""

FITTED_TO: Mapping[Refit, Mapping[str, tuple[str, ...]]] = {
    "train": {DENSE: ("train",), LOGISTIC: ("train", "validation")},
    "train+val": {DENSE: ("train", "validation"), LOGISTIC: ("train", "validation")},
    "all": {
        DENSE: ("train", "validation", "test"),
        LOGISTIC: ("train", "validation", "test"),
    },
}
"""The parts that each model of a run has learned from."""


def learners(
    models: Mapping[str, LogitsClassifier], refit: Refit, part: str, labels: NDArray[np.integer]
) -> list[str]:
    """Return, for each row of a part, the names of the models that learned from it.

    A model learns from the rows whose labels (n,) are among its classes.
    """
    fitted = [name for name, parts in FITTED_TO[refit].items() if part in parts]
    known = np.array([np.isin(labels, models[name].classes_) for name in fitted], bool)
    return [" ".join(compress(fitted, column)) for column in known.T]


def check_refit(refit: str, *, no_test: bool) -> None:
    """Raise :class:`ParameterError` where ``refit`` is none, or at odds with ``no_test``."""
    if refit not in get_args(Refit):
        expected = ", ".join(get_args(Refit))
        raise ParameterError(f"refit is {refit!r}: expected one of {expected}")
    if refit == "all" and no_test:
        raise ParameterError(
            "--refit all learns from the test rows, which --no-test leaves alone: give one of them"
        )


def check_test(test: SealedTest | None, refit: Refit) -> None:
    """Raise :class:`DataError` where there is no test to learn from, and it is to be."""
    if refit == "all" and test is None:
        raise DataError(
            "there is no test split for --refit all: use --refit train+val, or name the split "
            "with --test-split"
        )


def refit_models(
    dense: DenseHead,
    path: LogisticPath,
    spec: HeadSpec,
    division: Division,
    *,
    refit: Refit,
    test: Part | None,
    start: DenseHead | None = None,
) -> Mapping[str, LogitsClassifier]:
    """Return the models that a run keeps, by name.

    ``dense`` and the probe of ``path`` are fitted to training rows. The Dense head is trained
    again, from the same seed or ``start``, for the epochs that made ``dense``; see :data:`Refit`.
    """
    rows = division.training.join(division.validation)
    if test is not None:
        rows = rows.join(test)
    if refit != "train":
        spec = for_epochs(spec, dense.best_epoch_)
        dense = fit_dense(spec, len(dense.classes_), rows, start=start)
    return {DENSE: dense, LOGISTIC: refit_logistic(path, rows)}
