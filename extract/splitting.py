"""Which image goes where: divisions and draws that follow from what an image is.

Every image gets a number in [0, 1) from the SHA-256 of the seed and its key, which is its content,
or its group where it has one. The number does not depend on the other images, so an image never
changes sides when others are added, and copies of one image, like members of one group, are always
on the same side. Each class is divided in the same proportion, up to chance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import SourceError

TRAIN, VALIDATION, TEST = "train", "val", "test"

_DIGITS = 8


@dataclass(frozen=True)
class Fractions:
    """The parts that become validation and test; the rest is for training.

    Raises
    ------
    SourceError
        A part is not in [0, 1), or nothing is left for training.
    """

    validation: float = 0.0
    test: float = 0.0

    def __post_init__(self) -> None:
        for name, part in (
            ("--validation-fraction", self.validation),
            ("--test-fraction", self.test),
        ):
            if not 0 <= part < 1:
                raise SourceError(f"{name} {part:g}: a number from 0 to below 1 is expected")
        if self.validation + self.test >= 1:
            raise SourceError(
                f"--validation-fraction {self.validation:g} and --test-fraction {self.test:g} "
                "leave nothing for training"
            )


def divide(keys: Sequence[bytes], fractions: Fractions, seed: int) -> NDArray[np.str_]:
    """Return the split of each image, (n,): ``train``, ``val`` or ``test``.

    Parameters
    ----------
    keys : what an image is for this purpose: its content digest, or its group
    fractions : the expected parts; each image is drawn on its own, so the true ones vary by chance
    seed : another seed is another division
    """
    chance = chances(keys, "division", seed)
    splits = np.full(len(keys), TRAIN, "<U5")
    splits[chance < fractions.test + fractions.validation] = VALIDATION
    splits[chance < fractions.test] = TEST
    return splits


def draw_stratified(
    labels: NDArray[np.int64], keys: Sequence[bytes], limit: int, seed: int
) -> NDArray[np.int64]:
    """Draw ``limit`` images, each class in its share; return their positions in order.

    Shares are rounded by largest remainder (Hamilton), the larger class first in a tie. Within a
    class the images of the smallest numbers are taken, so a larger limit keeps those of a smaller.
    """
    if limit >= len(labels):
        return np.arange(len(labels))
    chance = chances(keys, "draw", seed)
    classes, counts = np.unique(labels, return_counts=True)
    quotas = _largest_remainder(counts, limit)
    taken = []
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        taken.append(members[np.argsort(chance[members], kind="stable")[:quota]])
    return np.sort(np.concatenate(taken))


def chances(keys: Sequence[bytes], purpose: str, seed: int) -> NDArray[np.float64]:
    """Return a number in [0, 1) for each key, independent between purposes and seeds."""
    start = hashlib.sha256(f"headstart {purpose} {seed} ".encode())
    digits = bytearray()
    for key in keys:
        sha256 = start.copy()
        sha256.update(key)
        digits += sha256.digest()[:_DIGITS]
    # 53 bits fill a float64; all 64 could round up to 1.
    return (np.frombuffer(digits, ">u8") >> np.uint64(11)) / float(1 << 53)


def _largest_remainder(counts: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Share ``total`` out in proportion to ``counts``; the shares are whole and sum to it."""
    exact = counts * (total / counts.sum())
    shares = np.floor(exact).astype(np.int64)
    order = np.lexsort((-counts, shares - exact))
    shares[order[: total - shares.sum()]] += 1
    return shares
