"""Classifying with exported files: each in its own runtime, checked before it is loaded."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from export_tools import CLASSES, SIZE, SUFFIXES, Exports, softmax
from image_files import png_bytes
from PIL import Image

import classify
from classify.export.description import Described
from classify.export.formats import OnnxFormat
from classify.export.images import in_batches
from classify.export.protobuf import length_delimited
from classify.export.sealing import seal, unseal
from classify.predict.classifiers import PredictOptions
from classify.predict.cli import predict_images
from data_cache.errors import BadImagesError, ModelError, ParameterError
from extract.preprocess import SCALINGS, Preprocessing, preprocess
from extract.sources.unlabeled import NamedImage

FORMATS = list(SUFFIXES)


def command(*words: Any) -> Result:
    return CliRunner().invoke(predict_images, [*map(str, words)])


@pytest.mark.parametrize("model", ["dense", "logistic_regression"])
@pytest.mark.parametrize("name", FORMATS)
def test_exported_file_predicts_what_the_run_predicts(
    exports: Exports, name: str, model: str
) -> None:
    photos = sorted(exports.photos.rglob("*.png"))[::9]
    images = [np.asarray(Image.open(one))[None] for one in photos]
    if name == "tflite":  # its pixels are whole numbers when they have its size
        resizing = Preprocessing(SCALINGS["identity"], SIZE, "pad")
        images = [np.rint(preprocess(one, resizing)).astype(np.uint8) for one in images]
    expected = np.concatenate([softmax(exports.logits(model, one)) for one in images])
    found = classify.load(exports.path(name, model)).predict(photos)
    assert found.classes == CLASSES
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_command_takes_an_exported_file_and_keeps_bad_images_in_their_places(
    exports: Exports, tmp_path: Path, name: str
) -> None:
    (tmp_path / "torn.png").write_bytes(png_bytes(1)[:60])
    good = exports.photos / "pale" / "3.png"
    images = [good, tmp_path / "torn.png", good]
    model = exports.path(name, "logistic_regression")
    result = command(model, *images, "--output", tmp_path / "out.csv", "--top-k", 3)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert result.exit_code == 3
    assert [row["path"] for row in rows] == [str(one) for one in images]
    assert [row["class"] for row in rows] == ["pale", "", "pale"]
    assert sum(float(rows[0][f"probability_{place}"]) for place in (1, 2, 3)) == pytest.approx(1)
    assert "breaks off" in rows[1]["error"]


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_classifying_imports_nothing_that_only_training_needs(exports: Exports, name: str) -> None:
    model, photo = str(exports.path(name)), str(exports.photos / "pale" / "3.png")
    script = (
        f"import sys, classify\nclassify.load({model!r}).predict([{photo!r}])\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'scipy', 'matplotlib', 'pandas', 'jinja2'}\n"
        "sys.exit(' '.join(heavy & {*sys.modules}) or 0)"
    )
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_gray_and_deep_images_and_arrays_are_taken(exports: Exports, name: str) -> None:
    classifier = classify.load(exports.path(name))
    gray = np.random.default_rng(0).integers(0, 256, (1, 30, 20), dtype=np.uint8)
    colored = classifier.predict(gray[..., None].repeat(3, axis=3)).probabilities
    for images in (gray, gray / 255.0, gray.astype(np.float32)):
        np.testing.assert_allclose(classifier.predict(images).probabilities, colored, atol=1e-5)
    with pytest.raises(BadImagesError, match="image 0: not an image"):
        classifier.predict([b"<html>"])


@pytest.mark.parametrize("name", FORMATS)
def test_images_of_one_size_go_together_and_come_out_in_their_places(
    exports: Exports, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rng = np.random.default_rng(7)
    images: list[Any] = [
        rng.integers(0, 256, (12, 10 + number % 2, 3), dtype=np.uint8) for number in range(19)
    ]
    images[5] = b"torn"
    classifier = classify.load(exports.path(name))
    alone = [classifier.predict([one]).probabilities[0] for one in images if one is not images[5]]
    kind = type(classifier.file_format)
    runner, sizes = classifier.runner, []

    def noting(pixels: Any) -> Any:
        sizes.append(len(pixels))
        return runner.probabilities(pixels)

    monkeypatch.setattr(kind, "runner", lambda *_: replace(runner, probabilities=noting))
    stream = classify.load(exports.path(name)).stream(NamedImage("", one) for one in images)
    found = [one.probabilities for one in stream]
    assert found.pop(5) is None
    np.testing.assert_allclose(found, alone, atol=1e-6)
    assert sum(sizes) == 18
    assert max(sizes) >= 4


def test_large_images_do_not_wait_for_others(exports: Exports) -> None:
    large = np.zeros((600, 600, 3), np.uint8)
    numbers = [found for found, _ in in_batches((one, large) for one in range(3))]
    assert numbers == [[0], [1], [2]]


def test_images_are_taken_as_they_are_needed(
    exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classify.export.classifier.n_cores", lambda: 2)
    n_taken = 0

    def endless() -> Any:
        nonlocal n_taken
        while True:
            n_taken += 1
            yield NamedImage(str(n_taken), png_bytes(n_taken % 5))

    stream = classify.load(exports.path("onnx")).stream(endless())
    assert [one.id for one in islice(stream, 200)] == [str(1 + i) for i in range(200)]
    stream.close()
    assert n_taken < 300


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (PredictOptions(model="dense"), "--model"),
        (PredictOptions(weights="imagenet"), "--weights"),
        (PredictOptions(engine="onnx"), "--engine"),
        (PredictOptions(batch_size=3), "--batch-size"),
        (PredictOptions(preprocess=Path("x.json")), "--preprocess"),
        (PredictOptions(probabilities="calibrated"), "gives raw probabilities"),
    ],
)
def test_options_about_a_run_are_refused(
    exports: Exports, options: PredictOptions, word: str
) -> None:
    with pytest.raises(ParameterError, match=word):
        classify.load(exports.path("onnx"), options)


def test_probabilities_that_are_baked_in_are_taken_by_either_name(exports: Exports) -> None:
    path = exports.path("onnx", probabilities="calibrated")
    image = exports.photos / "pale" / "3.png"
    found = [
        classify.load(path, PredictOptions(probabilities=one)).predict(image).probabilities
        for one in (None, "calibrated")
    ]
    np.testing.assert_array_equal(*found)
    with pytest.raises(ParameterError, match="gives calibrated probabilities"):
        classify.load(path, PredictOptions(probabilities="raw"))


def test_output_that_cannot_be_written_is_refused_in_one_line(
    exports: Exports, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "out.csv"
    result = command(exports.path("onnx"), exports.photos, "--output", output)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "cannot be written" in result.stderr


def test_cache_is_refused_with_an_exported_file(exports: Exports) -> None:
    cache = exports.folder / "cache.h5"
    result = command(exports.path("onnx"), exports.photos, "--cache", cache)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "takes pixels" in result.stderr


def copy_of(exports: Exports, name: str, folder: Path) -> Path:
    path, copy = exports.path(name), folder / f"copy{SUFFIXES[name]}"
    shutil.copytree(path, copy) if path.is_dir() else shutil.copy(path, copy)
    return copy


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def in_the_middle(path: Path) -> None:
    file = max(path.rglob("variables.data*")) if path.is_dir() else path
    flip(file, file.stat().st_size // 2)


def rename_a_class(path: Path) -> None:
    file = path / "assets.extra" / "headstart.json" if path.is_dir() else path
    data = file.read_bytes()
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            members = {one: archive.read(one) for one in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content.replace(b'"pale"', b'"PALE"'))
        return
    assert data.count(b'"pale"') == 1
    file.write_bytes(data.replace(b'"pale"', b'"PALE"'))


def cut_short(path: Path) -> None:
    file = path / "saved_model.pb" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:-70])


@pytest.mark.parametrize("tamper", [in_the_middle, rename_a_class, cut_short])
@pytest.mark.parametrize("name", FORMATS)
def test_tampered_file_is_refused_in_one_line(
    exports: Exports, tmp_path: Path, name: str, tamper: Callable[[Path], None]
) -> None:
    path = copy_of(exports, name, tmp_path)
    classify.load(path)
    tamper(path)
    result = command(path, exports.photos)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1), result.output
    with pytest.raises(ModelError):
        classify.load(path)


def test_all_that_tensorflow_reads_is_part_of_what_is_checked(
    exports: Exports, tmp_path: Path
) -> None:
    path = copy_of(exports, "savedmodel", tmp_path)
    flip(path / "fingerprint.pb", 9)
    with pytest.raises(ModelError, match=r"fingerprint\.pb is not what was exported"):
        classify.load(path)


def test_labels_of_a_phone_are_part_of_what_is_checked(exports: Exports, tmp_path: Path) -> None:
    path = copy_of(exports, "tflite", tmp_path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"dark\nlight\npale\n", b"pale\nlight\ndark\n"))
    with pytest.raises(ModelError):
        classify.load(path)


def test_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.onnx").write_bytes(length_delimited(8, b"a graph"))
    (tmp_path / "b.onnx").write_bytes(b"\xff" * 40)
    (tmp_path / "c.onnx").write_bytes(b"")
    (tmp_path / "a.tflite").write_bytes(b"\x1c\0\0\0TFL3" * 9)
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "saved_model.pb").write_bytes(b"")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ModelError):
            classify.load(path)
    with pytest.raises(ModelError, match="is not there"):
        classify.load(tmp_path / "nothing.onnx")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "was not written by export-model"),
        ({"format_version": 2}, "version 2; this program reads version 1"),
        ({"classes": "abc"}, "not a list of names"),
        ({"classes": ["a", "a"]}, "not different names"),
        ({"recipe": {"decoding": "rgb8/9 alpha=white"}}, "decoding 'rgb8/9"),
        ({"recipe": None}, "cannot use"),
        ({"preprocessing": {"image_size": "9"}}, "image size '9'"),
        ({"preprocessing": {"image_size": 9, "resize_mode": "melt"}}, "'melt', expected stretch"),
        ({"probabilities": "odds"}, "'odds', expected raw"),
    ],
)
def test_description_that_cannot_be_used_is_refused(
    exports: Exports, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Sealed as the program would, so nothing but its content is wrong."""
    path = exports.path("onnx")
    said = unseal(path, OnnxFormat().description(path))
    text = seal(said | changes, said.pop("content"))
    with pytest.raises(ModelError, match=message):
        Described.of(path, unseal(path, text))


def test_file_whose_output_is_no_probabilities_is_refused(exports: Exports, tmp_path: Path) -> None:
    path = exports.path("onnx")
    said = unseal(path, OnnxFormat().description(path))
    content = said.pop("content")
    (tmp_path / "m.onnx").write_bytes(path.read_bytes())
    OnnxFormat().describe(tmp_path / "m.onnx", seal(said | {"classes": ["a", "b"]}, content))
    with pytest.raises(ModelError, match="is not what was exported"):
        classify.load(tmp_path / "m.onnx")


_RUN_ONNX = """
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(PATH)
images = np.full((1, 20, 31, 3), 128, np.uint8)
print(session.run(["probabilities"], {"images": images})[0].tolist()[0])
"""
_RUN_TFLITE = """
import numpy as np
from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter(model_path=PATH)
interpreter.allocate_tensors()
images = np.full(interpreter.get_input_details()[0]["shape"], 128, np.uint8)
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
interpreter.invoke()
print(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tolist()[0])
"""
_BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        blocked = ("tensorflow", "keras", "onnx", "h5py", "sklearn", "PIL", "classify", "extract",
                   "data_cache")
        if name.split(".")[0] in blocked:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize(("name", "script"), [("onnx", _RUN_ONNX), ("tflite", _RUN_TFLITE)])
def test_exported_file_runs_where_nothing_but_its_runtime_can_be_imported(
    exports: Exports, name: str, script: str
) -> None:
    path = exports.path(name)
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{_BLOCK}\nPATH = {str(path)!r}\n{script}"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    gray = np.full((1, SIZE, SIZE, 3), 128, np.uint8) if name == "tflite" else None
    images = np.full((1, 20, 31, 3), 128, np.uint8) if gray is None else gray
    expected = softmax(exports.logits("dense", images))[0]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-3)
