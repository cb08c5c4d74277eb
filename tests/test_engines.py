"""Engines against Keras called directly, and how one is chosen."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_backbone import N_FEATURES, TINY

from data_cache import cores
from data_cache.cores import n_cores
from data_cache.errors import BackboneError, EngineError
from extract import engines
from extract.backbones import BACKBONES, get_backbone, open_backbone
from extract.convert import convert, kept_folder
from extract.converters import TO_ONNX, TO_TFLITE
from extract.engines import KerasEngine, choose_engine
from extract.litert_engine import LiteRtEngine
from extract.onnx_engines import OnnxEngine, OnnxFileEngine
from extract.weights import Weights, random_weights, set_weights

SIZE = 16
CONVERTERS = {"litert": TO_TFLITE, "onnx": TO_ONNX}
LOADED = {"litert": LiteRtEngine, "onnx": OnnxEngine}
FAST = pytest.mark.parametrize("name", ["litert", "onnx"])


@pytest.fixture(scope="module")
def weights() -> Weights:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (64, SIZE, SIZE, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def reference(weights: Weights, images: np.ndarray) -> np.ndarray:
    """Return what Keras, called directly in inference mode, makes of the images."""
    model = TINY.build(SIZE)
    set_weights(model, weights)
    return np.asarray(model(images, training=False))


@pytest.mark.parametrize("name", ["keras", "litert", "onnx"])
@pytest.mark.parametrize("n_images", [1, 8, 64])
def test_features_are_those_of_the_model_called_directly(
    name: str, n_images: int, weights: Weights, images: np.ndarray, reference: np.ndarray
) -> None:
    engine = choose_engine(name, TINY, weights, SIZE)
    features = engine(images[:n_images])
    assert engine.name == name
    assert features.shape == (n_images, engine.n_features) == (n_images, N_FEATURES)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, reference[:n_images], rtol=1e-4, atol=1e-5)


@FAST
def test_fast_engine_gives_the_same_from_many_threads_at_once(
    name: str, weights: Weights, images: np.ndarray, reference: np.ndarray
) -> None:
    engine = choose_engine(name, TINY, weights, SIZE)
    assert engine.n_concurrent == n_cores()
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda row: engine(images[row : row + 1]), range(len(images))))
    np.testing.assert_allclose(np.vstack(rows), reference, rtol=1e-4, atol=1e-5)


def test_litert_gives_a_row_that_is_the_same_in_every_batch(
    weights: Weights, images: np.ndarray
) -> None:
    engine = choose_engine("litert", TINY, weights, SIZE)
    alone = [engine(images[row : row + 1]) for row in range(64)]
    for size in (2, 8, 5, 64):
        parts = [engine(images[at : at + size]) for at in range(0, 64, size)]
        np.testing.assert_array_equal(np.concatenate(parts), np.concatenate(alone))


def test_features_that_litert_returned_stay_as_they_are(
    weights: Weights, images: np.ndarray
) -> None:
    engine = choose_engine("litert", TINY, weights, SIZE)
    features = engine(images[:8])
    before = features.copy()
    engine(images[8:16])
    np.testing.assert_array_equal(features, before)


@FAST
def test_fast_engine_may_be_sent_to_another_process(
    name: str, weights: Weights, images: np.ndarray
) -> None:
    engine = choose_engine(name, TINY, weights, SIZE)
    again = pickle.loads(pickle.dumps(engine))  # as multiprocessing does
    np.testing.assert_array_equal(again(images), engine(images))


def test_litert_engine_is_of_one_file_whatever_becomes_of_it(
    weights: Weights, images: np.ndarray
) -> None:
    engine = choose_engine("litert", TINY, weights, SIZE)
    assert isinstance(engine, LiteRtEngine)
    expected = engine(images)
    kept_folder(TO_TFLITE, TINY, weights, SIZE).model.unlink()
    taken = [engine._take() for _ in range(3)]  # so that others are made
    assert all(np.array_equal(one.run(images), expected) for one in taken)


@pytest.mark.parametrize("shape", [(96, 16, 3), (2, 15, 16, 3), (2, 16, 16, 1)])
def test_litert_is_as_good_as_before_after_images_of_another_shape(
    shape: tuple[int, ...], weights: Weights, images: np.ndarray
) -> None:
    engine = choose_engine("litert", TINY, weights, SIZE)
    expected = engine(images[:2])
    with pytest.raises(EngineError, match="LiteRT cannot run"):
        engine(np.zeros(shape, np.float32))
    np.testing.assert_array_equal(engine(images[:2]), expected)


@pytest.mark.parametrize(
    ("name", "package"), [("litert", "ai_edge_litert"), ("onnx", "onnxruntime")]
)
def test_library_that_cannot_be_imported_gives_way_to_keras(
    name: str,
    package: str,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / f"{package}.py").write_text("raise ImportError('broken')")
    for module in [one for one in sys.modules if one.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    assert choose_engine(name, TINY, weights, SIZE).name == "keras"
    assert "(broken); the engine is keras instead" in capsys.readouterr().err


@FAST
def test_folder_that_cannot_keep_a_conversion_gives_way_to_keras(
    name: str,
    weights: Weights,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HEADSTART_MEMORY", str(tmp_path / "file"))
    assert choose_engine(name, TINY, weights, SIZE).name == "keras"
    assert "name another folder in HEADSTART_MEMORY; the engine is" in capsys.readouterr().err


@FAST
@pytest.mark.parametrize("content", [b"", b"no model at all", None])
def test_file_that_is_no_model_is_refused(
    name: str, content: bytes | None, weights: Weights, tmp_path: Path
) -> None:
    whole = convert(CONVERTERS[name], TINY, weights, SIZE).model.read_bytes()
    path = tmp_path / "model"
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(EngineError, match="cannot load"):
        LOADED[name](path)


def test_litert_refuses_images_of_another_size(weights: Weights) -> None:
    engine = choose_engine("litert", TINY, weights, SIZE)
    with pytest.raises(EngineError, match="LiteRT cannot run"):
        engine(np.zeros((2, SIZE, SIZE, 4), np.float32))
    assert engine(np.zeros((2, SIZE, SIZE, 3), np.float32)).shape == (2, N_FEATURES)


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages look as if they were not installed."""
    find_spec = importlib.util.find_spec

    def without(name: str, *rest: Any) -> Any:
        return None if name in packages else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without)


@pytest.mark.parametrize("order", [("litert", "onnx"), ("onnx", "litert")])
def test_auto_is_the_first_fast_engine_of_the_backbone_and_says_so(
    order: tuple[str, str],
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    backbone = replace(TINY, fast_engines=order)
    assert choose_engine("auto", backbone, weights, SIZE).name == order[0]
    assert f"engine: {order[0]} (agrees with keras: relative error" in capsys.readouterr().err


def test_auto_is_the_other_fast_engine_where_one_is_not_installed(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    hide(monkeypatch, "onnxruntime")
    assert choose_engine("auto", TINY, weights, SIZE).name == "litert"
    assert "Warning" not in capsys.readouterr().err


def test_auto_goes_on_to_the_other_fast_engine_where_one_disagrees(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    run = OnnxEngine.__call__
    monkeypatch.setattr(OnnxEngine, "__call__", lambda self, batch: run(self, batch) * 1.0002)
    assert choose_engine("auto", TINY, weights, SIZE).name == "litert"
    assert "the engine is litert instead" in capsys.readouterr().err


def test_mobile_backbones_run_in_litert_first() -> None:
    first = {name: backbone.fast_engines[0] for name, backbone in BACKBONES.items()}
    assert {name for name, engine in first.items() if engine == "litert"} == {
        "mobilenet_v2",
        "mobilenet_v3_large",
        "mobilenet_v3_small",
    }


def test_auto_is_keras_on_a_gpu_and_says_so(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    assert choose_engine("auto", TINY, weights, SIZE).name == "keras"
    assert capsys.readouterr().err == "engine: keras (on the GPU)\n"


def test_auto_is_keras_without_any_fast_engine_and_says_how_to_get_one(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    hide(monkeypatch, "onnxruntime", "ai_edge_litert")
    assert choose_engine("auto", TINY, weights, SIZE).name == "keras"
    assert "pip install '.[fast]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "package", "told"),
    [("onnx", "onnxruntime", "onnxruntime"), ("litert", "ai_edge_litert", "ai-edge-litert")],
)
def test_fast_engine_that_is_not_installed_is_refused(
    name: str, package: str, told: str, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, package)
    with pytest.raises(EngineError, match=rf"needs {told}: pip install '\.\[fast\]'"):
        choose_engine(name, TINY, weights, SIZE)


def test_onnx_without_a_converter_gives_way_to_keras_loudly(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hide(monkeypatch, "tf2onnx")
    assert choose_engine("onnx", TINY, weights, SIZE + 2).name == "keras"
    assert "Warning: converting to ONNX needs tf2onnx" in capsys.readouterr().err


@FAST
def test_fast_engine_that_disagrees_gives_way_to_keras_loudly(
    name: str,
    weights: Weights,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    loaded = LOADED[name]
    run = loaded.__call__
    monkeypatch.setattr(loaded, "__call__", lambda self, batch: run(self, batch) * 1.0002)
    assert choose_engine(name, TINY, weights, SIZE).name == "keras"
    warnings = capsys.readouterr().err
    assert "are not the reference's: relative error 2.0e-04, expected at most 1e-04" in warnings
    assert "the engine is keras" in warnings


@FAST
def test_damaged_conversion_is_made_again(
    name: str, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_engine(name, TINY, weights, SIZE)
    kept = kept_folder(CONVERTERS[name], TINY, weights, SIZE)
    for path in (kept.model, kept.folder / "probe.npz"):
        path.write_bytes(path.read_bytes()[:-400])
        assert choose_engine(name, TINY, weights, SIZE).name == name
        assert "converting tiny again" in capsys.readouterr().err


@FAST
def test_conversion_of_other_weights_is_noticed_by_its_digest(
    name: str, weights: Weights, capsys: pytest.CaptureFixture[str]
) -> None:
    other = random_weights(TINY, seed=1)
    for one in (weights, other):
        choose_engine(name, TINY, one, SIZE)
    ours, theirs = (kept_folder(CONVERTERS[name], TINY, one, SIZE) for one in (weights, other))
    theirs.model.replace(ours.model)
    assert choose_engine(name, TINY, weights, SIZE).name == name
    assert "is not the file that was written: converting tiny" in capsys.readouterr().err


@FAST
def test_conversion_is_quiet_and_a_warm_start_imports_no_tensorflow(
    name: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    backbone = get_backbone("mobilenet_v2")
    choose_engine(name, backbone, random_weights(backbone), 32)
    first = capfd.readouterr()
    assert not first.out
    assert [line.split()[0] for line in first.err.splitlines()] == ["converting", "engine:"]
    program = (
        "import sys\n"
        "from extract.backbones import get_backbone\n"
        "from extract.engines import choose_engine\n"
        "from extract.weights import random_weights\n"
        "backbone = get_backbone('mobilenet_v2')\n"
        f"engine = choose_engine({name!r}, backbone, random_weights(backbone), 32)\n"
        "print(engine.name, engine.n_features, 'tensorflow' in sys.modules)\n"
    )
    warm = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert warm.stdout == f"{name} 1280 False\n"
    assert [line.split()[0] for line in warm.stderr.splitlines()] == ["engine:"]


def test_mixed_precision_without_a_gpu_is_refused(
    weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: False)
    with pytest.raises(EngineError, match="mixed precision needs a GPU"):
        choose_engine("auto", TINY, weights, SIZE, mixed_precision=True)


def test_mixed_precision_computes_in_float16_and_returns_float32(
    weights: Weights,
    images: np.ndarray,
    reference: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engines, "has_gpu", lambda: True)
    engine = KerasEngine(TINY, weights, SIZE, mixed_precision=True)
    features = engine(images[:4])
    assert features.dtype == np.float32
    assert not np.array_equal(features, reference[:4])
    np.testing.assert_allclose(features, reference[:4], atol=0.01 * np.abs(reference).max())


def test_unknown_engine_is_refused(weights: Weights) -> None:
    with pytest.raises(EngineError, match="there are auto, keras, litert, onnx"):
        choose_engine("torch", TINY, weights, SIZE)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, np.inf),
        ({}, np.inf),
    ],
)
def test_quota_of_a_container_is_read(
    files: dict[str, str], expected: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores._quota(tmp_path) == expected


def test_cores_are_those_of_the_affinity_and_the_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path)
    assert cores.n_cores.__wrapped__() == 8
    (tmp_path / "cpu.max").write_text("250000 100000")
    assert cores.n_cores.__wrapped__() == 3


def own_model(path: Path, output_shape: str) -> Path:
    """Write an ONNX model (n, 3, 8, 8) whose outputs are simple functions of its input.

    ``places`` is 2x; ``tokens`` is x with each image's 64 places as tokens of 3 numbers; ``rows``
    is the largest value of each channel; ``whole`` is x rounded to int64.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Add", ["x", "x"], ["places"]),
        helper.make_node("Reshape", ["x", "flat"], ["channels"]),
        helper.make_node("Transpose", ["channels"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("ReduceMax", ["x"], ["rows"], axes=[2, 3], keepdims=0),
        helper.make_node("Cast", ["x"], ["whole"], to=TensorProto.INT64),
    ]
    shapes = {
        "places": (TensorProto.FLOAT, ["n", 3, 8, 8]),
        "tokens": (TensorProto.FLOAT, ["n", 64, 3]),
        "rows": (TensorProto.FLOAT, ["n", 3]),
        "whole": (TensorProto.INT64, ["n", 3, 8, 8]),
    }
    names = [output_shape, *(name for name in shapes if name != output_shape)]
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(name, *shapes[name]) for name in names],
        [helper.make_tensor("flat", TensorProto.INT64, [3], [0, 3, -1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def own_engine(tmp_path: Path, first_output: str = "places", **said: object) -> OnnxFileEngine:
    """Open an ONNX file of one's own as a user does."""
    path = own_model(tmp_path / "own.onnx", first_output)
    (tmp_path / "own.json").write_text(json.dumps({"image_size": 8} | said))
    backbone = open_backbone(f"onnx:{path}", tmp_path / "own.json")
    engine = choose_engine("auto", backbone, Weights(None, (), ""), 8)
    assert isinstance(engine, OnnxFileEngine)
    return engine


BATCH = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, 2 * BATCH.mean((1, 2))),
        ({"output": "tokens"}, BATCH.mean((1, 2))),
        ({"output": "tokens", "pool": "first"}, BATCH[:, 0, 0]),
        ({"output": "rows"}, BATCH.max((1, 2))),
    ],
)
def test_own_onnx_file_gives_a_row_for_each_image(
    said: dict[str, object], expected: np.ndarray, tmp_path: Path
) -> None:
    engine = own_engine(tmp_path, **said)
    assert engine.n_features == 3
    features = engine(BATCH)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"output": "none"}, "has no output 'none': there are places, tokens, rows, whole"),
        ({"output": "whole"}, r"is int64\(2, 3, 8, 8\), expected float32"),
        ({"layout": "nhwc"}, r"cannot run on images of shape \(2, 8, 8, 3\)"),
    ],
)
def test_own_onnx_file_that_does_not_do_as_said_is_refused(
    said: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        own_engine(tmp_path, **said)


def test_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"no")
    (tmp_path / "no.json").write_text('{"image_size": 8}')
    backbone = open_backbone(f"onnx:{tmp_path / 'no.onnx'}", tmp_path / "no.json")
    with pytest.raises(EngineError, match="ONNX Runtime cannot load"):
        choose_engine("auto", backbone, Weights(None, (), ""), 8)
    with pytest.raises(EngineError, match="runs in ONNX Runtime only"):
        choose_engine("keras", backbone, Weights(None, (), ""), 8)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "should be an object with image_size, mean, std"),
        ('{"image_size": 8, "size": 8}', "and nothing else"),
        ("{}", "image_size is None, expected a whole number of pixels"),
        ('{"image_size": true}', "image_size is True"),
        ('{"image_size": 8, "mean": [0, 0]}', r"mean is \[0, 0\], expected three numbers"),
        ('{"image_size": 8, "std": [1, 0, 1]}', "expected three numbers above 0"),
        ('{"image_size": 8, "mean": [NaN, 0, 0]}', "expected three numbers"),
        ('{"image_size": 8, "pool": "max"}', "pool is 'max', expected mean or first"),
    ],
)
def test_preprocessing_that_means_nothing_is_refused(
    said: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / "own.onnx").write_bytes(b"own")
    (tmp_path / "own.json").write_text(said)
    with pytest.raises(BackboneError, match=message):
        open_backbone(f"onnx:{tmp_path / 'own.onnx'}", tmp_path / "own.json")


def test_preprocessing_must_be_said_for_an_onnx_file(tmp_path: Path) -> None:
    (tmp_path / "own.onnx").write_bytes(b"own")
    with pytest.raises(BackboneError, match="name it with --preprocess"):
        open_backbone(f"onnx:{tmp_path / 'own.onnx'}")


def test_scaling_said_is_mean_and_std_of_pixels_up_to_one(tmp_path: Path) -> None:
    (tmp_path / "own.onnx").write_bytes(b"own")
    said = {"image_size": 8, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "channels": "bgr"}
    identities = set()
    for change in ({}, {"mean": [0.5, 0.4, 0.2]}, {"channels": "rgb"}):
        (tmp_path / "own.json").write_text(json.dumps(said | change))
        backbone = open_backbone(f"onnx:{tmp_path / 'own.onnx'}", tmp_path / "own.json")
        identities.add(backbone.scaling.identity)
        if not change:
            pixel = np.array([255.0, 51.0, 0.0])
            scaled = pixel * backbone.scaling.scale + backbone.scaling.offset
            np.testing.assert_allclose(scaled, [5.0, -1.0, -1.0])
            assert backbone.scaling.bgr
    assert len(identities) == 3
