"""Exported files against the run that they come from, each in its own runtime."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from export_tools import (
    REAL_WEIGHTS,
    SIZE,
    TEMPERATURES,
    Exports,
    exported,
    run_on_photos,
    set_temperatures,
    softmax,
    tiny_in_the_registry,
)
from numpy.typing import NDArray
from PIL import Image
from tiny_backbone import TINY

import classify
from classify.export import exporting
from classify.export.cli import export_model as command
from classify.export.exporting import ExportOptions, export_model
from classify.export.formats import OnnxFormat
from classify.export.graph import DenseLayer
from classify.export.images import Pool, draw, open_place
from classify.export.sealing import unseal
from classify.export.tflite import TfliteFormat
from classify.predict.classifiers import PredictOptions
from classify.results.runs import BACKBONE_FILE, TUNED_KIND, load_run
from classify.train_head.job import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.errors import (
    CacheNotFoundError,
    ExportError,
    ImageUnavailableError,
    OutputError,
    OutputExistsError,
    ParameterError,
    RecipeMismatchError,
    SourceError,
    WeightsError,
)
from extract.decode import DecodeOptions
from extract.preprocess import Preprocessing, preprocess
from extract.weights import random_weights, set_weights


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    with tiny_in_the_registry():
        yield


@pytest.fixture(scope="module")
def run(exports: Exports) -> Path:
    return exports.run


def outputs_of(path: Path, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
    """Run an exported file as a user would, without this project."""
    if path.suffix == ".keras":
        import keras

        found = keras.saving.load_model(path, safe_mode=True).predict(images, verbose=0)
        return dict(found)
    if path.suffix == ".tflite":
        return {"probabilities": np.concatenate([classify_on_a_phone(path, one) for one in images])}
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        wanted = ["probabilities", "logits"]
        return dict(zip(wanted, session.run(wanted, {"images": images}), strict=True))
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    return {name: value.numpy() for name, value in serve(images=tf.constant(images)).items()}


@pytest.mark.parametrize("model", ["dense", "logistic_regression"])
@pytest.mark.parametrize("name", ["keras", "savedmodel", "onnx"])
def test_exported_file_classifies_new_images_as_the_run_does(
    exports: Exports, name: str, model: str
) -> None:
    path = exports.path(name, model)
    for shape in ((3, 31, 22, 3), (1, 8, 50, 3)):
        images = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
        outputs = outputs_of(path, images)
        expected = exports.logits(model, images)
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-3)
        np.testing.assert_allclose(outputs["probabilities"], softmax(expected), atol=1e-3)
    assert_described(path)
    assert not [one for one in path.parent.iterdir() if ".tmp-" in one.name]


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_calibrated_probabilities_are_those_of_logits_divided_by_the_temperature(
    exports: Exports, name: str
) -> None:
    path = exports.path(name, probabilities="calibrated")
    images = np.random.default_rng(5).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    expected = softmax(exports.logits("dense", images) / TEMPERATURES["dense"])
    np.testing.assert_allclose(outputs_of(path, images)["probabilities"], expected, atol=1e-4)
    said = unseal(path, (TfliteFormat() if name == "tflite" else OnnxFormat()).description(path))
    assert (said["probabilities"], said["temperature"]) == ("calibrated", TEMPERATURES["dense"])
    card = Path(f"{path}.MODEL_CARD.md").read_text(encoding="utf-8")
    assert "divided by the temperature 0.5" in card


@pytest.mark.parametrize("temperature", [None, "absent"])
def test_calibrated_probabilities_are_refused_where_none_were_fitted(
    run: Path, tmp_path: Path, temperature: Any
) -> None:
    shutil.copytree(run, tmp_path / "run")
    set_temperatures(tmp_path / "run", {"dense": temperature})
    if temperature == "absent":
        edit_metrics(tmp_path / "run", lambda metrics: metrics["dense"].pop("temperature"))
    with pytest.raises(ParameterError, match="no calibrated probabilities of dense"):
        exported(tmp_path / "run", tmp_path, "onnx", model="dense", probabilities="calibrated")


def edit_metrics(run: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = run / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    edit(metrics)
    path.write_text(json.dumps(metrics), encoding="utf-8")


def classify_on_a_phone(path: Path, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.set_tensor(taken["index"], image[None])
    interpreter.invoke()
    return np.array(interpreter.get_tensor(given["index"]))


def assert_described(path: Path) -> None:
    """The classes, the preprocessing and the weights' digest are in the file itself."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            text = archive.read("headstart.json").decode()
            assert '"Lambda"' not in archive.read("config.json").decode()
    elif path.suffix == ".onnx":
        import onnx

        model = onnx.load(path)
        assert {node.domain for node in model.graph.node} == {""}
        (text,) = [one.value for one in model.metadata_props if one.key == "headstart"]
    else:
        text = (path / "assets.extra" / "headstart.json").read_text(encoding="utf-8")
    described = json.loads(text)
    assert described["classes"] == ["dark", "light", "pale"]
    assert described["preprocessing"]["resize_mode"] == "pad"
    assert described["preprocessing"]["image_size"] == SIZE
    assert described["weights"]["digest"] == random_weights(TINY).digest
    assert described["weights"]["license"]["name"] == "none needed"
    assert (described["probabilities"], described["temperature"]) == ("raw", None)
    assert "weights_path" not in described["provenance"], "a path of this machine"
    assert described["provenance"]["source"] == "photos"


def test_onnx_takes_float_pixels_where_asked_for(exports: Exports) -> None:
    path = exports.path("onnx", input_type="float32")
    images = np.random.default_rng(6).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    outputs = outputs_of(path, images.astype(np.float32))
    np.testing.assert_allclose(outputs["logits"], exports.logits("dense", images), atol=1e-3)
    wide = images[:1].astype(np.float32)
    with pytest.raises(ExportError, match="more than 8 bits: export with --input-type float32"):
        OnnxFormat("uint8").ways(exports.path("onnx"))["ONNX Runtime"](wide)


def test_file_that_disagrees_is_never_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = exporting.dense_layers

    def shifted(model: Any) -> tuple[DenseLayer, ...]:
        *first, last = honest(model)
        return (*first, replace(last, bias=last.bias + np.float32(2e-3)))

    monkeypatch.setattr(exporting, "dense_layers", shifted)
    with pytest.raises(ExportError, match=r"0 of 32 images .* logits differ by up to 2\.0e-03"):
        exported(run, tmp_path, "keras")
    assert not list(tmp_path.iterdir())


def test_command_writes_the_file_and_its_card(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "model.keras"
    words = [str(run), "--format", "keras", "--output", str(output), "--model", "dense"]
    done = CliRunner().invoke(command, words)
    assert (done.exit_code, done.stdout) == (0, f"Wrote {output} and {output}.MODEL_CARD.md\n")
    assert "model(x) agrees with the run on 32 images" in done.stderr
    card = Path(f"{output}.MODEL_CARD.md").read_text(encoding="utf-8")
    metrics = load_run(run).metrics
    for fact in (
        "- Source: photos\n",
        "`dark`, `light`, `pale`",
        f"{metrics['n_train']:,} to train on",
        f"| test | {metrics['dense']['test_accuracy']:.4f} |",
        random_weights(TINY).digest,
        "pad to 16 x 16 pixels",
        "Dense head",
        "not divided by the temperature 0.5 that training fitted",
    ):
        assert fact in card
    assert "not measured" not in card
    again = CliRunner().invoke(command, words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_card_of_a_model_that_learned_from_the_test_says_so(run: Path, tmp_path: Path) -> None:
    training = TrainingOptions(epochs=1, refit="all")
    refitted = train_head(run.parent / "cache.h5", tmp_path / "run", training)
    with FeatureCache.open(run.parent / "cache.h5") as cache:
        n_test = cache.n_rows("test")
        n_rows = sum(map(cache.n_rows, cache.split_names))
    output = exported(refitted.path, tmp_path, "keras", model="dense")
    card = Path(f"{output}.MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"{n_test} of the test to refit to" in card
    assert f"refitted to all {n_rows} rows, the test's too" in card
    assert "before the refit, and there is no test score" in card
    assert "0 to test on" not in card


def test_moved_images_are_found_where_the_user_says(run: Path, tmp_path: Path) -> None:
    photos = run.parent / "photos"
    (tmp_path / "else").mkdir()
    moved = photos.rename(tmp_path / "else" / "where")
    try:
        with pytest.raises(SourceError, match=r"cannot be opened again .* --images"):
            exported(run, tmp_path, "keras")
        with FeatureCache.open(run.parent / "cache.h5") as cache:
            sample = draw(Pool(cache), open_place(load_run(run), moved), DecodeOptions(), 32)
        assert len(sample) == 32
    finally:
        moved.rename(photos)


def test_sample_pairs_training_images_with_their_own_features(run: Path) -> None:
    opened = load_run(run)
    with FeatureCache.open(run.parent / "cache.h5") as cache:
        pool = Pool.of(opened, cache)
        sample = draw(pool, open_place(opened, None), DecodeOptions(), 10_000)
        labels, ids = cache.rows("train").labels, cache.rows("train").ids
        content, features = cache.rows("train").content, cache.features("train")
    rows = {row.tobytes(): i for i, row in enumerate(content)}
    at = [rows[row.tobytes()] for row in sample.content]
    assert sorted(at) == list(range(len(content)))
    np.testing.assert_array_equal(sample.features, features[at])
    np.testing.assert_array_equal(sample.labels, labels[at])
    validation = opened.part_ids("validation")
    first = {ids[i].decode() for i in at[: sample.n_validation]}
    assert first == set(validation), "those validated on come first"
    assert 0 < sample.take(slice(3, None)).n_validation == len(validation) - 3
    backbone = TINY.build(SIZE)
    set_weights(backbone, random_weights(TINY))
    for number in range(5):
        pixels = preprocess(sample.image(number)[None], Preprocessing(TINY.scaling, SIZE, "pad"))
        again = np.asarray(backbone(pixels, training=False))[0]
        np.testing.assert_allclose(sample.features[number], again, atol=1e-4)


def test_image_that_changed_meanwhile_is_noticed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "photos", tmp_path / "photos")
    with FeatureCache.open(run.parent / "cache.h5") as cache:
        place = open_place(load_run(run), tmp_path / "photos")
        sample = draw(Pool(cache), place, DecodeOptions(), 3)
    for path in (tmp_path / "photos").rglob("*.png"):
        Image.new("RGB", (9, 9)).save(path)
    with pytest.raises(ImageUnavailableError, match="changed"):
        sample.image(0)


def test_too_few_images_are_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "photos" / "dark", tmp_path / "some" / "dark")
    with pytest.raises(
        SourceError, match=r"of the \d+ training images .* expected 32: .* --images"
    ):
        exported(run, tmp_path, "keras", images=tmp_path / "some")


def test_other_weights_than_the_run_s_are_refused(run: Path, tmp_path: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    metrics["recipe"]["weights_digest"] = "ab" * 32
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    with pytest.raises(WeightsError, match="abababababab"):
        exported(tmp_path / "run", tmp_path, "keras")


def test_cache_that_has_moved_is_asked_for(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    edit_metrics(tmp_path / "run", lambda metrics: metrics.update(cache="gone.h5"))
    with pytest.raises(CacheNotFoundError, match=r"gone\.h5, which .* with --cache"):
        exported(tmp_path / "run", tmp_path, "onnx")


def test_cache_of_another_recipe_is_refused(run: Path, tmp_path: Path, make_cache: Any) -> None:
    features = np.random.default_rng(0).normal(size=(40, 8))
    other = make_cache(tmp_path / "other.h5", {"train": (features, np.arange(40) % 3)})
    with pytest.raises(RecipeMismatchError, match=r"backbone mobilenet_v2, was tiny.*--cache"):
        exported(run, tmp_path, "keras", cache=other)


def test_output_must_suit_the_format(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"ends in \.onnx"):
        export_model(run, tmp_path / "model.pb", ExportOptions("onnx"))
    with pytest.raises(ParameterError, match="keras, savedmodel, onnx, tflite"):
        export_model(run, tmp_path / "model.bin", ExportOptions("pickle"))
    with pytest.raises(ParameterError, match="--quantize is for the format tflite, not onnx"):
        export_model(run, tmp_path / "model.onnx", ExportOptions("onnx", quantize="int8"))
    with pytest.raises(ParameterError, match="--input-type is for the format onnx, not keras"):
        export_model(run, tmp_path / "model.keras", ExportOptions("keras", input_type="float32"))
    unknown = ExportOptions("tflite", quantize="int4")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="unknown quantization 'int4'"):
        export_model(run, tmp_path / "model.tflite", unknown)


def test_output_where_nothing_can_be_written_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        export_model(run, tmp_path / "file" / "model.keras", ExportOptions("keras"))


def test_overwriting_spares_what_no_export_wrote(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="no SavedModel"):
        export_model(run, tmp_path / "photos", ExportOptions("savedmodel", overwrite=True))
    (tmp_path / "a.keras").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        export_model(run, tmp_path / "a.keras", ExportOptions("keras", overwrite=True))


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_fine_tuned_run_is_exported_with_its_own_backbone(
    exports: Exports, tmp_path: Path, name: str
) -> None:
    """As ``fine-tune`` leaves it: tuned weights in the run, and features that no cache has."""
    tuned = fine_tuned(exports.run, tmp_path / "tuned")
    path = exported(tuned, tmp_path / "out", name)
    images = np.random.default_rng(5).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    backbone = TINY.build(SIZE)
    backbone.load_weights(tuned / BACKBONE_FILE)
    features = backbone(preprocess(images, Preprocessing(TINY.scaling, SIZE)), training=False)
    expected = load_run(tuned).model("dense").logits(np.asarray(features))
    found = outputs_of(path, images)["probabilities"]
    np.testing.assert_allclose(found, softmax(expected), atol=1e-4)
    assert np.abs(found - softmax(exports.logits("dense", images))).max() > 1e-2
    again = classify.load(path).predict(images).probabilities
    own = classify.load(tuned, PredictOptions(engine="keras")).predict(images).probabilities
    np.testing.assert_allclose(again, own, atol=1e-4)


def fine_tuned(run: Path, folder: Path) -> Path:
    """Make a run of other backbone weights out of one."""
    shutil.copytree(run, folder)
    backbone = TINY.build(SIZE)
    set_weights(backbone, random_weights(TINY, seed=3))
    backbone.save_weights(folder / BACKBONE_FILE)
    changes = {"weights_digest": random_weights(TINY, seed=3).digest}
    edit_metrics(folder, lambda metrics: metrics["recipe"].update(changes))
    edit_metrics(folder, lambda metrics: metrics.update(kind=TUNED_KIND, selected="dense"))
    return folder


@pytest.mark.skipif(
    not REAL_WEIGHTS.is_file(), reason="real weights and photos are not beside the repository"
)
def test_real_weights_on_photos_agree(tmp_path: Path) -> None:
    """The weights are found where the run found them, without being named again."""
    run = run_on_photos(tmp_path, n_photos=30)
    (parity,) = export_model(run, tmp_path / "model.onnx", ExportOptions("onnx")).parities
    assert parity.n_images == 32
    assert parity.largest_difference < 1e-4
