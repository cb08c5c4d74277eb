"""The features of a run's images: from the cache that it learned from, else made anew.

They tell what the probe says of each image, and prove that the backbone in training is the one that
the probe was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classify.fine_tune.rows import SourceRows
from classify.results.runs import TUNED_KIND, Run
from data_cache.cache import FeatureCache
from data_cache.console import progress, say
from data_cache.errors import BadImagesError, RecipeMismatchError
from data_cache.lookup import FeatureLookup
from extract.engines import Engine
from extract.extractor import Extractor
from extract.pipeline import Pipeline
from extract.sources import Source

_FLOAT32, _FLOAT16, MIXED_TOLERANCE = 1e-4, 2e-3, 2e-2
"""How far logits may be off, in units of the largest, where features are kept or computed so.

Float16 rounds each feature by up to 5e-4 of itself; a whole forward pass in it by some 1e-2.
"""


@dataclass(frozen=True)
class Features:
    """Finds or makes features of images of a source.

    Attributes
    ----------
    source, extractor : make features
    cache : the open cache of the run, or None where it is not there any more
    """

    source: Source
    extractor: Extractor
    cache: FeatureCache | None

    @classmethod
    @contextmanager
    def open(
        cls, run: Run, source: Source, extractor: Extractor, cache: Path | None
    ) -> Iterator[Features]:
        """Open the cache of a run: the one named, else the one that it learned from.

        A fine-tuned run has features of its own, which are in no cache unless one is named.

        Raises
        ------
        CacheError
            The cache named is not there, or one cannot be read.
        RecipeMismatchError
            The cache was made by another recipe than the run's.
        """
        path = cache or Path(run.metrics["cache"])
        if cache is None and run.kind == TUNED_KIND:
            yield cls(source, extractor, None)
            return
        if cache is None and not path.exists():
            say(f"{path}, which {run.path} learned from, is not there: extracting features anew")
            yield cls(source, extractor, None)
            return
        with FeatureCache.open(path) as opened:
            if differences := run.recipe.differences(opened.recipe):
                raise RecipeMismatchError(
                    f"{path} holds features of another recipe than those of {run.path}: "
                    f"{'; '.join(differences)}: name the run's own with --cache"
                )
            yield cls(source, extractor, opened)

    def of(self, rows: SourceRows) -> NDArray[np.float32]:
        """Return the features, (n, d) float32, of rows.

        Raises
        ------
        BadImagesError
            An image cannot be read.
        """
        known = [self._find(one.tobytes()) for one in rows.rows.content]
        found = [one for one in known if one is not None]
        if len(found) == len(rows):
            return np.stack(found)
        return self._extract(rows)

    @property
    def tolerance(self) -> float:
        """How far logits may be off that are computed from these features."""
        if self.extractor.recipe.numeric_class != "float32":
            return MIXED_TOLERANCE
        is_half = self.cache is not None and self.cache.storage.dtype == "float16"
        return _FLOAT16 if is_half else _FLOAT32

    def _find(self, content: bytes) -> NDArray[np.float32] | None:
        """Return what the cache has of an image."""
        return None if self._lookup is None else self._lookup.find(content)

    @cached_property
    def _lookup(self) -> FeatureLookup | None:
        return None if self.cache is None else FeatureLookup(self.cache)

    @cached_property
    def _engine(self) -> Engine:
        return self.extractor.start_engine()

    def _extract(self, rows: SourceRows) -> NDArray[np.float32]:
        """Make the features of rows, those that the cache has excepted."""
        extractor = self.extractor
        pipeline = Pipeline(
            self.source,
            extractor.decoding,
            extractor.preprocessing,
            self._engine,
            known=self._find,
        )
        blocks = []
        with progress("Extracting", total=len(rows)) as advance:
            for part in pipeline.run(iter(rows.positions)):
                if part.bad_images:
                    image = part.bad_images[0]
                    raise BadImagesError(f"{image.split}/{image.id}: {image.reason}")
                blocks.append(part.features)
                advance(len(part))
        return np.concatenate(blocks)
