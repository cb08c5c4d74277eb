"""What fine-tuning brought forth, and the run that is written of it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.decision import Decision
from classify.fine_tune.job import Job
from classify.fine_tune.network import Network, make_forward
from classify.fine_tune.options import keras_backbone
from classify.fine_tune.rows import SourceRows
from classify.fine_tune.training import Trained
from classify.results import runs
from classify.results.plots import draw_learning_curves
from classify.results.runs import DENSE
from classify.results.tensorboard_log import write_curves
from classify.results.training import ScoredPart, TestScores, model_figures, package_versions
from classify.selection.sealed_test import SealedTest
from classify.statistics.calibration import fit_temperature
from classify.statistics.scoring import Score, score_logits
from data_cache.files import file_digest
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import Rows
from extract.extractor import make_extractor
from extract.weights import file_weights

TITLE = "Fine-tuned network"
_ATTEMPT = "fine-tuning"
"""Among the TensorBoard logs of a run whose probe was kept: what was tried."""

_PARAMETERS = ("dropout", "class_weight", "label_smoothing")
"""Hyperparameters of the head that hold for fine-tuning too."""


@dataclass(frozen=True)
class Tuned:
    """A network with the weights of its best epoch, and whether it beats the probe.

    Attributes
    ----------
    n_trained, n_frozen : parameters that training changed, and those that it left
    """

    network: Network
    trained: Trained
    decision: Decision
    n_trained: int
    n_frozen: int

    @property
    def validation_logits(self) -> NDArray[np.float32]:
        """Return the logits, (n, k), on the validation rows."""
        best: NDArray[np.float32] = self.trained.logits[self.trained.best_epoch - 1]
        return best


@dataclass(frozen=True)
class _TestImages:
    """The test images of a run, as what is under seal; see :class:`SealedTest`."""

    source: Path
    classes: tuple[str, ...]
    found: SourceRows

    @property
    def path(self) -> Path:
        return self.source

    @property
    def split_names(self) -> tuple[str, ...]:
        return (self.found.split,)

    def rows(self, split: str) -> Rows:
        del split
        return self.found.rows

    def features(self, split: str) -> Any:
        del split
        return None


def score_test(job: Job, tuned: Tuned) -> TestScores | None:
    """Open the seal of the test and score the network once; None where there is no test.

    With mixed precision it is scored in float32, as it will be used.
    """
    rows = job.rows.test
    if rows is None or job.options.no_test:
        return None
    images = _TestImages(Path(job.source.name), job.run.classes, rows)
    test = SealedTest(images, rows.split, job.log_beside)
    forward = make_forward(_in_float32(job, tuned.network), job.options.batch_size)
    logits = forward(job.images(rows), len(test))
    opened = test.open((runs.TUNED_KIND,), job.output)
    scores = {DENSE: _score(opened.labels, logits)}
    return TestScores(test.split, test.ids, opened.labels, scores, opened.scorings)


def write_tuned(folder: Path, job: Job, tuned: Tuned, test: TestScores | None) -> None:
    """Write the run of a fine-tuned network."""
    with job.clock.time("write"):
        tuned.network.trunk.save_weights(folder / runs.BACKBONE_FILE)
        tuned.network.head.save(folder / runs.MODEL_FILES[DENSE])
        runs.write_history(folder, tuned.trained.history)
        runs.write_split(folder, _ids_by_part(job, test), _learned_by(job, test))
        if test is not None:
            runs.write_test_predictions(folder, test.columns(job.run.classes))
        _draw(folder, job, tuned, test)
        if job.options.tensorboard:
            write_curves(folder / runs.TENSORBOARD_FOLDER, tuned.trained.history)
    runs.write_metrics(folder, _metrics(folder, job, tuned, test))


def write_probe(folder: Path, job: Job, tuned: Tuned) -> None:
    """Write the run of the probe that is kept: that of the head, and what was tried."""
    for one in job.run.path.iterdir():
        if one.name not in runs.RUN_FILES or one.name == runs.METRICS_FILE:
            continue
        copy = shutil.copytree if one.is_dir() else shutil.copy2
        copy(one, folder / one.name)
    kept = {name: value for name, value in job.run.metrics.items() if "format" not in name}
    if job.options.tensorboard:
        write_curves(folder / runs.TENSORBOARD_FOLDER / _ATTEMPT, tuned.trained.history)
    runs.write_metrics(folder, {**kept, "fine_tuning": _attempt(job, tuned)})


def _metrics(folder: Path, job: Job, tuned: Tuned, test: TestScores | None) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a fine-tuned run."""
    head = job.run.metrics
    return {
        "kind": runs.TUNED_KIND,
        **_model_figures(job, tuned, test),
        "selected": DENSE,
        "fine_tuning": _attempt(job, tuned),
        **_counts(job, tuned, test),
        **{name: head.get(name) for name in _PARAMETERS},
        **job.options.training,
        "no_test": job.options.no_test,
        "refit": "train",
        **_origin(folder, job, test),
        "seconds": job.clock.total,
        "seconds_by_part": job.clock.parts,
    }


def _model_figures(job: Job, tuned: Tuned, test: TestScores | None) -> dict[str, Any]:
    """Return the figures of the network: at the top, and as a run has them of each model."""
    validation = _score(job.validation.labels, tuned.validation_logits)
    figures = model_figures(DENSE, validation, test) | {"trainable_parameters": tuned.n_trained}
    more = {
        "fitted_to": "train",
        "epochs": tuned.trained.best_epoch,
        "temperature": fit_temperature(tuned.validation_logits, job.validation.labels),
        "temperature_from": "validation",
    }
    return {**figures, DENSE: {**figures, **more}}


def _counts(job: Job, tuned: Tuned, test: TestScores | None) -> dict[str, int]:
    """Return the numbers of rows, classes and parameters."""
    return {
        "n_train": len(job.training),
        "n_validation": len(job.validation),
        "n_dropped": 0,
        "n_test": 0 if test is None else len(test.labels),
        "n_classes": len(job.run.classes),
        "non_trainable_parameters": tuned.n_frozen,
    }


def _attempt(job: Job, tuned: Tuned) -> dict[str, Any]:
    """Return what was tried, from which probe, and how it was decided."""
    head = job.run.metrics
    name = job.run.selected
    return {
        **tuned.decision.facts,
        "head": str(job.run.path),
        "probe": name,
        "probe_test_accuracy": head.get(name, {}).get("test_accuracy"),
        "probe_test_accuracy_ci95": head.get(name, {}).get("test_accuracy_ci95"),
        "best_epoch": tuned.trained.best_epoch,
        "history": tuned.trained.history,
        "trained_parameters": tuned.n_trained,
        **job.options.training,
        "seconds": job.clock.total,
        "head_seconds": head.get("seconds"),
    }


def _origin(folder: Path, job: Job, test: TestScores | None) -> Mapping[str, Any]:
    """Return where everything came from, the recipe of the tuned features included."""
    recipe, provenance = tuned_recipe(folder / runs.BACKBONE_FILE, job)
    scorings = test and test.scorings
    return {
        "validation_drawn": job.run.metrics.get("validation_drawn", True),
        "test_split": None if test is None else test.split,
        "test_scorings": scorings and asdict(scorings),
        "classes": job.run.classes,
        "cache": job.run.metrics["cache"],
        "recipe": asdict(recipe),
        "provenance": asdict(provenance),
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tuned_recipe(path: Path, job: Job) -> tuple[Recipe, Provenance]:
    """Return recipe and provenance of features that tuned weights make, as read from their file.

    Raises
    ------
    WeightsError
        The file does not read back.
    """
    extractor, backbone = job.extractor, keras_backbone(job.extractor)
    weights = file_weights(path, backbone, f"{backbone.name}, fine-tuned on {job.source.name}")
    recipe = make_extractor(
        backbone,
        weights,
        extractor.preprocessing,
        extractor.decoding,
        numeric_class=extractor.recipe.numeric_class,
    ).recipe
    provenance = replace(
        job.run.provenance,
        source=job.source.name,
        weights=weights.description,
        weights_sha256=file_digest(path),
        weights_path="",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return recipe, provenance


def _in_float32(job: Job, network: Network) -> Network:
    """Return a network that computes in float32."""
    if not job.options.mixed_precision:
        return network
    copy = job.network(network.head)
    copy.trunk.set_weights(network.trunk.get_weights())
    return copy


def _score(labels: NDArray[np.int64], logits: NDArray[np.float32]) -> Score:
    """Measure logits, a column for each class."""
    return score_logits(logits, labels, np.arange(logits.shape[1]))


def _ids_by_part(job: Job, test: TestScores | None) -> dict[str, list[bytes]]:
    """Return the ids of each part."""
    return {
        "train": job.rows.training.rows.ids.tolist(),
        "validation": job.rows.validation.rows.ids.tolist(),
        "test": [] if test is None else test.ids.tolist(),
    }


def _learned_by(job: Job, test: TestScores | None) -> dict[str, list[str]]:
    """Return the models that were fitted to each row of each part."""
    n_test = 0 if test is None else len(test.labels)
    return {
        "train": [DENSE] * len(job.rows.training),
        "validation": [""] * len(job.rows.validation),
        "test": [""] * n_test,
    }


def _draw(folder: Path, job: Job, tuned: Tuned, test: TestScores | None) -> None:
    """Draw the curves, and the confusion on the test, else on validation."""
    draw_learning_curves(
        tuned.trained.history,
        None,
        folder / runs.CURVES_FILE,
        f"Learning curves of fine-tuning ({job.options.unfreeze_layers} layers)",
    )
    if test is not None:
        part = ScoredPart("test", test.labels, test.scores[DENSE])
    else:
        labels = job.validation.labels
        part = ScoredPart("validation", labels, _score(labels, tuned.validation_logits))
    part.draw_confusion(TITLE, job.run.classes, folder)
