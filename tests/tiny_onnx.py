"""A backbone in an ONNX file, for tests that cannot replace the engine, such as in other processes.

It starts in a moment and imports no TensorFlow.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

SIDE = 16
N_FEATURES = 32


def write_tiny_onnx(folder: Path, n_layers: int = 1) -> tuple[str, Path]:
    """Write a model of so many convolutions; return ``--backbone`` and ``--preprocess``.

    The more layers the slower: 100 of them take about 10 ms an image.
    """
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for k in range(n_layers):
        n_inputs = N_FEATURES if k else 3
        kernel = rng.normal(0, (9 * n_inputs) ** -0.5, (N_FEATURES, n_inputs, 3, 3))
        weights.append(numpy_helper.from_array(kernel.astype(np.float32), f"w{k}"))
        nodes.append(helper.make_node("Conv", [last, f"w{k}"], [f"y{k}"], pads=[1, 1, 1, 1]))
        last = f"y{k}"
    nodes.append(helper.make_node("ReduceMean", [last], ["pooled"], axes=[2, 3], keepdims=0))
    shape = ["n", 3, SIDE, SIDE]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["n", N_FEATURES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])
    model.ir_version = 8
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, folder / "tiny.onnx")
    (folder / "tiny.json").write_text(json.dumps({"image_size": SIDE}))
    return f"onnx:{folder / 'tiny.onnx'}", folder / "tiny.json"
