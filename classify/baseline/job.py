"""Train the baseline on the images of a source, and write its run.

:func:`train_baseline` is the one call behind the command ``train-baseline``.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from classify.baseline.convnet import ConvNet
from classify.baseline.images import PIXEL_SCALING, ImageOptions, LoadedImages, load_images
from classify.report.run_page import write_report
from classify.results import runs
from classify.results.plots import draw_learning_curves
from classify.results.runs import BASELINE, BASELINE_KIND, RunFolder, open_run
from classify.results.training import (
    Clock,
    ScoredPart,
    TestScores,
    model_figures,
    n_parameters,
    package_versions,
)
from classify.selection.division import Division, RareClass, divide
from classify.selection.leakage import warn_of_copies
from classify.selection.sealed_test import SealedTest, find_test_split
from classify.statistics.scoring import Score, score
from data_cache.console import import_keras, progress, say, warn
from extract.preprocess import RESIZING
from extract.sources import Source

TITLE = "Network from scratch"
_N_BAD_SHOWN = 10


@dataclass(frozen=True)
class BaselineOptions:
    """What a user may choose about a baseline, besides its images.

    Attributes
    ----------
    seed : draws the validation rows, the initial weights, the order of the images, the dropout
    validation_split, rare_class, test_split, no_test : see
        :class:`classify.train_head.job.RowOptions`
    epochs, batch_size, learning_rate, dropout : see :class:`classify.baseline.convnet.ConvNet`
    """

    seed: int = 0
    validation_split: float = 0.2
    rare_class: RareClass = "keep"
    test_split: str | None = None
    no_test: bool = False
    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    dropout: float = 0.25

    def network(self) -> ConvNet:
        """Return the network, untrained."""
        return ConvNet(
            self.epochs, self.batch_size, self.learning_rate, self.dropout, seed=self.seed
        )


def train_baseline(
    source: Source,
    output: Path,
    options: BaselineOptions | None = None,
    imaging: ImageOptions | None = None,
    *,
    overwrite: bool = False,
) -> RunFolder:
    """Train a network from scratch on a source, write the run folder ``output``, and return it.

    The scorings of the test are counted in a log beside ``output``, named after the source.

    Raises
    ------
    HeadstartError
        See :func:`classify.baseline.images.load_images`,
        :func:`classify.results.runs.check_output`, :func:`classify.selection.division.divide`,
        :func:`classify.selection.sealed_test.find_test_split` and
        :meth:`classify.baseline.convnet.ConvNet.fit`. Whatever is raised, ``output`` stays as it
        was.
    """
    options, imaging, clock = options or BaselineOptions(), imaging or ImageOptions(), Clock()
    runs.check_output(output, overwrite=overwrite)
    with clock.time("read"):
        images = _load(source, imaging)
    split = find_test_split(images, options.test_split)
    test = None
    if split is not None and not options.no_test:
        warn_of_copies(images, split)
        test = SealedTest(images, split, log_beside(output, source.name))
    division = _divide(images, options, split)
    network = _fit(division, len(images.classes), options, clock)
    validation = score(network, division.validation.features, division.validation.labels)
    with clock.time("test"):
        scores = None if test is None else _score_test(test, network, output)
    result = BaselineResult(images, division, network, validation, scores)
    with runs.new_run(output, overwrite=overwrite) as folder:
        result.write(folder, {**asdict(options), **_facts(source, images, imaging)}, clock)
        write_report(folder, output.name)
    return open_run(output)


@dataclass(frozen=True)
class BaselineResult:
    """What a baseline's run is written from; ``test`` is None where it was left alone."""

    images: LoadedImages
    division: Division
    network: ConvNet
    validation: Score
    test: TestScores | None

    def write(self, folder: Path, facts: dict[str, Any], clock: Clock) -> None:
        """Write every file of the run into ``folder``; the metrics last, with all seconds."""
        with clock.time("write"):
            self.network.save(folder / runs.BASELINE_FILE)
            runs.write_history(folder, self.network.history_)
            self._write_rows(folder)
            self._draw(folder)
        more = {
            "test_split": None if self.test is None else self.test.split,
            "seconds": clock.total,
            "seconds_by_part": clock.parts,
        }
        runs.write_metrics(folder, {**self.metrics(), **facts, **more})

    def metrics(self) -> dict[str, Any]:
        """Return the figures and counts that ``metrics.json`` has; the README lists the keys."""
        figures = model_figures(BASELINE, self.validation, self.test)
        scorings = self.test and self.test.scorings
        n_trained = n_parameters(self.network.model_.trainable_weights)
        return {
            "kind": BASELINE_KIND,
            **figures,
            BASELINE: {**figures, "fitted_to": "train", "trainable_parameters": n_trained},
            "selected": BASELINE,
            "n_train": len(self.division.training),
            "n_validation": len(self.division.validation),
            "n_dropped": len(self.division.dropped),
            "n_left_out": len(self.images.bad_images),
            "n_test": 0 if self.test is None else len(self.test.labels),
            "n_classes": len(self.images.classes),
            "trainable_parameters": n_trained,
            "non_trainable_parameters": 0,
            "validation_drawn": self.division.drawn,
            "test_scorings": scorings and asdict(scorings),
            "classes": self.images.classes,
        }

    def _write_rows(self, folder: Path) -> None:
        """Write who was where, and what was predicted of the test."""
        division = self.division
        parts = {
            "train": division.training.ids.tolist(),
            "validation": division.validation.ids.tolist(),
            "test": [] if self.test is None else self.test.ids.tolist(),
            "dropped": division.dropped.ids.tolist(),
        }
        learned_by = {part: [BASELINE * (part == "train")] * len(parts[part]) for part in parts}
        runs.write_split(folder, parts, learned_by)
        if self.test is not None:
            runs.write_test_predictions(folder, self.test.columns(self.images.classes))

    def _draw(self, folder: Path) -> None:
        """Draw the learning curves, and the confusion on the test where it was seen."""
        title = "Learning curves of the network from scratch"
        draw_learning_curves(self.network.history_, None, folder / runs.CURVES_FILE, title)
        rows = ScoredPart("validation", self.division.validation.labels, self.validation)
        if self.test is not None:
            rows = ScoredPart("test", self.test.labels, self.test.scores[BASELINE])
        rows.draw_confusion(TITLE, self.images.classes, folder)


def _load(source: Source, imaging: ImageOptions) -> LoadedImages:
    """Read the images, and say what they are and which are left out."""
    images = load_images(source, imaging)
    for note in source.notes:
        say(note)
    for bad in images.bad_images[:_N_BAD_SHOWN]:
        warn(f"left out: {'/'.join(filter(None, [bad.split, bad.id]))}: {bad.reason}")
    if len(images.bad_images) > _N_BAD_SHOWN:
        warn(f"left out: {len(images.bad_images) - _N_BAD_SHOWN:,} more")
    height, width, n_channels = images.shape
    color = "gray" if n_channels == 1 else "color"
    say(f"{width} x {height} pixels, {color}, scaled to [0, 1]")
    return images


def _divide(images: LoadedImages, options: BaselineOptions, test_split: str | None) -> Division:
    """Return training and validation rows, and say how many there are."""
    division = divide(
        images,
        fraction=options.validation_split,
        seed=options.seed,
        rare_class=options.rare_class,
        test_split=test_split,
    )
    n_rows = len(division.training), len(division.validation)
    say(f"{n_rows[0]:,} images to train on, {n_rows[1]:,} to validate on")
    return division


def _fit(division: Division, n_classes: int, options: BaselineOptions, clock: Clock) -> ConvNet:
    """Train the network, with a progress bar on a terminal."""
    training, validation = division.training, division.validation
    with clock.time("tensorflow_import"):
        import_keras()
    with (
        clock.time(BASELINE),
        progress("Training", total=options.epochs, unit="epochs") as advance,
    ):
        return options.network().fit(
            training.features,
            training.labels,
            n_classes=n_classes,
            validation=(validation.features, validation.labels),
            on_epoch=lambda _epoch, _row: advance(1),
        )


def _score_test(test: SealedTest, network: ConvNet, run: Path) -> TestScores:
    """Open the seal and score the network."""
    opened = test.open((BASELINE,), run)
    scores = {BASELINE: score(network, test.features(), opened.labels)}
    return TestScores(test.split, test.ids, opened.labels, scores, opened.scorings)


def _facts(source: Source, images: LoadedImages, imaging: ImageOptions) -> dict[str, Any]:
    """Return where the images came from, and what was done to them."""
    height, width, n_channels = images.shape
    return {
        "source": source.name,
        "images": {
            "height": height,
            "width": width,
            "channels": n_channels,
            "decoding": imaging.decoding.identity,
            "resizing": f"{RESIZING} {imaging.resize_mode}" if imaging.image_size else None,
            "pixel_scaling": PIXEL_SCALING,
        },
        "versions": package_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def log_beside(output: Path, source: str) -> Path:
    """Return the file, which need not be, beside which scorings on a named source are logged."""
    name = re.sub(r"[^\w.-]+", "_", Path(source).name).strip("._") or "source"
    return output.with_name(name)
