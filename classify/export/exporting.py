"""The library call behind ``export-model``: a run in, a checked file and its model card out."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from classify.estimators import LogitsClassifier
from classify.export.card import model_card
from classify.export.description import Description, Probabilities
from classify.export.formats import (
    CARD_NAME,
    FlexibleFormat,
    Format,
    InputType,
    KerasFormat,
    OnnxFormat,
    SavedModelFormat,
)
from classify.export.graph import Plan
from classify.export.head import dense_layers, tempered
from classify.export.images import Place, Pool, Sample, draw, open_place
from classify.export.loading import open_exported
from classify.export.parity import (
    N_IMAGES,
    N_IMAGES_FIXED,
    AnyParity,
    FixedCheck,
    check_parity,
)
from classify.export.safety import GRAPH_NAME
from classify.export.tflite import (
    N_CALIBRATION,
    QUANTIZATIONS,
    Quantize,
    TfliteFormat,
    fit,
    fit_as_phones_do,
)
from classify.predict.run import model_name, run_extractor, temperature_of
from classify.results.runs import TUNED_KIND, Run, load_run
from classify.statistics.calibration import apply_temperature
from data_cache.cache import FeatureCache
from data_cache.console import say
from data_cache.errors import (
    CacheNotFoundError,
    ExportError,
    OutputExistsError,
    ParameterError,
    RecipeMismatchError,
)
from data_cache.files import (
    TEMPORARY_MARK,
    naming_output,
    refuse_existing,
    whole_file,
    whole_folder,
)
from extract.backbones import Backbone
from extract.extractor import Extractor
from extract.preprocess import preprocess

FORMATS = ("keras", "savedmodel", "onnx", "tflite")


@dataclass(frozen=True)
class ExportOptions:
    """What a user may choose about an export.

    Attributes
    ----------
    format : one of :data:`FORMATS`
    model : name of the model in the run; None for the selected one
    probabilities : ``calibrated`` divides the logits by the temperature that training fitted
    weights : ``imagenet``, ``random`` or a file: where the backbone's weights are; None looks for
        what the run names
    cache : the feature cache; None for where it was when the run was trained
    images : a folder or a source that holds the images of the cache; None for where they were
    input_type : of the pixels that an ONNX file takes
    quantize : how a TFLite file is made smaller: one of
        :data:`classify.export.tflite.QUANTIZATIONS`
    overwrite : replace what an earlier export wrote
    """

    format: str
    model: str | None = None
    probabilities: Probabilities = "raw"
    weights: str | None = None
    cache: Path | None = None
    images: Path | None = None
    input_type: InputType = "uint8"
    quantize: Quantize = "none"
    overwrite: bool = False

    def check(self) -> None:
        """Raise :class:`ParameterError` for what does not fit together."""
        if self.format not in FORMATS:
            raise ParameterError(f"unknown format {self.format!r}: there are {', '.join(FORMATS)}")
        if self.quantize not in QUANTIZATIONS:
            raise ParameterError(
                f"unknown quantization {self.quantize!r}: there are {', '.join(QUANTIZATIONS)}"
            )
        if self.quantize != "none" and self.format != "tflite":
            raise ParameterError(f"--quantize is for the format tflite, not {self.format}")
        if self.input_type != "uint8" and self.format != "onnx":
            raise ParameterError(f"--input-type is for the format onnx, not {self.format}")


@dataclass(frozen=True)
class Exported:
    """What was written, and the proof that it agrees."""

    path: Path
    card: Path
    parities: tuple[AnyParity, ...]


@dataclass(frozen=True)
class _Job:
    """An export between finding everything it needs and writing it.

    The plan's layers have the temperature in them, if there is one.
    """

    plan: Plan
    description: Description
    model: LogitsClassifier
    sample: Sample
    file_format: Format

    def check(self, path: Path) -> tuple[AnyParity, ...]:
        """Load the file in its own runtime, and compare every way of running it."""
        file_format = self.file_format
        if isinstance(file_format, FlexibleFormat):
            logits = self.model.logits(self.sample.features)
            reference = apply_temperature(logits, self.description.temperature or 1.0)
            ways = file_format.ways(path)
            return tuple(check_parity(way, ways[way], self.sample, reference) for way in ways)
        preprocessing = self.plan.preprocessing
        check = FixedCheck(
            _way(self.description.quantize),
            file_format.runner(path),
            self.plan.fixed_function(),
            partial(fit, preprocessing=preprocessing),
            partial(fit_as_phones_do, preprocessing=preprocessing),
            is_quantized=self.description.quantize != "none",
        )
        return (check.run(self.sample, self.model),)


def export_model(run: Path, output: Path, options: ExportOptions) -> Exported:
    """Write a run as one model, from raw images to probabilities, once it agrees with the run.

    Raises
    ------
    ParameterError
        Options do not fit together, ``output`` has another suffix than its files, or calibrated
        probabilities are asked for and there are none.
    OutputExistsError
        ``output`` exists, and ``overwrite`` is false or it is no earlier export.
    OutputError
        Nothing can be created there.
    RunError, CacheError, BackboneError, WeightsError, SourceError
        The run, its cache, its backbone or its images cannot be had again.
    ExportError
        The format cannot hold the model, or the file disagrees with the run; nothing was written.
    """
    options.check()
    card = _check_output(output, options)
    job = _prepare(load_run(run), options)
    with _scratch(output) as folder:
        path = folder / f"model{job.file_format.suffix}"
        job.file_format.write(job.plan, path)
        parities = job.check(path)
        for parity in parities:
            say(parity.sentence())
        content = job.file_format.content(path)
        job.file_format.describe(path, job.description.sealed(content, parities))
        open_exported(path)  # whoever gets it will be able to
        _publish(path, output, card, model_card(job.description, parities))
    return Exported(output, card, parities)


def _prepare(run: Run, options: ExportOptions) -> _Job:
    """Find everything that an export needs."""
    name = model_name(run, options.model)
    model = run.model(name)
    temperature = temperature_of(run, name) if options.probabilities == "calibrated" else None
    extractor = run_extractor(run, options.weights)
    plan = _plan(run, extractor, model, temperature)
    description = Description(
        run,
        name,
        tuple(run.classes[label] for label in model.classes_),
        extractor,
        options.format,
        options.quantize,
        temperature,
    )
    sample, calibration = _samples(run, extractor, options)
    return _Job(plan, description, model, sample, _format(options, description, calibration))


def _format(options: ExportOptions, description: Description, calibration: Sample | None) -> Format:
    """Return the format that was asked for."""
    formats: dict[str, Format] = {
        "keras": KerasFormat(),
        "savedmodel": SavedModelFormat(),
        "onnx": OnnxFormat(options.input_type),
        "tflite": TfliteFormat(
            description.classes, options.quantize, calibration, description.license.sentence()
        ),
    }
    return formats[options.format]


def _check_output(output: Path, options: ExportOptions) -> Path:
    """Return where the card goes, after seeing that both may be written."""
    suffix = "" if options.format == "savedmodel" else f".{options.format}"
    if suffix and output.suffix != suffix:
        raise ParameterError(f"--output {output}: expected a name that ends in {suffix}")
    refuse_existing(output, overwrite=options.overwrite)
    if not suffix:
        if output.exists() and not (output / GRAPH_NAME).is_file():
            raise OutputExistsError(f"{output} is no SavedModel: choose another --output")
        return output / CARD_NAME
    if output.is_dir():
        raise OutputExistsError(f"{output} is a folder: choose another --output")
    card = output.with_name(f"{output.name}.{CARD_NAME}")
    refuse_existing(card, overwrite=options.overwrite)
    return card


def _plan(
    run: Run, extractor: Extractor, model: LogitsClassifier, temperature: float | None
) -> Plan:
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
    layers = tempered(dense_layers(model), temperature or 1.0)
    return Plan(extractor.backbone, extractor.weights, extractor.preprocessing, layers)


def _samples(
    run: Run, extractor: Extractor, options: ExportOptions
) -> tuple[Sample, Sample | None]:
    """Find images again whose features are in the run's cache: to compare, and to calibrate on."""
    place = open_place(run, options.images)
    with _open_cache(run, options.cache) as cache:
        is_before_tuning = run.kind == TUNED_KIND and options.cache is None
        recipe = run.recipe
        if is_before_tuning:  # the cache that its head came from: the images are the same
            recipe = replace(recipe, weights_digest=cache.recipe.weights_digest)
        differences = recipe.differences(cache.recipe)
        if differences or cache.classes != run.classes:
            raise RecipeMismatchError(
                f"{cache.path} is not the cache that {run.path} learnt from "
                f"({'; '.join(differences) or 'other classes'}): name that with --cache"
            )
        pool = Pool.of(run, cache)
        n_images = N_IMAGES_FIXED if options.format == "tflite" else N_IMAGES
        sample = draw(pool, place, extractor.decoding, n_images)
        if is_before_tuning:
            sample = _with_new_features(sample, extractor)
        if options.quantize != "int8":
            return sample, None
        return sample, _to_calibrate(pool, place, sample)


def _open_cache(run: Run, named: Path | None) -> FeatureCache:
    """Open the cache that the user names, else the one that the run learnt from."""
    try:
        return FeatureCache.open(named or Path(run.metrics["cache"]))
    except CacheNotFoundError as error:
        if named:
            raise
        raise CacheNotFoundError(
            f"{run.metrics['cache']}, which {run.path} learnt from, is not there: say where it is "
            "now with --cache"
        ) from error


def _with_new_features(sample: Sample, extractor: Extractor) -> Sample:
    """Return a sample with the features that a backbone makes now."""
    engine = extractor.start_engine("keras")
    images = (sample.image(number)[None] for number in range(len(sample)))
    rows = [engine(preprocess(one, extractor.preprocessing)) for one in images]
    return replace(sample, features=np.concatenate(rows))


def _to_calibrate(pool: Pool, place: Place, compared: Sample) -> Sample:
    """Draw images to calibrate on: others than are compared, as far as there are any."""
    more = draw(pool, place, compared.decoding, len(compared) + N_CALIBRATION)
    return more.take(slice(-N_CALIBRATION, None))


def _way(quantize: str) -> str:
    """Say how a TFLite file is run."""
    return "LiteRT" if quantize == "none" else f"LiteRT with {quantize}"


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield a folder beside ``output`` that is gone afterwards; raise OutputError for none."""
    prefix = f".{output.name}{TEMPORARY_MARK}"
    with naming_output(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent)
    with scratch as folder:
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
