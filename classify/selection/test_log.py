"""How often a test split was looked at: a line for every scoring, in a small log beside the cache.

The log is ``CACHE.scorings.jsonl``, one JSON object a line, only ever appended to. A test split is
known by the digest of its ids, so the log holds for a cache that was moved together with it, or
made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import filelock
import numpy as np
from numpy.typing import NDArray

from data_cache.console import warn


@dataclass(frozen=True)
class Scorings:
    """Places of the models just scored among all that were ever scored on the test, from 1."""

    first: int
    last: int

    def sentence(self) -> str:
        """Say it in words: ``This is the 17th model scored on this test``."""
        if self.first == self.last:
            return f"This is the {ordinal(self.last)} model scored on this test"
        joint = "and" if self.last == self.first + 1 else "to"
        return (
            f"These are the {ordinal(self.first)} {joint} {ordinal(self.last)} models scored "
            "on this test"
        )


def log_path(cache: Path) -> Path:
    """Return where the scorings on a cache's test splits are logged."""
    return cache.with_name(f"{cache.name}.scorings.jsonl")


def test_digest(ids: NDArray[np.bytes_]) -> str:
    """Return what a test split is known by: the SHA-256 of its ids (n,), sorted, a line each."""
    return hashlib.sha256(b"\n".join(sorted(ids.tolist()))).hexdigest()


def record_scorings(
    cache: Path, ids: NDArray[np.bytes_], models: Sequence[str], run: Path
) -> Scorings | None:
    """Append the scoring of ``models`` to the log; return their places.

    Any number of processes may do so at once. Where nothing can be written beside the cache the
    user is warned, and None is returned.
    """
    path, test = log_path(cache), test_digest(ids)
    record = {
        "test": test,
        "models": list(models),
        "run": str(run),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            _append(path, json.dumps(record))
            n_scored = sum(len(one["models"]) for one in _records(path) if one["test"] == test)
    except OSError as error:
        warn(f"{path} cannot be written ({error.strerror}): this scoring of the test is uncounted")
        return None
    return Scorings(n_scored - len(models) + 1, n_scored)


def ordinal(number: int) -> str:
    """Return ``1st``, ``2nd``, ``3rd``, ``4th``, ``11th``, ..."""
    teens = range(11, 14)
    endings = {1: "st", 2: "nd", 3: "rd"}
    ending = "th" if number % 100 in teens else endings.get(number % 10, "th")
    return f"{number:,}{ending}"


def _append(path: Path, line: str) -> None:
    """Append a line; one that a killed writer left unfinished stays on a line of its own."""
    with path.open("a+b") as stream:
        if stream.tell():
            stream.seek(-1, 2)
            if stream.read() != b"\n":
                stream.write(b"\n")
        stream.write(line.encode() + b"\n")


def _records(path: Path) -> Iterator[dict]:
    """Yield the records of a log, without lines that are none."""
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"test", "models"} <= record.keys():
            yield record
