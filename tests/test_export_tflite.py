"""TFLite files: what they take and give, what phones read in them, and what is measured of them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from export_tools import CLASSES, SIZE, Exports, exported, softmax, tiny_in_the_registry
from flatbuffers import number_types
from numpy.typing import NDArray

from classify.export import exporting
from classify.export.formats import Runner
from classify.export.graph import DenseLayer
from classify.export.images import Sample
from classify.export.parity import FixedCheck, FixedParity
from classify.export.tflite import fit, fit_as_phones_do
from classify.export.tflite_head import with_float_head
from classify.results.runs import load_run
from data_cache.console import import_keras
from data_cache.errors import ExportError
from extract.preprocess import SCALINGS, Preprocessing

LOGISTIC = "logistic_regression"


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with tiny_in_the_registry():
        yield


def details(path: Path) -> tuple[Any, Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    return taken, given


@pytest.mark.parametrize("quantize", ["none", "float16", "dynamic", "int8"])
def test_file_takes_one_image_in_bytes_and_gives_probabilities(
    exports: Exports, quantize: str
) -> None:
    taken, given = details(exports.path("tflite", LOGISTIC, quantize=quantize))
    assert (taken["shape"].tolist(), taken["dtype"]) == ([1, SIZE, SIZE, 3], np.uint8)
    assert (given["shape"].tolist(), given["dtype"]) == ([1, 3], np.float32)
    assert taken["quantization"] == ((1.0, 0) if quantize == "int8" else (0.0, 0))


def test_head_on_a_converted_backbone_is_the_textbook_formula() -> None:
    """The backbone here is nothing but pooling, the head has a hidden layer."""
    from ai_edge_litert.interpreter import Interpreter

    rng = np.random.default_rng(0)
    kernels = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 5), (5, 4))]
    biases = [rng.normal(size=size).astype(np.float32) for size in (5, 4)]
    keras = import_keras()
    import tensorflow as tf

    images = keras.Input((2, 2, 3), batch_size=1)
    pooling = keras.Model(images, keras.layers.GlobalAveragePooling2D()(images))
    converted = tf.lite.TFLiteConverter.from_keras_model(pooling).convert()
    layers = [DenseLayer(kernels[0], biases[0], "relu"), DenseLayer(kernels[1], biases[1])]
    interpreter = Interpreter(model_content=with_float_head(converted, layers))
    runner = interpreter.get_signature_runner()
    for pixels in rng.normal(size=(5, 1, 2, 2, 3)).astype(np.float32):
        hidden = np.maximum(pixels.mean(axis=(1, 2)) @ kernels[0] + biases[0], 0)
        expected = softmax(hidden @ kernels[1] + biases[1])
        (found,) = runner(**dict.fromkeys(runner.get_input_details(), pixels)).values()
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def _of_shape(tensors: list[dict[str, Any]], shape: tuple[int, ...]) -> list[dict[str, Any]]:
    return [one for one in tensors if tuple(one["shape"]) == shape]


def test_int8_file_computes_the_backbone_in_whole_numbers_and_the_head_in_float32(
    exports: Exports,
) -> None:
    from ai_edge_litert.interpreter import Interpreter

    path = exports.path("tflite", LOGISTIC, quantize="int8")
    tensors = Interpreter(model_path=str(path)).get_tensor_details()
    head = {one["name"]: one["dtype"] for one in tensors if one["name"].startswith("logits")}
    assert head == dict.fromkeys(["logits", "logits/kernel", "logits/bias"], np.float32)
    (images, stem) = (one["dtype"] for one in tensors[:1] + _of_shape(tensors, (8, 3, 3, 3)))
    assert (images, stem) == (np.uint8, np.int8)


def table(buffer: bytes) -> flatbuffers.table.Table:
    start = flatbuffers.encode.Get(flatbuffers.packer.uoffset, buffer, 0)
    return flatbuffers.table.Table(buffer, start)


def slot(of: flatbuffers.table.Table, number: int) -> int:
    """Return where a slot's value is, as the FlatBuffers reader counts."""
    offset = of.Offset(4 + 2 * number)
    assert offset, f"slot {number} is empty"
    return offset + of.Pos


def text(of: flatbuffers.table.Table, number: int) -> str:
    return of.String(slot(of, number)).decode()


def inner(of: flatbuffers.table.Table, number: int) -> flatbuffers.table.Table:
    return flatbuffers.table.Table(of.Bytes, of.Indirect(slot(of, number)))


def first(of: flatbuffers.table.Table, number: int) -> flatbuffers.table.Table:
    offset = of.Offset(4 + 2 * number)
    assert of.VectorLen(offset) == 1
    return flatbuffers.table.Table(of.Bytes, of.Indirect(of.Vector(offset)))


def number(of: flatbuffers.table.Table, at: int, kind: Any) -> int:
    return of.Get(kind, slot(of, at))


def test_metadata_say_what_libraries_for_phones_ask(exports: Exports) -> None:
    """Read with FlatBuffers alone, by the slots of ``metadata_schema.fbs``."""
    from tensorflow.lite.python.schema_py_generated import Model

    model = Model.GetRootAs(exports.path("tflite", LOGISTIC).read_bytes(), 0)
    entries = [model.Metadata(i) for i in range(model.MetadataLength())]
    (entry,) = [one for one in entries if one.Name() == b"TFLITE_METADATA"]
    buffer = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    assert buffer[4:8] == b"M001"
    whole = table(buffer)
    assert "random numbers" in text(whole, 5), "the license"
    assert text(first(whole, 6), 0) == "headstart.json"
    graph = first(whole, 3)
    images, probabilities = first(graph, 2), first(graph, 3)
    assert number(inner(images, 3), 0, number_types.Uint8Flags) == 2, "an image"
    image = inner(inner(images, 3), 1)
    assert number(image, 0, number_types.Int8Flags) == 1, "RGB"
    size = inner(image, 1)
    assert [number(size, i, number_types.Uint32Flags) for i in (0, 1)] == [SIZE, SIZE]
    unit = first(images, 4)
    assert number(unit, 0, number_types.Uint8Flags) == 1, "normalization"
    for at, expected in ((0, 0.0), (1, 1.0)):
        values = inner(unit, 1).GetVectorAsNumpy(
            number_types.Float32Flags, inner(unit, 1).Offset(4 + 2 * at)
        )
        assert values.tolist() == [expected]
    labels = first(probabilities, 6)
    assert text(labels, 0) == "labels.txt"
    assert number(labels, 2, number_types.Int8Flags) == 2, "labels of an axis"


def test_labels_and_description_are_in_a_zip_at_the_end(exports: Exports) -> None:
    path = exports.path("tflite", LOGISTIC, quantize="int8")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.read("labels.txt").decode().splitlines() == list(CLASSES)
        said = json.loads(archive.read("headstart.json"))
    assert (said["quantize"], said["file_format"], said["model"]) == ("int8", "tflite", LOGISTIC)
    assert "resized by the caller" in said["input"]["images"]
    (checked,) = said["checked"]
    n_validation = len(load_run(exports.run).part_ids("validation"))
    assert (checked["n_images"], checked["n_validation"]) == (62, n_validation)
    card = Path(f"{path}.MODEL_CARD.md").read_text(encoding="utf-8")
    for figure in ("accuracy", "run_accuracy", "phone_accuracy"):
        assert f"{checked[figure]:.4f}" in card
    assert "16 x 16 pixels, uint8, which the caller resizes (pad)" in card


def test_figures_of_a_file_are_those_of_its_predictions(exports: Exports) -> None:
    """Counted again with the interpreter, on images resized by Pillow and by TensorFlow."""
    from PIL import Image

    from classify.export.loading import open_exported

    path = exports.path("tflite", LOGISTIC)
    runner = open_exported(path)[0].runner(path)
    with zipfile.ZipFile(path) as archive:
        (checked,) = json.loads(archive.read("headstart.json"))["checked"]
    run = load_run(exports.run)
    ids = [*run.part_ids("train"), *run.part_ids("validation")]
    right = 0
    for name in ids:
        pixels = np.asarray(Image.open(exports.photos / name))
        shown = fit_as_phones_do(pixels, Preprocessing(SCALINGS["tf"], SIZE, "pad"))
        found = CLASSES[int(runner.probabilities(shown[None]).argmax())]
        right += found == Path(name).parent.name
    assert checked["phone_accuracy"] == pytest.approx(right / len(ids))


@pytest.mark.parametrize("shape", [(16, 16), (97, 41), (5, 60), (200, 300)])
def test_phones_resize_without_antialiasing(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = fit_as_phones_do(pixels, Preprocessing(SCALINGS["tf"], 24, "stretch"))
    import_keras()
    import tensorflow as tf

    expected = tf.image.resize(pixels, (24, 24), "bilinear", antialias=False).numpy()
    assert found.shape == (24, 24, 3)
    np.testing.assert_allclose(found, expected, atol=1.01)


def test_phones_crop_and_pad_as_training_did() -> None:
    """Of a smooth image, where antialiasing changes little."""
    rows, columns = np.mgrid[:60, :90]
    pixels = np.stack([rows * 4, columns * 2, rows + columns], axis=2).astype(np.uint8)
    for mode in ("crop", "pad"):
        preprocessing = Preprocessing(SCALINGS["tf"], 30, mode)  # type: ignore[arg-type]
        phone, own = (f(pixels, preprocessing) for f in (fit_as_phones_do, fit))
        inside = slice(6, 24)
        np.testing.assert_allclose(
            phone[inside].astype(int), own[inside].astype(int), atol=4, err_msg=mode
        )
    assert set(phone[:4].ravel()) == {127}


def test_quantized_file_that_disagrees_is_never_written(exports: Exports, tmp_path: Path) -> None:
    """This Dense head hardly tells its classes apart, so rounding changes many of its answers."""
    with pytest.raises(ExportError, match=r"LiteRT with int8 .* of 62 images .* expected 98%"):
        exported(exports.run, tmp_path, "tflite", model="dense", quantize="int8")
    assert not list(tmp_path.iterdir())


ROWS = np.array([[0.6, 0.4], [0.3, 0.7], [0.9, 0.1], [0.2, 0.8]])


class FakeSample(Sample):
    """Images whose one pixel says which they are."""

    def image(self, number: int) -> NDArray[np.uint8]:
        return np.full((1, 1, 3), number, np.uint8)


class Stub:
    """A model that has learnt labels by heart."""

    classes_ = np.arange(2)

    def predict(self, features: NDArray) -> NDArray:
        return np.array([0, 1, 0, 0])


def check(file: NDArray, *, is_quantized: bool = False) -> FixedParity:
    n = len(ROWS)
    arrays = [np.zeros(n)] * 4
    sample = FakeSample(None, *arrays[:2], None, arrays[2], np.array([0, 1, 1, 1]), 2)  # type: ignore[arg-type]

    def rows_of(probabilities: NDArray) -> Any:
        return lambda images: probabilities[[int(images.ravel()[0]) % n]]

    return FixedCheck(
        "it",
        Runner(lambda images: file[[int(images.ravel()[0])]]),
        rows_of(ROWS),
        lambda pixels: pixels,
        lambda pixels: pixels,
        is_quantized=is_quantized,
    ).run(sample, Stub())  # type: ignore[arg-type]


def test_fixed_parity_counts_and_measures() -> None:
    parity = check(ROWS * (1 + 5e-4))
    assert parity.largest_difference == pytest.approx(np.log(1 + 5e-4))
    assert (parity.n_equal, parity.n_images, parity.n_validation) == (4, 4, 2)
    assert (parity.run_accuracy, parity.accuracy, parity.phone_accuracy) == (0.5, 0.75, 0.75)
    assert "on them, which the run learned from or chose on, 0.7500 (the" in parity.sentence()


@pytest.mark.parametrize(
    "file", [ROWS[:, ::-1], ROWS * (1 + 2e-3), np.where(ROWS > 0.85, 0, ROWS), ROWS * np.nan]
)
def test_fixed_parity_refuses(file: NDArray) -> None:
    with pytest.raises(ExportError, match="does not predict what Keras does"):
        check(file)


def test_quantized_parity_goes_by_classes_alone() -> None:
    rounded = np.rint(ROWS * 4) / 4
    assert check(rounded, is_quantized=True).n_equal == 4
    one_wrong = np.concatenate([ROWS[:3], ROWS[3:, ::-1]])
    with pytest.raises(ExportError, match="3 of 4 images get the same class, expected 98%"):
        check(one_wrong, is_quantized=True)


def test_file_that_disagrees_is_never_written(
    exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = exporting.TfliteFormat.write

    def shifted(self: Any, plan: Any, path: Path) -> None:
        *first_ones, last = plan.layers
        other = DenseLayer(last.kernel, last.bias + np.float32([0.01, 0, 0]), last.activation)
        honest(self, replace(plan, layers=(*first_ones, other)), path)

    monkeypatch.setattr(exporting.TfliteFormat, "write", shifted)
    with pytest.raises(ExportError, match=r"logits differ by up to 1\.0e-02"):
        exported(exports.run, tmp_path, "tflite", model=LOGISTIC)
    assert not list(tmp_path.iterdir())
