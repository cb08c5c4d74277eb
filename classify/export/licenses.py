"""Under what terms weights may be used, as far as this program knows."""

from __future__ import annotations

from dataclasses import dataclass

from extract.backbones import Backbone
from extract.onnx_backbone import OnnxBackbone
from extract.weights import IMAGENET, RANDOM, Weights

NOT_STATED = "not stated"

_TERMS_OF_IMAGENET = (
    "They were trained on ImageNet, whose images are offered for non-commercial research and "
    "education; whether that binds those who use such weights is not settled: see to it before "
    "commercial use."
)
_APACHE = "Apache-2.0"
_CONVERTED = {
    "vgg16": ("CC-BY", "the University of Oxford's VGG"),
    "resnet50": ("MIT", "K. He et al."),
    "densenet121": ("BSD-3-Clause", "the authors of DenseNet"),
    "convnext_tiny": ("MIT", "Meta's ConvNeXt"),
}
"""Backbones whose weights Keras converted from what others released,
by whom, and under which license they did, as the documentation of Keras and they themselves say."""


@dataclass(frozen=True)
class License:
    """The license of weights: its name, or :data:`NOT_STATED`; and a note for people."""

    name: str
    note: str

    def sentence(self) -> str:
        """Say it for people."""
        return f"{self.name}. {self.note}"


TUNED = License(
    NOT_STATED,
    "The weights were fine-tuned from others: the license of those, and the terms of the images "
    "that they learned from, go on to apply.",
)
"""Of weights that a fine-tuned run holds."""


def license_of(backbone: Backbone | OnnxBackbone, weights: Weights) -> License:
    """Return the license of a backbone's weights; a file of the user's own says nothing of it."""
    if weights.description.startswith(RANDOM):
        return License("none needed", "The weights are random numbers.")
    if not weights.description.lower().startswith(IMAGENET):
        return License(
            NOT_STATED,
            "The weights come from a file that says nothing of its license: ask those it is from.",
        )
    name, maker = _CONVERTED.get(backbone.name, (_APACHE, ""))
    note = "The weights of keras.applications, which is under the Apache License 2.0"
    note += f"; converted from those of {maker}. " if maker else ". "
    return License(name, note + _TERMS_OF_IMAGENET)
