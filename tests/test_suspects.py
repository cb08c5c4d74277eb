"""Rows that look mislabeled: the rule, and how many planted mistakes it finds."""

from __future__ import annotations

import csv
from pathlib import Path

import cache_tools
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classify.statistics.metrics import softmax
from classify.train_head.job import TrainingOptions, train_head
from classify.train_head.suspects import find_suspects

N_ROWS, N_CLASSES, N_FEATURES, N_FLIPPED = 600, 5, 16, 30


def confident_joint(shares: np.ndarray, labels: np.ndarray) -> list[tuple[float, int, int]]:
    """The rule, row by row: margin, row and suggested class of each suspect, in order."""
    own = {j: [p[j] for p, label in zip(shares, labels, strict=True) if label == j] for j in labels}
    found = []
    for row, (p, label) in enumerate(zip(shares, labels, strict=True)):
        reached = [j for j in own if p[j] >= sum(own[j]) / len(own[j])]
        if reached and (best := max(reached, key=lambda j: (p[j], -j))) != label:
            others = [share for j, share in enumerate(p) if j != label]
            found.append((p[label] - max(others), row, best))
    return sorted(found)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 60))
def test_suspects_are_off_the_diagonal_of_the_confident_joint_by_margin(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    shares, labels = softmax(rng.normal(size=(n, 4), scale=2)), rng.integers(0, 4, n)
    expected = confident_joint(shares, labels)
    found = find_suspects(shares, labels)
    assert found.rows.tolist() == [row for _, row, _ in expected]
    assert found.suggested.tolist() == [best for _, _, best in expected]
    np.testing.assert_allclose(found.margins, [margin for margin, _, _ in expected], atol=1e-12)
    np.testing.assert_array_equal(found.confidences, shares[found.rows, labels[found.rows]])


def test_rows_that_were_never_held_out_are_no_suspects_and_count_for_nothing() -> None:
    shares, labels = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]]), np.array([0, 0, 1])
    found = find_suspects(np.vstack([[np.nan, np.nan], shares]), np.array([0, *labels]))
    assert found.rows.tolist() == [1]
    assert len(find_suspects(shares, labels)) == 1


@pytest.fixture(scope="module")
def planted() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels of which some were flipped, and which were."""
    rng = np.random.default_rng(5)
    truth = rng.integers(0, N_CLASSES, N_ROWS)
    centers = rng.normal(size=(N_CLASSES, N_FEATURES))
    features = centers[truth] + rng.normal(scale=0.7, size=(N_ROWS, N_FEATURES))
    flipped = np.zeros(N_ROWS, bool)
    flipped[rng.permutation(N_ROWS)[:N_FLIPPED]] = True
    labels = np.where(flipped, (truth + rng.integers(1, N_CLASSES, N_ROWS)) % N_CLASSES, truth)
    return features.astype(np.float32), labels, flipped


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, planted: tuple[np.ndarray, ...]) -> Path:
    folder = tmp_path_factory.mktemp("suspects")
    features, labels, _ = planted
    test = (features[:20], labels[:20])
    cache = cache_tools.write_cache(
        folder / "c.h5",
        {"train": (features[:500], labels[:500]), "val": (features[500:], labels[500:])}
        | {"test": (features[:20] + 9, test[1])},
        classes=tuple("abcde"),
    )
    options = TrainingOptions(n_folds=5, n_repeats=2, epochs=10, standardize=True, no_test=True)
    return train_head(cache, folder / "run", options).path


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "suspects.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def position(row: dict[str, str]) -> int:
    """Return where a suspect is in the planted rows."""
    split, number = row["id"].split("/")
    assert split == row["split"]
    return int(number) + 500 * (split == "val")


def test_planted_mistakes_are_found_first(run: Path, planted: tuple[np.ndarray, ...]) -> None:
    _, labels, flipped = planted
    rows = rows_of(run)
    found = np.array([position(row) for row in rows])
    assert flipped[found[:20]].mean() >= 0.95
    assert flipped[found].sum() >= 0.75 * N_FLIPPED
    assert {row["split"] for row in rows} == {"train", "val"}
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    assert [row["class"] for row in rows] == ["abcde"[label] for label in labels[found]]


def test_an_independent_computation_finds_the_same_rows(
    run: Path, planted: tuple[np.ndarray, ...]
) -> None:
    features, labels, _ = planted
    shares = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(C=0.1)),
        features.astype(float),
        labels,
        cv=StratifiedKFold(10, shuffle=True, random_state=9),
        method="predict_proba",
    )
    expected = {row for _, row, _ in confident_joint(shares, labels)}
    found = {position(row) for row in rows_of(run)}
    assert len(expected & found) / len(expected | found) >= 0.8


def test_the_suspects_can_be_left_out_as_they_are_written(run: Path) -> None:
    options = TrainingOptions(epochs=1, no_test=True, exclude=str(run / "suspects.csv"))
    again = train_head(run.parent / "c.h5", run.parent / "again", options).metrics
    n_left = again["n_train"] + again["n_validation"]
    assert n_left == N_ROWS - len(rows_of(run))
