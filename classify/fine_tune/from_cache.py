"""Training on activations that were computed once: the frozen part of the backbone runs no more.

``fine-tune --from-cache`` extracts the tensors at the cut (:mod:`classify.fine_tune.cut`) of the
images that train and validate, as ``extract-features --layer`` does and with its fast engine, into
a folder of caches beside the run, or a named one. A cache whose recipe and images fit is used
again. Only the suffix is trained then. Without augmentation it follows the same path as training on
the images, but for rounding: the fast engine's activations are off by some 1e-6 of themselves, and
Adam takes a step as large for a small gradient as for a large one, so after 50 steps the weights
are apart by less than a hundredth of the way that they went.

With random views there is a cache for each view too: of the training images as that view shows
them, named in its recipe (:mod:`extract.augment`). The epochs take the views in turn.
"""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.cut import Cut, find_cut
from classify.fine_tune.job import Job
from classify.fine_tune.network import MEASURING, Batch, LabeledRows, Network
from classify.fine_tune.options import keras_backbone
from classify.fine_tune.pixels import Room
from classify.fine_tune.rows import SourceRows
from classify.fine_tune.suffix import suffix_network
from data_cache.cache import FeatureCache
from data_cache.console import say
from data_cache.digests import KeyIndex, as_keys
from data_cache.errors import BadImagesError, OutputError
from data_cache.files import check_creatable
from data_cache.part import PartListing
from data_cache.rows import BadImage, Manifest
from extract.augment import View
from extract.extraction import ExtractionOptions, extract_features
from extract.extractor import MIXED_PRECISION, make_extractor
from extract.pipeline import Images
from extract.sources import Source
from extract.sources.base import Listed, Raw
from extract.weights import RANDOM

_FOLDER_ENDING = ".activations"
_N_LETTERS, _N_DIGITS = 60, 12
_CACHE_NAME = re.compile(rf".+-[0-9a-f]{{{_N_DIGITS}}}\.h5(\..+)?")


class Activations(Protocol):
    """The activations, flattened, of n images."""

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return those of rows (m,), (m, d) float32; safe from many threads."""


@dataclass(frozen=True)
class HeldActivations:
    """Activations in memory, (n, d) float32."""

    values: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the activations of rows (m,), (m, d) float32."""
        return self.values[rows]


@dataclass(frozen=True)
class StoredActivations:
    """Activations in an open cache; ``at`` (n,) are their rows in a split of it."""

    cache: FeatureCache
    split: str
    at: NDArray[np.int64]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the activations of rows (m,), (m, d) float32, read now."""
        with self._lock:
            return self.cache.take(self.split, self.at[rows])


@dataclass(frozen=True)
class CutInputs:
    """What a suffix takes: the tensors at the cut of n images, in each epoch of one view.

    ``plain`` are the activations of the images themselves, which are for measuring, and for
    training where there are no ``views``.
    """

    cut: Cut
    plain: Activations
    views: Sequence[Activations] = ()

    def batch(self, rows: NDArray[np.int64], epoch: int) -> Batch:
        """Return the tensors of rows (m,), each (m, ...), as an epoch sees them."""
        is_plain = epoch == MEASURING or not self.views
        activations = self.plain if is_plain else self.views[epoch % len(self.views)]
        return self.cut.split(activations.take(rows))


@dataclass(frozen=True)
class ActivationCaches:
    """The open caches of a cut: of the images themselves, and of each view of training images."""

    cut: Cut
    plain: FeatureCache
    views: Sequence[FeatureCache]
    room: Room

    def inputs(self, rows: SourceRows, *, shows_views: bool = False) -> CutInputs:
        """Return the inputs of rows; with ``shows_views`` training sees the views, if any."""
        views = self.views if shows_views else ()
        return CutInputs(
            self.cut, self._find(self.plain, rows), [self._find(one, rows) for one in views]
        )

    def _find(self, cache: FeatureCache, rows: SourceRows) -> Activations:
        """Find rows in a cache, and take them into memory where there is room."""
        index = KeyIndex(as_keys(cache.rows(rows.split).content))
        at = index.find(as_keys(rows.rows.content))
        if (missing := np.flatnonzero(at < 0)).size:
            name = rows.rows.ids[missing[0]].decode()
            raise BadImagesError(f"{rows.split}/{name} is not in {cache.path}: it cannot be read")
        stored = StoredActivations(cache, rows.split, at)
        if not self.room.take(4 * len(rows) * cache.n_features):
            return stored
        return HeldActivations(cache.take(rows.split, stored.at))


@dataclass(frozen=True)
class Material:
    """What the training loop takes: a network, and the rows as it takes them."""

    network: Network
    training: LabeledRows
    validation: LabeledRows


@contextmanager
def material(job: Job, network: Network) -> Iterator[Material]:
    """Yield what is trained: the network on images, or its suffix on what a cache holds.

    Training the suffix trains the network. The layers of the network are unfrozen already.

    Raises
    ------
    ParameterError
        See :func:`.cut.find_cut`.
    BadImagesError
        An image cannot be read. What was extracted is kept.
    HeadstartError
        See :func:`extract.extraction.extract_features`.
    """
    if not job.options.from_cache:
        yield Material(network, job.training, job.validation)
        return
    cut = find_cut(network.trunk)
    with open_activations(job, cut) as caches:
        training = caches.inputs(job.rows.training, shows_views=True)
        validation = caches.inputs(job.rows.validation)
        yield Material(
            suffix_network(network, cut),
            replace(job.training, inputs=training),
            replace(job.validation, inputs=validation),
        )


@contextmanager
def open_activations(job: Job, cut: Cut, room: Room | None = None) -> Iterator[ActivationCaches]:
    """Yield the activations of the images that train and validate; extract what is missing.

    ``room`` is for those in memory; what does not fit is read anew for every batch.
    """
    options, rows = job.options, job.rows
    folder = activations_folder(job.output, options.activations)
    check_activations(folder)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"training on what {cut} is for each image; {folder} keeps it")
    views = [View(options.seed, number) for number in range(options.views)]
    with ExitStack() as stack:
        caches = []
        for view in (None, *views):
            parts = [rows.training] if view else [rows.training, rows.validation]
            path = _extract(job, ChosenRows.of(job.source, parts), cut, folder, view)
            caches.append(stack.enter_context(FeatureCache.open(path)))
        yield ActivationCaches(cut, caches[0], caches[1:], room or Room())


def activations_folder(output: Path, named: Path | None = None) -> Path:
    """Return the folder where activations are kept: the named one, or one beside the run."""
    return named or output.with_name(output.name + _FOLDER_ENDING)


def check_activations(folder: Path) -> None:
    """See that activations may be kept in a folder: nobody else's files are mixed with them.

    Hidden files are let be, such as locks and what file managers leave.

    Raises
    ------
    OutputError
        Something is there that is no cache of activations, or nothing can be created there.
    """
    check_creatable(folder.resolve())
    names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    for name in names:
        if not (name.startswith(".") or _CACHE_NAME.fullmatch(name)):
            raise OutputError(
                f"{folder} is for caches of activations alone, and holds {name} too: name another "
                "folder, or a new one, with --activations"
            )


def _extract(job: Job, source: Source, cut: Cut, folder: Path, view: View | None) -> Path:
    """Bring the cache of a cut and a view up to date, and return where it is."""
    made_by = job.extractor
    backbone = replace(keras_backbone(made_by), feature_layer=cut.feature_layer)
    numeric_class = made_by.recipe.numeric_class
    recipe = make_extractor(
        backbone,
        made_by.weights,
        made_by.preprocessing,
        made_by.decoding,
        numeric_class=numeric_class,
        view=view,
    ).recipe
    layer = cut.feature_layer[:_N_LETTERS]
    path = folder / f"{layer}-{recipe.digest()[:_N_DIGITS]}.h5"
    options = ExtractionOptions(
        backbone.name,
        str(made_by.weights.path or RANDOM),
        layer=cut.feature_layer,
        image_size=recipe.image_size,
        resize_mode=made_by.preprocessing.resize_mode,
        mixed_precision=numeric_class == MIXED_PRECISION,
        on_bad_image="fail",
        view=view,
        decoding=made_by.decoding,
    )
    extract_features(source, path, options)
    return path


@dataclass
class ChosenRows:
    """A source with some of its rows only; see :class:`extract.sources.Source`."""

    name: str
    manifest: Manifest
    images: Images
    at: Mapping[str, NDArray[np.int64]]
    unreadable: tuple[BadImage, ...] = ()
    notes: tuple[str, ...] = ()
    part: PartListing | None = None

    @classmethod
    def of(cls, source: Source, parts: Sequence[SourceRows]) -> ChosenRows:
        """Choose the rows of some parts, in the order of the source."""
        found = defaultdict(list)
        for part in parts:
            found[part.split].append(part.at)
        at = {split: np.unique(np.concatenate(rows)) for split, rows in found.items()}
        splits = {split: source.manifest.splits[split].take(rows) for split, rows in at.items()}
        return cls(source.name, Manifest(source.manifest.classes, splits), source, at)

    def fetch(self, split: str, row: int) -> Raw:
        """Return the image of a row as it is now."""
        return self.images.fetch(split, int(self.at[split][row]))

    def listed(self, split: str, row: int) -> Listed:
        """Return the id and the digest of a row."""
        return self.images.listed(split, int(self.at[split][row]))
