"""The cut of a backbone and the suffix behind it, against the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_backbone import TINY

from classify.fine_tune.assembly import unfreeze
from classify.fine_tune.cut import Cut, find_cut
from classify.fine_tune.network import Network
from classify.fine_tune.suffix import suffix, suffix_network
from data_cache.console import import_keras
from data_cache.errors import ParameterError
from extract.backbones import get_backbone
from extract.feature_layers import feature_model

SIZE = 32
BACKBONES = (
    "mobilenet_v2",
    "resnet50",
    "densenet121",
    "mobilenet_v3_small",
    "convnext_tiny",
    "vgg16",
)


@pytest.fixture(scope="module")
def mobilenet() -> Any:
    return get_backbone("mobilenet_v2").build(96)


def scatter(model: Any) -> None:
    """Give every weight, moving statistics too, a value of its own near where it was."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        value = weight.numpy()
        weight.assign(value * rng.uniform(0.8, 1.2, value.shape) + rng.uniform(0, 0.01))


def images(n: int, size: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (n, size, size, 3)).astype(np.float32)


@pytest.mark.parametrize("name", BACKBONES)
def test_prefix_and_suffix_together_are_the_backbone(name: str) -> None:
    model = get_backbone(name).build(SIZE)
    scatter(model)
    x = images(2, SIZE)
    expected = np.asarray(model(x, training=False))
    assert expected.std() > 0
    for n_layers in (3, 10, 17):
        unfreeze(model, n_layers)
        cut = find_cut(model)
        rows = feature_model(model, cut.feature_layer)(x, training=False)
        tensors = cut.split(np.asarray(rows))
        found = suffix(model, cut)(tensors[0] if len(tensors) == 1 else list(tensors))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("n_layers", "layers"),
    [
        (20, "block_14_add"),
        (19, "block_14_add+block_15_expand_relu"),
        (12, "block_15_add"),
        (10, "block_16_expand_relu"),
        (3, "block_16_project_BN"),
        (2, "avg_pool"),
        (0, "avg_pool"),
    ],
)
def test_cut_of_mobilenet_v2(mobilenet: Any, n_layers: int, layers: str) -> None:
    """Read off the architecture: a block is expand, depthwise and project, each with its BN."""
    unfreeze(mobilenet, n_layers)
    assert find_cut(mobilenet).feature_layer == layers


def test_cut_says_its_size(mobilenet: Any) -> None:
    unfreeze(mobilenet, 20)
    cut = find_cut(mobilenet)
    assert (cut.n_features, cut.shapes) == (1440, ((3, 3, 160),))
    assert str(cut) == "block_14_add (3 x 3 x 160 = 1,440 numbers)"


def test_cut_is_where_a_change_of_the_trained_weights_begins_to_show() -> None:
    """Shake the trained weights, and see which layers' outputs differ, and what those take."""
    model = get_backbone("mobilenet_v3_small").build(SIZE)
    scatter(model)
    unfreeze(model, 45)
    layers = {one.name: one for one in model.layers}
    outputs = import_keras().Model(model.input, {name: one.output for name, one in layers.items()})
    x = images(2, SIZE)
    before = {name: np.asarray(value) for name, value in outputs(x, training=False).items()}
    for weight in model.trainable_weights:
        weight.assign(weight * 1.5 + 0.01)
    after = {name: np.asarray(value) for name, value in outputs(x, training=False).items()}
    cut = find_cut(model)
    prefix = feature_model(model, cut.feature_layer)
    shown = {name for name in layers if not np.array_equal(before[name], after[name])}
    assert shown
    assert not shown.intersection(one.name for one in prefix.layers)
    behind = {one.name for one in suffix(model, cut).layers} & set(layers)
    assert {name for name in behind if layers[name].weights} <= shown, "the cut is the deepest"


def test_training_the_suffix_trains_the_backbone() -> None:
    model = TINY.build(16)
    unfreeze(model, 2)
    network = Network(model, import_keras().Sequential([import_keras().layers.Dense(2)]))
    behind = suffix_network(network, find_cut(model))
    trained = behind.trunk.trainable_variables
    assert {id(one) for one in trained} == {id(one) for one in model.trainable_variables}
    assert trained
    x = images(2, 16)
    before = np.asarray(model(x, training=False))
    trained[0].assign(trained[0] + 1)
    assert not np.array_equal(model(x, training=False), before)
    assert behind.head is network.head


def test_suffix_of_nothing_trained_is_the_identity() -> None:
    model = TINY.build(16)
    cut = find_cut(model)
    assert cut == Cut("avg_pool", ((24,),))
    rows = np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32)
    np.testing.assert_array_equal(suffix(model, cut)(rows), rows)


def test_training_from_the_first_layer_on_is_refused() -> None:
    model = TINY.build(16)
    unfreeze(model, len(model.layers) - 1)
    with pytest.raises(ParameterError, match="no activation can be kept: give a smaller"):
        find_cut(model)
