"""Cells: what each fit says of the test, in a file of its own, so that a study goes on later.

A cell knows nothing of the test's labels. It has a key, the digest of everything that it was made
from; a cell of another key is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from classify.compare_probes.refits import all_logits, refit
from classify.compare_probes.shared_rows import Entrant, ReadRows, SharedRows
from classify.probes import PROBES, Tuning
from classify.results.training import package_versions
from classify.selection.division import Part
from classify.study.plan import StudyPlan, Unit
from data_cache.console import progress
from data_cache.errors import DataError
from data_cache.files import file_digest, whole_file
from data_cache.seal import is_sealed, read_seal

CELLS_FOLDER = "cells"
_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """A finished fit: its unit and key, what was chosen, and the logits (n, k) on the test."""

    unit: Unit
    key: str
    hyperparameters: str
    logits: NDArray[np.float32]


def cell_path(folder: Path, unit: Unit) -> Path:
    """Return where the cell of a unit is kept in the folder of a study."""
    place = folder / CELLS_FOLDER / unit.data / unit.backbone
    return place / f"{unit.probe}-seed-{unit.seed}.npz"


def cell_key(unit: Unit, plan: StudyPlan, caches: Mapping[Path, str]) -> str:
    """Return the SHA-256 (64 hex digits) of all that decides a cell; ``caches`` are digests."""
    told = {
        **asdict(unit),
        "cache": caches[plan.data[unit.data][unit.backbone]],
        "first": caches[next(iter(plan.data[unit.data].values()))],
        "validation_split": plan.validation_split,
        "test_split": plan.test_split,
        "version": _VERSION,
        "headstart": package_versions().get("headstart"),
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def cache_digest(path: Path) -> str:
    """Return the digest of a cache: that of its seal, or of its bytes where it has none."""
    return read_seal(path).digest if is_sealed(path) else file_digest(path)


def read_cell(folder: Path, unit: Unit, key: str) -> Cell | None:
    """Read a finished cell; None where there is none of this key, or it is damaged."""
    try:
        with (
            cell_path(folder, unit).open("rb") as stream,
            np.load(stream, allow_pickle=False) as arrays,
        ):
            if str(arrays["key"]) != key:
                return None
            return Cell(unit, key, str(arrays["hyperparameters"]), arrays["logits"])
    except (OSError, KeyError, ValueError, BadZipFile):
        return None


def make_cells(
    folder: Path,
    units: Sequence[tuple[Unit, str]],
    shared: Mapping[tuple[str, int], SharedRows],
    plan: StudyPlan,
) -> None:
    """Fit units, each with its key, and write their cells; ``shared`` is by data set and seed.

    Raises
    ------
    DataError
        A probe cannot be fitted to a data set.
    """

    def of_cache(one: tuple[Unit, str]) -> tuple[str, str, int]:
        return one[0].data, one[0].backbone, one[0].seed

    with progress("Study", total=len(units), unit="fits") as advance:
        for (data, backbone, seed), together in groupby(units, of_cache):
            rows = shared[data, seed]
            entrant = rows.entrants[list(plan.data[data]).index(backbone)]
            for cell in _fitted(list(together), rows, entrant):
                _write(cell_path(folder, cell.unit), cell)
                advance(1)


def _fitted(
    units: Sequence[tuple[Unit, str]], shared: SharedRows, entrant: Entrant
) -> Iterator[Cell]:
    """Yield the cells of one cache and seed."""
    with ExitStack() as streams:
        rows = shared.read(entrant, streams)
    for unit, key in units:
        try:
            yield _fit(unit, key, rows, len(shared.classes))
        except DataError as error:
            raise DataError(f"{unit.data}, {unit.model}, seed {unit.seed}: {error}") from error


def _fit(unit: Unit, key: str, rows: ReadRows, n_classes: int) -> Cell:
    """Tune a probe on validation rows, refit it to all, and take its logits on the test."""
    training, validation, test = rows.training, rows.validation, rows.test
    if test is None:
        raise DataError("there is no test to score on")
    tuning = Tuning("accuracy", seed=unit.seed)
    tuned = PROBES[unit.probe](_pair(training), _pair(validation), tuning)
    model = refit(tuned.probe, rows.labeled, n_classes)
    logits = all_logits(model, test, n_classes)
    return Cell(unit, key, json.dumps(dict(tuned.hyperparameters)), logits)


def _pair(part: Part) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return features and labels as probes take them."""
    return part.features, part.labels


def _write(path: Path, cell: Cell) -> None:
    """Write a cell, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            allow_pickle=False,
            key=np.array(cell.key),
            hyperparameters=np.array(cell.hyperparameters),
            logits=cell.logits,
        )
