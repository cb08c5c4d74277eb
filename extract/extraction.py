"""The library call behind ``extract-features``: a source and a cache in, an updated cache out.

What is missing is planned, goes through the pipeline, and is appended to the cache, shard by
shard; at the end the cache is bound. A run that finds nothing missing loads no backbone.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal

from data_cache.console import progress, say
from data_cache.errors import BadImagesError
from data_cache.files import whole_file
from data_cache.leaks import LeakReport, exact_duplicates
from data_cache.plan import Plan
from data_cache.recipe import Provenance
from data_cache.rows import BadImage
from data_cache.update import CacheUpdate, UpdateOptions
from extract.backbones import Backbone, open_backbone
from extract.datasets import DATASETS
from extract.decode import DecodeOptions
from extract.extractor import FLOAT32, MIXED_PRECISION, Extractor, make_extractor
from extract.pipeline import Pipeline, Profile
from extract.preprocess import Preprocessing, ResizeMode
from extract.sources import Source
from extract.weights import find_weights

OnBadImage = Literal["fail-late", "skip", "fail"]

BUILT_IN_IMAGE_SIZE = 96
"""Side, in pixels, to which the images of the built-in sets are brought unless told otherwise."""

EXIT_SOME_LEFT_OUT = 3
"""What ``extract-features`` ends with when images were left out and ``fail-late`` holds."""

_RECORDED_PACKAGES = ("headstart", "tensorflow", "keras", "onnxruntime", "numpy", "h5py", "pillow")


@dataclass(frozen=True)
class ExtractionOptions:
    """What the user may choose about an extraction.

    Attributes
    ----------
    backbone, weights : see :mod:`extract.backbones` and :mod:`extract.weights`
    preprocess : the JSON file that says how pixels are scaled for an ONNX file of the user's own
    image_size : side of the backbone's input, in pixels; None is 96 for the built-in sets, else
        the backbone's native size
    resize_mode : how an image becomes square
    engine : ``auto``, ``keras`` or ``onnx``
    batch_size : images in a forward pass; None measures
    on_bad_image : ``fail-late`` leaves bad images out, lists them and ends with exit code 3;
        ``skip`` ends with 0 as long as no more than ``max_bad`` of the rows are bad; ``fail``
        stops at the first
    max_bad : share of all rows, 0 to 1
    overwrite : replace a cache that another recipe made
    """

    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"
    preprocess: Path | None = None
    image_size: int | None = None
    resize_mode: ResizeMode = "stretch"
    engine: str = "auto"
    batch_size: int | None = None
    mixed_precision: bool = False
    on_bad_image: OnBadImage = "fail-late"
    max_bad: float = 0.01
    overwrite: bool = False
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    update: UpdateOptions = field(default_factory=UpdateOptions)


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction did.

    Attributes
    ----------
    outcome : in words: ``up to date``, or what was new and how many images were extracted
    n_extracted : images that went through the backbone
    bad_images : those that were left out, of this run and of earlier ones
    seconds : for the forward passes and all that overlaps with them; start-up is left out
    profile : core-seconds in each stage
    exit_code : 0, or 3 when images were left out and that was not asked for
    """

    outcome: str
    n_extracted: int
    bad_images: tuple[BadImage, ...]
    seconds: float
    profile: Mapping[str, float]
    exit_code: int


@dataclass(frozen=True)
class _Job:
    """A source with everything that is decided about it."""

    source: Source
    extractor: Extractor
    options: ExtractionOptions

    def pipeline(self) -> Pipeline:
        """Load the backbone and put the stages together."""
        return Pipeline(
            self.source,
            self.extractor.decoding,
            self.extractor.preprocessing,
            self.extractor.start_engine(self.options.engine),
            self.options.batch_size,
        )

    def provenance(self, engine: str) -> Provenance:
        """Return what people will want to know about the rows."""
        weights = self.extractor.weights
        return Provenance(
            source=self.source.name,
            weights=weights.description,
            weights_sha256=weights.file_sha256,
            engine=engine,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            backbone_parameters=weights.n_parameters,
        )


def extract_features(source: Source, output: Path, options: ExtractionOptions) -> ExtractionReport:
    """Bring the cache at ``output`` up to date with ``source``.

    Raises
    ------
    BackboneError, WeightsError, EngineError
        The backbone cannot be had as asked for.
    RecipeMismatchError
        The cache was made by another recipe, and ``overwrite`` is false.
    BadImagesError
        Images are bad, and ``on_bad_image`` says to stop. What is finished is kept.
    CacheError
        The cache cannot be read or written.
    """
    job = _decide(source, options)
    recipe, provenance = job.extractor.recipe, job.provenance("")
    with CacheUpdate.begin(
        output, recipe, provenance, overwrite=options.overwrite, options=options.update
    ) as update:
        plan = update.plan(source.manifest, source.unreadable)
        say(plan.summary())
        pipeline = job.pipeline() if plan.n_missing else None
        update.provenance = job.provenance(_engine_name(pipeline, update))
        profile = pipeline.profile if pipeline else Profile()
        started = time.perf_counter()
        fresh = _extract_missing(pipeline, plan, update, options) if pipeline else ()
        bad_images = (*source.unreadable, *plan.known_bad, *update.with_copies(fresh))
        _write_bad_images(output, bad_images)
        _check_bad_share(bad_images, len(source.manifest), options)
        with profile.stage("write"):
            update.bind(source.manifest, bad_images)
    return ExtractionReport(
        outcome=plan.outcome(n_failed=len(fresh)),
        n_extracted=plan.n_missing - len(fresh),
        bad_images=bad_images,
        seconds=time.perf_counter() - started,
        profile=dict(profile.seconds),
        exit_code=EXIT_SOME_LEFT_OUT if bad_images and options.on_bad_image != "skip" else 0,
    )


def bad_images_file(cache: Path) -> Path:
    """Return where the images that are left out of a cache are listed."""
    return cache.with_name(cache.name + ".bad_images.csv")


def _decide(source: Source, options: ExtractionOptions) -> _Job:
    """Find the backbone and its weights, settle the image size, and say so."""
    backbone = open_backbone(options.backbone, options.preprocess)
    is_small = source.name in DATASETS and isinstance(backbone, Backbone)
    default = BUILT_IN_IMAGE_SIZE if is_small else backbone.native_size
    image_size = options.image_size or default
    extractor = make_extractor(
        backbone,
        find_weights(options.weights, backbone, image_size),
        Preprocessing(backbone.scaling, image_size, options.resize_mode),
        options.decoding,
        numeric_class=MIXED_PRECISION if options.mixed_precision else FLOAT32,
    )
    for note in (*source.notes, *_words_on_copies(source)):
        say(note)
    weights = extractor.weights.description
    say(f"backbone: {backbone.name} at {image_size} pixels; weights: {weights}")
    return _Job(source, extractor, options)


def _words_on_copies(source: Source) -> list[str]:
    """Say how many images a source holds more than once, and with different labels."""
    copies = exact_duplicates(source.manifest.splits, source.manifest.classes)
    return LeakReport(copies, ()).copies_in_words()


def _extract_missing(
    pipeline: Pipeline, plan: Plan, update: CacheUpdate, options: ExtractionOptions
) -> tuple[BadImage, ...]:
    """Extract what is missing into the cache; return the images that are bad."""
    bad_images: list[BadImage] = []
    with progress("extracting", plan.n_missing) as advance:
        for part in pipeline.run(plan.positions()):
            with pipeline.profile.stage("write"):
                update.append(part.content, part.features)
            bad_images.extend(part.bad_images)
            if bad_images and options.on_bad_image == "fail":
                raise BadImagesError(
                    f"{bad_images[0].id}: {bad_images[0].reason}; what was extracted so far is "
                    "kept, and --on-bad-image skip leaves bad images out"
                )
            advance(len(part))
    return tuple(bad_images)


def _engine_name(pipeline: Pipeline | None, update: CacheUpdate) -> str:
    """Return what made the rows: the engine that runs now, else the one that ran before."""
    if pipeline is not None:
        return pipeline.engine.name
    previous = update.previous_provenance
    return previous.engine if previous else ""


def _check_bad_share(
    bad_images: tuple[BadImage, ...], n_rows: int, options: ExtractionOptions
) -> None:
    """Raise :class:`BadImagesError` if more are bad than ``skip`` allows, or all are."""
    share = len(bad_images) / max(n_rows, 1)
    if options.on_bad_image == "skip" and share > options.max_bad:
        raise BadImagesError(
            f"{len(bad_images):,} of {n_rows:,} images are bad ({share:.1%}), more than --max-bad "
            f"{options.max_bad:.1%} (first: {bad_images[0].id}: {bad_images[0].reason}): mend or "
            "remove them, or allow more; what was extracted is kept"
        )
    if bad_images and len(bad_images) >= n_rows:
        raise BadImagesError(
            f"not one of {n_rows:,} images could be read (first: {bad_images[0].id}: "
            f"{bad_images[0].reason}): the cache was not written"
        )


def _write_bad_images(cache: Path, bad_images: tuple[BadImage, ...]) -> None:
    """List the images that are left out beside the cache; no list where there are none."""
    path = bad_images_file(cache)
    if not bad_images:
        path.unlink(missing_ok=True)
        return
    with (
        whole_file(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        rows = csv.writer(stream)
        rows.writerow(("split", "path", "reason"))
        rows.writerows((image.split, image.id, image.reason) for image in bad_images)


def _versions() -> dict[str, str]:
    """Return the versions of the packages that take part, without importing them."""
    found = {}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
