"""Random views of an image: mirrored, cut out, a little brighter or paler.

A feature cache can hold the features of such a view. Then the recipe says which
(:attr:`View.identity` stands after the decoding), and the view is drawn from that and from the
content of the image, from nothing else: the same image has the same view in every cache of the
recipe, and a row still follows from its content and its recipe alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from extract.preprocess import LARGEST_PIXEL, Pixels

AUGMENTER = "augment/1"
"""Name and version of :func:`augment`; a change of its results is a change of the version."""

_SMALLEST_CROP = 0.8
_MOST_SHIFT = 0.05
_MOST_CONTRAST = 0.1
_MOST_TINT = 0.05


@dataclass(frozen=True)
class View:
    """One random view of every image; ``number`` tells those of one seed apart, from 0."""

    seed: int
    number: int

    @property
    def identity(self) -> str:
        """What a recipe records."""
        return f"{AUGMENTER} seed={self.seed} view={self.number}"

    def of(self, pixels: Pixels, content: bytes) -> NDArray[np.float32]:
        """Return the view of decoded pixels (h, w, 1|3) whose image has a SHA-256 (32 bytes)."""
        words = np.frombuffer(content, "<u4").tolist()
        drawn = np.random.SeedSequence([self.seed, self.number, *words])
        return augment(pixels, np.random.default_rng(drawn))


def augment(pixels: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a random view of decoded pixels (h, w, 1|3), before they are resized and scaled.

    It is mirrored left to right in half of the cases. A part of the same shape is cut out whose
    sides are a share of the image's drawn from [0.8, 1], anywhere in it. Contrast changes by up to
    a tenth, brightness by a twentieth of the range and each channel of a color image by a
    twentieth; what leaves [0, 255] is clipped. All draws are uniform.
    """
    height, width, n_channels = pixels.shape
    share = rng.uniform(_SMALLEST_CROP, 1)
    h, w = max(1, round(share * height)), max(1, round(share * width))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    view = pixels[top : top + h, left : left + w]
    if rng.random() < 1 / 2:
        view = view[:, ::-1]
    shift = rng.uniform(-_MOST_SHIFT, _MOST_SHIFT) * LARGEST_PIXEL
    contrast = rng.uniform(1 - _MOST_CONTRAST, 1 + _MOST_CONTRAST)
    tint = rng.uniform(1 - _MOST_TINT, 1 + _MOST_TINT, n_channels) if n_channels > 1 else 1.0
    middle = LARGEST_PIXEL / 2
    changed = (view.astype(np.float32) - middle) * np.float32(contrast) + np.float32(middle + shift)
    return np.clip(changed * np.asarray(tint, np.float32), 0, LARGEST_PIXEL)
