"""Conversion, to each format, of what the backbones are made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_backbone import TINY

from data_cache.errors import EngineError
from extract import convert as conversion
from extract import converters
from extract.backbones import get_backbone
from extract.convert import Converted, convert, kept_folder, probe_batch, relative_error
from extract.converters import TO_ONNX, TO_TFLITE, Converter
from extract.engines import Engine
from extract.litert_engine import LiteRtEngine
from extract.onnx_engines import OnnxEngine
from extract.preprocess import SCALINGS
from extract.weights import Weights, find_weights, random_weights, set_weights

SHARED_WEIGHTS = Path(__file__).parents[1] / ".." / "shared" / "weights"


BOTH = pytest.mark.parametrize("converter", [TO_ONNX, TO_TFLITE], ids=lambda one: one.title)


@pytest.fixture(scope="module")
def onnx_model() -> Converted:
    return convert(TO_ONNX, TINY, random_weights(TINY), 16)


def load(converted: Converted) -> Engine:
    """Load a conversion in the library that it is for."""
    is_onnx = converted.model.suffix == ".onnx"
    return OnnxEngine(converted.model) if is_onnx else LiteRtEngine(converted.model)


@BOTH
def test_probe_holds_what_the_reference_makes_of_its_batch(converter: Converter) -> None:
    batch, features = convert(converter, TINY, random_weights(TINY), 16).probe()
    model = TINY.build(16)
    set_weights(model, random_weights(TINY))
    np.testing.assert_allclose(features, np.asarray(model(batch, training=False)), rtol=1e-6)


def test_normalization_is_folded_away_and_nothing_is_foreign(onnx_model: Converted) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(onnx_model.model)
    onnx.checker.check_model(model)
    kinds = {node.op_type for node in model.graph.node}
    assert "BatchNormalization" not in kinds
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


@BOTH
def test_converted_model_takes_batches_of_any_size(converter: Converter) -> None:
    engine = load(convert(converter, TINY, random_weights(TINY), 16))
    assert [len(engine(np.zeros((n, 16, 16, 3), np.float32))) for n in (1, 3, 65)] == [1, 3, 65]


@pytest.mark.parametrize("name", SCALINGS)
def test_probe_tries_the_whole_input_range(name: str) -> None:
    scaling = SCALINGS[name]
    batch = probe_batch(scaling, 32)
    assert batch.dtype == np.float32
    assert len(batch) == conversion.N_PROBE_IMAGES
    span = scaling.highest - scaling.lowest
    assert scaling.lowest - 1e-5 * span <= batch.min() < scaling.lowest + 0.05 * span
    assert scaling.highest - 0.05 * span < batch.max() <= scaling.highest + 1e-5 * span
    np.testing.assert_array_equal(batch, probe_batch(scaling, 32))


def test_relative_error_is_that_of_the_worst_row() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 10.0]], np.float32)
    features = np.array([[3.0, 4.0], [0.6, 10.8]], np.float32)
    assert relative_error(features, reference) == pytest.approx(0.1)
    assert relative_error(reference, reference) == 0


@pytest.mark.parametrize("odd", [np.full((2, 2), np.nan, np.float32), np.ones((2, 3), np.float32)])
def test_features_of_another_shape_or_not_finite_agree_with_nothing(odd: np.ndarray) -> None:
    assert relative_error(odd, np.ones((2, 2), np.float32)) == np.inf


def test_each_converter_backbone_size_and_weights_has_a_folder_of_its_own() -> None:
    weights, other = random_weights(TINY), random_weights(TINY, seed=1)
    small = get_backbone("mobilenet_v3_small")
    folders = {
        kept_folder(converter, backbone, one, size).folder
        for converter in (TO_ONNX, TO_TFLITE)
        for backbone, one, size in (
            (TINY, weights, 16),
            (TINY, weights, 32),
            (TINY, other, 16),
            (small, weights, 16),
        )
    }
    assert len(folders) == 8


@BOTH
def test_failed_conversion_is_told_and_leaves_nothing(
    converter: Converter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("odd layer")

    weights = random_weights(TINY, seed=2)
    monkeypatch.setattr(converters, "exportable", fail)
    told = rf"tiny cannot be converted to {converter.title} \(odd layer\)"
    with pytest.raises(EngineError, match=told):
        convert(converter, TINY, weights, 16)
    kept = kept_folder(converter, TINY, weights, 16).folder
    assert not [path for path in kept.parent.iterdir() if kept.name in path.name]


@pytest.mark.skipif(
    not SHARED_WEIGHTS.is_dir(), reason="real weights are not beside the repository"
)
@BOTH
def test_real_weights_agree_within_1e_4(converter: Converter) -> None:
    backbone = get_backbone("mobilenet_v2")
    path = SHARED_WEIGHTS / "mobilenet_v2_1.0_96_no_top.h5"
    weights: Weights = find_weights(str(path), backbone, 96)
    engine = load(convert(converter, backbone, weights, 96))
    model = backbone.build(96)
    set_weights(model, weights)
    images = np.random.default_rng(3).uniform(-1, 1, (8, 96, 96, 3)).astype(np.float32)
    features = engine(images)
    assert features.shape == (8, 1280)
    assert relative_error(features, np.asarray(model(images, training=False))) < 1e-4
