"""Parts of a source: which images one of many jobs takes, with no word between the jobs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_cache.errors import ParameterError

_PART = re.compile(r"(\d{1,9})/(\d{1,9})")
_N_DIGITS = 8


@dataclass(frozen=True)
class Part:
    """One of ``n_parts`` parts of a source, about as large as the others.

    An image is in the part that the SHA-256 of its id tells. So it stays there whatever is added
    to the source or removed from it, and a job need not read the images of the others.

    Attributes
    ----------
    number : 1 to ``n_parts``
    n_parts : 1 or more

    Raises
    ------
    ParameterError
        The number is none of a part.
    """

    number: int
    n_parts: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.n_parts:
            raise ParameterError(
                f"part {self}: of {self.n_parts} parts the first is 1/{self.n_parts} and the last "
                f"{self.n_parts}/{self.n_parts}"
            )

    @classmethod
    def parse(cls, text: str) -> Part:
        """Return the part that is written ``3/64``; raise :class:`ParameterError` for no such."""
        found = _PART.fullmatch(text)
        if found is None or int(found[2]) == 0:
            raise ParameterError(f"part {text!r}: one such as 3/64, the third of 64, is expected")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.n_parts}"

    def has(self, ids: NDArray[np.bytes_]) -> NDArray[np.bool_]:
        """Return which of the images, by their ids ((n,) bytes), are in this part, as (n,) bool."""
        return np.fromiter((self._has(one) for one in ids.tolist()), bool, len(ids))

    def _has(self, name: bytes) -> bool:
        digits = hashlib.sha256(b"headstart part " + name).digest()[:_N_DIGITS]
        return int.from_bytes(digits, "big") % self.n_parts == self.number - 1


@dataclass(frozen=True)
class PartListing:
    """How a part of a source lies in the whole.

    Attributes
    ----------
    part : which part it is
    order : for each split (n,) int64, numbers by which its rows and those of all other parts are
        brought into the order of the source
    digest : SHA-256 (64 hex digits) of what was listed, and how; all parts must have the same
    """

    part: Part
    order: Mapping[str, NDArray[np.int64]]
    digest: str

    @property
    def cut(self) -> tuple[int, str]:
        """What all parts that belong together have in common."""
        return self.part.n_parts, self.digest
