"""Random views: what they are drawn from, and what they leave alone."""

from __future__ import annotations

import hashlib
from itertools import combinations

import numpy as np
import pytest

from extract.augment import View

CONTENT = hashlib.sha256(b"an image").digest()
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("n_channels", [1, 3])
def test_a_view_is_smaller_stays_in_range_and_leaves_the_image_alone(n_channels: int) -> None:
    pixels = RNG.integers(0, 256, (40, 60, n_channels), np.uint8)
    before = pixels.copy()
    for number in range(20):
        view = View(0, number).of(pixels, CONTENT)
        assert view.dtype == np.float32
        assert 32 <= view.shape[0] <= 40
        assert 48 <= view.shape[1] <= 60
        assert view.shape[2] == n_channels
        assert 0 <= view.min() <= view.max() <= 255
    np.testing.assert_array_equal(pixels, before)


def test_a_view_follows_from_seed_number_and_content_alone() -> None:
    pixels = RNG.integers(0, 256, (40, 40, 3), np.uint8)
    other = hashlib.sha256(b"another image").digest()
    drawn = [(0, 0, CONTENT), (0, 1, CONTENT), (1, 0, CONTENT), (0, 0, other)]
    views = [View(seed, number).of(pixels, content) for seed, number, content in drawn]
    again = [View(seed, number).of(pixels, content) for seed, number, content in drawn]
    for one, same in zip(views, again, strict=True):
        np.testing.assert_array_equal(one, same)
    assert not any(np.array_equal(*pair) for pair in combinations(views, 2))


def test_half_of_the_views_are_mirrored() -> None:
    """Brightness that rises to the right falls in a mirrored view."""
    pixels = np.tile(np.linspace(60, 180, 50, dtype=np.float32)[None, :, None], (50, 1, 1))
    views = [View(0, number).of(pixels, CONTENT) for number in range(200)]
    mirrored = sum(bool(view[0, 0, 0] > view[0, -1, 0]) for view in views)
    assert 70 < mirrored < 130


def test_the_views_of_a_seed_stay_what_they_were() -> None:
    """The digest of a recipe promises that: a change needs another version of the augmenter."""
    pixels = 5 * np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    view = View(3, 1).of(pixels, CONTENT)
    assert View(3, 1).identity == "augment/1 seed=3 view=1"
    assert view.shape == (3, 3, 3)
    np.testing.assert_allclose(view[0, 0], [15.5550, 20.6522, 24.7125], atol=1e-3)
    np.testing.assert_allclose(view[-1, -1], [169.1069, 174.0467, 171.8385], atol=1e-3)
