"""Exports with real weights in every format, and exported files in environments of their own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tools import REAL_WEIGHTS, SHARED, SUFFIXES, Exports, run_on_photos, softmax

import classify
from classify.export.exporting import ExportOptions, export_model
from classify.export.formats import KerasFormat, SavedModelFormat
from classify.export.graph import DenseLayer, Plan
from classify.export.images import as_rgb
from classify.export.tflite import fit
from classify.fine_tune.decision import Decision
from classify.fine_tune.options import FineTuneOptions
from classify.fine_tune.tuning import fine_tune
from classify.predict.classifiers import PredictOptions
from classify.results.runs import TUNED_KIND, load_run
from classify.train_head.job import train_head
from data_cache.errors import DataUnavailableError, ExportError
from extract.backbones import BACKBONES
from extract.datasets import get_dataset
from extract.decode import decode
from extract.extraction import ExtractionOptions, extract_features
from extract.preprocess import Preprocessing
from extract.sources import SourceOptions, open_source
from extract.sources.unlabeled import AnyImage
from extract.weights import random_weights

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]

EVERY_WAY = [
    ("keras", "none"),
    ("savedmodel", "none"),
    ("onnx", "none"),
    ("tflite", "none"),
    ("tflite", "float16"),
    ("tflite", "dynamic"),
]


@dataclass(frozen=True)
class Real:
    """A run on real images with real weights, and images that are new to it."""

    run: Path
    images: list[AnyImage]


def on_photos(folder: Path) -> Real:
    """Ants and bees."""
    run = run_on_photos(folder, n_photos=110)
    return Real(run, sorted((SHARED / "data" / "ants_bees" / "val").rglob("*.jpg"))[::8])


def on_fashion(folder: Path) -> Real:
    """Gray images of 28 x 28 pixels."""
    images = get_dataset("fashion_mnist").load({"train": 1, "test": 320}).splits["test"][0]
    source = open_source("fashion_mnist", SourceOptions(train_limit=1000, test_limit=300))
    options = ExtractionOptions(weights=str(REAL_WEIGHTS), image_size=96, engine="keras")
    extract_features(source, folder / "cache.h5", options)
    run = train_head(folder / "cache.h5", folder / "run").path
    return Real(run, list(images[300:]))


def fine_tuned(folder: Path) -> Real:
    """The same, its last layers trained on; kept whether it gained or not."""
    probe = on_fashion(folder)
    source = open_source("fashion_mnist", SourceOptions(train_limit=1000, test_limit=300))
    options = FineTuneOptions(learning_rate=1e-4, epochs=2, from_cache=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decision, "keeps_tuned", True)
        run = fine_tune(source, probe.run, folder / "tuned", options)
    assert run.kind == TUNED_KIND
    return Real(run.path, probe.images)


@pytest.fixture(scope="module", params=[on_photos, on_fashion, fine_tuned])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Real:
    if not REAL_WEIGHTS.is_file():
        pytest.skip("real weights and photos are not beside the repository")
    try:
        made: Real = request.param(tmp_path_factory.mktemp("real"))
    except DataUnavailableError as error:
        pytest.skip(str(error))
    return made


@pytest.mark.parametrize(("name", "quantize"), EVERY_WAY)
def test_real_weights_on_real_images_agree(
    real: Real, tmp_path: Path, name: Any, quantize: Any
) -> None:
    metrics = load_run(real.run).metrics
    models = [one for one in ("dense", "logistic_regression") if one in metrics]
    for model in models:
        output = tmp_path / f"{model}{SUFFIXES[name]}"
        options = ExportOptions(name, model=model, quantize=quantize)
        try:
            parities = export_model(real.run, output, options).parities
        except ExportError as error:
            may_be = quantize == "dynamic" and load_run(real.run).kind == TUNED_KIND
            assert may_be, "8 bits change more classes of a tuned backbone, and no others"
            check_refusal(error, output)
            continue
        for parity in parities:
            assert quantize != "none" or parity.largest_difference < 1e-3
        check_new_images(real, output, model, options)


def check_new_images(real: Real, output: Path, model: str, options: ExportOptions) -> None:
    """Hold what an exported file says of images against the run."""
    run = classify.load(real.run, PredictOptions(model=model))
    seen = real.images
    if options.format == "tflite":  # it is given whole numbers
        decoded = [one if isinstance(one, np.ndarray) else one.read_bytes() for one in seen]
        pixels = [as_rgb(decode(one)) for one in decoded]
        seen = [fit(one, run.extractor.preprocessing) for one in pixels]
    own = run.predict(seen)
    found = classify.load(output).predict(real.images)
    if options.quantize == "none":
        np.testing.assert_allclose(found.probabilities, own.probabilities, atol=1e-3)
        assert found.labels == own.labels
    else:
        same = np.mean([a == b for a, b in zip(found.labels, own.labels, strict=True)])
        assert same >= 0.9


def check_refusal(error: ExportError, output: Path) -> None:
    """A file in 8 bits is refused for the classes that it changes, and nothing is written."""
    n_equal, n_images = map(int, re.findall(r"(\d+) of (\d+) images get", str(error))[0])
    assert 0.9 * n_images < n_equal < 0.98 * n_images
    assert not output.exists()


def test_whole_number_file_agrees_or_is_never_written(tmp_path: Path) -> None:
    """It changes the class of about one photo in fifty, and more are not let through."""
    if not REAL_WEIGHTS.is_file():
        pytest.skip("real weights and photos are not beside the repository")
    run = run_on_photos(tmp_path, n_photos=110)
    output = tmp_path / "model.tflite"
    try:
        export_model(run, output, ExportOptions("tflite", quantize="int8"))
    except ExportError as error:
        check_refusal(error, output)
    else:
        assert classify.load(output).classes == ("ants", "bees")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_is_let_through_the_lists_of_what_files_may_hold(
    tmp_path: Path, name: str
) -> None:
    backbone = BACKBONES[name]
    shape = (backbone.n_features, 3)
    head = (DenseLayer(np.zeros(shape, np.float32), np.zeros(3, np.float32)),)
    preprocessing = Preprocessing(backbone.scaling, max(64, backbone.min_size), "crop")
    plan = Plan(backbone, random_weights(backbone), preprocessing, head)
    for one in (KerasFormat(), SavedModelFormat()):
        path = tmp_path / f"model{one.suffix}"
        one.write(plan, path)
        one.check_safe(path)


PACKAGES = {"onnx": ["onnxruntime", "numpy"], "tflite": ["ai-edge-litert"]}
SCRIPTS = {
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(path)
out = session.run(["probabilities"], {"images": images})[0]
""",
    "tflite": """
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=path)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
interpreter.invoke()
out = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
""",
}


@pytest.mark.parametrize("name", PACKAGES)
def test_exported_file_runs_in_an_environment_that_has_its_runtime_only(
    exports: Exports, tmp_path: Path, name: str
) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    pip = [python, "-m", "pip", "install", "--quiet", *PACKAGES[name]]
    installed = subprocess.run(pip, check=False, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"pip cannot install {PACKAGES[name]}: {installed.stderr[-200:]}")
    shape = (1, 16, 16, 3)
    script = "\n".join(
        [
            "import json, sys, numpy",
            f"path = {str(exports.path(name, 'logistic_regression'))!r}",
            f"images = numpy.full({shape}, 99, numpy.uint8)",
            SCRIPTS[name],
            "assert not {'tensorflow', 'keras', 'classify', 'onnx'} & {*sys.modules}",
            "print(json.dumps(out[0].tolist()))",
        ]
    )
    run = [python, "-I", "-c", script]
    done = subprocess.run(run, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = exports.logits("logistic_regression", np.full(shape, 99, np.uint8))
    np.testing.assert_allclose(json.loads(done.stdout), softmax(logits)[0], atol=1e-3)
