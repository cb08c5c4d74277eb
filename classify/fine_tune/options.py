"""What a user may choose about fine-tuning, and what of the head that they expect."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from classify.fine_tune.training import Schedule, TrainingSpec
from classify.results.runs import Run
from data_cache.errors import BackboneError, ParameterError, RecipeMismatchError, RunError
from extract.backbones import POOLED, Backbone
from extract.extractor import Extractor
from extract.preprocess import ResizeMode

_MORE_NAMES = ("augment", "from_cache", "views", "mixed_precision")


@dataclass(frozen=True)
class Demands:
    """What the user expects of the head's features; None where nothing is demanded."""

    backbone: str | None = None
    image_size: int | None = None
    resize_mode: ResizeMode | None = None

    def check(self, run: Run) -> None:
        """Raise :class:`RecipeMismatchError` where a run's features are others."""
        differences = [
            f"{name.replace('_', ' ')} {getattr(run.recipe, name)}, not {value}"
            for name, value in asdict(self).items()
            if value not in (None, getattr(run.recipe, name))
        ]
        if differences:
            raise RecipeMismatchError(
                f"the head of {run.path} learned from features of {'; '.join(differences)}: leave "
                "the option out, or give a head of such features"
            )


@dataclass(frozen=True)
class FineTuneOptions:
    """What the user may choose.

    Attributes
    ----------
    unfreeze_layers : layers of the backbone, the last ones, that are trained; pooling not counted
    learning_rate, epochs, batch_size, schedule : see :class:`.training.TrainingSpec`
    seed : of the order of the rows, the dropout, the random views and the rows that decide
    augment : show a random view of each image in each epoch; see :func:`extract.augment.augment`
    from_cache : train on what the frozen layers give for each image, computed once; see
        :mod:`.from_cache`
    views : so many random views of each training image to compute so, which the epochs take in
        turn; 0 for the images themselves
    activations : the folder that keeps what is computed so; None for one beside the output
    mixed_precision : compute in float16, on a GPU
    no_test : leave the test alone
    tensorboard : write the curves for TensorBoard into the run
    resume : go on with a fine-tuning that was interrupted
    overwrite : replace the run at the output, or begin an interrupted fine-tuning anew
    cache : the feature cache of the head; None for where it was when the head was trained
    weights : where the backbone's weights are; None for where the head's run found them
    demands : what the head's features are expected to be
    """

    unfreeze_layers: int = 20
    learning_rate: float = 1e-5
    epochs: int = 5
    batch_size: int = 64
    schedule: Schedule = "constant"
    seed: int = 0
    augment: bool = False
    from_cache: bool = False
    views: int = 0
    activations: Path | None = None
    mixed_precision: bool = False
    no_test: bool = False
    tensorboard: bool = False
    resume: bool = False
    overwrite: bool = False
    cache: Path | None = None
    weights: str | None = None
    demands: Demands = field(default_factory=Demands)

    def __post_init__(self) -> None:
        if self.unfreeze_layers < 0:
            raise ParameterError(f"unfreeze_layers is {self.unfreeze_layers}: expected 0 or more")
        self._check_from_cache()
        self.spec()

    @property
    def training(self) -> Mapping[str, Any]:
        """The choices that the result depends on."""
        names = ("learning_rate", "epochs", "batch_size", "schedule", "seed", "unfreeze_layers")
        return {name: getattr(self, name) for name in (*names, *_MORE_NAMES)}

    def _check_from_cache(self) -> None:
        """Refuse choices about kept activations that go against each other."""
        if self.views < 0:
            raise ParameterError(f"views is {self.views}: expected 0 or more")
        if self.from_cache and self.augment:
            raise ParameterError(
                "--augment shows a new view in each epoch, which no cache can hold: give --views K "
                "with --from-cache, for K views that take turns"
            )
        if not self.from_cache and (self.views or self.activations):
            raise ParameterError("--views and --activations go with --from-cache: give that too")

    def spec(self, label_smoothing: float = 0.0) -> TrainingSpec:
        """Return how the network is trained."""
        return TrainingSpec(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            schedule=self.schedule,
            label_smoothing=label_smoothing,
            seed=self.seed,
        )


def check_head(run: Run, demands: Demands) -> None:
    """Refuse a head that cannot be fine-tuned, or is not what the user expects.

    Raises
    ------
    RunError
        It was fitted to its validation rows too, so these can decide nothing.
    RecipeMismatchError
        Its features are others than expected.
    BackboneError
        Its features are not those of the pooled output.
    """
    refit = run.metrics.get("refit", "train")
    if refit != "train":
        raise RunError(
            f"the head of {run.path} was refitted (--refit {refit}), so it has learned from the "
            "validation rows, which are to decide: give one trained with --refit train"
        )
    demands.check(run)
    if run.recipe.feature_layer != POOLED:
        raise BackboneError(
            f"the head of {run.path} takes the features of layer {run.recipe.feature_layer}, and "
            f"fine-tuning goes on from those of {POOLED}: give a head that takes these"
        )


def keras_backbone(extractor: Extractor) -> Backbone:
    """Return the backbone of an extractor; refuse one that cannot be trained.

    Raises
    ------
    BackboneError
        It is an ONNX file.
    """
    if isinstance(extractor.backbone, Backbone):
        return extractor.backbone
    raise BackboneError(
        f"{extractor.backbone.path} is an ONNX file, which cannot be trained: fine-tuning needs a "
        "head on a backbone of the registry"
    )
