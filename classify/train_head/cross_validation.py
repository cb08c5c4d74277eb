"""Cross-validation: both models on rows that they were not fitted to, fold by fold.

The rows that learn and validate are divided into folds, and again for each repeat. Each fold is
held out once a repeat, while both models are fitted to the others. What is chosen on validation
rows, the C of the logistic regression and with ``patience`` the epochs of the Dense head, is chosen
within those others, so no held-out row has a say in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from classify.estimators import logits_of
from classify.heads.batches import TrainingData
from classify.heads.many import TrainedHead, train_many_heads
from classify.heads.spec import HeadSpec
from classify.results.runs import DENSE, LOGISTIC
from classify.selection.division import Part, RareClass, draw_validation
from classify.selection.folds import ALWAYS_TRAINED, FoldPlan, draw_folds
from classify.statistics import metrics
from classify.train_head.fitting import choose_logistic, for_epochs, refit_logistic
from classify.train_head.out_of_fold import FoldScore, OutOfFold
from data_cache.console import progress, warn
from data_cache.errors import DataError, TrainingError


def cross_validate(rows: Part, spec: HeadSpec, plan: FoldPlan, classes: Sequence[str]) -> OutOfFold:
    """Fit both models to all folds but one, for each fold, and measure them on that one.

    ``spec`` is the Dense head's configuration. It is trained by the arithmetic of
    :mod:`classify.heads.many`, which gives the heads that Keras trains.

    Raises
    ------
    DataError
        There are too few rows for the folds, or for choosing within one.
    TrainingError
        A Dense head diverged.
    """
    fold_of = np.stack(
        [
            draw_folds(rows.labels, rows.groups, n_folds=plan.n_folds, seed=plan.seed + repeat)
            for repeat in range(plan.n_repeats)
        ]
    )
    positions = _usable_rows(rows, fold_of, plan.rare_class, classes)
    if len(positions) < len(rows):
        rows, fold_of = rows.take(positions), fold_of[:, positions]
    shape = (plan.n_repeats, len(rows), len(classes))
    logits = {name: np.full(shape, np.nan, np.float32) for name in (DENSE, LOGISTIC)}
    scores = []
    with progress("Folds", total=plan.n_repeats * plan.n_folds, unit="folds") as advance:
        for repeat, fold in np.ndindex(plan.n_repeats, plan.n_folds):
            held_out = fold_of[repeat] == fold
            task = _Fold(rows.take(~held_out), rows.take(held_out), len(classes), plan)
            seeded = replace(spec, seed=spec.seed + repeat)
            for name, fitted in task.fit(seeded, f"fold {fold + 1} of repeat {repeat + 1}"):
                logits[name][repeat, held_out] = fitted.logits
                scores.append(task.score(name, (repeat + 1, fold + 1), fitted))
            advance(1)
    return OutOfFold(plan, rows, positions, fold_of, logits, tuple(scores))


@dataclass(frozen=True)
class _Fitted:
    """Logits (m, k) on the held-out rows, and what the fold chose."""

    logits: NDArray[np.floating]
    epochs: int | None = None
    C: float | None = None


@dataclass(frozen=True)
class _Fold:
    """The rows to fit to, and those held out."""

    training: Part
    held_out: Part
    n_classes: int
    plan: FoldPlan

    def fit(self, spec: HeadSpec, place: str) -> Iterator[tuple[str, _Fitted]]:
        """Fit both models; yield the name and the logits of each."""
        chooses = self._choosing_rows(place, spec.seed)
        dense = self._fit_dense(spec, *chooses)
        if not np.isfinite(dense.logits).all():
            raise TrainingError(
                f"the Dense head diverged in {place} at learning rate {spec.learning_rate:g}: try "
                "a smaller one, or standardized features"
            )
        yield DENSE, dense
        yield LOGISTIC, self._fit_logistic(spec.class_weight, *chooses)

    def score(self, model: str, place: tuple[int, int], fitted: _Fitted) -> FoldScore:
        """Return a model's figures on the held-out rows; ``place`` is the repeat and the fold."""
        labels, predictions = self.held_out.labels, fitted.logits.argmax(axis=1)
        return FoldScore(
            *place,
            model,
            n_train=len(self.training),
            n_held_out=len(self.held_out),
            accuracy=metrics.accuracy(labels, predictions),
            log_loss=metrics.log_loss(labels, fitted.logits),
            balanced_accuracy=metrics.balanced_accuracy(labels, predictions, self.n_classes),
            macro_f1=metrics.macro_f1(labels, predictions, self.n_classes),
            epochs=fitted.epochs,
            C=fitted.C,
        )

    def _choosing_rows(self, place: str, seed: int) -> tuple[Part, Part]:
        """Divide the training rows into those to fit to and those to choose on."""
        part, fraction = self.training, self.plan.validation_split
        chosen = draw_validation(part.labels, part.groups, fraction=fraction, seed=seed)
        if not chosen.any():
            raise DataError(
                f"the {len(part)} training rows of {place} cannot give {fraction:g} of each class "
                "to choose on: try a larger --validation-split, or fewer folds"
            )
        return part.take(~chosen), part.take(chosen)

    def _fit_dense(self, spec: HeadSpec, fitting: Part, choosing: Part) -> _Fitted:
        """Train the Dense head; with patience for the epochs that it chooses before."""
        n_epochs = spec.epochs
        if spec.patience is not None:
            n_epochs = _train_head(spec, fitting, choosing, self.n_classes).n_epochs
        head = _train_head(for_epochs(spec, n_epochs), self.training, self.held_out, self.n_classes)
        return _Fitted(head.validation_logits, epochs=n_epochs)

    def _fit_logistic(self, class_weight: str | None, fitting: Part, choosing: Part) -> _Fitted:
        """Choose C, fit to all training rows with it, and give every class a column."""
        path = choose_logistic(fitting, choosing, class_weight)
        probe = refit_logistic(path, self.training)
        logits = np.full((len(self.held_out), self.n_classes), -np.inf)
        logits[:, probe.classes_] = logits_of(probe, self.held_out.features)
        return _Fitted(logits, C=probe.C)


def _train_head(spec: HeadSpec, training: Part, other: Part, n_classes: int) -> TrainedHead:
    """Train one head; ``other`` rows get the logits, and with patience say when to stop."""
    data = TrainingData(training.features, training.labels, n_classes, other.features, other.labels)
    ((_, head),) = train_many_heads([spec], data)
    return head


def _usable_rows(
    rows: Part, fold_of: NDArray[np.int64], rare_class: RareClass, classes: Sequence[str]
) -> NDArray[np.int64]:
    """Return the positions of the rows to use; deal with those that are never held out."""
    always = (fold_of == ALWAYS_TRAINED).all(axis=0)
    if not always.any():
        return np.arange(len(rows))
    names = ", ".join(repr(classes[label]) for label in np.unique(rows.labels[always])[:5])
    found = f"{int(always.sum())} rows are never held out, lest a fold miss a whole class: {names}"
    if rare_class == "error":
        raise DataError(f"{found}: add rows, fold less, or allow it with --rare-class keep or drop")
    if rare_class == "keep":
        warn(f"{found}; every fold trains on them")
        return np.arange(len(rows))
    warn(f"{found}; left out of the folds")
    return np.flatnonzero(~always)
