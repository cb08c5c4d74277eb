"""The part of a backbone behind a cut, as a trunk of its own that takes the cut's tensors.

It is made of the very layers of the backbone, so training it trains the backbone: nothing is copied
back, and the whole backbone can be saved, measured or exported at any time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from classify.fine_tune.cut import Cut
from classify.fine_tune.network import Network
from data_cache.console import import_keras
from extract.backbones import POOLED
from extract.feature_layers import feature_tensors


def suffix(trunk: Any, cut: Cut) -> Any:
    """Return the Keras model from the tensors of a cut, in its order, to the features (n, d).

    It shares its layers, weights and ``trainable`` flags with ``trunk``.
    """
    keras = import_keras()
    if cut.feature_layer == POOLED:
        features = keras.Input(cut.shapes[0])
        return keras.Model(features, keras.layers.Identity()(features), name=trunk.name)
    tensors = feature_tensors(trunk, cut.feature_layer)
    inputs = tensors[0] if len(tensors) == 1 else list(tensors)
    return keras.Model(inputs, trunk.output, name=trunk.name)


def suffix_network(network: Network, cut: Cut) -> Network:
    """Return the network behind a cut; training it trains the whole one."""
    return replace(network, trunk=suffix(network.trunk, cut))
