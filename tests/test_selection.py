"""Which rows validate: stratified, groups whole, rare classes dealt with, labels sealed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classify.selection.division import divide, draw_validation
from classify.selection.sealed_test import SealedTest, find_test_split
from data_cache.cache import FeatureCache
from data_cache.errors import CacheError, DataError, ParameterError

MakeCache = Callable[..., Path]
fractions = st.floats(0.05, 0.6)
labelings = st.lists(st.integers(0, 4), min_size=1, max_size=120).map(np.array)


def features_of(labels: np.ndarray) -> np.ndarray:
    """Rows that say which they are: (n, 3), the first column counts them."""
    return np.stack([np.arange(len(labels)), labels, labels**2], axis=1).astype(np.float32)


def cache_of(make_cache: MakeCache, path: Path, groups: object = None, **splits: object) -> Path:
    pairs = {name: (features_of(np.array(y)), np.array(y)) for name, y in splits.items()}
    return make_cache(path, pairs, groups=groups)


@given(labels=labelings, fraction=fractions, seed=st.integers(0, 99))
def test_each_class_gives_its_share_rounded_down_or_up(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    chosen = draw_validation(labels, None, fraction=fraction, seed=seed)
    for label in np.unique(labels):
        share = fraction * (labels == label).sum()
        given_rows = chosen[labels == label].sum()
        assert np.floor(share) <= given_rows <= np.ceil(share)
        assert (given_rows == 0) == (share <= 0.5 or (labels == label).sum() == 1)


@given(labels=labelings, fraction=fractions, seed=st.integers(0, 99))
def test_every_class_keeps_a_row_for_training(
    labels: np.ndarray, fraction: float, seed: int
) -> None:
    chosen = draw_validation(labels, None, fraction=fraction, seed=seed)
    assert set(labels[~chosen]) == set(labels)


def test_the_fraction_of_all_rows_is_met_exactly_where_classes_are_uneven() -> None:
    labels = np.repeat(range(10), [393, 407, 401, 399, 400, 388, 412, 395, 405, 400])
    assert draw_validation(labels, None, fraction=0.2, seed=0).sum() == 800


def test_the_same_seed_draws_the_same_rows_and_another_seed_others() -> None:
    labels = np.repeat([0, 1], 50)
    first, again, other = (draw_validation(labels, None, fraction=0.2, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_which_rows_of_a_class_are_drawn_is_uniform() -> None:
    labels = np.zeros(10, int)
    draws = [draw_validation(labels, None, fraction=0.3, seed=s) for s in range(2000)]
    np.testing.assert_allclose(np.mean(draws, axis=0), 0.3, atol=0.05)


@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12)), min_size=1, max_size=100),
    fraction=fractions,
    seed=st.integers(0, 99),
)
def test_groups_stay_whole_and_every_class_keeps_a_row(
    rows: list[tuple[int, int]], fraction: float, seed: int
) -> None:
    labels, groups = np.array(rows).T
    chosen = draw_validation(labels, groups.astype("S"), fraction=fraction, seed=seed)
    assert not set(groups[chosen]) & set(groups[~chosen])
    assert set(labels[~chosen]) == set(labels)


def test_classes_keep_their_shares_when_groups_are_drawn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 3000, p=[0.6, 0.3, 0.1])
    groups = rng.integers(0, 300, 3000).astype("S")
    chosen = draw_validation(labels, groups, fraction=0.25, seed=1)
    for label in range(3):
        assert chosen[labels == label].mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ParameterError, match="validation_split"):
        draw_validation(np.array([0, 1]), None, fraction=fraction, seed=0)


def test_validation_is_drawn_from_training_rows(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 50, test=[0, 1])
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.2, seed=0)
    assert (len(division.training), len(division.validation), division.drawn) == (80, 20, True)
    ids = {*division.training.ids.tolist(), *division.validation.ids.tolist()}
    assert ids == {f"train/{row:06d}".encode() for row in range(100)}


def test_rows_keep_their_features_and_labels(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1, 2, 3] * 20)
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.25, seed=5)
    for part in (division.training, division.validation):
        rows = part.features[:, 0].astype(int)
        assert [f"train/{row:06d}".encode() for row in rows] == part.ids.tolist()
        np.testing.assert_array_equal(part.labels, rows % 4)


def test_the_caches_own_val_split_validates(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 10, val=[1, 0, 1])
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.2, seed=0)
    assert division.validation.ids.tolist() == [b"val/000000", b"val/000001", b"val/000002"]
    assert (len(division.training), division.drawn) == (20, False)


def test_a_val_split_that_is_the_test_never_validates(
    make_cache: MakeCache, tmp_path: Path
) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 10, val=[1, 0, 1])
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.2, seed=0, test_split="val")
    assert division.drawn
    assert all(one.startswith(b"train/") for one in division.validation.ids.tolist())


def test_groups_of_the_cache_are_kept_whole(make_cache: MakeCache, tmp_path: Path) -> None:
    groups = np.repeat(range(20), 5)
    path = cache_of(
        make_cache, tmp_path / "c.h5", train=[0, 1] * 50, groups={"train": groups.astype("S")}
    )
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.2, seed=0)
    parts = [
        {int(row) // 5 for row in part.features[:, 0]}
        for part in (division.training, division.validation)
    ]
    assert not parts[0] & parts[1]
    assert len(parts[1]) == 4


def test_a_rare_class_stays_in_training_with_a_warning(
    make_cache: MakeCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 20 + [2, 2])
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.2, seed=0)
    assert (division.training.labels == 2).sum() == 2
    assert (
        "Warning: too few rows to give any to validation: '2' (2 rows)" in capsys.readouterr().err
    )


def test_a_rare_class_can_be_dropped(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 20 + [2, 2])
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.2, seed=0, rare_class="drop")
    assert division.dropped.ids.tolist() == [b"train/000040", b"train/000041"]
    assert 2 not in division.training.labels


def test_a_rare_class_can_be_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 20 + [2, 2])
    with FeatureCache.open(path) as cache, pytest.raises(DataError, match=r"'2' \(2 rows\): add"):
        divide(cache, fraction=0.2, seed=0, rare_class="error")


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": [1, 1, 1, 1, 1, 1]}, r"have 1 class \('1'\): expected two or more"),
        ({"train": [0, 1, 0, 1]}, "no validation rows: 4 training rows"),
        ({"train": [0, 1] * 9, "val": [2, 2]}, "no validation rows"),
        ({"train": [0, 1] * 9, "val": []}, "no validation rows"),
    ],
)
def test_parts_that_nothing_can_be_learnt_from_are_refused(
    make_cache: MakeCache, tmp_path: Path, splits: dict[str, list[int]], message: str
) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", **splits)
    with FeatureCache.open(path) as cache, pytest.raises(DataError, match=message):
        divide(cache, fraction=0.2, seed=0)


def test_a_cache_without_training_rows_is_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", test=[0, 1])
    with FeatureCache.open(path) as cache, pytest.raises(CacheError, match="only: test: extract"):
        divide(cache, fraction=0.2, seed=0)


def test_classes_that_were_never_seen_are_named(
    make_cache: MakeCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1] * 9, test=[7, 7])
    with FeatureCache.open(path) as cache:
        divide(cache, fraction=0.2, seed=0)
    assert "never predicted: '2', '3', '4', '5', '6' and 1 more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("splits", "name", "found"),
    [
        (["train", "test"], None, "test"),
        (["train", "val"], None, None),
        (["train", "val"], "val", "val"),
        (["train", "test", "hard"], "hard", "hard"),
    ],
)
def test_the_test_split_is_the_one_named_or_the_one_called_test(
    make_cache: MakeCache, tmp_path: Path, splits: list[str], name: str | None, found: str | None
) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", **{split: [0, 1] for split in splits})
    with FeatureCache.open(path) as cache:
        assert find_test_split(cache, name) == found


@pytest.mark.parametrize("name", ["nope", "train"])
def test_a_test_split_that_cannot_be_is_refused(
    make_cache: MakeCache, tmp_path: Path, name: str
) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1], val=[0], test=[1])
    with FeatureCache.open(path) as cache, pytest.raises(CacheError, match="could be: val, test"):
        find_test_split(cache, name)


def test_the_seal_gives_out_its_labels_once(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1], test=[1, 0, 1])
    with FeatureCache.open(path) as cache:
        test = SealedTest(cache, "test")
        assert test.features().shape == (3, 3)
        assert test.open(["dense"], tmp_path).labels.tolist() == [1, 0, 1]
        with pytest.raises(RuntimeError, match="open once"):
            test.open(["dense"], tmp_path)


def test_a_test_split_without_rows_is_refused(make_cache: MakeCache, tmp_path: Path) -> None:
    path = cache_of(make_cache, tmp_path / "c.h5", train=[0, 1], test=[])
    with FeatureCache.open(path) as cache, pytest.raises(DataError, match="has no rows"):
        SealedTest(cache, "test")
