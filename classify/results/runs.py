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
from itertools import repeat
from operator import eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classify.stored.damage import SIGNS_OF_DAMAGE, words_of
from classify.stored.model import LogitsModel
from data_cache.errors import RunError
from data_cache.files import check_creatable, refuse_existing, whole_folder
from data_cache.recipe import Provenance, Recipe

if TYPE_CHECKING:
    from classify.estimators import LogitsClassifier

FORMAT, FORMAT_VERSION = "headstart-run", 1
HEAD_KIND, TUNED_KIND, BASELINE_KIND = "head", "fine-tuned", "baseline"
COMPARISON_KIND = "comparison"
"""What a run is, as ``metrics.json`` has it under ``kind``; a run without one is a head's."""

DENSE, LOGISTIC, BASELINE = "dense", "logistic_regression", "baseline"
"""Names of the models in a run, as in ``metrics.json`` and on the command line."""

MODEL_FILES = {DENSE: "head.keras", LOGISTIC: "logistic_regression.npz"}
PROBE_FILES = {
    **MODEL_FILES,
    "ridge": "ridge.npz",
    "discriminant": "discriminant.npz",
    "nearest_mean": "nearest_mean.npz",
    "neighbors": "neighbors.npz",
    "kernel_ridge": "kernel_ridge.npz",
    "dense_hidden": "dense_hidden.keras",
}
"""The file of each kind of probe; a comparison keeps one of them, that of its winner."""

METRICS_FILE, _SPLIT_FILE, HISTORY_FILE = "metrics.json", "split.csv", "history.csv"
CURVES_FILE, CONFUSION_FILE = "learning_curves.png", "confusion_matrix.png"
SWEEP_FILE = "sweep.csv"
COMPARISON_FILE, COMPARISON_TEXT_FILE = "comparison.csv", "comparison.md"
TUNING_FILE = "tuning.csv"
FOLDS_FILE, SUSPECTS_FILE = "folds.csv", "suspects.csv"
TENSORBOARD_FOLDER = "tensorboard"
BASELINE_FILE = "baseline.keras"
BACKBONE_FILE = "backbone.weights.h5"
"""In a fine-tuned run: the weights of the backbone as they became."""

REPORT_FILE = "report.html"
_PREDICTIONS_FILE = "test_predictions.csv"
_NEVER_LEARNED = ("test", "dropped")
RUN_FILES = frozenset(
    {
        *PROBE_FILES.values(),
        METRICS_FILE,
        _SPLIT_FILE,
        HISTORY_FILE,
        CURVES_FILE,
        CONFUSION_FILE,
        SWEEP_FILE,
        COMPARISON_FILE,
        COMPARISON_TEXT_FILE,
        TUNING_FILE,
        FOLDS_FILE,
        SUSPECTS_FILE,
        TENSORBOARD_FOLDER,
        BASELINE_FILE,
        BACKBONE_FILE,
        _PREDICTIONS_FILE,
        REPORT_FILE,
    }
)
"""Everything that a run may hold."""


@dataclass(frozen=True)
class ScoredRows:
    """Test rows, n of them: their ids, their classes, and the classes that a model predicted.

    ``confidences`` are the probabilities of what was predicted; empty where the file has none.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    predictions: tuple[str, ...]
    confidences: tuple[float, ...] = ()

    @property
    def right(self) -> tuple[bool, ...]:
        """Whether each prediction is right."""
        return tuple(map(eq, self.classes, self.predictions))


@dataclass(frozen=True)
class RunFolder:
    """A run of any kind that was read back.

    Attributes
    ----------
    path : the folder
    metrics : what ``metrics.json`` holds
    classes : names of the classes; a model's labels are positions in it
    selected : name of the model that won on validation
    """

    path: Path
    metrics: Mapping[str, Any]
    classes: tuple[str, ...]
    selected: str

    @property
    def kind(self) -> str:
        """What the run is of: ``head``, ``fine-tuned``, ``baseline`` or ``comparison``."""
        return str(self.metrics.get("kind", HEAD_KIND))

    def part_ids(self, part: str) -> tuple[str, ...]:
        """Return the ids of a part in their order.

        Parts are ``train``, ``validation``, ``test``, ``dropped`` and ``refit``, which are test
        rows that were learned from in the end, and so are a test no more.
        """
        with (self.path / _SPLIT_FILE).open(encoding="utf-8", newline="") as stream:
            return tuple(row["id"] for row in csv.DictReader(stream) if row["part"] == part)

    def learned_ids(self, model: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return the ids of the rows that a model was fitted to, and of those that it was not.

        Different splits may use the same id, so that one may be in both. Of a run that does not say
        which model learned what, all rows but those of the test count as learned.
        """
        with (self.path / _SPLIT_FILE).open(encoding="utf-8", newline="") as stream:
            rows = [
                (row["id"], row["part"], (row.get("learned_by") or "").split())
                for row in csv.DictReader(stream)
            ]
        is_told = any(models for _, _, models in rows)
        learned, spared = set[str](), set[str]()
        for one, part, models in rows:
            is_learned = model in models if is_told else part not in _NEVER_LEARNED
            (learned if is_learned else spared).add(one)
        return frozenset(learned), frozenset(spared)

    def test_predictions(self, model: str | None = None) -> ScoredRows | None:
        """Return what a model, by default the selected one, predicted of the test.

        None where the test was left alone, or the run is older than the file.

        Raises
        ------
        RunError
            The file is damaged, or has no such model.
        """
        path, model = self.path / _PREDICTIONS_FILE, model or self.selected
        if not path.exists():
            return None
        try:
            with path.open(encoding="utf-8", newline="") as stream:
                table = list(csv.DictReader(stream))
            rows = [(row["id"], row["class"], row[model]) for row in table]
            sure = [row[name] for row in table if (name := f"{model}_confidence") in row]
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"{path} cannot be read: {error}") from error
        except KeyError as error:
            raise RunError(f"{path} has no column {error}: train again") from error
        if None in (cell for row in (*rows, sure) for cell in row):
            raise RunError(f"{path} breaks off in the middle of a row: train again")
        if len(rows) != (n_test := self.metrics.get("n_test", len(rows))):
            raise RunError(f"{path} has {len(rows):,} of the {n_test:,} test rows: train again")
        ids, classes, predictions = zip(*rows, strict=True) if rows else ((), (), ())
        return ScoredRows(ids, classes, predictions, tuple(map(float, sure)))


@dataclass(frozen=True)
class Run(RunFolder):
    """A run whose models were fitted to features.

    Attributes
    ----------
    recipe, provenance : of the features
    """

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
        path = self.model_path(name)
        with reading_model(path):
            model = self._load(name, path)
        check_classes(self, name, model)
        return model

    def model_path(self, name: str) -> Path:
        """Return the file of a model, which may be missing.

        Of the models of a comparison the selected one was kept; its name may have that of its
        cache in front: ``photos:ridge``.

        Raises
        ------
        RunError
            The run has no such model.
        """
        is_comparison = self.kind == COMPARISON_KIND
        kept = (self.selected,) if is_comparison else tuple(MODEL_FILES)
        file = PROBE_FILES.get(name.rpartition(":")[2])
        if name not in kept or file is None:
            raise RunError(f"{self.path} has no model {name!r}: expected {' or '.join(kept)}")
        return self.path / file

    def _load(self, name: str, path: Path) -> LogitsClassifier:
        """Read a model; nothing in its file can run."""
        if path.suffix == ".keras":
            from classify.heads.dense import DenseHead

            return DenseHead.load(path, range(len(self.classes)))
        from classify.probes import LogisticRegressionProbe, load_probe

        return LogisticRegressionProbe.load(path) if name == LOGISTIC else load_probe(path)


def load_run(path: Path | str) -> Run:
    """Read a run folder whose models were fitted to features.

    Raises
    ------
    RunError
        There is no folder, it is no run, of a version that is not known, or without features.
    """
    folder = open_run(path)
    metrics = folder.metrics
    if folder.kind == BASELINE_KIND:
        raise RunError(
            f"{folder.path} is a baseline, a network from pixels to classes without a backbone: "
            "expected a run that learned from features, such as train-head writes"
        )
    try:
        return Run(
            path=folder.path,
            metrics=metrics,
            classes=folder.classes,
            selected=folder.selected,
            recipe=Recipe(**metrics["recipe"]),
            provenance=Provenance(**metrics["provenance"]),
        )
    except (KeyError, TypeError) as error:
        raise _not_whole(folder.path, error) from error


def open_run(path: Path | str) -> RunFolder:
    """Read a run folder of any kind.

    Raises
    ------
    RunError
        There is no folder, it is no run, or of a version that is not known.
    """
    path = Path(path)
    metrics = _read_metrics(path)
    try:
        _check_metrics(metrics)
        return RunFolder(path, metrics, tuple(metrics["classes"]), metrics["selected"])
    except (KeyError, TypeError) as error:
        raise _not_whole(path, error) from error


def _not_whole(path: Path, error: Exception) -> RunError:
    """Return the error for a run whose ``metrics.json`` lacks something."""
    return RunError(f"{path / METRICS_FILE} is not whole ({error}): train again")


def _check_metrics(metrics: Mapping[str, Any]) -> None:
    """Raise ``TypeError`` where the classes or the selected model are not what they should be."""
    classes = metrics["classes"]
    if not isinstance(classes, list) or not all(isinstance(one, str) for one in classes):
        raise TypeError("the classes are not a list of names")
    if len(set(classes)) != len(classes) or not classes[1:]:
        raise TypeError("the classes are not two or more different names")
    if not isinstance(metrics["selected"], str):
        raise TypeError("the selected model has no name")


@contextmanager
def reading_model(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file provokes in the body into a :class:`RunError`.

    Raises
    ------
    RunError
        The body failed; or something is at ``path`` that is no regular file, and might never end.
    """
    try:
        _expect_regular(path)
        yield
    except RunError:
        raise
    except SIGNS_OF_DAMAGE as error:
        raise RunError(f"{path} cannot be read: {words_of(error)}") from error


def _expect_regular(path: Path) -> None:
    """Raise :class:`RunError` where something is at ``path`` that is no regular file."""
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is no regular file: expected a model's, as training wrote it")


def check_classes(run: Run, name: str, model: LogitsModel) -> None:
    """Raise :class:`RunError` unless a model's labels are positions in the run's classes."""
    labels, n_classes = model.classes_, len(run.classes)
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0 or labels.max() >= n_classes:
        raise RunError(
            f"{run.model_path(name)} tells other classes apart than the {n_classes} of "
            f"{METRICS_FILE}: the files are not of one run"
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
    if foreign := _foreign_files(path):
        raise RunError(
            f"--overwrite replaces a run whole, and {path} holds {foreign[0]} too, which is not "
            "of a run: move that away, or choose another --output"
        )


def _foreign_files(run: Path) -> list[str]:
    """Return what is in a run's folder and is none of a run's own files, sorted."""
    names = [one.name for one in run.iterdir() if one.name not in RUN_FILES]
    logs = (one for one in (run / TENSORBOARD_FOLDER).rglob("*") if not one.is_dir())
    names += [str(one.relative_to(run)) for one in logs if ".tfevents." not in one.name]
    return sorted(names)


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
    (folder / METRICS_FILE).write_text(text + "\n", encoding="utf-8")


def write_history(folder: Path, history: Mapping[str, Sequence[float]]) -> None:
    """Write ``history.csv``: a row an epoch, from 1."""
    rows = enumerate(zip(*history.values(), strict=True), start=1)
    table = ((epoch, *figures) for epoch, figures in rows)
    write_table(folder / HISTORY_FILE, ["epoch", *history], table)


def write_split(
    folder: Path,
    parts: Mapping[str, Iterable[bytes]],
    learned_by: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Write ``split.csv``: the part that each id (UTF-8 bytes) had.

    ``learned_by`` names, for each row of a part, the models of the run that were fitted to it.
    """
    told = learned_by or {part: repeat("") for part in parts}
    rows = (
        (one.decode(), part, models)
        for part, ids in parts.items()
        for one, models in zip(ids, told[part], strict=False)
    )
    write_table(folder / _SPLIT_FILE, ["id", "part", "learned_by"], rows)


def write_test_predictions(folder: Path, rows: Mapping[str, Sequence[str]]) -> None:
    """Write ``test_predictions.csv`` from its columns.

    They are ``id``, ``class``, and for each model the names of the classes it predicted, and under
    its name with ``_confidence`` their probabilities.
    """
    write_table(folder / _PREDICTIONS_FILE, [*rows], zip(*rows.values(), strict=True))


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
        metrics = json.loads((path / METRICS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is no run: it has no readable {METRICS_FILE}") from error
    if not isinstance(metrics, dict) or metrics.get("format") != FORMAT:
        raise RunError(f"{path} is no run: its {METRICS_FILE} is something else's")
    if metrics.get("format_version") != FORMAT_VERSION:
        raise RunError(
            f"{path} is a run of format version {metrics.get('format_version')}; this program "
            f"reads version {FORMAT_VERSION}: use the program that wrote it"
        )
    return metrics
