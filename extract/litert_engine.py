"""LiteRT as an engine: TensorFlow's own runtime for small devices, quick on large ones too.

Its kernels (XNNPACK) are made for the depthwise convolutions of mobile backbones, and keep pixels
in Keras's order, channels last. An interpreter has room for one call at a time, so each core gets
one of its own, with its own copy of the weights: 27 MB for MobileNetV2 and 8 images of 96 pixels.
All are made from the bytes that the first was made from, whatever becomes of the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.console import standard_error_silenced
from data_cache.cores import n_cores
from data_cache.errors import EngineError
from extract.runtimes import Batch, Runtime

LITERT = Runtime("litert", "ai-edge-litert", "ai_edge_litert")


class LiteRtEngine:
    """A converted backbone; see :class:`extract.engines.Engine`.

    A row does not depend on the other images of its batch, bit for bit.
    """

    def __init__(self, model: Path) -> None:
        """Load a TFLite file with one input (n, S, S, 3) and one output (n, d).

        Raises
        ------
        EngineError
            LiteRT is not installed, or cannot load the file.
        """
        LITERT.expect()
        self._model = model
        with standard_error_silenced():  # the first interpreter of a process says what it does
            first = _Interpreter(model, read_model(model))
        self._first, self._idle = first, deque([first])
        self.name = "litert"
        self.n_features = first.n_features
        self.n_concurrent = n_cores()

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Return the features of a batch; see :class:`extract.engines.Engine`."""
        interpreter = self._take()
        try:
            return interpreter.run(batch)
        finally:
            self._idle.append(interpreter)

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Let another process load the file itself."""
        return type(self), (self._model,)

    def _take(self) -> _Interpreter:
        """Return an interpreter that no other thread has; a new one where there is none."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._first.another()


def read_model(path: Path) -> bytes:
    """Return a file; raise :class:`EngineError` where that fails."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EngineError(f"LiteRT cannot load {path} ({error})") from error


class _Interpreter:
    """LiteRT's interpreter of one file, for one thread at a time."""

    def __init__(self, path: Path, content: bytes) -> None:
        """Load the content of a file; raise :class:`EngineError` where it is no model."""
        self._path, self._content = path, content
        with self._errors_told("load"):
            from ai_edge_litert.interpreter import Interpreter

            self._interpreter: Any = Interpreter(model_content=content, num_threads=1)
            self._interpreter.allocate_tensors()
            (source,) = self._interpreter.get_input_details()
            (target,) = self._interpreter.get_output_details()
        self._input, self._output = source["index"], target["index"]
        self._shape = tuple(source["shape"])
        self._image_shape = self._shape[1:]
        self.n_features = int(target["shape"][-1])

    def another(self) -> _Interpreter:
        """Return one more of the same content."""
        return _Interpreter(self._path, self._content)

    def run(self, batch: Batch) -> NDArray[np.float32]:
        """Return the features of a batch; raise :class:`EngineError` where it has no such shape."""
        with self._errors_told("run"):
            if batch.shape[1:] != self._image_shape:
                raise ValueError(f"images of shape {batch.shape[1:]}, not {self._image_shape}")
            if batch.shape != self._shape:
                self._shape = ()  # so it stays where resizing fails half way
                self._interpreter.resize_tensor_input(self._input, batch.shape)
                self._interpreter.allocate_tensors()
                self._shape = batch.shape
            self._interpreter.set_tensor(self._input, batch)
            self._interpreter.invoke()
            features: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        return features

    @contextmanager
    def _errors_told(self, task: str) -> Iterator[None]:
        """Make an :class:`EngineError` of what LiteRT raises, of its many lines the first."""
        try:
            yield
        except Exception as error:  # a broken install raises anything
            words = (str(error).splitlines() or [type(error).__name__])[0]
            raise EngineError(f"LiteRT cannot {task} {self._path} ({words})") from error
