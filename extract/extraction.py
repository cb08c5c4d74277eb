"""The library call behind ``extract-features``: a source and a cache in, an updated cache out.

What is missing is planned, goes through the pipeline, and is appended to the cache, shard by
shard; at the end the cache is bound. A run that finds nothing missing loads no backbone.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Literal, Protocol

from data_cache.bad_images import write_bad_images
from data_cache.connecting import n_local_workers
from data_cache.console import progress, say, warn
from data_cache.errors import EXIT_SOME_LEFT_OUT, BadImagesError
from data_cache.leaks import LeakReport, exact_duplicates
from data_cache.plan import Plan
from data_cache.recipe import Provenance, Recipe
from data_cache.rows import BadImage
from data_cache.update import CacheUpdate, UpdateOptions
from extract.augment import View
from extract.backbones import POOLED, Backbone, open_backbone
from extract.datasets import DATASETS
from extract.decode import DecodeOptions
from extract.extractor import FLOAT32, MIXED_PRECISION, Extractor, make_extractor
from extract.pipeline import Pipeline, Position, Profile
from extract.preprocess import Preprocessing, ResizeMode
from extract.sources import Source
from extract.weights import find_weights
from extract.workers.pool import worker_processes

OnBadImage = Literal["fail-late", "skip", "fail"]

BUILT_IN_IMAGE_SIZE = 96
"""Side, in pixels, to which the images of the built-in sets are brought unless told otherwise."""

_FLOAT32_BYTES = 4
_RECORDED_PACKAGES = (
    "headstart",
    "tensorflow",
    "keras",
    "onnxruntime",
    "ai-edge-litert",
    "numpy",
    "h5py",
    "pillow",
)


@dataclass(frozen=True)
class ExtractionOptions:
    """What the user may choose about an extraction.

    Attributes
    ----------
    backbone, weights : see :mod:`extract.backbones` and :mod:`extract.weights`
    preprocess : the JSON file that says how pixels are scaled for an ONNX file of the user's own
    layer : the feature layer; see :mod:`extract.feature_layers`
    image_size : side of the backbone's input, in pixels; None is 96 for the built-in sets, else
        the backbone's native size
    resize_mode : how an image becomes square
    engine : ``auto``, ``keras``, ``litert`` or ``onnx``
    batch_size : images in a forward pass; None measures
    on_bad_image : ``fail-late`` leaves bad images out, lists them and ends with exit code 3;
        ``skip`` ends with 0 as long as no more than ``max_bad`` of the rows are bad; ``fail``
        stops at the first
    max_bad : share of all rows, 0 to 1
    overwrite : replace a cache that another recipe made
    view : extract this random view of each image instead of the image
    cluster : ``tcp://host:8786`` or ``local:N``, see :mod:`extract.cluster`; None for this process

    Raises
    ------
    ParameterError
        ``cluster`` is no such text.
    """

    backbone: str = "mobilenet_v2"
    weights: str = "imagenet"
    preprocess: Path | None = None
    layer: str = POOLED
    image_size: int | None = None
    resize_mode: ResizeMode = "stretch"
    engine: str = "auto"
    batch_size: int | None = None
    mixed_precision: bool = False
    on_bad_image: OnBadImage = "fail-late"
    max_bad: float = 0.01
    overwrite: bool = False
    cluster: str | None = None
    view: View | None = None
    decoding: DecodeOptions = field(default_factory=DecodeOptions)
    update: UpdateOptions = field(default_factory=UpdateOptions)

    def __post_init__(self) -> None:
        if self.cluster is not None:
            n_local_workers(self.cluster)


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
class Step:
    """A piece of work that is done: how many images it had, and which of them are bad."""

    n_images: int
    bad_images: tuple[BadImage, ...]


class Runner(Protocol):
    """What takes images through a backbone: the threads of this process, or a cluster.

    Attributes
    ----------
    engine : what runs the backbone; goes into the provenance
    n_features : width of a feature row
    profile : core-seconds in each stage
    """

    engine: str
    n_features: int
    profile: Profile

    def label(self) -> str:
        """Return what the progress bar says, as things are now."""

    def run(self, positions: Iterator[Position], update: CacheUpdate) -> Generator[Step]:
        """Extract the images at ``positions`` into the update; yield every step."""


class LocalRunner:
    """The threads of this process; see :class:`Runner`."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self.engine = pipeline.engine.name
        self.n_features = pipeline.engine.n_features
        self.profile = pipeline.profile

    def label(self) -> str:
        """Return what the progress bar says."""
        return "extracting"

    def run(self, positions: Iterator[Position], update: CacheUpdate) -> Generator[Step]:
        """Extract the images at ``positions`` into the update; yield every step."""
        with closing(self._pipeline.run(positions)) as chunks:
            for chunk in chunks:
                with self.profile.stage("write"):
                    update.append(chunk.content, chunk.features)
                yield Step(len(chunk), chunk.bad_images)


@dataclass
class _Work:
    """What extracting the missing images came to; start-up is before ``started``."""

    profile: Profile = field(default_factory=Profile)
    bad_images: list[BadImage] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class Job:
    """A source with everything that is decided about it."""

    source: Source
    extractor: Extractor
    options: ExtractionOptions

    @contextmanager
    def start(self, update: CacheUpdate, n_missing: int) -> Iterator[Runner]:
        """Load the backbone, here or on the workers of a cluster; end what was started."""
        if self.options.cluster is None:
            pipeline = self.pipeline()
            with worker_processes(self.source, pipeline, n_missing) as workers:
                yield LocalRunner(replace(pipeline, workers=workers))
            return
        from extract.cluster.runner import started

        with started(self, self.options.cluster, update, n_missing) as runner:
            yield runner

    def pipeline(self) -> Pipeline:
        """Load the backbone and put the stages together."""
        return Pipeline(
            self.source,
            self.extractor.decoding,
            self.extractor.preprocessing,
            self.extractor.start_engine(self.options.engine),
            self.options.batch_size,
            runs_ahead=True,
            view=self.extractor.view,
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
            weights_path=str(weights.path.resolve()) if weights.path else "",
        )


def extract_features(source: Source, output: Path, options: ExtractionOptions) -> ExtractionReport:
    """Bring the cache at ``output`` up to date with ``source``.

    Of a source that is a part of another (see :class:`data_cache.part.Part`), only the shards are
    made, and a record for the one who binds all parts.

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
    job = decide(source, options)
    part = source.part.part if source.part else None
    with CacheUpdate.begin(
        output,
        job.extractor.recipe,
        job.provenance(""),
        overwrite=options.overwrite,
        options=replace(options.update, part=part),
    ) as update:
        plan = update.plan(source.manifest, source.unreadable)
        say(plan.summary())
        work = _extract_missing(job, plan, update)
        bad_images = (*source.unreadable, *plan.known_bad, *update.with_copies(work.bad_images))
        with work.profile.stage("write"):
            _finish(job, output, update, bad_images)
    n_failed = len(work.bad_images)
    return ExtractionReport(
        outcome=(f"part {part}: " if part else "") + plan.outcome(n_failed),
        n_extracted=plan.n_missing - n_failed,
        bad_images=bad_images,
        seconds=time.perf_counter() - work.started,
        profile=dict(work.profile.seconds),
        exit_code=EXIT_SOME_LEFT_OUT if bad_images and options.on_bad_image != "skip" else 0,
    )


def decide(source: Source, options: ExtractionOptions) -> Job:
    """Find the backbone and its weights, settle the image size, and say so."""
    backbone = open_backbone(options.backbone, options.preprocess, options.layer)
    is_small = source.name in DATASETS and isinstance(backbone, Backbone)
    default = BUILT_IN_IMAGE_SIZE if is_small else backbone.native_size
    image_size = options.image_size or default
    extractor = make_extractor(
        backbone,
        find_weights(options.weights, backbone, image_size),
        Preprocessing(backbone.scaling, image_size, options.resize_mode),
        options.decoding,
        numeric_class=MIXED_PRECISION if options.mixed_precision else FLOAT32,
        view=options.view,
    )
    for note in (*source.notes, *_words_on_copies(source)):
        say(note)
    weights = extractor.weights.description
    say(f"backbone: {backbone.name} at {image_size} pixels; weights: {weights}")
    return Job(source, extractor, options)


def _words_on_copies(source: Source) -> list[str]:
    """Say how many images a source holds more than once, and with different labels."""
    copies = exact_duplicates(source.manifest.splits, source.manifest.classes)
    return LeakReport(copies, ()).copies_in_words()


def _warn_of_size(n_features: int, recipe: Recipe, n_rows: int) -> None:
    """Warn where a row holds more numbers than the image that it is made from."""
    n_inputs = 3 * recipe.image_size**2
    if n_features > n_inputs:
        gigabytes = n_features * n_rows * _FLOAT32_BYTES / 1e9
        warn(
            f"layer {recipe.feature_layer} gives {n_features:,} numbers an image, more than the "
            f"{n_inputs:,} that go into the backbone: {gigabytes:,.2g} GB for {n_rows:,} images; "
            "a deeper layer gives fewer"
        )


def _extract_missing(job: Job, plan: Plan, update: CacheUpdate) -> _Work:
    """Extract what is missing into the cache."""
    previous = update.previous_provenance
    update.provenance = job.provenance(previous.engine if previous else "")
    if not plan.n_missing:
        return _Work()
    with job.start(update, plan.n_missing) as runner:
        update.provenance = job.provenance(runner.engine)
        _warn_of_size(runner.n_features, job.extractor.recipe, len(job.source.manifest))
        work = _Work(profile=runner.profile)
        steps = runner.run(plan.positions(), update)
        with progress(runner.label, plan.n_missing) as advance, closing(steps):
            for step in steps:
                work.bad_images.extend(step.bad_images)
                _check_first(work.bad_images, job.options)
                advance(step.n_images)
    return work


def _check_first(bad_images: Sequence[BadImage], options: ExtractionOptions) -> None:
    """Raise :class:`BadImagesError` at the first bad image if the user wants that."""
    if bad_images and options.on_bad_image == "fail":
        raise BadImagesError(
            f"{bad_images[0].id}: {bad_images[0].reason}; what was extracted so far is "
            "kept, and --on-bad-image skip leaves bad images out"
        )


def _finish(job: Job, output: Path, update: CacheUpdate, bad_images: tuple[BadImage, ...]) -> None:
    """Bind the cache, or leave a record of the part."""
    source = job.source
    if source.part:
        _check_bad_share(bad_images, len(source.manifest), job.options)
        update.record(source.part, source.manifest, bad_images)
        return
    write_bad_images(output, bad_images)
    _check_bad_share(bad_images, len(source.manifest), job.options)
    if bad_images and len(bad_images) >= len(source.manifest):
        raise BadImagesError(
            f"not one of {len(source.manifest):,} images could be read (first: "
            f"{bad_images[0].id}: {bad_images[0].reason}): the cache was not written"
        )
    update.bind(source.manifest, bad_images)


def _check_bad_share(
    bad_images: tuple[BadImage, ...], n_rows: int, options: ExtractionOptions
) -> None:
    """Raise :class:`BadImagesError` if more are bad than ``skip`` allows."""
    share = len(bad_images) / max(n_rows, 1)
    if options.on_bad_image == "skip" and share > options.max_bad:
        raise BadImagesError(
            f"{len(bad_images):,} of {n_rows:,} images are bad ({share:.1%}), more than --max-bad "
            f"{options.max_bad:.1%} (first: {bad_images[0].id}: {bad_images[0].reason}): mend or "
            "remove them, or allow more; what was extracted is kept"
        )


def _versions() -> dict[str, str]:
    """Return the versions of the packages that take part, without importing them."""
    found = {}
    for package in _RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
