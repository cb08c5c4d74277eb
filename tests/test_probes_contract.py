"""What all probes promise: scikit-learn's contract, files that are safe to read, tuning by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_data import activations
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from classify.heads.spec import HeadSpec
from classify.probes import (
    PROBES,
    KernelRidgeProbe,
    LogisticRegressionProbe,
    NearestMeanProbe,
    NeighborsProbe,
    RidgeProbe,
    Tuning,
    dense,
    load_probe,
)
from classify.statistics import metrics
from data_cache.errors import DataError, RunError

FITTED = [
    LogisticRegressionProbe(penalize="raw"),
    RidgeProbe(temperature=0.5),
    NearestMeanProbe(0.5, temperature=2.0),
    NeighborsProbe(3, vote_temperature=0.2, temperature=0.7),
    KernelRidgeProbe(temperature=0.5, n_landmarks=50),
]
CLOSED_FORM = [name for name in PROBES if not name.startswith("dense")]


def expected_failures(estimator: Any) -> dict[str, str]:
    """Name the check that asks for equality beyond float32, which some work in for speed."""
    if isinstance(estimator, NeighborsProbe | KernelRidgeProbe):
        return {"check_methods_subset_invariance": "float32 products depend on the block's size"}
    return {}


@parametrize_with_checks(
    [
        LogisticRegressionProbe(C=1.0, penalize="raw"),
        RidgeProbe(),
        NearestMeanProbe(0.5),
        NeighborsProbe(),
        KernelRidgeProbe(),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learns_checks_of_an_estimator_pass(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("names", [False, True], ids=["numbers", "names"])
@pytest.mark.parametrize("probe", FITTED, ids=lambda one: one.kind)
def test_a_saved_probe_predicts_the_same(probe: Any, names: bool, tmp_path: Path) -> None:
    X, y = activations(100)
    labels = np.array(["bag", "boot", "coat", "hat"])[y] if names else y
    fitted = clone(probe).fit(X, labels)
    fitted.save(tmp_path / "probe.npz")
    loaded = load_probe(tmp_path / "probe.npz")
    assert type(loaded) is type(fitted)
    np.testing.assert_array_equal(loaded.logits(X), fitted.logits(X))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))


def spoil(path: Path, **changes: Any) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays}
    with path.open("wb") as stream:
        np.savez(stream, **{k: v for k, v in {**kept, **changes}.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": np.array(99)}, "format version 99 where 1 is expected"),
        ({"kind": np.array("other")}, "of the kind 'other'"),
        ({"kind": None}, "kind"),
        ({"classes": None}, "classes"),
        ({"classes": np.array([{}, {}], object)}, "allow_pickle=False"),
        ({"classes": np.arange(0)}, r"classes has the shape \(0,\)"),
        ({"classes": np.arange(24).reshape(6, 4)}, r"classes has the shape \(6, 4\)"),
    ],
)
@pytest.mark.parametrize("probe", FITTED, ids=lambda one: one.kind)
def test_a_file_that_is_not_whole_is_refused(
    probe: Any, changes: dict, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "probe.npz"
    clone(probe).fit(*activations(100)).save(path)
    spoil(path, **changes)
    with pytest.raises(RunError, match=message):
        type(probe).load(path)


@pytest.mark.parametrize(
    ("probe", "changes", "message"),
    [
        (RidgeProbe(), {"coef": np.full((4, 40), np.nan)}, "coef is not all finite"),
        (RidgeProbe(), {"coef": np.ones((4, 39))}, r"mean has the shape \(40,\)"),
        (RidgeProbe(), {"scale": np.full(40, "1")}, "scale is not all finite numbers"),
        (NeighborsProbe(), {"codes": np.full(100, 4)}, "codes are not positions"),
        (NeighborsProbe(), {"codes": np.zeros(99, int)}, "codes has the shape"),
        (NeighborsProbe(), {"settings": np.zeros(3)}, "settings are"),
        (KernelRidgeProbe(), {"exponent": np.ones(2)}, "exponent has the shape"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    probe: Any, changes: dict, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "probe.npz"
    clone(probe).fit(*activations(100)).save(path)
    spoil(path, **changes)
    with pytest.raises(RunError, match=message):
        load_probe(path)


def test_a_file_that_is_no_probe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no probe")
    for name in ("text.npz", "missing.npz"):
        with pytest.raises(RunError, match="holds no probe"):
            load_probe(tmp_path / name)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    NearestMeanProbe().fit(*activations(100)).save(tmp_path / "mean.npz")
    with pytest.raises(RunError, match="holds no ridge: it is of the kind 'nearest_mean'"):
        RidgeProbe.load(tmp_path / "mean.npz")
    np.savez(tmp_path / "new.npz", kind=np.array("mystery"))
    with pytest.raises(RunError, match="holds a probe 'mystery': expected one of logistic"):
        load_probe(tmp_path / "new.npz")


@pytest.mark.parametrize("select_by", ["log_loss", "accuracy"])
@pytest.mark.parametrize("name", CLOSED_FORM)
def test_tuning_keeps_the_best_of_what_it_tried(name: str, select_by: Any) -> None:
    training, (X, y) = activations(160), activations(80, seed=1)
    tuned = PROBES[name](training, (X, y), Tuning(select_by=select_by))
    if select_by == "log_loss" or name == "logistic_regression":
        assert tuned.point.log_loss == min(one.log_loss for one in tuned.points)
    else:
        assert tuned.point.accuracy == max(one.accuracy for one in tuned.points)
    assert tuned.point.accuracy == (tuned.probe.predict(X) == y).mean()
    assert tuned.hyperparameters.items() <= tuned.probe.get_params().items()
    reached = metrics.log_loss(y, tuned.probe.logits(X))
    assert reached == pytest.approx(tuned.point.log_loss, abs=5e-3)


@pytest.mark.parametrize("name", CLOSED_FORM[1:])
def test_every_point_is_what_the_probe_reaches_alone(name: str) -> None:
    training, (X, y) = activations(160), activations(80, seed=1)
    tuned = PROBES[name](training, (X, y), Tuning())
    for point in tuned.points[:: max(1, len(tuned.points) // 3)]:
        alone = clone(tuned.probe).set_params(**point.hyperparameters).fit(*training)
        assert point.accuracy == pytest.approx((alone.predict(X) == y).mean())


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_a_tuned_probe_saw_training_rows_alone(name: str) -> None:
    training, validation = activations(160), activations(80, seed=1)
    tuned = PROBES[name](training, validation, Tuning())
    again = clone(tuned.probe).fit(*training)
    tolerance = 0.1 if name == "logistic_regression" else 1e-6
    np.testing.assert_allclose(
        tuned.probe.logits(training[0]), again.logits(training[0]), atol=tolerance
    )


@pytest.mark.parametrize("name", CLOSED_FORM)
def test_validation_rows_of_a_class_never_trained_count_as_wrong(name: str) -> None:
    X, y = activations(80, seed=1)
    strange = np.where(np.arange(80) < 40, 9, y)
    tuned = PROBES[name](activations(160), (X, strange), Tuning())
    assert all(np.isfinite(one.log_loss) and one.accuracy <= 0.5 for one in tuned.points)


@pytest.mark.parametrize("name", PROBES)
def test_tuning_refuses_one_class(name: str) -> None:
    X, y = activations(80)
    with pytest.raises(DataError, match="one class"):
        PROBES[name]((X, np.ones(80, int)), (X, y), Tuning())


def test_the_dense_head_is_tuned_as_the_probes_are() -> None:
    training, (X, y) = activations(160), activations(80, seed=1)
    spec = HeadSpec(standardize=True, epochs=6, batch_size=32, hidden_units=16)
    specs = [replace(spec, learning_rate=rate) for rate in (1e-5, 1e-2)]
    labels = training[1] * 2 + 1
    tuned = dense.tune_dense((training[0], labels), (X, y * 2 + 1), Tuning(seed=3), specs=specs)
    assert tuned.hyperparameters["learning_rate"] == 1e-2
    assert len(tuned.points) == 2
    assert tuned.point.accuracy == pytest.approx((tuned.probe.predict(X) == y * 2 + 1).mean())
    assert tuned.probe.get_params()["seed"] == 3
