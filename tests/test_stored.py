"""Models that only predict: held against the estimators that wrote their files."""

from __future__ import annotations

import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_data import activations
from sklearn.base import clone

from classify.predict.run import load_model
from classify.probes import (
    KernelRidgeProbe,
    LinearProbe,
    LogisticRegressionProbe,
    NearestMeanProbe,
    NeighborsProbe,
    RidgeProbe,
    load_probe,
)
from classify.results.runs import COMPARISON_KIND, PROBE_FILES, Run
from classify.stored.linear import LINEAR_KINDS, read_linear_probe
from classify.stored.model import StoredModel
from data_cache.errors import RunError

LINEAR = {
    "logistic_regression": LogisticRegressionProbe(),
    "ridge": RidgeProbe(temperature=0.5),
    "discriminant": NearestMeanProbe(0.5, temperature=2.0),
    "nearest_mean": NearestMeanProbe(),
}
OTHERS = {"neighbors": NeighborsProbe(3), "kernel_ridge": KernelRidgeProbe(n_landmarks=50)}
X, Y = activations(100)


def run_of(folder: Path, name: str, probe: Any, labels: Any = Y) -> tuple[Run, Any]:
    """Return a comparison that a probe won, and the probe, fitted."""
    fitted = clone(probe).fit(X, labels)
    fitted.save(folder / PROBE_FILES[name])
    facts = {"kind": COMPARISON_KIND}
    return Run(folder, facts, tuple("abcd"), name, None, None), fitted  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "probe"), LINEAR.items())
def test_logits_of_a_linear_probe_are_the_estimators(
    name: str, probe: LinearProbe, tmp_path: Path
) -> None:
    run, fitted = run_of(tmp_path, name, probe)
    stored = load_model(run)
    assert isinstance(stored, StoredModel)
    assert (stored.n_features_in_, stored.classes_.tolist()) == (X.shape[1], [0, 1, 2, 3])
    logits = stored.logits(X)
    np.testing.assert_array_equal(logits, fitted.logits(X))
    weights = fitted.coef_ / fitted.scale_
    expected = np.einsum("nd,kd->nk", X.astype(float), weights)
    expected += fitted.intercept_ - np.einsum("d,kd->k", fitted.mean_, weights)
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    assert np.ptp(logits) > 0.1


def test_every_linear_probe_is_read_without_its_estimator() -> None:
    assert {one.kind for one in LinearProbe.__subclasses__()} == set(LINEAR_KINDS)


@pytest.mark.parametrize(("name", "probe"), OTHERS.items())
def test_other_probes_are_left_to_their_estimators(name: str, probe: Any, tmp_path: Path) -> None:
    run, fitted = run_of(tmp_path, name, probe)
    model = load_model(run)
    assert type(model) is type(fitted)
    np.testing.assert_array_equal(model.logits(X), fitted.logits(X))


@pytest.mark.parametrize("n_rows", [0, 1, 7])
def test_any_number_of_rows_is_taken(n_rows: int, tmp_path: Path) -> None:
    run, fitted = run_of(tmp_path, "ridge", RidgeProbe())
    found = load_model(run).logits(X[:n_rows].tolist() or X[:0])
    assert found.shape == (n_rows, 4)
    np.testing.assert_allclose(found, fitted.logits(X)[:n_rows], atol=1e-9)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (X[:, 1:], r"features are \(100, 39\): expected \(n, 40\)"),
        (X[0], r"features are \(40,\): expected \(n, 40\)"),
        (X[None], r"features are \(1, 100, 40\): expected \(n, 40\)"),
        (np.where(np.arange(40) == 3, np.nan, X), "NaN or infinity"),
        (np.where(np.arange(40) == 3, -np.inf, X), "NaN or infinity"),
        ([["a"] * 40], "could not convert"),
    ],
)
def test_features_that_are_not_the_models_are_refused(
    features: Any, message: str, tmp_path: Path
) -> None:
    run, _ = run_of(tmp_path, "ridge", RidgeProbe())
    with pytest.raises(ValueError, match=message):
        load_model(run).logits(features)


def test_probe_of_other_classes_than_the_runs_is_refused(tmp_path: Path) -> None:
    for labels in (Y + 1, np.array(list("abcd"))[Y]):
        run, _ = run_of(tmp_path, "ridge", RidgeProbe(), labels)
        with pytest.raises(RunError, match="tells other classes apart than the 4"):
            load_model(run)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    run_of(tmp_path, "ridge", RidgeProbe())
    (tmp_path / "ridge.npz").rename(tmp_path / "logistic_regression.npz")
    facts = {"kind": COMPARISON_KIND}
    run = Run(tmp_path, facts, tuple("abcd"), "logistic_regression", None, None)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="holds no logistic regression: it is of the kind 'ridge'"):
        load_model(run)
    with pytest.raises(RunError, match="holds no nearest mean: it is of the kind 'ridge'"):
        read_linear_probe(tmp_path / "logistic_regression.npz", "nearest_mean")


def fitted_ridge(folder: Path) -> Path:
    run_of(folder, "ridge", RidgeProbe())
    return folder / "ridge.npz"


def repack(path: Path, compression: int, **members: bytes) -> None:
    """Write an archive anew, with some members replaced."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (content | {f"{name}.npy": one for name, one in members.items()}).items():
            archive.writestr(name, data)


def refusals(path: Path) -> list[str]:
    """Return what each reader of a linear probe's file says against it; none reads it."""
    found = []
    for read in (RidgeProbe.load, load_probe, lambda one: read_linear_probe(one, "ridge")):
        with pytest.raises(RunError) as caught:
            read(path)
        found.append(str(caught.value).replace(str(path), ""))
    return found


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_of_any_kind_is_a_short_run_error(compression: int, tmp_path: Path) -> None:
    path, random = fitted_ridge(tmp_path), np.random.default_rng(5)
    repack(path, compression)
    whole, found = path.read_bytes(), list[str]()
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            damaged[random.integers(len(damaged))] = random.integers(256)
        path.write_bytes(damaged)
        for read in (load_probe, lambda one: read_linear_probe(one, "ridge")):
            with warnings.catch_warnings(action="ignore"):  # NumPy's, of an odd header
                try:
                    read(path)
                except RunError as error:
                    found.append(str(error).replace(str(path), ""))
    assert len(found) > 300
    assert max(map(len, found)) < 250


def header(shape: str, descr: str = "<f8") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "members",
    [
        {"coef": header("(1000000000000, 6)")},
        {"coef": header("(" * 3000)},
        {"coef": header("(1,)", "x" * 9000)},
        {"coef": b"no array"},
        {"version": npy(np.inf)},
        {"kind": npy("ridge" * 10_000)},
        {"kind": npy(["ridge"])},
        {"kind": npy(7)},
    ],
)
def test_hostile_array_is_a_short_run_error(members: dict[str, bytes], tmp_path: Path) -> None:
    path = fitted_ridge(tmp_path)
    repack(path, zipfile.ZIP_STORED, **members)
    assert max(map(len, refusals(path))) < 250


def test_file_of_no_bytes_is_a_run_error(tmp_path: Path) -> None:
    path = tmp_path / "ridge.npz"
    path.touch()
    assert all("No data left in file" in one for one in refusals(path))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("scale", np.zeros(40), "scale is not all above 0"),
        ("scale", np.full(40, -1.0), "scale is not all above 0"),
        ("classes", np.array([0, 2, 1, 3]), "classes are not two or more"),
        ("classes", np.array([0, 1, 1, 3]), "classes are not two or more"),
        ("mean", np.zeros(40, np.longdouble), "mean is of float128: expected float64"),
    ],
)
def test_arrays_that_no_linear_probe_has_are_refused(
    name: str, array: np.ndarray, message: str, tmp_path: Path
) -> None:
    path = fitted_ridge(tmp_path)
    repack(path, zipfile.ZIP_STORED, **{name: npy(array)})
    assert all(message in one for one in refusals(path))


def test_linear_probe_of_one_class_is_refused(tmp_path: Path) -> None:
    path = fitted_ridge(tmp_path)
    one = {"classes": np.arange(1), "coef": np.ones((1, 40)), "intercept": np.ones(1)}
    repack(path, zipfile.ZIP_STORED, **{name: npy(array) for name, array in one.items()})
    assert all("classes are not two or more" in one for one in refusals(path))


def test_arrays_of_narrower_numbers_are_computed_with_in_float64(tmp_path: Path) -> None:
    path = fitted_ridge(tmp_path)
    rounded = RidgeProbe.load(path).coef_.astype(np.float16)
    repack(path, zipfile.ZIP_STORED, coef=npy(rounded), mean=npy(np.zeros(40, int)))
    probe = RidgeProbe.load(path)
    assert {getattr(probe, f"{name}_").dtype for name in ("coef", "mean")} == {np.dtype(float)}
    expected = X.astype(float) / probe.scale_ @ rounded.astype(float).T + probe.intercept_
    for model in (probe, read_linear_probe(path, "ridge")):
        np.testing.assert_allclose(model.logits(X), expected, atol=1e-9)
