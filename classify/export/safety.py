"""What an exported file may hold: lists of allowed parts, looked at before anything is loaded.

A ``.keras`` file names the classes that Keras is to make, and a SavedModel is a program in
TensorFlow's operations, some of which read and write files or call back into Python. Both are
read as data first, and refused where they name anything that no exported classifier needs. The
lists are what the exports of every backbone of the registry hold, and no more.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from classify.export.protobuf import fields
from classify.stored.damage import SIGNS_OF_DAMAGE, words_of
from classify.stored.keras_file import open_weights
from data_cache.console import import_keras
from data_cache.errors import ModelError

CONFIG_NAME = "config.json"
GRAPH_NAME = "saved_model.pb"
_MOST_CONFIG_BYTES = 64 << 20

_PUBLIC = {
    "keras": ("DTypePolicy", "Sequential"),
    "keras.initializers": (
        "Constant",
        "GlorotUniform",
        "HeNormal",
        "HeUniform",
        "Ones",
        "VarianceScaling",
        "Zeros",
    ),
    "keras.layers": (
        "Activation",
        "Add",
        "AveragePooling2D",
        "BatchNormalization",
        "Concatenate",
        "Conv2D",
        "Dense",
        "DepthwiseConv2D",
        "Dropout",
        "Flatten",
        "GlobalAveragePooling2D",
        "GlobalMaxPooling2D",
        "InputLayer",
        "LayerNormalization",
        "MaxPooling2D",
        "Multiply",
        "Normalization",
        "ReLU",
        "Rescaling",
        "Reshape",
        "Resizing",
        "Softmax",
        "ZeroPadding2D",
    ),
    "keras.src.applications.convnext": ("LayerScale",),
    "keras.src.models.functional": ("Functional",),
    "keras.src.ops.core": ("Cast",),
    "keras.src.ops.nn": ("Relu",),
    "keras.src.ops.numpy": (
        "Absolute",
        "Add",
        "Cumsum",
        "Einsum",
        "Flip",
        "FloorDivide",
        "GetItem",
        "GreaterEqual",
        "Less",
        "LogicalAnd",
        "Maximum",
        "Minimum",
        "Multiply",
        "OnesLike",
        "Subtract",
        "Sum",
        "TrueDivide",
    ),
}
_VALUES = {"__keras_tensor__", "__numpy__", "__slice__"}
"""Values that Keras writes as objects; none of them is code."""

KERAS_CLASSES = frozenset(
    (module, name) for module, names in _PUBLIC.items() for name in names
) | frozenset((None, name) for name in _VALUES)
"""Every class that a ``.keras`` file may name, with its module."""

_OPERATIONS = """
    Abs AddV2 AssignVariableOp AvgPool BiasAdd Cast ConcatV2 Const Conv2D Cumsum
    DepthwiseConv2dNative DisableCopyOnRead Einsum Erfc ExpandDims Fill FloorDiv GatherV2
    GreaterEqual Identity IdentityN Less LogicalAnd MatMul MaxPool Maximum Mean Minimum Mul Neg NoOp
    OnesLike Pack Pad PartitionedCall Placeholder Prod ReadVariableOp RealDiv Relu Relu6 Reshape
    ReverseV2 Rsqrt ScaleAndTranslate Shape Sigmoid Softmax Square SquaredDifference Squeeze
    StatefulPartitionedCall StopGradient StridedSlice Sub Sum Transpose VarHandleOp
    VarIsInitializedOp
"""
_MORE_OF_SAVERS = """
    MergeV2Checkpoints RestoreV2 SaveV2 Select ShardedFilename StaticRegexFullMatch StringJoin
"""

OPERATIONS = frozenset(_OPERATIONS.split())
"""Every operation of TensorFlow that a SavedModel may run: arithmetic, shapes and variables."""

SAVER_OPERATIONS = OPERATIONS | frozenset(_MORE_OF_SAVERS.split())
"""What the functions that TensorFlow adds to save and restore variables may run besides. Python's
loader never calls them, and no other function may."""

OBJECTS = frozenset(
    {
        "None",
        "bare_concrete_function",
        "captured_tensor",
        "constant",
        "function",
        "user_object _generic_user_object",
        "user_object signature_map",
        "user_object trackable_dict_wrapper",
        "user_object trackable_list_wrapper",
        "user_object trackable_tuple_wrapper",
        "variable",
    }
)
"""What the objects of a SavedModel may be; no resource that is made or initialized at loading."""


_ONNX_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""What the messages of an ONNX file are made of, by the numbers of their fields: see onnx.proto."""

_DOMAIN_OF_NODE, _FILE_OF_TENSOR = 7, 13
ONNX_DOMAINS = frozenset({b"", b"ai.onnx"})
"""Whose operators an ONNX file may use: those of the standard."""


def check_keras_file(path: Path) -> None:
    """Refuse a ``.keras`` file that names a class outside :data:`KERAS_CLASSES`, or other files.

    It has to be loaded with ``compile=False``: its optimizer and its loss are not looked at.

    Raises
    ------
    ModelError
        It does, or it is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(CONFIG_NAME).file_size > _MOST_CONFIG_BYTES:
                raise ModelError(f"{path}: its {CONFIG_NAME} is larger than any classifier's")
            config = json.loads(archive.read(CONFIG_NAME))
    except SIGNS_OF_DAMAGE as error:
        raise ModelError(f"{path} is not a whole .keras file: {words_of(error)}") from error
    if isinstance(config, dict):
        config.pop("compile_config", None)  # of training: loading leaves it alone
    for module, name in _classes(config):
        if (module, name) not in KERAS_CLASSES:
            raise ModelError(
                f"{path} is refused: it holds {name} of {module}, which no exported classifier "
                "needs, and which might run code"
            )
    _check_weights(path)


def _check_weights(path: Path) -> None:
    """Refuse weights that are too large, or that HDF5 would read from other files."""
    try:
        with zipfile.ZipFile(path) as archive, open_weights(archive):
            return
    except SIGNS_OF_DAMAGE as error:
        raise ModelError(f"{path} is refused, for its weights: {words_of(error)}") from error


def _classes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the module and the name of every class that a configuration names, at any depth."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, Mapping):
            if "class_name" in one or "module" in one:
                yield _named(one.get("module")), _named(one.get("class_name"))
            pending += one.values()
        elif isinstance(one, list):
            pending += one


def _named(value: Any) -> Any:
    """Return a name as it is; anything else as text, which no list has."""
    return value if value is None or isinstance(value, str) else repr(value)


def check_onnx_file(path: Path) -> None:
    """Refuse an ONNX file with operators outside the standard, or with weights in other files.

    Raises
    ------
    ModelError
        It has some, or it is no such file.
    """
    try:
        foreign = set(_foreign_in_onnx(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not a whole ONNX file: {error}") from error
    _refuse(path, foreign)


def _foreign_in_onnx(data: bytes) -> Iterator[str]:
    """Yield what no exported classifier has, at any depth."""
    pending = [("model", memoryview(data))]
    while pending:
        kind, message = pending.pop()
        for field in fields(message):
            if kind == "tensor" and field.number == _FILE_OF_TENSOR:
                yield "weights that are in another file"
            if kind == "node" and field.number == _DOMAIN_OF_NODE:
                name = bytes(field.value)
                if name not in ONNX_DOMAINS:
                    yield f"operators of {name.decode(errors='replace')}"
            if inner := _ONNX_PARTS[kind].get(field.number):
                pending.append((inner, field.value))


def check_saved_model(folder: Path) -> None:
    """Refuse a SavedModel with an operation, or an object, that is not allowed.

    Raises
    ------
    ModelError
        It has one, in its graph or in any function, or the folder holds no SavedModel.
    """
    for graph in _read_graphs(folder / GRAPH_NAME):
        objects = graph.object_graph_def.nodes
        kinds = {_kind(one) for one in objects} | ({"asset"} if graph.asset_file_def else set())
        _refuse(folder, kinds - OBJECTS)
        _check_operations(folder, graph)


def _read_graphs(path: Path) -> Iterable[Any]:
    """Parse ``saved_model.pb``; that runs nothing."""
    import_keras()
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    try:
        message.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise ModelError(f"{path} cannot be read as a SavedModel: {error}") from error
    graphs: Iterable[Any] = message.meta_graphs
    return graphs


def _kind(node: Any) -> str:
    """Return what an object of a SavedModel is."""
    if node.registered_name or node.registered_saver:
        return f"a registered class {node.registered_name or node.registered_saver}"
    kind = node.WhichOneof("kind")
    return f"user_object {node.user_object.identifier}" if kind == "user_object" else str(kind)


def _check_operations(folder: Path, graph: Any) -> None:
    """Look at every node of the graph and of every function in its library.

    The functions that save and restore are those called by the nodes that ``saver_def`` names.
    """
    saver = graph.saver_def
    doors = {name.split(":")[0] for name in (saver.save_tensor_name, saver.restore_op_name)}
    nodes = [node for node in graph.graph_def.node if node.name not in doors]
    savers = _called(node for node in graph.graph_def.node if node.name in doors)
    for function in graph.graph_def.library.function:
        if function.signature.name in savers:
            used = {node.op for node in function.node_def}
            _refuse(folder, used - SAVER_OPERATIONS)
        else:
            nodes += function.node_def
    _refuse(folder, {node.op for node in nodes} - OPERATIONS)
    _refuse(folder, savers & (_called(nodes) | set(graph.object_graph_def.concrete_functions)))


def _called(nodes: Iterable[Any]) -> set[str]:
    """Return the names of the functions that nodes call."""
    called = set()
    for node in nodes:
        for value in node.attr.values():
            called |= {one.name for one in (value.func, *value.list.func) if one.name}
    return called


def _refuse(path: Path, foreign: set[str]) -> None:
    """Raise :class:`ModelError` if there is anything that is not allowed."""
    if foreign:
        raise ModelError(
            f"{path} is refused: it holds {', '.join(sorted(foreign))}, which no exported "
            "classifier needs, and which might read or write files or run code"
        )
