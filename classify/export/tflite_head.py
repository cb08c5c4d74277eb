"""The float32 head on top of a backbone in 8 bits.

In eight bits a linear head loses more answers than the whole backbone does: its weights, which
standardization is folded into, and its logits cover ranges that 256 steps are too coarse for. It
has a thousandth of the arithmetic, so in float32 it costs next to nothing. TensorFlow's converter
has no public way to leave layers out, hence it converts the backbone alone, and the layers of the
head are appended to its FlatBuffer here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classify.export.graph import LOGITS, PROBABILITIES, DenseLayer


def with_float_head(model: bytes, layers: Sequence[DenseLayer]) -> bytes:
    """Return a TFLite model from what ``model`` takes to probabilities (1, k) float32.

    ``model`` has one graph, whose one output are the features (1, d) float32; ``layers`` are the
    head's.
    """
    from tensorflow.lite.tools import flatbuffer_utils

    content = flatbuffer_utils.convert_bytearray_to_object(bytearray(model))
    graph = _Graph(content)
    (last,) = content.subgraphs[0].outputs
    for number, layer in enumerate(layers, start=1):
        name = LOGITS if number == len(layers) else f"hidden_{number}"
        last = graph.add_dense(last, layer, name)
    graph.end_in(graph.add_softmax(last, len(layers[-1].bias)))
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


@dataclass(frozen=True)
class _Graph:
    """The one graph of a TFLite model, as TensorFlow's objects of the schema; tensors by number."""

    content: Any

    def add_dense(self, source: int, layer: DenseLayer, name: str) -> int:
        """Append a dense layer, and return its output."""
        from tensorflow.lite.python import schema_py_generated as schema

        options = schema.FullyConnectedOptionsT()
        if layer.activation == "relu":
            options.fusedActivationFunction = schema.ActivationFunctionType.RELU
        kernel = self._add_constant(f"{name}/kernel", layer.kernel.T)
        bias = self._add_constant(f"{name}/bias", layer.bias)
        target = self._add_tensor(name, (1, len(layer.bias)))
        self._add_operator(
            schema.BuiltinOperator.FULLY_CONNECTED,
            ([source, kernel, bias], target),
            (schema.BuiltinOptions.FullyConnectedOptions, options),
        )
        return target

    def add_softmax(self, source: int, n_classes: int) -> int:
        """Append the softmax, and return its output."""
        from tensorflow.lite.python import schema_py_generated as schema

        target = self._add_tensor(PROBABILITIES, (1, n_classes))
        self._add_operator(
            schema.BuiltinOperator.SOFTMAX,
            ([source], target),
            (schema.BuiltinOptions.SoftmaxOptions, schema.SoftmaxOptionsT(beta=1.0)),
        )
        return target

    def end_in(self, output: int) -> None:
        """Make a tensor the only output, of the graph and of its signatures."""
        self.content.subgraphs[0].outputs = [output]
        for signature in self.content.signatureDefs or ():
            (said,) = signature.outputs
            said.tensorIndex = output

    def _add_constant(self, name: str, values: NDArray[np.float32]) -> int:
        """Append a tensor of weights."""
        from tensorflow.lite.python import schema_py_generated as schema

        data = np.frombuffer(values.astype("<f4").tobytes(), np.uint8)
        self.content.buffers.append(schema.BufferT(data=data))
        return self._add_tensor(name, values.shape, len(self.content.buffers) - 1)

    def _add_tensor(self, name: str, shape: tuple[int, ...], buffer: int = 0) -> int:
        """Append a float32 tensor; buffer 0 is that of tensors which are computed."""
        from tensorflow.lite.python import schema_py_generated as schema

        tensors = self.content.subgraphs[0].tensors
        tensors.append(
            schema.TensorT(
                name=name.encode(), shape=shape, buffer=buffer, type=schema.TensorType.FLOAT32
            )
        )
        return len(tensors) - 1

    def _add_operator(
        self, code: int, ends: tuple[list[int], int], options: tuple[int, Any]
    ) -> None:
        """Append an operator in its first version, that of float32; ``ends`` are what it joins."""
        from tensorflow.lite.python import schema_py_generated as schema

        codes = self.content.operatorCodes
        codes.append(schema.OperatorCodeT(deprecatedBuiltinCode=code, version=1, builtinCode=code))
        self.content.subgraphs[0].operators.append(
            schema.OperatorT(
                opcodeIndex=len(codes) - 1,
                inputs=ends[0],
                outputs=[ends[1]],
                builtinOptionsType=options[0],
                builtinOptions=options[1],
            )
        )
