"""Checkpoints: the whole state of a training after an epoch, in one file, whole or not there.

The file is HDF5: the values of all variables, those of the best epoch yet, and the logits on the
validation rows after each epoch are datasets with checksums; the history and the identity of the
training are JSON. Nothing in it can run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data_cache.errors import RunError
from data_cache.files import whole_file
from data_cache.hdf5 import datasets_within

FORMAT, FORMAT_VERSION = "headstart-checkpoint", 1
_FILE = "checkpoint.h5"


@dataclass
class Progress:
    """What became of the epochs so far.

    Attributes
    ----------
    history : a list a figure, an entry an epoch
    logits : for each epoch (m, k) float32, on the validation rows
    best_epoch : from 1; 0 before any
    best_figures : what it was judged by
    best : the values that the trained variables had after it
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    logits: list[NDArray[np.float32]] = field(default_factory=list)
    best_epoch: int = 0
    best_figures: tuple[float, ...] = ()
    best: list[NDArray] = field(default_factory=list)

    @property
    def n_epochs(self) -> int:
        """How many epochs are finished."""
        return len(self.logits)

    def add(
        self,
        row: Mapping[str, float],
        logits: NDArray[np.float32],
        figures: tuple[float, ...],
        trained: Sequence[Any],
    ) -> None:
        """Take note of an epoch, and of its weights where it is the best; the first always is."""
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)
        self.logits.append(logits)
        if self.best_epoch == 0 or figures < self.best_figures:
            self.best_epoch, self.best_figures = self.n_epochs, figures
            self.best = [one.numpy() for one in trained]


@dataclass(frozen=True)
class Checkpoints:
    """Keeps the last state of a training in a folder.

    Attributes
    ----------
    folder : made when it is first needed
    identity : everything that the training's result depends on, as JSON has it: a state of
        another training is refused
    """

    folder: Path
    identity: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """The file."""
        return self.folder / _FILE

    def save(self, progress: Progress, variables: Sequence[Any]) -> None:
        """Keep a state in place of the one before."""
        with whole_file(self.path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["format"], file.attrs["format_version"] = FORMAT, FORMAT_VERSION
            _write(file, "identity", np.bytes_(json.dumps(dict(self.identity))))
            _write(file, "history", np.bytes_(json.dumps(progress.history)))
            file.attrs["best_epoch"] = progress.best_epoch
            file.attrs["best_figures"] = np.array(progress.best_figures)
            _write(file, "logits", np.stack(progress.logits))
            for name, values in (
                ("variables", [one.numpy() for one in variables]),
                ("best", progress.best),
            ):
                for number, value in enumerate(values):
                    _write(file, f"{name}/{number:04d}", value)

    def load(self, variables: Sequence[Any]) -> Progress:
        """Set the variables as they were kept and return the progress; none where none was kept.

        With no variables it only tells the progress.

        Raises
        ------
        RunError
            The file is damaged, or of a training with another identity.
        """
        if not self.path.exists():
            return Progress()
        try:
            with h5py.File(self.path, "r") as file:
                datasets_within(file)
                return self._read(file, variables)
        except (OSError, KeyError, ValueError, TypeError) as error:
            if isinstance(error, RunError):
                raise
            raise RunError(
                f"{self.path} cannot be read ({error}): begin anew without --resume"
            ) from error

    def remove(self) -> None:
        """Remove all that is kept."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, file: h5py.File, variables: Sequence[Any]) -> Progress:
        """Read the file; no variables means that they are left alone."""
        if (file.attrs["format"], file.attrs["format_version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError("it is no checkpoint of this program's version")
        self._refuse_others(json.loads(file["identity"][()]))
        for number, variable in enumerate(variables):
            variable.assign(file[f"variables/{number:04d}"][()])
        return Progress(
            history=json.loads(file["history"][()]),
            logits=list(file["logits"][()]),
            best_epoch=int(file.attrs["best_epoch"]),
            best_figures=tuple(file.attrs["best_figures"].tolist()),
            best=[file[f"best/{number:04d}"][()] for number in range(len(file["best"]))],
        )

    def _refuse_others(self, found: Mapping[str, Any]) -> None:
        """Refuse a state of a training with another identity; name the first difference."""
        expected = json.loads(json.dumps(dict(self.identity)))
        for name in sorted({*found, *expected}):
            was, now = found.get(name), expected.get(name)
            if was != now:
                raise RunError(
                    f"{self.folder} is of a run with {name} {was!r}, not {now!r}: give the same "
                    "options, or begin anew without --resume and with --overwrite"
                )


def _write(file: h5py.File, name: str, value: Any) -> None:
    """Write a dataset, with a checksum where it is no scalar."""
    array = np.asarray(value)
    file.create_dataset(name, data=array, fletcher32=bool(array.ndim) or None)
