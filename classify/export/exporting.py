"""The library call behind ``export-model``: a run in, a checked file and its model card out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from classify.estimators import LogitsClassifier
from classify.export.card import model_card
from classify.export.description import Description
from classify.export.formats import (
    Format,
    InputType,
    KerasFormat,
    OnnxFormat,
    SavedModelFormat,
)
from classify.export.graph import Plan
from classify.export.head import dense_layers
from classify.export.images import Sample, draw, open_place
from classify.export.parity import N_IMAGES, Parity, check_parity
from classify.runs import Run, load_run
from data_cache.cache import FeatureCache
from data_cache.console import say
from data_cache.errors import (
    ExportError,
    OutputExistsError,
    ParameterError,
    RecipeMismatchError,
)
from data_cache.files import TEMPORARY_MARK, refuse_existing, whole_file, whole_folder
from extract.backbones import Backbone
from extract.extractor import Extractor, WeightsChoice, open_extractor
from extract.weights import IMAGENET, RANDOM

FORMATS = ("keras", "savedmodel", "onnx")
CARD_NAME = "MODEL_CARD.md"
_SAVED_MODEL_FILE = "saved_model.pb"


@dataclass(frozen=True)
class ExportOptions:
    """What a user may choose about an export.

    Attributes
    ----------
    format : one of :data:`FORMATS`
    model : name of the model in the run; None for the selected one
    weights : ``imagenet``, ``random`` or a file: where the backbone's weights are; None looks for
        what the run names
    cache : the feature cache; None for where it was when the run was trained
    images : a folder or a source that holds the images of the cache; None for where they were
    input_type : of the pixels that an ONNX file takes
    overwrite : replace what an earlier export wrote
    """

    format: str
    model: str | None = None
    weights: str | None = None
    cache: Path | None = None
    images: Path | None = None
    input_type: InputType = "uint8"
    overwrite: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written, and the proof that it agrees."""

    path: Path
    card: Path
    parities: tuple[Parity, ...]


def export_model(run: Path, output: Path, options: ExportOptions) -> Exported:
    """Write a run as one model, from raw images to probabilities, once it agrees with the run.

    Raises
    ------
    ParameterError
        The format is not known, or ``output`` has another suffix than its files.
    OutputExistsError
        ``output`` exists, and ``overwrite`` is false or it is no earlier export.
    RunError, CacheError, BackboneError, WeightsError, SourceError
        The run, its cache, its backbone or its images cannot be had again.
    ExportError
        The format cannot hold the model, or the file disagrees with the run; nothing was written.
    """
    file_format = _format(options)
    card = _check_output(output, file_format, overwrite=options.overwrite)
    opened = load_run(run)
    model = opened.model(options.model)
    extractor = _extractor(opened, options.weights)
    plan = _plan(opened, extractor, model)
    sample = _sample(opened, extractor, options)
    description = Description(
        opened,
        options.model or opened.selected,
        tuple(opened.classes[label] for label in model.classes_),
        extractor,
    )
    with _scratch(output) as folder:
        path = folder / f"model{file_format.suffix}"
        file_format.write(plan, path, description.to_json())
        parities = _compare(file_format, path, sample, model)
        _publish(path, output, card, model_card(description, parities))
    return Exported(output, card, parities)


def _format(options: ExportOptions) -> Format:
    """Return the format that was asked for."""
    if options.format == "onnx":
        return OnnxFormat(options.input_type)
    formats: dict[str, Format] = {"keras": KerasFormat(), "savedmodel": SavedModelFormat()}
    if options.format not in formats:
        raise ParameterError(f"unknown format {options.format!r}: there are {', '.join(FORMATS)}")
    return formats[options.format]


def _check_output(output: Path, file_format: Format, *, overwrite: bool) -> Path:
    """Return where the card goes, after seeing that both may be written."""
    if file_format.suffix and output.suffix != file_format.suffix:
        raise ParameterError(
            f"--output {output}: expected a name that ends in {file_format.suffix}"
        )
    refuse_existing(output, overwrite=overwrite)
    if not file_format.suffix:
        if output.exists() and not (output / _SAVED_MODEL_FILE).is_file():
            raise OutputExistsError(f"{output} is no SavedModel: choose another --output")
        return output / CARD_NAME
    if output.is_dir():
        raise OutputExistsError(f"{output} is a folder: choose another --output")
    card = output.with_name(f"{output.name}.{CARD_NAME}")
    refuse_existing(card, overwrite=overwrite)
    return card


def _plan(run: Run, extractor: Extractor, model: LogitsClassifier) -> Plan:
    """Return what becomes one graph.

    Raises
    ------
    ExportError
        The backbone is a file of the user's own, or the head has no place in a graph.
    """
    if not isinstance(extractor.backbone, Backbone):
        raise ExportError(
            f"{run.path} learnt from the features of an ONNX file, which cannot be put into "
            "another model: expected a backbone of the registry"
        )
    return Plan(extractor.backbone, extractor.weights, extractor.preprocessing, dense_layers(model))


def _extractor(run: Run, weights: str | None) -> Extractor:
    """Find what made the run's features again."""
    described = run.provenance.weights
    spec = weights or (RANDOM if described.startswith(RANDOM) else IMAGENET)
    return open_extractor(run.recipe, WeightsChoice(spec))


def _sample(run: Run, extractor: Extractor, options: ExportOptions) -> Sample:
    """Find images again whose features are in the run's cache."""
    with FeatureCache.open(options.cache or Path(run.metrics["cache"])) as cache:
        differences = run.recipe.differences(cache.recipe)
        if differences or cache.classes != run.classes:
            raise RecipeMismatchError(
                f"{cache.path} is not the cache that {run.path} learnt from "
                f"({'; '.join(differences) or 'other classes'}): name that with --cache"
            )
        place = open_place(run, options.images)
        return draw(cache, place, extractor.decoding, N_IMAGES)


def _compare(
    file_format: Format, path: Path, sample: Sample, model: LogitsClassifier
) -> tuple[Parity, ...]:
    """Load the file in its own runtime, and compare every way of running it."""
    reference = model.logits(sample.features)
    ways = file_format.open(path)
    parities = tuple(check_parity(way, ways[way], sample, reference) for way in ways)
    for parity in parities:
        say(parity.sentence())
    return parities


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a folder beside ``output`` that is gone afterwards."""
    output.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{output.name}{TEMPORARY_MARK}"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent) as folder:
        yield Path(folder)


def _publish(path: Path, output: Path, card: Path, text: str) -> None:
    """Put the model and its card in their places, each whole."""
    if path.is_dir():
        with whole_folder(output, overwrite=True) as folder:
            shutil.copytree(path, folder, dirs_exist_ok=True)
            (folder / card.name).write_text(text, encoding="utf-8")
        return
    with whole_file(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with whole_file(output) as temporary:
        path.replace(temporary)
