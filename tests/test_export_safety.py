"""Files that might do more than classify are refused before anything is loaded."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from export_tools import Exports

import classify
from classify.export.formats import OnnxFormat
from classify.export.safety import (
    KERAS_CLASSES,
    OPERATIONS,
    check_keras_file,
    check_onnx_file,
    check_saved_model,
)
from classify.export.sealing import seal, unseal
from data_cache.console import import_keras
from data_cache.errors import ModelError


def keras_file(folder: Path, config: Any, fill: Callable[[h5py.File], object] = id) -> Path:
    path, weights = folder / "model.keras", io.BytesIO()
    with h5py.File(weights, "w") as file:
        fill(file)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.weights.h5", weights.getvalue())
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
    return path


def nested(layer: dict[str, Any]) -> dict[str, Any]:
    dense = {"module": "keras.layers", "class_name": "Dense", "config": {"activation": layer}}
    return {"module": "keras", "class_name": "Sequential", "config": {"layers": [dense]}}


@pytest.mark.parametrize(
    "layer",
    [
        {"module": "keras.layers", "class_name": "Lambda", "config": {}},
        {"module": "keras.layers", "class_name": "TorchModuleWrapper", "config": {}},
        {"module": "keras.layers", "class_name": "StringLookup", "config": {}},
        {"module": "builtins", "class_name": "function", "config": "print"},
        {"module": "os", "class_name": "Dense", "config": {}},
        {"class_name": "__lambda__", "config": {"value": "x"}},
        {"module": "keras.config", "config": "enable_unsafe_deserialization"},
        {"module": ["keras.layers"], "class_name": "Dense"},
    ],
)
def test_keras_file_with_a_class_outside_the_list_is_refused(
    tmp_path: Path, layer: dict[str, Any]
) -> None:
    check_keras_file(keras_file(tmp_path, RELU))
    with pytest.raises(ModelError, match=r"is refused: it holds .* might run code"):
        check_keras_file(keras_file(tmp_path, nested(layer)))


@pytest.mark.parametrize("config", ["{", "[" * 100_000, "\xff"])
def test_keras_file_that_is_damaged_is_refused(tmp_path: Path, config: str) -> None:
    with pytest.raises(ModelError, match="not a whole"):
        check_keras_file(keras_file(tmp_path, config))


RELU = nested({"module": "keras.layers", "class_name": "ReLU"})


def test_keras_file_whose_weights_lie_in_another_file_is_refused(tmp_path: Path) -> None:
    def fill(file: h5py.File) -> None:
        file.create_dataset("layers/dense/vars/0", (8,), "u1", external=[("/etc/passwd", 0, 8)])

    with pytest.raises(
        ModelError, match="refused, for its weights: /layers/dense/vars/0 in it lies"
    ):
        check_keras_file(keras_file(tmp_path, RELU, fill))


def test_keras_file_with_weights_in_numpys_format_is_refused(tmp_path: Path) -> None:
    path = keras_file(tmp_path, RELU)
    path.write_bytes(path.read_bytes().replace(b"model.weights.h5", b"model.weights.np"))
    with pytest.raises(ModelError, match=r"refused, for its weights: .*no item named"):
        check_keras_file(path)


def test_nothing_that_runs_code_is_on_the_lists() -> None:
    assert not {name for _, name in KERAS_CLASSES if name} & {"Lambda", "TorchModuleWrapper"}
    assert not {one for one in OPERATIONS if "Py" in one or "File" in one or "Save" in one}


@pytest.fixture
def write_saved_model(tmp_path: Path) -> Callable[[Callable[..., Any]], Path]:
    """Return a function that saves a function of TensorFlow as a SavedModel."""
    import_keras()
    import tensorflow as tf

    def write(function: Callable[..., Any]) -> Path:
        module = tf.Module()
        signature = [tf.TensorSpec((), tf.float32)]
        module.serve = tf.function(function, input_signature=signature)
        tf.saved_model.save(module, str(tmp_path / "model"))
        return tmp_path / "model"

    return write


def test_saved_model_of_arithmetic_is_let_through(write_saved_model: Any) -> None:
    check_saved_model(write_saved_model(lambda x: x * 2 + 1))


def write_a_file(x: Any) -> Any:
    import tensorflow as tf

    tf.io.write_file("stolen.txt", "secret")
    return x


def read_a_file_deep_inside(x: Any) -> Any:
    """In a function of the library that only a branch of another one calls."""
    import tensorflow as tf

    def read() -> Any:
        return tf.strings.to_number(tf.io.read_file("secret.txt"))

    return tf.cond(x > 0, tf.function(read), lambda: x)


def call_python(x: Any) -> Any:
    import tensorflow as tf

    return tf.numpy_function(lambda value: value, [x], tf.float32)


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (write_a_file, "WriteFile"),
        (read_a_file_deep_inside, "ReadFile"),
        (call_python, "PyFunc"),
    ],
)
def test_saved_model_that_does_more_than_compute_is_refused(
    write_saved_model: Any, function: Callable[..., Any], operation: str
) -> None:
    with pytest.raises(ModelError, match=f"is refused: it holds .*{operation}"):
        check_saved_model(write_saved_model(function))


def edited(exports: Exports, folder: Path, edit: Callable[[Any], object]) -> Path:
    """Return a SavedModel of ours whose graph was edited."""
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString((exports.path("savedmodel") / "saved_model.pb").read_bytes())
    edit(message.meta_graphs[0])
    (folder / "saved_model.pb").write_bytes(message.SerializeToString())
    return folder


def call_the_saver(graph: Any) -> None:
    """Let a function that serves call the one that writes variables to files."""
    saver = next(f for f in graph.graph_def.library.function if "save" in f.signature.name)
    serving = next(f for f in graph.graph_def.library.function if "lambda" in f.signature.name)
    node = serving.node_def.add(name="extra", op="StatefulPartitionedCall")
    node.attr["f"].func.name = saver.signature.name


def offer_the_saver(graph: Any) -> None:
    saver = next(f for f in graph.graph_def.library.function if "save" in f.signature.name)
    graph.object_graph_def.concrete_functions[saver.signature.name].SetInParent()


def write_while_restoring(graph: Any) -> None:
    restore = next(f for f in graph.graph_def.library.function if "restore" in f.signature.name)
    restore.node_def.add(name="extra", op="WriteFile")


def save_while_serving(graph: Any) -> None:
    graph.graph_def.node.add(name="extra", op="SaveV2")


def make_a_resource(graph: Any) -> None:
    graph.object_graph_def.nodes.add().resource.device = ""


def register_a_class(graph: Any) -> None:
    graph.object_graph_def.nodes.add(registered_name="mine.Evil").user_object.SetInParent()


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (call_the_saver, "traced_save"),
        (offer_the_saver, "traced_save"),
        (write_while_restoring, "WriteFile"),
        (save_while_serving, "SaveV2"),
        (make_a_resource, "resource"),
        (register_a_class, r"mine\.Evil"),
        (lambda graph: graph.asset_file_def.add(filename="../../etc/passwd"), "asset"),
    ],
)
def test_saved_model_that_misuses_what_saving_needs_is_refused(
    exports: Exports, tmp_path: Path, edit: Callable[[Any], object], found: str
) -> None:
    check_saved_model(exports.path("savedmodel"))
    with pytest.raises(ModelError, match=f"is refused: it holds .*{found}"):
        check_saved_model(edited(exports, tmp_path, edit))


def elsewhere(tensor: Any) -> None:
    """Say that the values of a tensor are in a file beside."""
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="beside.bin")


def branch(model: Any) -> Any:
    """Return a graph within a node."""
    node = model.graph.node.add(op_type="If")
    return node.attribute.add(name="then_branch", type=5).g


@pytest.mark.parametrize(
    ("edit", "found"),
    [
        (lambda model: elsewhere(model.graph.initializer[0]), "weights that are in another file"),
        (lambda model: elsewhere(branch(model).initializer.add()), "in another file"),
        (lambda model: elsewhere(model.graph.node[0].attribute.add().t), "in another file"),
        (
            lambda model: elsewhere(model.graph.sparse_initializer.add().values),
            "in another file",
        ),
        (lambda model: setattr(model.graph.node[0], "domain", "mine"), "operators of mine"),
        (lambda model: branch(model).node.add(domain="mine"), "operators of mine"),
        (lambda model: model.functions.add().node.add(domain="mine"), "operators of mine"),
    ],
)
def test_onnx_file_that_needs_more_than_itself_is_refused(
    exports: Exports, tmp_path: Path, edit: Callable[[Any], object], found: str
) -> None:
    onnx = pytest.importorskip("onnx")
    check_onnx_file(exports.path("onnx"))
    model = onnx.load(exports.path("onnx"))
    edit(model)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=f"is refused: it holds .*{found}"):
        check_onnx_file(tmp_path / "model.onnx")


def test_onnx_file_is_checked_before_it_is_run(exports: Exports, tmp_path: Path) -> None:
    """Sealed as the program would."""
    onnx = pytest.importorskip("onnx")
    path, form = tmp_path / "model.onnx", OnnxFormat()
    said = unseal(path, form.description(exports.path("onnx")))
    model = onnx.load(exports.path("onnx"))
    del model.metadata_props[:]
    elsewhere(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    del said["content"]
    form.describe(path, seal(said, form.content(path)))
    with pytest.raises(ModelError, match="in another file"):
        classify.load(path)
