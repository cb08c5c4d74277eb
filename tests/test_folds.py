"""Cross-validation: who is held out when, what each fold learns from, and what is said of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify.heads.dense import DenseHead
from classify.heads.spec import HeadSpec
from classify.selection.division import Part, draw_validation
from classify.selection.folds import ALWAYS_TRAINED, FoldPlan
from classify.selection.folds import draw_folds as draw
from classify.statistics.intervals import wilson_interval
from classify.statistics.metrics import softmax
from classify.train_head.cross_validation import cross_validate
from classify.train_head.out_of_fold import OutOfFold, corrected_interval
from data_cache.errors import DataError, ParameterError, TrainingError

N_FEATURES, CLASSES = 12, ("ant", "bee", "cat")
SPEC = HeadSpec(learning_rate=1e-2, epochs=40, batch_size=32, patience=1, standardize=True, seed=3)
PLAN = FoldPlan(n_folds=3, n_repeats=2, seed=3)


def blobs(n_rows: int, seed: int = 0, groups: np.ndarray | None = None) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n_rows, p=[0.5, 0.3, 0.2])
    centers = np.random.default_rng(42).normal(size=(3, N_FEATURES))
    features = centers[labels] + rng.normal(scale=1.5, size=(n_rows, N_FEATURES))
    ids = np.array([f"train/{row:06d}" for row in range(n_rows)], "S")
    return Part(ids, features.astype(np.float32), labels, groups)


@pytest.fixture(scope="module")
def rows() -> Part:
    return blobs(180)


@pytest.fixture(scope="module")
def found(rows: Part) -> OutOfFold:
    return cross_validate(rows, SPEC, PLAN, CLASSES)


@given(
    labels=st.lists(st.integers(0, 3), min_size=8, max_size=80).map(np.array),
    n_folds=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_classes_are_spread_evenly_and_none_is_held_out_whole(
    labels: np.ndarray, n_folds: int, seed: int
) -> None:
    counts = Counter(labels.tolist())
    assume(max(counts.values()) >= n_folds)
    fold_of = draw(labels, None, n_folds=n_folds, seed=seed)
    for label, n_rows in counts.items():
        folds = fold_of[labels == label]
        if n_rows == 1:
            assert folds == [ALWAYS_TRAINED]
        else:
            per_fold = np.bincount(folds, minlength=n_folds)
            assert per_fold.max() - per_fold.min() <= 1
            assert (per_fold > 0).sum() > 1


@settings(max_examples=30)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=12, max_size=60),
    seed=st.integers(0, 99),
)
def test_groups_stay_whole_and_no_class_is_held_out_whole(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    labels, groups = np.array(pairs).T
    try:
        fold_of = draw(labels, groups.astype("S"), n_folds=3, seed=seed)
    except DataError:
        assume(False)
    for group in np.unique(groups):
        assert len(np.unique(fold_of[groups == group])) == 1
    for fold in range(3):
        held_out = fold_of == fold
        assert set(labels[held_out]) <= set(labels[~held_out])


def test_each_row_is_held_out_once_a_repeat_and_repeats_differ(found: OutOfFold) -> None:
    assert ((found.fold_of >= 0) & (found.fold_of < 3)).all()
    assert (found.fold_of[0] != found.fold_of[1]).any()
    assert np.isfinite(found.logits["dense"]).all()


def test_the_dense_head_of_a_fold_is_the_one_that_keras_trains_on_its_rows(
    rows: Part, found: OutOfFold
) -> None:
    row = next(one for one in found.scores if (one.repeat, one.fold, one.model) == (2, 3, "dense"))
    held_out = found.fold_of[1] == 2
    head = DenseHead(
        epochs=row.epochs, learning_rate=1e-2, batch_size=32, standardize=True, seed=SPEC.seed + 1
    ).fit(rows.features[~held_out], rows.labels[~held_out])
    expected = head.logits(rows.features[held_out])
    np.testing.assert_allclose(found.logits["dense"][1, held_out], expected, atol=1e-3)
    assert (row.n_train, row.n_held_out) == ((~held_out).sum(), held_out.sum())


def test_the_logistic_regression_of_a_fold_is_scikit_learns_on_its_rows(
    rows: Part, found: OutOfFold
) -> None:
    row = next(one for one in found.scores if one.model == "logistic_regression")
    held_out = found.fold_of[0] == 0
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=row.C, tol=1e-8, max_iter=10_000))
    oracle.fit(rows.features[~held_out].astype(float), rows.labels[~held_out])
    np.testing.assert_allclose(
        softmax(found.logits["logistic_regression"][0, held_out]),
        oracle.predict_proba(rows.features[held_out]),
        atol=2e-3,
    )


def test_labels_of_held_out_rows_change_nothing_that_their_fold_chooses_or_predicts(
    rows: Part, found: OutOfFold, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold_of = found.fold_of[0]
    monkeypatch.setattr("classify.train_head.cross_validation.draw_folds", lambda *_, **__: fold_of)
    held_out = fold_of == 1
    poisoned = np.where(held_out, (rows.labels + 1) % 3, rows.labels)
    plan = replace(PLAN, n_repeats=1)
    other = cross_validate(replace(rows, labels=poisoned), SPEC, plan, CLASSES)
    for name, logits in found.logits.items():
        np.testing.assert_array_equal(other.logits[name][0, held_out], logits[0, held_out])
        assert (other.logits[name][0, ~held_out] != logits[0, ~held_out]).any()
    chosen = [
        [(one.epochs, one.C) for one in run.scores if (one.repeat, one.fold) == (1, 2)]
        for run in (found, other)
    ]
    assert chosen[0] == chosen[1]


def test_the_figures_of_a_fold_are_scikit_learns(rows: Part, found: OutOfFold) -> None:
    for one in found.scores:
        held_out = found.fold_of[one.repeat - 1] == one.fold - 1
        logits, labels = found.logits[one.model][one.repeat - 1, held_out], rows.labels[held_out]
        predictions = logits.argmax(axis=1)
        expected = {
            "accuracy": sklearn.metrics.accuracy_score(labels, predictions),
            "log_loss": sklearn.metrics.log_loss(labels, softmax(logits), labels=[0, 1, 2]),
            "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predictions),
            "macro_f1": sklearn.metrics.f1_score(labels, predictions, average="macro"),
        }
        assert {name: getattr(one, name) for name in expected} == pytest.approx(expected, rel=1e-4)


def test_the_spread_is_over_folds_and_over_repeats(found: OutOfFold) -> None:
    values = np.array([one.accuracy for one in found.scores if one.model == "dense"])
    spread = found.spread("dense", "accuracy")
    assert spread.mean == pytest.approx(values.mean())
    assert spread.sd == pytest.approx(values.std(ddof=1))
    assert spread.sd_over_repeats == pytest.approx(values.reshape(2, 3).mean(axis=1).std(ddof=1))
    assert spread.ci95 == pytest.approx(corrected_interval(values, 3))


def test_the_interval_is_students_with_the_variance_of_nadeau_and_bengio() -> None:
    values = np.array([0.8, 0.84, 0.79, 0.88, 0.82, 0.81, 0.85, 0.83, 0.8, 0.86])
    scale = values.std(ddof=1) * np.sqrt(1 / 10 + (1 / 5) / (4 / 5))
    expected = stats.t.interval(0.95, 9, loc=values.mean(), scale=scale)
    assert corrected_interval(values, 5) == pytest.approx(expected)


def test_the_difference_is_taken_fold_by_fold(found: OutOfFold) -> None:
    dense, logistic = (
        np.array([one.log_loss for one in found.scores if one.model == name])
        for name in ("dense", "logistic_regression")
    )
    difference = found.difference("log_loss")
    assert difference.mean == pytest.approx((dense - logistic).mean())
    assert difference.sd == pytest.approx((dense - logistic).std(ddof=1))


def test_the_epochs_are_the_median_of_what_the_folds_chose(found: OutOfFold) -> None:
    chosen = [one.epochs for one in found.scores if one.epochs is not None]
    assert len(chosen) == 6
    assert len(set(chosen)) > 1
    assert abs(found.n_epochs - np.median(chosen)) <= 0.5


def test_probabilities_are_means_over_repeats(found: OutOfFold) -> None:
    expected = (softmax(found.logits["dense"][0]) + softmax(found.logits["dense"][1])) / 2
    np.testing.assert_allclose(found.probabilities("dense"), expected)


def test_a_class_of_a_single_row_always_trains_and_is_never_held_out() -> None:
    rows = blobs(60)
    rows = replace(rows, labels=np.where(np.arange(60) == 7, 3, rows.labels))
    plan = FoldPlan(n_folds=3)
    found = cross_validate(rows, replace(SPEC, epochs=1), plan, (*CLASSES, "dog"))
    assert (found.fold_of == ALWAYS_TRAINED).sum() == 1
    assert np.isnan(found.probabilities("dense")[7]).all()
    assert len(found.pooled("logistic_regression")[1]) == 59
    dropped = cross_validate(rows, SPEC, replace(plan, rare_class="drop"), (*CLASSES, "dog"))
    assert len(dropped.rows) == 59
    logits, labels = dropped.pooled("logistic_regression")
    assert logits.shape == (59, 3)
    assert np.isfinite(logits).all()
    np.testing.assert_array_equal(labels, dropped.rows.labels)
    with pytest.raises(DataError, match=r"1 rows are never held out, .*'dog'"):
        cross_validate(rows, SPEC, replace(plan, rare_class="error"), (*CLASSES, "dog"))


def test_groups_stay_whole_in_the_folds_and_in_what_a_fold_chooses_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups = (np.arange(90) // 3).astype("S")
    chosen: list[tuple[np.ndarray, np.ndarray]] = []

    def watched(labels: np.ndarray, names: np.ndarray, **more: float) -> np.ndarray:
        mask = draw_validation(labels, names, **more)
        chosen.append((names, mask))
        return mask

    monkeypatch.setattr("classify.train_head.cross_validation.draw_validation", watched)
    spec = replace(SPEC, epochs=1)
    found = cross_validate(blobs(90, groups=groups), spec, FoldPlan(n_folds=3), CLASSES)
    assert found.facts()["groups"] is True
    parts = [(groups, found.fold_of[0] == fold) for fold in range(3)] + chosen
    assert len(parts) == 6
    for names, mask in parts:
        assert mask.any()
        assert not set(names[mask]) & set(names[~mask])


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(ParameterError, match="folds is 1: expected 2 or more"):
        FoldPlan(n_folds=1)
    with pytest.raises(ParameterError, match="repeats is 0"):
        FoldPlan(n_folds=2, n_repeats=0)
    with pytest.raises(DataError, match="9 folds, and no class has more than 5 rows"):
        draw(np.repeat([0, 1], 5), None, n_folds=9, seed=0)
    with pytest.raises(DataError, match="3 folds of 2 groups"):
        draw(np.repeat([0, 1], 5), np.arange(10) % 2, n_folds=3, seed=0)


def test_a_head_that_diverges_in_a_fold_is_an_error_that_names_it(rows: Part) -> None:
    hot = replace(SPEC, learning_rate=1e38, patience=None)
    with pytest.raises(TrainingError, match="diverged in fold 1 of repeat 1"):
        cross_validate(rows, hot, PLAN, CLASSES)


def test_an_interval_stays_where_its_figure_can_be_and_is_never_a_point(found: OutOfFold) -> None:
    scores = (
        replace(one, accuracy=one.fold % 2.0, log_loss=50.0 * (one.fold == 1))
        if one.model == "dense"
        else replace(one, accuracy=1.0, log_loss=0.0)
        for one in found.scores
    )
    found = replace(found, scores=tuple(scores))
    n_rows = len(found.rows)
    assert found.spread("logistic_regression", "accuracy").ci95 == wilson_interval(n_rows, n_rows)
    assert found.spread("dense", "accuracy").ci95 == (0, 1)
    assert found.spread("dense", "log_loss").ci95[0] == 0
    assert found.difference("accuracy").ci95[0] == -1
