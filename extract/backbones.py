"""The registry of backbones: what each is called, where its weights are, what it wants to see.

A backbone here is the model of ``keras.applications`` without its classification top and with
global average pooling, so its output is a feature vector. Its pixel scaling is left out of the
model wherever Keras puts it in (``include_preprocessing=False``) and done by
:mod:`extract.preprocess`, the only place that scales pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from data_cache.console import import_keras
from data_cache.errors import BackboneError
from extract.assets import RemoteFile
from extract.layouts import Layout, model_layout, stored_layout
from extract.onnx_backbone import PREFIX, OnnxBackbone, open_onnx_backbone
from extract.preprocess import SCALINGS, PixelScaling

POOLED = "avg_pool"
"""The feature layer of every backbone unless told otherwise: its own, pooled output."""

KERAS_WEIGHTS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"


@dataclass(frozen=True)
class Backbone:
    """A frozen feature extractor of Keras.

    Attributes
    ----------
    name : what a user calls it
    constructor : its function in ``keras.applications``, or any function of the same arguments
    scaling : how pixels in [0, 255] become its input; equals its ``preprocess_input``
    n_features : width of the pooled output
    native_size : side of the images that it was trained on, in pixels
    min_size : the smallest side that it takes
    sized_weights : for each image size with a weights file of its own, that file; sizes that are
        not listed use the file of the native size
    options : further arguments for the constructor
    fast_engines : what ``--engine auto`` takes on a CPU: the first that is installed
    feature_layer : the layer whose output is a feature row; see :mod:`extract.feature_layers`
    """

    name: str
    constructor: str | Callable[..., Any]
    scaling: PixelScaling
    n_features: int
    native_size: int = 224
    min_size: int = 32
    sized_weights: Mapping[int, RemoteFile] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    fast_engines: tuple[str, ...] = ("onnx", "litert")
    feature_layer: str = POOLED

    def check_size(self, image_size: int) -> None:
        """Raise :class:`BackboneError` for an image size that the backbone cannot take."""
        if image_size < self.min_size:
            raise BackboneError(
                f"{self.name} takes images of {self.min_size} pixels or more, not {image_size}: "
                f"choose a larger --image-size (its native size is {self.native_size})"
            )

    def weights_file(self, image_size: int) -> RemoteFile:
        """Return the ImageNet weights file for an image size."""
        return self.sized_weights.get(image_size) or self.sized_weights[self.native_size]

    def build(self, image_size: int, dtype_policy: str = "float32") -> Any:
        """Build the whole Keras model: (n, S, S, 3) scaled pixels to (n, n_features); frozen.

        The weights are Keras's random ones until :func:`extract.weights.set_weights` is called.
        ``dtype_policy`` may be ``mixed_float16`` on a GPU. The feature layer plays no part:
        :func:`extract.feature_layers.load_feature_model` ends the model there.
        """
        self.check_size(image_size)
        keras = import_keras()
        constructor = self.constructor
        if isinstance(constructor, str):
            constructor = getattr(keras.applications, constructor)
        with _keras_settings(keras, dtype_policy):
            model = constructor(
                include_top=False,
                weights=None,
                pooling="avg",
                input_shape=(image_size, image_size, 3),
                **self.options,
            )
        model.trainable = False
        return model

    def layout(self) -> Layout:
        """Return the backbone's layout: a stored one, or one read from the model it builds."""
        return stored_layout(self.name) or model_layout(self.build(self.native_size))


def open_backbone(
    text: str, preprocess: Path | None = None, layer: str = POOLED
) -> Backbone | OnnxBackbone:
    """Return the backbone that the user means: a name of the registry, or ``onnx:FILE``.

    ``preprocess`` is the JSON file that says how pixels are scaled for an ONNX file. ``layer`` is
    the feature layer; whether there is such a layer shows when the backbone is loaded.

    Raises
    ------
    BackboneError
        There is no such backbone or file, ``preprocess`` is missing, wrong or not needed, or
        ``layer`` is given for an ONNX file.
    """
    if text.startswith(PREFIX):
        if layer != POOLED:
            raise BackboneError(
                f"{text} has outputs, not layers: leave --layer out, and name the output in the "
                "file given by --preprocess"
            )
        return open_onnx_backbone(Path(text.removeprefix(PREFIX)), preprocess)
    backbone = replace(get_backbone(text), feature_layer=layer)
    if preprocess is not None:
        raise BackboneError(f"{text} has preprocessing of its own: leave --preprocess out")
    return backbone


def get_backbone(name: str) -> Backbone:
    """Return the backbone called ``name``.

    Raises
    ------
    BackboneError
        No backbone has that name; the message lists those there are.
    """
    try:
        return BACKBONES[name]
    except KeyError:
        near = get_close_matches(name, BACKBONES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BackboneError(
            f"unknown backbone {name!r}: {hint}there are {', '.join(BACKBONES)}, "
            "and onnx:FILE for a model of your own"
        ) from None


@contextmanager
def _keras_settings(keras: ModuleType, dtype_policy: str) -> Iterator[None]:
    """Build with channels last and the dtype policy asked for, whatever keras.json says."""
    kept = keras.config.image_data_format(), keras.config.dtype_policy()
    keras.config.set_image_data_format("channels_last")
    keras.config.set_dtype_policy(dtype_policy)
    try:
        yield
    finally:
        keras.config.set_image_data_format(kept[0])
        keras.config.set_dtype_policy(kept[1])


def _file(family: str, name: str, digest: str = "", *aliases: str) -> RemoteFile:
    """Name one of Keras's weights files, with the digest that it must have where one is known."""
    return RemoteFile(name, f"{KERAS_WEIGHTS_URL}{family}/{name}", digest, aliases)


def _one_file(family: str, name: str, digest: str) -> dict[int, RemoteFile]:
    """Name the weights file of a backbone that has one only, trained at 224 pixels."""
    return {224: _file(family, name, digest)}


_MOBILENET_V2_DIGESTS = {224: "f8aff69536bd77a692c594f559c798c19bf7f3f36668fc9fa00b21c6aab4797c"}
"""Keras publishes none for this family; this is the SHA-256 of the official file."""

_MOBILENET_V2_FILES = {
    size: _file(
        "mobilenet_v2",
        f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_{size}_no_top.h5",
        _MOBILENET_V2_DIGESTS.get(size, ""),
        f"mobilenet_v2_1.0_{size}_no_top.h5",
    )
    for size in (96, 128, 160, 192, 224)
}

_UNSCALED = {"include_preprocessing": False}

_LITERT_FIRST = ("litert", "onnx")
"""For mobile backbones. Measured on two AVX2 cores at 96 pixels, in images/s of LiteRT and ONNX
Runtime: MobileNetV2 970 and 820, MobileNetV3Large 1,210 and 800, MobileNetV3Small 3,980 and 1,900,
EfficientNetV2B0 450 and 420. Others are equally fast in both (ResNet50, DenseNet121, VGG16), or
faster in ONNX Runtime (ConvNeXtTiny, 49 and 67), which holds their weights once."""

BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone(
            "mobilenet_v2",
            "MobileNetV2",
            SCALINGS["tf"],
            1280,
            sized_weights=_MOBILENET_V2_FILES,
            fast_engines=_LITERT_FIRST,
        ),
        Backbone(
            "resnet50",
            "ResNet50",
            SCALINGS["caffe"],
            2048,
            sized_weights=_one_file(
                "resnet",
                "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "4d473c1dd8becc155b73f8504c6f6626",
            ),
        ),
        Backbone(
            "resnet50_v2",
            "ResNet50V2",
            SCALINGS["tf"],
            2048,
            sized_weights=_one_file(
                "resnet",
                "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "fac2f116257151a9d068a22e544a4917",
            ),
        ),
        Backbone(
            "densenet121",
            "DenseNet121",
            SCALINGS["torch"],
            1024,
            sized_weights=_one_file(
                "densenet",
                "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "30ee3e1110167f948a6b9946edeeb738",
            ),
        ),
        Backbone(
            "efficientnet_v2_b0",
            "EfficientNetV2B0",
            SCALINGS["torch"],
            1280,
            sized_weights=_one_file(
                "efficientnet_v2",
                "efficientnetv2-b0_notop.h5",
                "893217f2bb855e2983157299931e43ff",
            ),
            options=_UNSCALED,
        ),
        Backbone(
            "mobilenet_v3_large",
            "MobileNetV3Large",
            SCALINGS["tf"],
            960,
            sized_weights=_one_file(
                "mobilenet_v3",
                "weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
                "07fb09a5933dd0c8eaafa16978110389",
            ),
            options=_UNSCALED,
            fast_engines=_LITERT_FIRST,
        ),
        Backbone(
            "mobilenet_v3_small",
            "MobileNetV3Small",
            SCALINGS["tf"],
            576,
            sized_weights=_one_file(
                "mobilenet_v3",
                "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
                "d3e8ec802a04aa4fc771ee12a9a9b836",
            ),
            options=_UNSCALED,
            fast_engines=_LITERT_FIRST,
        ),
        Backbone(
            "convnext_tiny",
            "ConvNeXtTiny",
            SCALINGS["torch"],
            768,
            sized_weights=_one_file(
                "convnext",
                "convnext_tiny_notop.h5",
                "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1",
            ),
            options=_UNSCALED,
        ),
        Backbone(
            "vgg16",
            "VGG16",
            SCALINGS["caffe"],
            512,
            sized_weights=_one_file(
                "vgg16",
                "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5",
                "6d6bbae143d832006294945121d1f1fc",
            ),
        ),
    )
}
"""Every backbone of the registry by name."""
