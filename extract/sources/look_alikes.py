"""Images that look alike, joined into groups before a source is divided.

There are no features yet, so likeness is the correlation of thumbnails of 16 x 16 pixels in color.
Of the 1.3 million pairs among 1,597 photos of cats, dogs, ants and bees the one pair of true
copies has 0.9995 and no other more than 0.92; recompressing a photo to JPEG quality 30 leaves at
least 0.998, halving its sides 0.999, a WebP at a third of the size 0.992, a change of brightness
0.97. Cropping by 10%, mirroring and the loss of color are not seen. Sets whose images differ only
in detail (scans, products on white) have more in common than that: look at the groups there.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import BadImageError
from data_cache.neighbors import connected, pairs_above, unit_vectors
from data_cache.rows import Rows
from extract.decode import decode
from extract.preprocess import SCALINGS, Preprocessing, preprocess
from extract.sources.base import Raw

LIKENESS = 0.98
"""The correlation from which two images are taken for copies of one."""

_THUMBNAIL = Preprocessing(SCALINGS["identity"], image_size=16)
_N_DECODERS = 4


def joined_groups(rows: Rows, read: Callable[[int], Raw]) -> NDArray[np.bytes_]:
    """Return a group for each row, (n,) bytes: rows of one group, or that look alike, share it.

    A chain of likenesses is one group. It is called after the smallest of its members' contents, so
    it keeps its name, and its side of a division, unless a new member has a smaller one.

    Parameters
    ----------
    rows : all rows of the source
    read : returns the image of a row; one that cannot be read or decoded is alike to no other
    """
    pairs = pairs_above(_thumbnails(len(rows), read), LIKENESS).tolist()
    pairs += _equal_pairs(rows.content.view("S32").reshape(-1))
    if rows.groups is not None:
        pairs += _equal_pairs(rows.groups)
    group = connected(len(rows), pairs)
    names: dict[int, str] = {}
    for first, content in zip(group.tolist(), rows.content, strict=True):
        name = content.tobytes().hex()
        names[first] = min(name, names.get(first, name))
    return np.array([names[first].encode() for first in group.tolist()])


def _thumbnails(n_rows: int, read: Callable[[int], Raw]) -> NDArray[np.float32]:
    """Return the thumbnails, (n, 768), without their mean and of length 1; 0 for the unreadable."""
    thumbnails = np.zeros((n_rows, 3 * _THUMBNAIL.image_size**2), np.float32)

    def make(row: int) -> None:
        try:
            pixels = decode(read(row))
            thumbnails[row] = preprocess(pixels[None], _THUMBNAIL).reshape(-1)
        except BadImageError:
            return

    with ThreadPoolExecutor(_N_DECODERS, thread_name_prefix="headstart-thumbnail") as pool:
        list(pool.map(make, range(n_rows)))
    return unit_vectors(thumbnails - thumbnails.mean(axis=1, keepdims=True))


def _equal_pairs(values: NDArray[np.bytes_]) -> list[tuple[int, int]]:
    """Return the pairs of neighbors among rows of equal value."""
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    return list(zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True))
