"""A fine-tuning put together: head, images and backbone, found and fitting each other."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from sklearn.utils.class_weight import compute_sample_weight

from classify.fine_tune.assembly import assemble
from classify.fine_tune.checkpoints import Checkpoints
from classify.fine_tune.network import LabeledRows, Network
from classify.fine_tune.options import FineTuneOptions, check_head, keras_backbone
from classify.fine_tune.pixels import Imaging, PixelInputs, Room
from classify.fine_tune.rows import RunRows, SourceRows
from classify.fine_tune.training import TrainingSpec
from classify.heads.dense import DenseHead
from classify.predict.run import run_extractor
from classify.results.runs import DENSE, MODEL_FILES, Run, load_run
from classify.results.training import Clock
from data_cache.console import say
from data_cache.errors import RunError
from data_cache.files import file_digest
from extract.extractor import Extractor
from extract.sources import Source

_FOLDER_ENDING = ".fine-tuning"


@dataclass(frozen=True)
class Job:
    """What is to be fine-tuned, on which images, and how.

    Attributes
    ----------
    run : has the head
    rows : the run's rows in the source
    extractor : what made the head's features
    output : the run to write
    """

    run: Run
    source: Source
    rows: RunRows
    extractor: Extractor
    options: FineTuneOptions
    output: Path
    clock: Clock = field(default_factory=Clock)

    @classmethod
    def open(cls, source: Source, head: Path, output: Path, options: FineTuneOptions) -> Job:
        """Find everything; refuse what does not fit.

        Raises
        ------
        HeadstartError
            See :func:`.options.check_head`, :meth:`.rows.RunRows.find` and
            :func:`extract.extractor.open_extractor`.
        """
        run = load_run(head)
        check_head(run, options.demands)
        if not (run.path / MODEL_FILES[DENSE]).is_file():
            raise RunError(f"{run.path} has no Dense head to start from: train one with train-head")
        rows = RunRows.find(run, source.manifest, source.name)
        extractor = run_extractor(run, options.weights)
        keras_backbone(extractor)
        if rows.n_others:
            say(f"{source.name} has {rows.n_others:,} images that {run.path} has not: left out")
        return cls(run, source, rows, extractor, options, output)

    @property
    def folder(self) -> Path:
        """Where the state is kept until the run is written."""
        return state_folder(self.output)

    @property
    def log_beside(self) -> Path:
        """The file beside which scorings of the test are counted: the head's cache."""
        return self.options.cache or Path(self.run.metrics["cache"])

    @property
    def spec(self) -> TrainingSpec:
        """How the network is trained: with the head's own smoothing of the labels."""
        return self.options.spec(float(self.run.metrics.get("label_smoothing", 0)))

    @cached_property
    def training(self) -> LabeledRows:
        """The training images, with the weights that the head gives to its classes."""
        seed = self.options.seed if self.options.augment else None
        labels = self.rows.training.rows.labels
        weights = None
        if (class_weight := self.run.metrics.get("class_weight")) is not None:
            weights = compute_sample_weight(class_weight, labels).astype(np.float32)
        return LabeledRows(self.images(self.rows.training, seed), labels, weights)

    @cached_property
    def validation(self) -> LabeledRows:
        """The validation images."""
        rows = self.rows.validation
        return LabeledRows(self.images(rows), rows.rows.labels)

    def images(self, rows: SourceRows, view_seed: int | None = None) -> PixelInputs:
        """Return the images of rows, as the network takes them."""
        extractor = self.extractor
        imaging = Imaging(extractor.decoding, extractor.preprocessing, self._room, view_seed)
        return PixelInputs(self.source, rows, imaging)

    def head(self) -> Any:
        """Return the run's Dense head, a Keras model: features (n, d) -> logits (n, k).

        Raises
        ------
        RunError
            Its file is missing or damaged.
        """
        return cast(DenseHead, self.run.model(DENSE)).model_

    def network(self, head: Any, *, mixed_precision: bool = False) -> Network:
        """Return the backbone, as it was when features were extracted, and a head."""
        return assemble(
            keras_backbone(self.extractor),
            self.extractor.weights,
            self.run.recipe.image_size,
            head,
            mixed_precision=mixed_precision,
        )

    def checkpoints(self) -> Checkpoints:
        """Return where the state is kept; a state of another fine-tuning is refused there."""
        return Checkpoints(self.folder, self._identity())

    def _identity(self) -> Mapping[str, Any]:
        """Return all that the result depends on."""
        return {
            **self.options.training,
            "head": file_digest(self.run.path / MODEL_FILES[DENSE]),
            "probe": self.run.selected,
            "recipe of the head's features": self.run.recipe.digest(),
            "training images": _digest(self.rows.training),
            "validation images": _digest(self.rows.validation),
        }

    @cached_property
    def _room(self) -> Room:
        """The room for pixels, which all images share."""
        return Room()


def state_folder(output: Path) -> Path:
    """Return the folder beside a run in which its fine-tuning keeps its state."""
    return output.with_name(output.name + _FOLDER_ENDING)


def _digest(rows: SourceRows) -> str:
    """Return what rows are known by: the SHA-256 of their contents and labels, in their order."""
    running = hashlib.sha256(rows.rows.content.tobytes())
    running.update(rows.rows.labels.astype("<i8").tobytes())
    return running.hexdigest()
