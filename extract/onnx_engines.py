"""ONNX Runtime as an engine, for converted backbones and for ONNX files of the user's own.

A session runs one thread a call. Calls from as many threads as there are cores are faster than one
call on all cores: no core waits for another at the end of each layer, and each works in its own
cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_cache.cores import n_cores
from data_cache.errors import EngineError
from extract.onnx_backbone import OnnxBackbone
from extract.runtimes import Batch, Runtime

ONNX_RUNTIME = Runtime("onnx", "onnxruntime", "onnxruntime")

_POOLED_AXES: dict[int, tuple[int, ...]] = {2: (), 3: (1,), 4: (2, 3)}
"""The axes that ``mean`` averages over, by the number of axes of an output."""

_TOKEN_AXES = 3


class OnnxEngine:
    """A converted backbone; see :class:`extract.engines.Engine`."""

    def __init__(self, model: Path) -> None:
        """Load an ONNX file with one input (n, S, S, 3) and one output (n, d).

        Raises
        ------
        EngineError
            ONNX Runtime is not installed, or cannot load the file.
        """
        self._model = model
        self._session = _session(model)
        self._input = self._session.get_inputs()[0].name
        self.name = "onnx"
        self.n_features = int(self._session.get_outputs()[0].shape[-1])
        self.n_concurrent = n_cores()

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Return the features of a batch; see :class:`extract.engines.Engine`."""
        features: NDArray[np.float32] = self._session.run(None, {self._input: batch})[0]
        return features

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        """Let another process load the file itself."""
        return type(self), (self._model,)


class OnnxFileEngine:
    """An ONNX file of the user's own, read as an :class:`OnnxBackbone` says."""

    def __init__(self, backbone: OnnxBackbone) -> None:
        """Load the file and run it once.

        Raises
        ------
        EngineError
            ONNX Runtime is not installed or cannot load or run the file; it has no such output, or
            one that is not a row of float32 for each image.
        """
        self._backbone = backbone
        self._session = _session(backbone.path)
        self._input = self._session.get_inputs()[0].name
        self._output = self._find_output()
        self.name = "onnx"
        self.n_concurrent = n_cores()
        size = backbone.native_size
        self.n_features = self(np.zeros((2, size, size, 3), np.float32)).shape[1]

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Return the features of a batch; see :class:`extract.engines.Engine`."""
        if self._backbone.axes == "nchw":
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        try:
            output = self._session.run([self._output], {self._input: batch})[0]
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise EngineError(
                f"{self._backbone.path} cannot run on images of shape {batch.shape}: say another "
                f"layout or image_size in the file given by --preprocess ({error})"
            ) from error
        return self._pooled(output, len(batch))

    def __reduce__(self) -> tuple[type, tuple[OnnxBackbone]]:
        """Let another process load the file itself."""
        return type(self), (self._backbone,)

    def _find_output(self) -> str:
        """Return the name of the output that holds the features."""
        names = [output.name for output in self._session.get_outputs()]
        wanted = self._backbone.output or names[0]
        if wanted not in names:
            raise EngineError(
                f"{self._backbone.path} has no output {wanted!r}: there are {', '.join(names)}"
            )
        return wanted

    def _pooled(self, output: Any, n_images: int) -> NDArray[np.float32]:
        """Make a feature row of each image's output."""
        is_array = isinstance(output, np.ndarray) and output.dtype == np.float32
        if not is_array or output.ndim not in _POOLED_AXES or len(output) != n_images:
            raise EngineError(
                f"output {self._output!r} of {self._backbone.path} is "
                f"{getattr(output, 'dtype', '')}{getattr(output, 'shape', output)}, expected "
                "float32 of shape (n, d), (n, t, d) or (n, d, h, w): name another output in the "
                "file given by --preprocess"
            )
        if output.ndim == _TOKEN_AXES and self._backbone.pool == "first":
            return np.ascontiguousarray(output[:, 0])
        return np.asarray(output.mean(_POOLED_AXES[output.ndim]), np.float32)


def _session(model: Path) -> Any:
    """Load an ONNX file for one thread a call."""
    ONNX_RUNTIME.expect()
    try:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base; a broken install raises others
        raise EngineError(f"ONNX Runtime cannot load {model} ({error})") from error
