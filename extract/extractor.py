"""Everything that makes features of one recipe, and the way back from a recipe to it.

Whoever has features knows their :class:`~data_cache.recipe.Recipe` only. New images need features
made in just that way, so :func:`open_extractor` finds every part again and compares it; nothing is
taken on trust.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_cache.errors import RecipeMismatchError, WeightsError
from data_cache.recipe import Recipe
from extract.augment import AUGMENTER, View
from extract.backbones import Backbone, open_backbone
from extract.decode import DecodeOptions
from extract.engines import Engine, choose_engine
from extract.onnx_backbone import PREFIX, OnnxBackbone
from extract.preprocess import RESIZE_MODES, Preprocessing
from extract.weights import IMAGENET, Weights, find_weights

MIXED_PRECISION, FLOAT32 = "mixed_float16", "float32"
"""Numeric classes of a recipe."""


@dataclass(frozen=True)
class WeightsChoice:
    """Where the user says that a recipe's weights are.

    Attributes
    ----------
    weights : ``imagenet``, ``random`` or the path of a file; for features of a backbone that is an
        ONNX file, the path of that
    preprocess : the JSON file that says how pixels are scaled for such an ONNX file
    """

    weights: str = IMAGENET
    preprocess: Path | None = None


@dataclass(frozen=True)
class Extractor:
    """Everything that makes features of one recipe; ``view`` is None for the images themselves."""

    recipe: Recipe
    backbone: Backbone | OnnxBackbone
    weights: Weights
    preprocessing: Preprocessing
    decoding: DecodeOptions
    view: View | None = None

    def start_engine(self, name: str = "auto") -> Engine:
        """Load the backbone; see :func:`extract.engines.choose_engine`."""
        return choose_engine(
            name,
            self.backbone,
            self.weights,
            self.recipe.image_size,
            mixed_precision=self.recipe.numeric_class == MIXED_PRECISION,
        )


def make_extractor(
    backbone: Backbone | OnnxBackbone,
    weights: Weights,
    preprocessing: Preprocessing,
    decoding: DecodeOptions,
    *,
    numeric_class: str = FLOAT32,
    view: View | None = None,
) -> Extractor:
    """Put together what makes features, and the recipe that it amounts to."""
    recipe = Recipe(
        backbone=backbone.name,
        weights_digest=weights.digest,
        image_size=preprocessing.image_size,
        preprocessing=preprocessing.identity,
        decoding=f"{decoding.identity} {view.identity}" if view else decoding.identity,
        resize_mode=preprocessing.resize_mode,
        feature_layer=backbone.feature_layer,
        numeric_class=numeric_class,
    )
    return Extractor(recipe, backbone, weights, preprocessing, decoding, view)


def open_extractor(recipe: Recipe, choice: WeightsChoice | None = None) -> Extractor:
    """Find again what a recipe names; no backbone is loaded yet.

    Raises
    ------
    RecipeMismatchError
        This program has another version of a step, or no such step.
    WeightsError
        The weights are others than the recipe's, or cannot be had.
    BackboneError
        The backbone is unknown.
    """
    choice = choice or WeightsChoice()
    decoding = _decoding(recipe)
    backbone = _backbone(recipe, choice)
    weights = _weights(recipe, backbone, choice)
    preprocessing = Preprocessing(backbone.scaling, recipe.image_size, recipe.resize_mode)  # type: ignore[arg-type]
    here = make_extractor(
        backbone, weights, preprocessing, decoding, numeric_class=recipe.numeric_class
    )
    if differences := recipe.differences(here.recipe):
        raise RecipeMismatchError(
            f"features like those of the recipe cannot be made here: {'; '.join(differences)}: "
            "use the version of this program that made them, or extract and train again"
        )
    return here


def _decoding(recipe: Recipe) -> DecodeOptions:
    """Return the recipe's decoding, after the steps that are nothing but names were checked."""
    if AUGMENTER.partition("/")[0] in str(recipe.decoding):
        raise RecipeMismatchError(
            f"the features are of random views ({recipe.decoding}): what learned from them cannot "
            "be given others; train on the features of the images themselves"
        )
    try:
        _check_names(recipe)
        return DecodeOptions.from_identity(recipe.decoding)
    except (ValueError, AttributeError) as error:
        raise RecipeMismatchError(f"the recipe is not one of this program: {error}") from error


def _check_names(recipe: Recipe) -> None:
    """Raise ``ValueError`` for a step that no version of this program has had."""
    if recipe.resize_mode not in RESIZE_MODES:
        raise ValueError(f"resize mode {recipe.resize_mode!r}, expected {', '.join(RESIZE_MODES)}")
    if recipe.numeric_class not in (FLOAT32, MIXED_PRECISION):
        raise ValueError(f"numeric class {recipe.numeric_class!r}, expected {FLOAT32}")
    if type(recipe.image_size) is not int or recipe.image_size < 1:
        raise ValueError(f"image size {recipe.image_size!r}, expected a whole number of pixels")
    for what, name in (("backbone", recipe.backbone), ("feature layer", recipe.feature_layer)):
        if type(name) is not str:
            raise ValueError(f"{what} {name!r}, expected a name")


def _backbone(recipe: Recipe, choice: WeightsChoice) -> Backbone | OnnxBackbone:
    """Open the recipe's backbone."""
    if recipe.backbone != OnnxBackbone.name:
        return open_backbone(recipe.backbone, choice.preprocess, recipe.feature_layer)
    if choice.weights == IMAGENET:
        raise WeightsError(
            "the features come from an ONNX file: name it with --weights FILE, and its JSON file "
            "with --preprocess"
        )
    return open_backbone(PREFIX + choice.weights, choice.preprocess)


def _weights(recipe: Recipe, backbone: Backbone | OnnxBackbone, choice: WeightsChoice) -> Weights:
    """Find the weights; refuse others than the recipe's."""
    spec = IMAGENET if isinstance(backbone, OnnxBackbone) else choice.weights
    weights = find_weights(spec, backbone, recipe.image_size)
    if weights.digest != recipe.weights_digest:
        raise WeightsError(
            f"the weights are {weights.description}, digest {weights.digest[:12]}…, but the "
            f"features were made with those of digest {str(recipe.weights_digest)[:12]}…: name "
            "their file with --weights FILE"
        )
    return weights
