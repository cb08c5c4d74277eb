"""RUN folders: what ``train-head`` leaves behind, and how it is read back.

A run is written whole or not at all. ``metrics.json`` says what it is, so that a folder that holds
anything else is neither read as a run nor replaced by one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from classify.estimators import LogitsClassifier
from data_cache.errors import RunError
from data_cache.files import check_creatable, refuse_existing, whole_folder
from data_cache.recipe import Provenance, Recipe

FORMAT, FORMAT_VERSION = "headstart-run", 1
DENSE, LOGISTIC = "dense", "logistic_regression"
"""Names of the models in a run, as in ``metrics.json`` and on the command line."""

LOADING_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    BadZipFile,
)
"""What a file that is damaged, or somebody else's, provokes in Keras and NumPy."""

MODEL_FILES = {DENSE: "head.keras", LOGISTIC: "logistic_regression.npz"}
_METRICS_FILE, _SPLIT_FILE, _HISTORY_FILE = "metrics.json", "split.csv", "history.csv"
CURVES_FILE, CONFUSION_FILE = "learning_curves.png", "confusion_matrix.png"
SWEEP_FILE = "sweep.csv"
RUN_FILES = frozenset(
    {
        *MODEL_FILES.values(),
        _METRICS_FILE,
        _SPLIT_FILE,
        _HISTORY_FILE,
        CURVES_FILE,
        CONFUSION_FILE,
        SWEEP_FILE,
    }
)
"""Everything that a run may hold."""


@dataclass(frozen=True)
class Run:
    """A run that was read back.

    Attributes
    ----------
    path : the folder
    metrics : what ``metrics.json`` holds
    classes : names of the classes; a model's labels are positions in it
    selected : name of the model that won on validation
    recipe, provenance : of the features that the models were fitted to
    """

    path: Path
    metrics: Mapping[str, Any]
    classes: tuple[str, ...]
    selected: str
    recipe: Recipe
    provenance: Provenance

    def model(self, name: str | None = None) -> LogitsClassifier:
        """Return a fitted model: features (n, d) -> positions in ``classes``; or the selected one.

        Raises
        ------
        RunError
            The run has no such model, or its file is missing or damaged.
        """
        name = name or self.selected
        if name not in MODEL_FILES:
            raise RunError(
                f"{self.path} has no model {name!r}: expected {' or '.join(MODEL_FILES)}"
            )
        try:
            model = self._load(name)
        except RunError:
            raise
        except LOADING_ERRORS as error:
            words = " ".join(str(error).split())
            raise RunError(f"{self.path / MODEL_FILES[name]} cannot be read: {words}") from error
        check_classes(self, name, model)
        return model

    def part_ids(self, part: str) -> tuple[str, ...]:
        """Return the ids of ``train``, ``validation``, ``test`` or ``dropped``, in their order."""
        with (self.path / _SPLIT_FILE).open(encoding="utf-8", newline="") as stream:
            return tuple(row["id"] for row in csv.DictReader(stream) if row["part"] == part)

    def _load(self, name: str) -> LogitsClassifier:
        """Read a model; nothing in its file can run."""
        path = self.path / MODEL_FILES[name]
        if name == LOGISTIC:
            from classify.probes import LogisticRegressionProbe

            return LogisticRegressionProbe.load(path)
        from classify.heads import DenseHead

        return DenseHead.load(path, range(len(self.classes)))


def load_run(path: Path | str) -> Run:
    """Read a run folder.

    Raises
    ------
    RunError
        There is no folder, it is no run, or of a version that is not known.
    """
    path = Path(path)
    metrics = _read_metrics(path)
    try:
        _check_metrics(metrics)
        return Run(
            path=path,
            metrics=metrics,
            classes=tuple(metrics["classes"]),
            selected=metrics["selected"],
            recipe=Recipe(**metrics["recipe"]),
            provenance=Provenance(**metrics["provenance"]),
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{path / _METRICS_FILE} is not whole ({error}): train again") from error


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` where the classes or the selected model are not what they should be."""
    classes = metrics["classes"]
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise TypeError("the classes are not a list of names")
    if len(set(classes)) != len(classes) or not classes[1:]:
        raise TypeError("the classes are not two or more different names")
    if not isinstance(metrics["selected"], str):
        raise TypeError("the selected model has no name")


def check_classes(run: Run, name: str, model: LogitsClassifier) -> None:
    """Raise :class:`RunError` unless a model's labels are positions in the run's classes."""
    labels, n_classes = model.classes_, len(run.classes)
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0 or labels.max() >= n_classes:
        raise RunError(
            f"{run.path / MODEL_FILES[name]} tells other classes apart than the {n_classes} of "
            f"{_METRICS_FILE}: the files are not of one run"
        )


def check_output(path: Path, *, overwrite: bool) -> None:
    """See that a run may be written to ``path``; ``overwrite`` replaces runs and nothing else.

    Raises
    ------
    OutputExistsError
        Something is there, and ``overwrite`` is false.
    OutputError
        Nothing can be created there.
    RunError
        Something is there that is no run, nor an empty folder.
    """
    refuse_existing(path, overwrite=overwrite)
    check_creatable(path.resolve())
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    try:
        _read_metrics(path)
    except RunError as error:
        raise RunError(
            f"--overwrite replaces runs only, and {error}: choose another --output"
        ) from error
    foreign = sorted(one.name for one in path.iterdir() if one.name not in RUN_FILES)
    if foreign:
        raise RunError(
            f"--overwrite replaces a run whole, and {path} holds {foreign[0]} too, which is not "
            "of a run: move that away, or choose another --output"
        )


@contextmanager
def new_run(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a folder to fill, which becomes the run at ``path`` if the body succeeds."""
    check_output(path, overwrite=overwrite)
    with whole_folder(path.resolve(), overwrite=overwrite) as folder:
        yield folder


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics.json``, with the format's name and version in front."""
    marked = {"format": FORMAT, "format_version": FORMAT_VERSION, **metrics}
    text = json.dumps(marked, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / _METRICS_FILE).write_text(text + "\n", encoding="utf-8")


def write_history(folder: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Write ``history.csv``: a row an epoch, from 1."""
    rows = enumerate(zip(*history.values(), strict=True), start=1)
    table = ((epoch, *figures) for epoch, figures in rows)
    write_table(folder / _HISTORY_FILE, ["epoch", *history], table)


def write_split(folder: Path, parts: Mapping[str, Iterable[bytes]]) -> None:
    """Write ``split.csv``: the part that each id (UTF-8 bytes) had."""
    rows = ((one.decode(), part) for part, ids in parts.items() for one in ids)
    write_table(folder / _SPLIT_FILE, ["id", "part"], rows)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a CSV file in UTF-8."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def _read_metrics(path: Path) -> Mapping[str, Any]:
    """Return what ``metrics.json`` of a run folder holds."""
    if not path.is_dir():
        raise RunError(f"{path} is {'a file' if path.exists() else 'not there'}: expected a run")
    try:
        metrics = json.loads((path / _METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is no run: it has no readable {_METRICS_FILE}") from error
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        raise RunError(f"{path} is no run: its {_METRICS_FILE} is something else's")
    if metrics.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"{path} is a run of format version {metrics.get('format_version')}; this program "
            f"reads version {FORMAT_VERSION}: use the program that wrote it"
        )
    return metrics
