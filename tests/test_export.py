"""Exported files against the run that they come from, each in its own runtime."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image
from tiny_backbone import TINY

from classify.export import exporting
from classify.export.cli import export_model as command
from classify.export.exporting import ExportOptions, export_model
from classify.export.formats import OnnxFormat
from classify.export.head import DenseLayer
from classify.export.images import draw, open_place
from classify.runs import load_run
from classify.train import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.errors import (
    ExportError,
    ImageUnavailableError,
    OutputExistsError,
    ParameterError,
    RecipeMismatchError,
    SourceError,
    WeightsError,
)
from extract.backbones import BACKBONES
from extract.decode import DecodeOptions
from extract.extraction import ExtractionOptions, extract_features
from extract.preprocess import Preprocessing, preprocess
from extract.sources import open_source
from extract.weights import random_weights, set_weights

SHARED = Path(__file__).parents[2] / "shared"
SIZE = 16
SUFFIXES = {"keras": ".keras", "savedmodel": "", "onnx": ".onnx"}
FORMATS = list(SUFFIXES)


@pytest.fixture(scope="module", autouse=True)
def tiny_in_the_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on small photos of many shapes, padded to a square, with both kinds of head."""
    folder = tmp_path_factory.mktemp("run")
    write_photos(folder / "photos")
    options = ExtractionOptions(
        "tiny", "random", image_size=SIZE, resize_mode="pad", engine="keras"
    )
    extract_features(open_source(str(folder / "photos")), folder / "cache.h5", options)
    training = TrainingOptions(epochs=2, standardize=True, hidden_units=5)
    return train_head(folder / "cache.h5", folder / "run", training).path


def write_photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name, brightness in (("dark", 90), ("light", 160), ("pale", 220)):
        (folder / name).mkdir(parents=True)
        for number in range(25):
            height, width = rng.integers(9, 40, 2)
            pixels = rng.normal(brightness, 40, (height, width, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


def exported(run: Path, folder: Path, name: str, **choices: Any) -> Path:
    output = folder / f"model{SUFFIXES[name]}"
    return export_model(run, output, ExportOptions(name, **choices)).path


def outputs_of(path: Path, images: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
    """Run an exported file as a user would, without this project."""
    if path.suffix == ".keras":
        import keras

        found = keras.saving.load_model(path, safe_mode=True).predict(images, verbose=0)
        return dict(found)
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path)
        wanted = ["probabilities", "logits"]
        return dict(zip(wanted, session.run(wanted, {"images": images}), strict=True))
    import tensorflow as tf

    serve = tf.saved_model.load(path).signatures["serving_default"]
    return {name: value.numpy() for name, value in serve(images=tf.constant(images)).items()}


def expected_logits(run: Path, model: str, images: NDArray[np.uint8]) -> NDArray[np.floating]:
    """The cached-feature path on new images, put together from its own parts."""
    backbone = TINY.build(SIZE)
    set_weights(backbone, random_weights(TINY))
    inputs = preprocess(images, Preprocessing(TINY.scaling, SIZE, "pad"))
    return load_run(run).model(model).logits(np.asarray(backbone(inputs, training=False)))


@pytest.mark.parametrize(
    ("name", "model"),
    [(name, "dense") for name in FORMATS] + [("keras", "logistic_regression")],
)
def test_exported_file_classifies_new_images_as_the_run_does(
    run: Path, tmp_path: Path, name: str, model: str
) -> None:
    path = exported(run, tmp_path, name, model=model)
    for shape in ((3, 31, 22, 3), (1, 8, 50, 3)):
        images = np.random.default_rng(5).integers(0, 256, shape, dtype=np.uint8)
        outputs = outputs_of(path, images)
        expected = expected_logits(run, model, images)
        np.testing.assert_allclose(outputs["logits"], expected, atol=1e-3)
        exponents = np.exp(expected - expected.max(axis=1, keepdims=True))
        probabilities = exponents / exponents.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(outputs["probabilities"], probabilities, atol=1e-3)
    assert_described(path)
    assert not [one for one in tmp_path.iterdir() if ".tmp-" in one.name]


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


def test_onnx_takes_float_pixels_where_asked_for(run: Path, tmp_path: Path) -> None:
    path = exported(run, tmp_path, "onnx", model="dense", input_type="float32")
    images = np.random.default_rng(6).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)
    outputs = outputs_of(path, images.astype(np.float32))
    np.testing.assert_allclose(outputs["logits"], expected_logits(run, "dense", images), atol=1e-3)
    wide = images[:1].astype(np.float32)
    with pytest.raises(ExportError, match="more than 8 bits: export with --input-type float32"):
        OnnxFormat("uint8").open(path)["ONNX Runtime"](wide)


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
        "`dark`, `light`, `pale`",
        f"{metrics['n_train']:,} to train on",
        f"| test | {metrics['dense']['test_accuracy']:.4f} |",
        random_weights(TINY).digest,
        "pad to 16 x 16 pixels",
        "Dense head",
    ):
        assert fact in card
    again = CliRunner().invoke(command, words)
    assert again.exit_code == 2
    assert "exists already" in again.stderr


def test_moved_images_are_found_where_the_user_says(run: Path, tmp_path: Path) -> None:
    photos = run.parent / "photos"
    (tmp_path / "else").mkdir()
    moved = photos.rename(tmp_path / "else" / "where")
    try:
        with pytest.raises(SourceError, match=r"cannot be opened again .* --images"):
            exported(run, tmp_path, "keras")
        with FeatureCache.open(run.parent / "cache.h5") as cache:
            sample = draw(cache, open_place(load_run(run), moved), DecodeOptions(), 32)
        assert len(sample) == 32
    finally:
        moved.rename(photos)


def test_sample_pairs_training_images_with_their_own_features(run: Path) -> None:
    opened = load_run(run)
    with FeatureCache.open(run.parent / "cache.h5") as cache:
        sample = draw(cache, open_place(opened, None), DecodeOptions(), 10_000)
        content, features = cache.rows("train").content, cache.features("train")
    rows = {row.tobytes(): i for i, row in enumerate(content)}
    at = [rows[row.tobytes()] for row in sample.content]
    assert sorted(at) == list(range(len(content)))
    np.testing.assert_array_equal(sample.features, features[at])
    backbone = TINY.build(SIZE)
    set_weights(backbone, random_weights(TINY))
    for number in range(5):
        pixels = preprocess(sample.image(number)[None], Preprocessing(TINY.scaling, SIZE, "pad"))
        again = np.asarray(backbone(pixels, training=False))[0]
        np.testing.assert_allclose(sample.features[number], again, atol=1e-4)


def test_image_that_changed_meanwhile_is_noticed(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "photos", tmp_path / "photos")
    with FeatureCache.open(run.parent / "cache.h5") as cache:
        sample = draw(cache, open_place(load_run(run), tmp_path / "photos"), DecodeOptions(), 3)
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


def test_cache_of_another_recipe_is_refused(run: Path, tmp_path: Path, make_cache: Any) -> None:
    features = np.random.default_rng(0).normal(size=(40, 8))
    other = make_cache(tmp_path / "other.h5", {"train": (features, np.arange(40) % 3)})
    with pytest.raises(RecipeMismatchError, match=r"backbone mobilenet_v2, was tiny.*--cache"):
        exported(run, tmp_path, "keras", cache=other)


def test_output_must_suit_the_format(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"ends in \.onnx"):
        export_model(run, tmp_path / "model.pb", ExportOptions("onnx"))
    with pytest.raises(ParameterError, match="keras, savedmodel, onnx"):
        export_model(run, tmp_path / "model.bin", ExportOptions("pickle"))


def test_overwriting_spares_what_no_export_wrote(run: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="no SavedModel"):
        export_model(run, tmp_path / "photos", ExportOptions("savedmodel", overwrite=True))
    (tmp_path / "a.keras").mkdir()
    with pytest.raises(OutputExistsError, match="is a folder"):
        export_model(run, tmp_path / "a.keras", ExportOptions("keras", overwrite=True))


@pytest.fixture(scope="module")
def photo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on some of the ants and bees, with real weights."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("ants", "bees"):
        (folder / "photos" / name).mkdir(parents=True)
        source = SHARED / "data" / "ants_bees" / "train" / name
        for path in sorted(source.glob("*.jpg"))[:30]:
            shutil.copy(path, folder / "photos" / name)
    options = ExtractionOptions(weights=str(REAL_WEIGHTS), image_size=96, engine="keras")
    extract_features(open_source(str(folder / "photos")), folder / "cache.h5", options)
    return train_head(folder / "cache.h5", folder / "run").path


REAL_WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_96_no_top.h5"


@pytest.mark.skipif(
    not REAL_WEIGHTS.is_file(), reason="real weights and photos are not beside the repository"
)
@pytest.mark.parametrize("name", FORMATS)
def test_real_weights_on_photos_agree(photo_run: Path, tmp_path: Path, name: str) -> None:
    output = tmp_path / f"model{SUFFIXES[name]}"
    options = ExportOptions(name, weights=str(REAL_WEIGHTS))
    parities = export_model(photo_run, output, options).parities
    assert [parity.n_images for parity in parities] == [32] * (2 if name == "keras" else 1)
    assert all(parity.largest_difference < 1e-4 for parity in parities)
