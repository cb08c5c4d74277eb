"""Finding a key among many: as a dictionary would, whatever the hashes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_cache import digests
from data_cache.digests import KeyIndex, as_keys

KEYS = st.lists(st.binary(max_size=20).map(lambda one: one.rstrip(b"\0")), max_size=60)


def check(known: list[bytes], wanted: list[bytes]) -> None:
    index = KeyIndex(np.array(known or [b""], "S")[: len(known)])
    positions: dict[bytes, int] = {}
    for at, key in enumerate(known):
        positions.setdefault(key, at)
    found = index.find(np.array(wanted or [b""], "S")[: len(wanted)])
    assert found.tolist() == [positions.get(key, -1) for key in wanted]
    assert sorted(index.first.tolist()) == sorted(positions.values())


@given(KEYS, KEYS)
def test_keys_are_found_where_they_come_first(known: list[bytes], others: list[bytes]) -> None:
    check([*known, *known[::2]], [*others, *known])


@given(KEYS, KEYS)
def test_keys_of_one_hash_are_told_apart(known: list[bytes], others: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_hashes", lambda keys: np.zeros(len(keys), np.uint64))
        check([*known, *known[::2]], [*others, *known])


def test_hashes_do_not_depend_on_the_width_and_differ() -> None:
    keys = np.array([f"images/{row:09d}" for row in range(100_000)], "S")
    narrow, wide = digests._hashes(keys), digests._hashes(keys.astype("S40"))
    np.testing.assert_array_equal(narrow, wide)
    assert len(np.unique(narrow)) == len(keys)
    # Words that change places must not cancel out.
    swapped = np.array([b"a" * 8 + b"b" * 8, b"b" * 8 + b"a" * 8, b"a" * 16, b"b" * 16], "S")
    assert len(np.unique(digests._hashes(swapped))) == 4


def test_hashes_use_all_64_bits() -> None:
    content = np.random.default_rng(0).integers(0, 256, (50_000, 32), np.uint8)
    hashes = digests._hashes(as_keys(content))
    bits = (hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.02
