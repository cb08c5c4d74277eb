"""Engines: what runs the forward pass. Every engine takes scaled pixels and returns features.

``keras`` is the reference. ``litert`` and ``onnx`` run the same backbone, converted, several times
as fast on a CPU; either is used only after it has agreed with the reference on a probe
(:mod:`extract.convert`).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_cache.console import import_keras, say, warn
from data_cache.errors import EngineError
from extract.backbones import Backbone
from extract.convert import TOLERANCE, Converted, convert, kept_folder, relative_error
from extract.converters import TO_ONNX, TO_TFLITE, Converter
from extract.feature_layers import load_feature_model
from extract.litert_engine import LITERT, LiteRtEngine
from extract.onnx_backbone import OnnxBackbone
from extract.onnx_engines import ONNX_RUNTIME, OnnxEngine, OnnxFileEngine
from extract.runtimes import Batch, Runtime
from extract.weights import Weights

ENGINES = ("auto", "keras", "litert", "onnx")

_GPU_DEVICES = ("/dev/nvidia0", "/dev/kfd", "/dev/dxg")


class Engine(Protocol):
    """A frozen backbone that is ready to run.

    Attributes
    ----------
    name : ``keras``, ``litert``, or what else runs it; goes into the provenance
    n_features : width of a feature row
    n_concurrent : how many threads may and should call it at once; 1 where one call uses all cores
    """

    name: str
    n_features: int
    n_concurrent: int

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Return the features, (n, n_features) float32, of a batch (n, S, S, 3) of any n >= 1."""
        ...


class KerasEngine:
    """The reference: Keras in inference mode, compiled, on whatever device TensorFlow has."""

    def __init__(
        self,
        backbone: Backbone,
        weights: Weights,
        image_size: int,
        *,
        mixed_precision: bool = False,
    ) -> None:
        """Build the backbone; ``mixed_precision`` computes in float16 where a GPU can.

        Raises
        ------
        EngineError
            ``mixed_precision`` without a GPU.
        BackboneError
            The backbone has no such feature layer.
        """
        if mixed_precision and not has_gpu():
            raise EngineError("mixed precision needs a GPU, and TensorFlow sees none: leave it out")
        keras = import_keras()
        import tensorflow as tf

        policy = "mixed_float16" if mixed_precision else "float32"
        model: Any = load_feature_model(backbone, weights, image_size, policy)
        self.name = "keras mixed_float16" if mixed_precision else "keras"
        self.n_features = int(model.output_shape[-1])
        self.n_concurrent = 1
        self._forward = tf.function(
            lambda batch: keras.ops.cast(model(batch, training=False), "float32"),
            input_signature=[tf.TensorSpec((None, image_size, image_size, 3), tf.float32)],
        )

    def __call__(self, batch: Batch) -> NDArray[np.float32]:
        """Return the features of a batch; see :class:`Engine`."""
        features: NDArray[np.float32] = self._forward(batch).numpy()
        return features


@dataclass(frozen=True)
class _Fast:
    """An engine for converted backbones: its library, the converter, and what loads a file."""

    runtime: Runtime
    converter: Converter
    load: Callable[[Path], Engine]


_FAST = {
    "litert": _Fast(LITERT, TO_TFLITE, LiteRtEngine),
    "onnx": _Fast(ONNX_RUNTIME, TO_ONNX, OnnxEngine),
}


def choose_engine(
    name: str,
    backbone: Backbone | OnnxBackbone,
    weights: Weights,
    image_size: int,
    *,
    mixed_precision: bool = False,
) -> Engine:
    """Start the engine called ``name`` and say which it is.

    ``auto`` is ``keras`` on a GPU. On a CPU it is the first of the backbone's ``fast_engines`` that
    is installed, else ``keras``. An engine that cannot be had, or that disagrees with the
    reference, gives way to the next with a warning, in the end to ``keras``.

    Raises
    ------
    EngineError
        An unknown name, ``litert`` or ``onnx`` asked for where it is not installed, or mixed
        precision that no GPU can serve.
    BackboneError
        The backbone has no such feature layer.
    """
    if name not in ENGINES:
        raise EngineError(f"unknown engine {name!r}: there are {', '.join(ENGINES)}")
    if isinstance(backbone, OnnxBackbone):
        return _own_onnx_engine(name, backbone)
    reason = _reason_for_keras(name, mixed_precision=mixed_precision)
    names = () if reason else _fast_names(name, backbone)
    if not names:
        say(f"engine: keras ({reason or _NOTHING_FAST})")
    for fast, next_one in pairwise([*names, "keras"]):
        try:
            return _checked_engine(fast, backbone, weights, image_size)
        except EngineError as error:
            warn(f"{error}; the engine is {next_one} instead")
    return KerasEngine(backbone, weights, image_size, mixed_precision=mixed_precision)


def has_gpu() -> bool:
    """Tell whether TensorFlow sees a GPU; it is imported only on a machine that may have one."""
    if not _may_have_gpu():
        return False
    import_keras()
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


_NOTHING_FAST = (
    "LiteRT and ONNX Runtime, which are faster on a CPU, are not installed: pip install '.[fast]'"
)


def _reason_for_keras(name: str, *, mixed_precision: bool) -> str:
    """Say why the engine is to be ``keras`` whatever is installed; nothing where it is not."""
    if name == "keras":
        return "asked for"
    if mixed_precision:
        return "mixed precision was asked for"
    if name == "auto" and has_gpu():
        return "on the GPU"
    return ""


def _fast_names(name: str, backbone: Backbone) -> Sequence[str]:
    """Return the fast engines to try, in order; raise where the one asked for is not installed."""
    if name != "auto":
        _FAST[name].runtime.expect()
        return (name,)
    return [one for one in backbone.fast_engines if _FAST[one].runtime.is_installed]


def _own_onnx_engine(name: str, backbone: OnnxBackbone) -> OnnxFileEngine:
    """Start the engine of an ONNX file of the user's own."""
    if name not in ("auto", "onnx"):
        raise EngineError(f"{backbone.path} runs in ONNX Runtime only: leave --engine out")
    engine = OnnxFileEngine(backbone)
    say(f"engine: onnx ({backbone.path.name}, {engine.n_features} features)")
    return engine


def _checked_engine(name: str, backbone: Backbone, weights: Weights, image_size: int) -> Engine:
    """Start a fast engine from what is kept, else from a new conversion; either has to agree."""
    fast = _FAST[name]
    kept = kept_folder(fast.converter, backbone, weights, image_size)
    if kept.folder.is_dir():
        try:
            return _agreeing(fast, kept)
        except EngineError as error:
            warn(f"{error}: converting {backbone.name} again")
    return _agreeing(fast, convert(fast.converter, backbone, weights, image_size))


def _agreeing(fast: _Fast, converted: Converted) -> Engine:
    """Load a conversion; raise :class:`EngineError` unless it agrees with the probe."""
    batch, reference = converted.probe()
    engine = fast.load(converted.model)
    error = relative_error(engine(batch), reference)
    if not error <= TOLERANCE:
        raise EngineError(
            f"the features of {converted.model} are not the reference's: relative error "
            f"{error:.1e}, expected at most {TOLERANCE:.0e}"
        )
    say(f"engine: {engine.name} (agrees with keras: relative error {error:.0e})")
    return engine


def _may_have_gpu() -> bool:
    """Tell, without TensorFlow, whether this machine may have a GPU for it."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in {"", "-1"}:
        return False
    return any(Path(device).exists() for device in _GPU_DEVICES) or _has_metal_plugin()


def _has_metal_plugin() -> bool:
    """Tell whether Apple's plugin for TensorFlow is installed."""
    if platform.system() != "Darwin":
        return False
    try:
        metadata.version("tensorflow-metal")
    except metadata.PackageNotFoundError:
        return False
    return True
