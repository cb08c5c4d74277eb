"""Exports with real weights in every format, and exported files in environments of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from export_tools import REAL_WEIGHTS, SUFFIXES, Exports, run_on_photos, softmax

import classify
from classify.export.exporting import ExportOptions, export_model
from classify.export.formats import KerasFormat, SavedModelFormat
from classify.export.graph import Plan
from classify.export.head import DenseLayer
from classify.export.parity import Parity
from classify.export.tflite import fit
from classify.predict.classifiers import PredictOptions
from extract.backbones import BACKBONES
from extract.decode import decode
from extract.preprocess import Preprocessing
from extract.weights import random_weights

pytestmark = [pytest.mark.stress, pytest.mark.timeout(1800)]

EVERY_WAY = [
    ("keras", "none"),
    ("savedmodel", "none"),
    ("onnx", "none"),
    ("tflite", "none"),
    ("tflite", "float16"),
    ("tflite", "dynamic"),
    ("tflite", "int8"),
]


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not REAL_WEIGHTS.is_file():
        pytest.skip("real weights and photos are not beside the repository")
    return run_on_photos(tmp_path_factory.mktemp("photos"), n_photos=110)


@pytest.mark.parametrize("model", ["dense", "logistic_regression"])
@pytest.mark.parametrize(("name", "quantize"), EVERY_WAY)
def test_real_weights_on_photos_agree(
    photo_run: Path, tmp_path: Path, name: Any, quantize: Any, model: str
) -> None:
    output = tmp_path / f"model{SUFFIXES[name]}"
    options = ExportOptions(name, model=model, quantize=quantize)
    for parity in export_model(photo_run, output, options).parities:
        if isinstance(parity, Parity):
            assert parity.largest_difference < 1e-4
    photos = sorted((photo_run.parent / "photos").rglob("*.jpg"))[::20]
    run = classify.load(photo_run, PredictOptions(model=model))
    seen = [fit(decode(path.read_bytes()), run.extractor.preprocessing) for path in photos]
    own = run.predict(seen if name == "tflite" else photos)  # TFLite is given whole numbers
    found = classify.load(output).predict(photos)
    if quantize == "none":
        np.testing.assert_allclose(found.probabilities, own.probabilities, atol=1e-3)


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
