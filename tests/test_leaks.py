"""Copies of rows are found, exact and near, and the right one of the two is left out."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from data_cache import leaks, neighbors
from data_cache.cache import FeatureCache
from data_cache.errors import CacheError
from data_cache.leaks import (
    LeakReport,
    NearPair,
    Place,
    exact_duplicates,
    kept_rows,
    leaks_in,
    write_exclusions,
    write_leaks,
)
from data_cache.neighbors import connected, nearest, pairs_above, unit_vectors

MakeCache = Callable[..., Path]
Features = NDArray[np.float32]


def random_features(n_rows: int, seed: int, width: int = 16) -> Features:
    return np.random.default_rng(seed).normal(size=(n_rows, width)).astype(np.float32)


def zeros(n_rows: int) -> NDArray[np.int64]:
    return np.zeros(n_rows, np.int64)


def place(split: str, row: int, label: str = "0") -> Place:
    return Place(split, f"{split}/{row:06d}", label)


# ---------------------------------------------------------------- exact duplicates


def test_copies_are_found_within_and_across_splits(make_cache: MakeCache, tmp_path: Path) -> None:
    train, test = random_features(8, 0), random_features(5, 1)
    train[6] = train[2]  # within training, with another label
    test[3] = train[4]  # across, with the same label
    labels = np.array([0, 1, 0, 1, 0, 1, 1, 0])
    path = make_cache(tmp_path / "c.h5", {"train": (train, labels), "test": (test, zeros(5))})
    report = leaks_in(path)
    found = {one.places: (one.crosses_splits, one.conflicts) for one in report.copies}
    assert found == {
        (place("train", 2), place("train", 6, "1")): (False, True),
        (place("train", 4), place("test", 3)): (True, False),
    }
    assert report.near == ()
    assert report.n_leaked() == 1
    assert report.leaking == {("train", "train/000004")}
    assert report.summary() == [
        "1 image is in more than one split",
        "1 image is more than once in a split, 1 of them with different labels",
        "0 pairs across splits are nearly the same",
        "1 row of test has a copy in another split",
    ]


def test_a_split_to_keep_whole_that_is_not_there_is_refused(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    path = make_cache(tmp_path / "c.h5", {"train": (random_features(3, 0), zeros(3))})
    with pytest.raises(CacheError, match="no split 'zz' to keep whole: it has train"):
        leaks_in(path, test_split="zz")
    assert leaks_in(path).n_leaked() == 0


def test_lists_make_the_folders_that_they_go_to(tmp_path: Path) -> None:
    LeakReport((), ()).write(
        leaks=tmp_path / "a" / "b" / "l.csv", exclusions=tmp_path / "c" / "e.csv"
    )
    assert (tmp_path / "a" / "b" / "l.csv").exists()
    assert (tmp_path / "c" / "e.csv").exists()


def test_copies_are_found_without_features(make_cache: MakeCache, tmp_path: Path) -> None:
    train = random_features(300, 0)
    train[250:] = train[:50]
    path = make_cache(tmp_path / "c.h5", {"train": (train, zeros(300))})
    with FeatureCache.open(path) as cache:
        copies = exact_duplicates({"train": cache.rows("train")}, cache.classes)
    rows = sorted(tuple(int(one.id[6:]) for one in copy.places) for copy in copies)
    assert rows == [(i, i + 250) for i in range(50)]
    assert exact_duplicates({}, ()) == ()


# ---------------------------------------------------------------- near-duplicates


def crowd(n_rows: int, spread: float, seed: int) -> Features:
    """Rows that lie together far from the origin, as trousers do among clothes."""
    middle = 10 * np.ones(16, np.float32)
    return middle + spread * random_features(n_rows, seed)


def test_a_row_that_is_nearly_another_is_found(make_cache: MakeCache, tmp_path: Path) -> None:
    train, test = random_features(200, 0), random_features(50, 1)
    test[7] = train[33] + 0.1 * random_features(1, 2)[0]
    path = make_cache(tmp_path / "c.h5", {"train": (train, zeros(200)), "test": (test, zeros(50))})
    report = leaks_in(path)
    assert [(one.place, one.other) for one in report.near] == [
        (place("test", 7), place("train", 33))
    ]
    seen = [one - train.mean(axis=0) for one in (test[7], train[33])]
    cosine = seen[0] @ seen[1] / np.linalg.norm(seen[0]) / np.linalg.norm(seen[1])
    assert report.near[0].similarity == pytest.approx(cosine, abs=1e-5)
    assert report.leaking == {("train", "train/000033")}


def test_strangers_in_a_dense_crowd_are_not_reported_but_copies_there_are(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    """A fixed threshold of 0.9 would report every row of the crowd."""
    others = random_features(400, 5)
    train = np.concatenate([others, crowd(100, 2.0, 0)])
    test = np.concatenate([random_features(20, 6), crowd(40, 2.0, 1)])
    test[30] = train[450] + 0.2 * random_features(1, 2)[0]
    path = make_cache(tmp_path / "c.h5", {"train": (train, zeros(500)), "test": (test, zeros(60))})
    assert [(one.place.id, one.other.id) for one in leaks_in(path).near] == [
        ("test/000030", "train/000450")
    ]
    assert len({one.place for one in leaks_in(path, threshold=0.9).near}) >= 40


def test_all_but_identical_rows_are_reported_however_many_there_are(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    train = random_features(100, 0)
    frames = train[:1] + 0.02 * random_features(31, 1)
    train = np.concatenate([train, frames[1:]])
    path = make_cache(
        tmp_path / "c.h5", {"train": (train, zeros(130)), "test": (frames[:1], zeros(1))}
    )
    assert {one.place for one in leaks_in(path).near} == {place("test", 0)}


def test_validation_is_compared_with_both(make_cache: MakeCache, tmp_path: Path) -> None:
    splits = {name: random_features(60, i) for i, name in enumerate(("train", "val", "test"))}
    noise = 0.05 * random_features(3, 9)
    splits["val"][1] = splits["train"][1] + noise[0]
    splits["test"][2] = splits["val"][2] + noise[1]
    path = make_cache(tmp_path / "c.h5", {k: (v, zeros(60)) for k, v in splits.items()})
    report = leaks_in(path)
    assert {(one.place, one.other) for one in report.near} == {
        (place("val", 1), place("train", 1)),
        (place("test", 2), place("val", 2)),
    }
    assert report.leaking == {("train", "train/000001"), ("val", "val/000002")}


def test_the_split_that_is_the_test_can_have_any_name(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    train, val = random_features(30, 0), random_features(30, 1)
    val[3] = train[8]
    path = make_cache(tmp_path / "c.h5", {"train": (train, zeros(30)), "val": (val, zeros(30))})
    report = leaks_in(path, test_split="val")
    assert report.n_leaked() == 1
    assert report.summary()[-1] == "1 row of val has a copy in another split"
    assert leaks_in(path).n_leaked() == 0


def test_a_small_or_single_split_is_no_trouble(make_cache: MakeCache, tmp_path: Path) -> None:
    tiny = make_cache(
        tmp_path / "tiny.h5",
        {"train": (random_features(2, 0), zeros(2)), "test": (random_features(1, 1), zeros(1))},
    )
    alone = make_cache(tmp_path / "alone.h5", {"train": (random_features(9, 0), zeros(9))})
    assert leaks_in(tiny).near == leaks_in(alone).near == ()


def test_blocks_make_no_difference(
    make_cache: MakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, test = random_features(120, 0), random_features(70, 1)
    test[:20] = train[40:60] + 0.1 * random_features(20, 2)
    path = make_cache(tmp_path / "c.h5", {"train": (train, zeros(120)), "test": (test, zeros(70))})
    whole = leaks_in(path)
    for module, name in (
        (leaks, "_QUERY_ROWS"),
        (leaks, "_REFERENCE_ROWS"),
        (neighbors, "_BLOCK_ROWS"),
    ):
        monkeypatch.setattr(module, name, 7)
    in_blocks = leaks_in(path)
    assert len(whole.near) == 20
    similarities = [one.similarity for one in whole.near]
    assert similarities == sorted(similarities, reverse=True)
    assert [(one.place, one.other) for one in in_blocks.near] == [
        (one.place, one.other) for one in whole.near
    ]


# ---------------------------------------------------------------- what to leave out


def test_a_validation_row_that_goes_spares_its_training_copy() -> None:
    near = (
        NearPair(place("val", 1), place("train", 1), 0.95),
        NearPair(place("test", 1), place("val", 1), 0.93),
    )
    assert LeakReport((), near).leaking == {("val", "val/000001")}


def test_reports_are_written_as_csv(make_cache: MakeCache, tmp_path: Path) -> None:
    train, test = random_features(60, 0), random_features(20, 1)
    test[3] = train[4]
    test[5] = train[6] + 0.05 * random_features(1, 2)[0]
    splits = {"train": (train, np.arange(60) % 2), "test": (test, zeros(20))}
    report = leaks_in(make_cache(tmp_path / "c.h5", splits, classes=("cat", "dog, small")))
    write_leaks(report, tmp_path / "leaks.csv")
    with (tmp_path / "leaks.csv").open(newline="", encoding="utf-8") as stream:
        exact, near = csv.DictReader(stream)
    assert exact == {
        "kind": "exact",
        "split": "train",
        "id": "train/000004",
        "label": "cat",
        "other_split": "test",
        "other_id": "test/000003",
        "other_label": "cat",
        "similarity": "1.0000",
        "conflict": "no",
    }
    assert (near["kind"], near["id"], near["other_id"]) == ("near", "test/000005", "train/000006")
    assert 0.9 < float(near["similarity"]) < 1
    write_exclusions(report, tmp_path / "exclude.csv")
    with (tmp_path / "exclude.csv").open(newline="") as stream:
        lines = [(row["split"], row["id"]) for row in csv.DictReader(stream)]
    assert lines == [("train", "train/000004"), ("train", "train/000006")]


def test_rows_left_out_are_masked(make_cache: MakeCache, tmp_path: Path) -> None:
    path = make_cache(tmp_path / "c.h5", {"train": (random_features(4, 0), zeros(4))})
    with FeatureCache.open(path) as cache:
        rows = cache.rows("train")
    left_out = frozenset({("train", "train/000002"), ("test", "train/000001")})
    assert kept_rows("train", rows, left_out).tolist() == [True, True, False, True]


# ---------------------------------------------------------------- neighbors


@settings(max_examples=40, deadline=None)
@given(
    n_queries=st.integers(1, 20),
    n_references=st.integers(1, 50),
    block=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_nearest_are_those_of_scikit_learn(
    n_queries: int, n_references: int, block: int, seed: int
) -> None:
    queries = unit_vectors(random_features(n_queries, seed, width=5))
    references = unit_vectors(random_features(n_references, seed + 1, width=5))
    blocks = [references[i : i + block] for i in range(0, n_references, block)]
    similarities, positions = nearest(queries, blocks, 4)
    k = min(4, n_references)
    model = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(references)
    distances, expected = model.kneighbors(queries)
    np.testing.assert_allclose(similarities[:, :k], 1 - distances, atol=1e-5)
    np.testing.assert_array_equal(positions[:, :k], expected)
    assert (positions[:, k:] == -1).all()


@pytest.mark.parametrize("block", [3, 2048])
def test_pairs_above_are_all_pairs_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbors, "_BLOCK_ROWS", block)
    vectors = unit_vectors(random_features(40, 0, width=3))
    cosines = vectors @ vectors.T
    expected = [(i, j) for i in range(40) for j in range(i + 1, 40) if cosines[i, j] >= 0.8]
    assert sorted(map(tuple, pairs_above(vectors, 0.8).tolist())) == expected


def test_chains_are_one_group_called_after_its_first_row() -> None:
    pairs = [(5, 3), (3, 1), (6, 7), (1, 1)]
    assert connected(9, pairs).tolist() == [0, 1, 2, 1, 4, 1, 6, 6, 8]


def test_a_row_at_the_origin_is_close_to_nothing() -> None:
    values = np.array([[1, 2], [3, 4], [1, 2]], np.float32)
    vectors = unit_vectors(values, np.array([1, 2], np.float32))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 1, 0])
