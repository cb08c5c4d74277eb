"""The head where none is given: features are extracted and a head is trained on the spot.

Both are the library calls behind ``extract-features`` and ``train-head``, so what is fine-tuned is
what these commands would have made.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classify.fine_tune.options import FineTuneOptions
from classify.results.runs import load_run
from classify.train_head.job import TrainingOptions, train_head
from data_cache.console import say
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import Source
from extract.weights import IMAGENET

_CACHE, _RUN = "features.h5", "head"


@dataclass(frozen=True)
class NewHead:
    """Where a head is trained on the spot: the cache of its features, and its run."""

    cache: Path
    run: Path

    @classmethod
    def within(cls, folder: Path, cache: Path | None) -> NewHead:
        """Return the places in a folder; the cache is elsewhere where one is named."""
        return cls(cache or folder / _CACHE, folder / _RUN)

    def make(self, source: Source, options: FineTuneOptions) -> None:
        """Extract the features and train the head; what is there already is used.

        Raises
        ------
        HeadstartError
            See :func:`extract.extraction.extract_features` and
            :func:`classify.train_head.job.train_head`.
        """
        demands = options.demands
        extraction = ExtractionOptions(
            backbone=demands.backbone or ExtractionOptions.backbone,
            weights=options.weights or IMAGENET,
            image_size=demands.image_size,
            resize_mode=demands.resize_mode or ExtractionOptions.resize_mode,
            mixed_precision=options.mixed_precision,
        )
        extract_features(source, self.cache, extraction)
        if self.run.exists():
            load_run(self.run)
            return
        say("no --head is given: training one on the spot, as train-head does")
        training = TrainingOptions(seed=options.seed, no_test=options.no_test)
        train_head(self.cache, self.run, training)
