"""A Dense head without Keras: held against Keras's own prediction of the same file."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from classify.heads.dense import DenseHead
from classify.predict.run import load_model
from classify.results.runs import Run
from classify.stored.keras_file import read_dense_head
from data_cache.console import import_keras
from data_cache.errors import RunError

RNG = np.random.default_rng(3)
X = RNG.normal(2, 3, (200, 7)).astype(np.float32)
X[:, 3] = 5  # a feature that never varies
Y = RNG.integers(0, 4, 200)


def trained(path: Path, **options: Any) -> Path:
    DenseHead(epochs=2, learning_rate=0.05, **options).fit(X, Y).save(path)
    return path


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("head") / "head.keras", hidden_units=5, standardize=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"standardize": True}, {"hidden_units": 5}, {"hidden_units": 6, "standardize": True}],
)
def test_logits_are_those_of_keras(tmp_path: Path, options: dict[str, Any]) -> None:
    path = trained(tmp_path / "head.keras", **options)
    model = import_keras().saving.load_model(path, compile=False)
    stored = read_dense_head(path, 4)
    assert stored is not None
    expected = model.predict(X, verbose=0)
    np.testing.assert_allclose(stored.logits(X), expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 1
    assert stored.classes_.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (X[:, 1:], r"features are \(200, 6\): expected \(n, 7\)"),
        (X[0], r"features are \(7,\)"),
        (np.where(np.arange(7) == 3, np.nan, X), "NaN or infinity"),
        (np.where(np.arange(7) == 3, np.inf, X), "NaN or infinity"),
    ],
)
def test_features_that_are_not_the_heads_are_refused(
    head: Path, features: np.ndarray, message: str
) -> None:
    stored = read_dense_head(head, 4)
    assert stored is not None
    with pytest.raises(ValueError, match=message):
        stored.logits(features)


def rewrite(path: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    """Replace one member of an archive by what ``change`` makes of it."""
    with zipfile.ZipFile(path) as archive:
        members = {one: archive.read(one) for one in archive.namelist()}
    members[name] = change(members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for one, content in members.items():
            archive.writestr(one, content)


def with_layer(path: Path, position: int, **changes: Any) -> None:
    def change(raw: bytes) -> bytes:
        config = json.loads(raw)
        config["config"]["layers"][position]["config"] |= changes
        return json.dumps(config).encode()

    rewrite(path, "config.json", change)


def keras_head(path: Path, *layers: Any) -> Path:
    """Save a model of other layers than a Dense head's."""
    keras = import_keras()
    keras.Sequential([keras.layers.Input((7,)), *layers]).save(path)
    return path


def run_of(folder: Path, n_classes: int = 4) -> Run:
    return Run(folder, {}, tuple(map(str, range(n_classes))), "dense", None, None)  # type: ignore[arg-type]


def test_head_with_other_layers_is_left_to_keras(tmp_path: Path) -> None:
    layers = import_keras().layers
    path = keras_head(tmp_path / "head.keras", layers.Dense(4, activation="tanh"))
    assert read_dense_head(path, 4) is None
    model = load_model(run_of(tmp_path))
    expected = import_keras().saving.load_model(path).predict(X, verbose=0)
    np.testing.assert_allclose(model.logits(X), expected, atol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"its output is \(None, 4\), expected \(None, 3\)"):
        load_model(run_of(tmp_path, n_classes=3))


def test_code_in_a_head_is_refused(tmp_path: Path) -> None:
    keras = import_keras()
    keras_head(tmp_path / "head.keras", keras.layers.Lambda(lambda x: x[:, :4]))
    with pytest.raises(RunError, match=r"holds Lambda of keras\.layers"):
        load_model(run_of(tmp_path))


BIAS, KERNEL = "layers/dense/vars/1", "layers/dense/vars/0"


def with_weights(path: Path, change: Callable[[h5py.File], object]) -> None:
    def edit(raw: bytes) -> bytes:
        stream = io.BytesIO(raw)
        with h5py.File(stream, "r+") as file:
            change(file)
        return stream.getvalue()

    rewrite(path, "model.weights.h5", edit)


def nan_bias(file: h5py.File) -> None:
    file[BIAS][0] = np.nan


def replace(file: h5py.File, name: str, item: Any = None, **options: Any) -> None:
    """Put something else where a dataset was: a link, an array, or a dataset of options."""
    del file[name]
    if options:
        file.create_dataset(name, **options)
    else:
        file[name] = item


def raw_bias(file: h5py.File) -> None:
    replace(file, BIAS, shape=5, dtype="f4", external=[("/etc/passwd", 0, 20)])


def virtual_bias(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5,), "f4")
    layout[:] = h5py.VirtualSource("/nowhere.h5", "bias", (5,))
    del file[BIAS]
    file.create_virtual_dataset(BIAS, layout)


def outside_elsewhere(file: h5py.File) -> None:
    file["group that nothing reads/bias"] = h5py.ExternalLink("/nowhere.h5", "bias")


def group_within_itself(file: h5py.File) -> None:
    file["layers/again"] = file["/"]


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"PK"), "not a zip file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "cannot be read"),
        (lambda path: rewrite(path, "config.json", lambda _: b"{}"), "class_name"),
        (lambda path: rewrite(path, "config.json", lambda _: b"[]"), "cannot be read"),
        (lambda path: rewrite(path, "model.weights.h5", lambda raw: raw[:99]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "not a zip file"),
        (lambda path: with_weights(path, nan_bias), "not all finite"),
        (lambda path: with_weights(path, raw_bias), "vars/1 in it lies outside"),
        (lambda path: with_weights(path, virtual_bias), "vars/1 in it lies outside"),
        (lambda path: with_weights(path, outside_elsewhere), "reads/bias in it lies outside"),
        (
            lambda path: with_weights(
                path, lambda file: replace(file, BIAS, h5py.SoftLink("/optimizer/bias"))
            ),
            "vars/1 in it lies outside",
        ),
        (
            lambda path: with_weights(
                path, lambda file: replace(file, BIAS, shape=1 << 40, dtype="f4", chunks=(1024,))
            ),
            "vars/1 in it is larger than any head",
        ),
        (
            lambda path: with_weights(path, lambda file: replace(file, BIAS, np.zeros(5))),
            r"vars/1 in it is float64 \(5,\): expected float32 \(5,\)",
        ),
        (
            lambda path: with_weights(path, lambda file: replace(file, BIAS, np.float32([0]))),
            r"vars/1 in it is float32 \(1,\): expected float32 \(5,\)",
        ),
        (
            lambda path: with_weights(
                path, lambda file: replace(file, KERNEL, np.zeros((1, 5), np.float32))
            ),
            r"vars/0 in it is float32 \(1, 5\): expected float32 \(7, 5\)",
        ),
        (lambda path: with_layer(path, 3, units=1), r"\(7, 5\): expected float32 \(7, 1\)"),
        (lambda path: with_layer(path, 3, units=True), "a layer in it has True units"),
        (lambda path: with_layer(path, 0, batch_shape=[None, 7.0]), r"it takes \[None, 7.0\]"),
        (lambda path: with_layer(path, 0, batch_shape=[None, -7]), r"it takes \[None, -7\]"),
        (lambda path: with_layer(path, 0, batch_shape=[None, 7, 7]), r"expected \[None, d\]"),
        (lambda path: with_layer(path, 0, batch_shape=[1, 7]), r"expected \[None, d\]"),
        (lambda path: with_layer(path, 0, batch_shape=[None, 10**12]), "is not 10{12} numbers"),
        (lambda path: with_layer(path, 1, mean=[np.nan] * 7), "mean is not all finite"),
        (lambda path: with_layer(path, 1, mean=[1e300] * 7), "mean is not all finite"),
        (lambda path: with_layer(path, 1, mean=["1"] * 7), "mean is not 7 numbers"),
        (lambda path: with_layer(path, 1, mean=0.5), "mean is not 7 numbers"),
        (lambda path: with_layer(path, 1, variance=[np.inf] * 7), "variance is not all finite"),
        (lambda path: with_layer(path, 1, variance=[-1.0] * 7), "variance is negative"),
        (lambda path: with_layer(path, 1, variance=[[1.0] * 7]), "variance is not 7 numbers"),
        (lambda path: with_layer(path, 0, batch_shape=[None, 9]), "cannot be read"),
        (lambda path: with_layer(path, 1, mean=[0.0, 1.0]), "cannot be read"),
    ],
)
def test_damaged_head_is_refused(
    head: Path, tmp_path: Path, tamper: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / "head.keras"
    path.write_bytes(head.read_bytes())
    tamper(path)
    with pytest.raises(RunError, match=message) as caught:
        load_model(run_of(tmp_path))
    assert "\n" not in str(caught.value)


def test_head_of_other_classes_is_refused(head: Path) -> None:
    with pytest.raises(RunError, match="it gives 4 logits, expected 3"):
        load_model(run_of(head.parent, n_classes=3))


def test_tree_that_holds_itself_is_walked_once(head: Path, tmp_path: Path) -> None:
    path = tmp_path / "head.keras"
    path.write_bytes(head.read_bytes())
    with_weights(path, group_within_itself)
    stored, expected = read_dense_head(path, 4), read_dense_head(head, 4)
    assert stored is not None
    assert expected is not None
    np.testing.assert_array_equal(stored.logits(X), expected.logits(X))


def test_head_that_is_left_to_keras_reads_no_other_file(tmp_path: Path) -> None:
    path = keras_head(tmp_path / "head.keras", import_keras().layers.Dense(5, "tanh"))
    with_weights(path, raw_bias)
    with pytest.raises(RunError, match="vars/1 in it lies outside"):
        load_model(run_of(tmp_path, n_classes=5))
