"""Copies of test rows in training: warned of, left out on request, the test always whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from classify.selection.division import divide
from classify.selection.leakage import rows_to_leave_out
from data_cache.cache import FeatureCache
from data_cache.errors import DataError

RNG = np.random.default_rng(3)
TRAIN = RNG.normal(size=(40, 16)).astype(np.float32)
TEST = RNG.normal(size=(10, 16)).astype(np.float32)
COPIED = {"train/000004", "train/000031"}


@pytest.fixture
def leaky(tmp_path: Path, make_cache: Callable[..., Path]) -> Path:
    train = TRAIN.copy()
    train[[4, 31]] = TEST[[2, 7]]
    train[12] = TEST[5] * 1.001
    splits = {"train": (train, np.arange(40) % 2), "test": (TEST, np.arange(10) % 2)}
    return make_cache(tmp_path / "leaky.h5", splits)


def test_copies_of_test_rows_cause_a_warning_and_stay_unless_dropped(
    leaky: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FeatureCache.open(leaky) as cache:
        left_out = rows_to_leave_out(cache, "test", drop_leaks=False, exclude=None)
    assert left_out == frozenset()
    assert "2 rows of test are in other splits too" in capsys.readouterr().err


def test_no_copies_cause_no_warning(
    tmp_path: Path, make_cache: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {"train": (TRAIN, np.arange(40) % 2), "test": (TEST, np.arange(10) % 2)}
    with FeatureCache.open(make_cache(tmp_path / "c.h5", splits)) as cache:
        assert not rows_to_leave_out(cache, "test", drop_leaks=False, exclude=None)
    assert capsys.readouterr().err == ""


def test_dropped_are_the_training_copies_near_ones_included(leaky: Path) -> None:
    with FeatureCache.open(leaky) as cache:
        left_out = rows_to_leave_out(cache, "test", drop_leaks=True, exclude=None)
    assert left_out == {("train", name) for name in COPIED | {"train/000012"}}


def test_excluded_rows_are_in_no_part(leaky: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.csv"
    listed.write_text("split,id\ntrain,train/000001\n", encoding="utf-8")
    with FeatureCache.open(leaky) as cache:
        left_out = rows_to_leave_out(cache, "test", drop_leaks=True, exclude=str(listed))
        division = divide(cache, fraction=0.2, seed=0, left_out=left_out)
    ids = {*division.training.ids.tolist(), *division.validation.ids.tolist()}
    assert len(ids) == 40 - 4
    assert not ids & {name.encode() for name in COPIED | {"train/000001", "train/000012"}}


def test_listed_rows_that_are_not_there_are_warned_of(
    leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = tmp_path / "exclude.csv"
    listed.write_text(
        "split,id\ntrain,train/000001\ntest,train/000002\ntrain,x.jpg\n", encoding="utf-8"
    )
    with FeatureCache.open(leaky) as cache:
        rows_to_leave_out(cache, None, drop_leaks=False, exclude=str(listed))
    words = "2 of 3 listed rows were not found: first one 'train/000002' of split 'test'"
    assert words in " ".join(capsys.readouterr().err.split())
    listed.write_text("split,id\ntrain,train/000001\n", encoding="utf-8")
    with FeatureCache.open(leaky) as cache:
        rows_to_leave_out(cache, None, drop_leaks=False, exclude=str(listed))
    assert capsys.readouterr().err == ""


def test_groups_stay_whole_where_rows_are_left_out(
    tmp_path: Path, make_cache: Callable[..., Path]
) -> None:
    groups = np.repeat(np.arange(10), 4).astype("S")
    splits = {"train": (TRAIN, np.arange(40) % 2)}
    path = make_cache(tmp_path / "g.h5", splits, groups={"train": groups})
    left_out = frozenset({("train", f"train/{row:06d}") for row in range(5)})
    with FeatureCache.open(path) as cache:
        division = divide(cache, fraction=0.3, seed=1, left_out=left_out)
    rows = [int(name[-6:]) // 4 for name in division.validation.ids]
    training = {int(name[-6:]) // 4 for name in division.training.ids}
    assert rows
    assert not set(rows) & training


def test_exclusions_without_their_columns_are_refused(leaky: Path, tmp_path: Path) -> None:
    listed = tmp_path / "exclude.csv"
    listed.write_text("path\na.jpg\n", encoding="utf-8")
    with (
        FeatureCache.open(leaky) as cache,
        pytest.raises(DataError, match="'split' and 'id' are expected"),
    ):
        rows_to_leave_out(cache, "test", drop_leaks=False, exclude=str(listed))
