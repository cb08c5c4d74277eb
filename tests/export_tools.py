"""A small run with images, and its exports: each is made once in a session of tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny_backbone import TINY

from classify.export.exporting import ExportOptions, export_model
from classify.results.runs import load_run
from classify.train_head.job import TrainingOptions, train_head
from extract.backbones import BACKBONES
from extract.extraction import ExtractionOptions, extract_features
from extract.preprocess import Preprocessing, preprocess
from extract.sources import open_source
from extract.weights import random_weights, set_weights

SHARED = Path(__file__).parents[2] / "shared"
REAL_WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_96_no_top.h5"
SIZE = 16
CLASSES = ("dark", "light", "pale")
SUFFIXES = {"keras": ".keras", "savedmodel": "", "onnx": ".onnx", "tflite": ".tflite"}
SHAPES = ((9, 12), (16, 16), (31, 22), (38, 15))
TEMPERATURES = {"dense": 0.5, "logistic_regression": 2.5}


class Exports:
    """A run on small photos of many shapes, padded to a square, with both kinds of head."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[tuple[Any, ...], Path] = {}

    @cached_property
    def run(self) -> Path:
        """The run; its cache, ``cache.h5``, is beside it."""
        write_photos(self.folder / "photos")
        cache = self.folder / "cache.h5"
        options = ExtractionOptions(
            "tiny", "random", image_size=SIZE, resize_mode="pad", engine="keras"
        )
        with tiny_in_the_registry():
            extract_features(open_source(str(self.folder / "photos")), cache, options)
            training = TrainingOptions(epochs=2, standardize=True, hidden_units=5)
            run = train_head(cache, self.folder / "run", training).path
        set_temperatures(run, TEMPERATURES)
        return run

    @property
    def photos(self) -> Path:
        """The folder of its images, a folder for each class."""
        return self.run.parent / "photos"

    def path(self, name: str, model: str = "dense", **choices: Any) -> Path:
        """Return an export that no test may change."""
        key = (name, model, *sorted(choices.items()))
        if key not in self._made:
            folder = self.folder / f"export{len(self._made)}"
            with tiny_in_the_registry():
                self._made[key] = exported(self.run, folder, name, model=model, **choices)
        return self._made[key]

    def logits(self, model: str, images: NDArray[np.uint8]) -> NDArray[np.floating]:
        """The cached-feature path on images of one size, put together from its own parts."""
        inputs = preprocess(images, Preprocessing(TINY.scaling, SIZE, "pad"))
        features = np.asarray(self._backbone(inputs, training=False))
        return load_run(self.run).model(model).logits(features)

    @cached_property
    def _backbone(self) -> Any:
        backbone = TINY.build(SIZE)
        set_weights(backbone, random_weights(TINY))
        return backbone


def run_on_photos(folder: Path, n_photos: int) -> Path:
    """Train on photos of ants and bees, ``n_photos`` of each, with real weights at 96 pixels."""
    for name in ("ants", "bees"):
        (folder / "photos" / name).mkdir(parents=True)
        photos = sorted((SHARED / "data" / "ants_bees" / "train" / name).glob("*.jpg"))
        for path in photos[:n_photos]:
            shutil.copy(path, folder / "photos" / name)
    options = ExtractionOptions(weights=str(REAL_WEIGHTS), image_size=96, engine="keras")
    extract_features(open_source(str(folder / "photos")), folder / "cache.h5", options)
    return train_head(folder / "cache.h5", folder / "run").path


@contextmanager
def tiny_in_the_registry() -> Iterator[None]:
    """Let the name ``tiny`` mean the small backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


def exported(run: Path, folder: Path, name: str, **choices: Any) -> Path:
    """Export a run into a folder."""
    output = folder / f"model{SUFFIXES[name]}"
    return export_model(run, output, ExportOptions(name, **choices)).path


def set_temperatures(run: Path, temperatures: dict[str, Any]) -> None:
    """Write temperatures into the metrics of a run."""
    path = run / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    for name, temperature in temperatures.items():
        metrics[name]["temperature"] = temperature
    path.write_text(json.dumps(metrics), encoding="utf-8")


def write_photos(folder: Path) -> None:
    """Write 25 noisy images of each class; their brightness tells the classes apart."""
    rng = np.random.default_rng(0)
    for name, brightness in zip(CLASSES, (90, 160, 220), strict=True):
        (folder / name).mkdir(parents=True)
        for number in range(25):
            height, width = SHAPES[number % len(SHAPES)]
            pixels = rng.normal(brightness, 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """The textbook formula."""
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)
