"""Files whose layers have no names that help, written by hand: position and shape must do."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from data_cache.errors import WeightsError
from extract.layouts import LayerLayout, Layout
from extract.weights_files import read_weights

NORMALIZATION = ("gamma", "beta", "moving_mean", "moving_variance")


def convolutions(n_layers: int) -> Layout:
    """Return a layout of convolutions that only their positions tell apart."""
    return Layout(
        tuple(
            LayerLayout(f"c{i}", f"conv2d_{i}" if i else "conv2d", (("kernel", (1, 1, 2, 2)),))
            for i in range(n_layers)
        )
    )


def write_keras_3(path: Path, n_layers: int, prefix: str = "layers") -> None:
    """Write the i-th convolution full of i, under the group that Keras 3 gives it."""
    with h5py.File(path, "w") as file:
        for i in range(n_layers):
            name = f"conv2d_{i}" if i else "conv2d"
            file[f"{prefix}/{name}/vars/0"] = np.full((1, 1, 2, 2), i, np.float32)


@pytest.mark.parametrize(
    "prefix",
    ["layers", "_layer_checkpoint_dependencies", "layers/functional/layers", "base/layers"],
)
def test_layers_count_in_numbers_not_in_letters(prefix: str, tmp_path: Path) -> None:
    write_keras_3(tmp_path / "some.weights.h5", 12, prefix)
    found = read_weights(tmp_path / "some.weights.h5", convolutions(12), "some")
    assert [int(kernel[0, 0, 0, 0]) for (kernel,) in found] == list(range(12))


def test_weights_that_hdf5_would_read_from_elsewhere_are_refused(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "some.weights.h5", tmp_path / "secret"
    elsewhere.write_bytes(bytes(16))
    write_keras_3(path, 2)
    with h5py.File(path, "r+") as file:
        file.create_dataset("more", (4,), "f4", external=[(str(elsewhere), 0, 16)])
    with pytest.raises(WeightsError, match="/more in it lies outside the file"):
        read_weights(path, convolutions(2), "some")


def test_layers_that_fit_in_several_ways_are_refused(tmp_path: Path) -> None:
    write_keras_3(tmp_path / "some.weights.h5", 3)
    with pytest.raises(WeightsError, match="neither names nor order say which is which"):
        read_weights(tmp_path / "some.weights.h5", convolutions(2), "some")


def normalizations(names: tuple[str, ...]) -> Layout:
    """Return a layout of batch normalizations that only their names tell apart."""
    variables = tuple((variable, (2,)) for variable in NORMALIZATION)
    return Layout(tuple(LayerLayout(name, "batch_normalization", variables) for name in names))


def write_nested_legacy(path: Path, order: list[str]) -> None:
    """Write a legacy file with one model as a layer, its weights in the order given."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = ["base"]
        group = file.create_group("base")
        group.attrs["weight_names"] = order
        for weight in order:
            group[weight] = np.full(2, "pq".index(weight[0]), np.float32)


ONE_AFTER_ANOTHER = [f"{layer}/{variable}" for layer in "pq" for variable in NORMALIZATION]
TRAINABLE_FIRST = [*ONE_AFTER_ANOTHER[4:6], *ONE_AFTER_ANOTHER[:4], *ONE_AFTER_ANOTHER[6:]]


def test_trainable_weights_first_are_put_in_order_by_name(tmp_path: Path) -> None:
    write_nested_legacy(tmp_path / "some.h5", TRAINABLE_FIRST)
    first, second = read_weights(tmp_path / "some.h5", normalizations(("p", "q")), "some")
    assert [float(array[0]) for array in (*first, *second)] == [0.0] * 4 + [1.0] * 4


def test_trainable_weights_first_under_unknown_names_are_refused(tmp_path: Path) -> None:
    """By position q would be taken for the first layer, and nobody would notice."""
    layout = normalizations(("first", "second"))
    write_nested_legacy(tmp_path / "torn.h5", TRAINABLE_FIRST)
    with pytest.raises(WeightsError, match="neither names nor order say which is which"):
        read_weights(tmp_path / "torn.h5", layout, "some")
    write_nested_legacy(tmp_path / "whole.h5", ONE_AFTER_ANOTHER)
    found = read_weights(tmp_path / "whole.h5", layout, "some")
    assert [float(arrays[0][0]) for arrays in found] == [0.0, 1.0]


def test_long_lists_of_names_are_read_from_their_parts(tmp_path: Path) -> None:
    """Keras splits an attribute above 64 KiB into numbered ones."""
    with h5py.File(tmp_path / "some.h5", "w") as file:
        for i in range(12):
            file.attrs[f"layer_names{i}"] = [f"c{i}".encode()]
            group = file.create_group(f"c{i}")
            group.attrs["weight_names"] = [b"kernel:0"]
            group["kernel:0"] = np.full((1, 1, 2, 2), i, np.float32)
    renamed = Layout(
        tuple(
            LayerLayout(f"new{i}", layer.group, layer.variables)
            for i, layer in enumerate(convolutions(12).layers)
        )
    )
    found = read_weights(tmp_path / "some.h5", renamed, "some")
    assert [int(kernel[0, 0, 0, 0]) for (kernel,) in found] == list(range(12))
