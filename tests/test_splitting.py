"""Divisions and draws follow from what an image is, and from nothing else."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_cache.errors import SourceError
from extract.splitting import Fractions, chances, divide, draw_stratified


def keys_of(n_keys: int, start: int = 0) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(start, start + n_keys)]


def test_the_parts_are_as_large_as_asked_for_up_to_chance() -> None:
    splits = divide(keys_of(20_000), Fractions(validation=0.1, test=0.25), seed=0)
    for split, part in (("val", 0.1), ("test", 0.25), ("train", 0.65)):
        deviation = np.sqrt(part * (1 - part) / 20_000)
        assert np.mean(splits == split) == pytest.approx(part, abs=4 * deviation)


@settings(max_examples=50, deadline=None)
@given(
    n_before=st.integers(1, 60),
    n_added=st.integers(0, 60),
    seed=st.integers(),
    shuffle=st.randoms(),
)
def test_no_image_changes_sides_when_others_are_added_or_reordered(
    n_before: int, n_added: int, seed: int, shuffle: object
) -> None:
    fractions = Fractions(validation=0.2, test=0.3)
    keys = keys_of(n_before + n_added)
    before = dict(zip(keys[:n_before], divide(keys[:n_before], fractions, seed), strict=True))
    shuffle.shuffle(keys)  # type: ignore[attr-defined]
    after = dict(zip(keys, divide(keys, fractions, seed), strict=True))
    assert {key: after[key] for key in before} == before


def test_equal_keys_share_a_side() -> None:
    keys = keys_of(50) * 3
    splits = divide(keys, Fractions(test=0.5), seed=1).reshape(3, 50)
    assert (splits == splits[0]).all()


def test_a_larger_test_fraction_keeps_the_test_images_of_a_smaller() -> None:
    keys = keys_of(500)
    small = divide(keys, Fractions(test=0.1), seed=0) == "test"
    large = divide(keys, Fractions(test=0.3), seed=0) == "test"
    assert small.sum() < large.sum()
    assert large[small].all()


def test_seeds_and_purposes_are_independent() -> None:
    keys = keys_of(2000)
    numbers = [chances(keys, "a", 0), chances(keys, "a", 1), chances(keys, "b", 0)]
    assert np.abs(np.corrcoef(numbers) - np.eye(3)).max() < 0.1
    for one in numbers:
        assert 0 <= one.min() <= one.max() < 1
        assert np.histogram(one, bins=10, range=(0, 1))[0].min() > 140


def test_chances_are_pinned_because_splits_in_caches_depend_on_them() -> None:
    digest = hashlib.sha256(b"headstart division 7 " + b"key").digest()
    expected = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
    assert chances([b"key"], "division", 7).tolist() == [expected]


@pytest.mark.parametrize(("validation", "test"), [(-0.1, 0), (0, 1), (0.5, 0.5), (float("nan"), 0)])
def test_impossible_fractions_are_refused(validation: float, test: float) -> None:
    with pytest.raises(SourceError, match="fraction"):
        Fractions(validation, test)


def test_a_draw_takes_each_class_in_its_share() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    taken = draw_stratified(labels, keys_of(1000), 100, seed=0)
    assert np.bincount(labels[taken]).tolist() == [60, 30, 10]
    assert (np.diff(taken) > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda c: sum(c) > 0),
    limit=st.integers(1, 200),
    seed=st.integers(0, 5),
)
def test_a_draw_has_the_size_asked_for_and_shares_off_by_less_than_one(
    counts: list[int], limit: int, seed: int
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    taken = draw_stratified(labels, keys_of(len(labels)), limit, seed)
    assert len(taken) == len(set(taken.tolist())) == min(limit, len(labels))
    got = np.bincount(labels[taken], minlength=len(counts))
    assert np.abs(got - np.array(counts) * (len(taken) / len(labels))).max() < 1


def test_a_larger_draw_keeps_what_a_smaller_one_took() -> None:
    labels = np.arange(400) % 4
    small, large = (draw_stratified(labels, keys_of(400), n, seed=0).tolist() for n in (40, 120))
    assert set(small) < set(large)
    assert draw_stratified(labels, keys_of(400), 40, seed=1).tolist() != small
