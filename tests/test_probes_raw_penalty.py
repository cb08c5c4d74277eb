"""Logistic regression whose penalty is that of raw features, against scikit-learn's on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from probe_data import activations
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

from classify.probes import LogisticRegressionProbe, newton
from classify.probes.newton import SoftmaxProblem, minimize
from data_cache.errors import ParameterError


def raw_objective(
    shares: np.ndarray, coef: np.ndarray, y: np.ndarray, C: float, class_weight: str | None = None
) -> float:
    """scikit-learn's objective: of two classes ``coef`` has one row."""
    losses = -np.log(shares[np.arange(len(y)), y])
    weights = compute_sample_weight(class_weight, y)
    return float(C * (weights * losses).sum() + (coef**2).sum() / 2)


def raw_coef(probe: LogisticRegressionProbe) -> np.ndarray:
    """The probe's weights for features as they come, as scikit-learn keeps them."""
    coef = probe.coef_ / probe.scale_
    return coef if len(coef) > 2 else coef[1:] - coef[:1]


@pytest.mark.parametrize("class_weight", [None, "balanced"])
@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_it_reaches_the_loss_of_scikit_learn_on_raw_features(
    n_classes: int, C: float, class_weight: str | None
) -> None:
    X, y = activations(n_classes=n_classes, n_features=25)
    X, y = X[:-30], y[:-30]
    wide = X.astype(np.float64)
    reference = LogisticRegression(C=C, class_weight=class_weight, tol=1e-9, max_iter=100_000)
    reference.fit(wide, y)
    expected = raw_objective(reference.predict_proba(wide), reference.coef_, y, C, class_weight)
    probe = LogisticRegressionProbe(C, class_weight=class_weight, penalize="raw").fit(X, y)
    reached = raw_objective(probe.predict_proba(X), raw_coef(probe), y, C, class_weight)
    assert probe.converged_
    assert abs(reached / expected - 1) < 1e-5
    assert (probe.predict(X) == reference.predict(wide)).mean() > 0.995


def test_the_optimum_is_reached_in_float64_where_asked() -> None:
    X, y = activations()
    probe = LogisticRegressionProbe(1.0, penalize="raw", tol=1e-12).fit(X, y)
    problem = problem_of(X, y, C=1.0)
    weights = np.column_stack([probe.coef_, probe.intercept_]).T
    _, shares = problem.loss(weights)
    assert np.abs(problem.gradient(weights, shares)).max() < 1e-8


def test_penalties_of_raw_and_standardized_weights_have_different_optima() -> None:
    X, y = activations()
    raw, standardized = (
        LogisticRegressionProbe(0.01, penalize=one).fit(X, y) for one in ("raw", "standardized")
    )
    assert np.abs(raw.coef_ - standardized.coef_).max() > 0.01


def test_features_scaled_up_need_weights_scaled_down_where_hardly_penalized() -> None:
    X, y = activations()
    plain, scaled = (
        LogisticRegressionProbe(C, penalize="raw", tol=1e-10).fit(factor * X, y)
        for C, factor in ((1.0, 1.0), (0.01, 10.0))
    )
    np.testing.assert_allclose(plain.logits(X), scaled.logits(10 * X), atol=1e-4)


def test_a_start_leads_to_the_same_optimum_in_fewer_iterations() -> None:
    X, y = activations()
    cold = LogisticRegressionProbe(1.0, penalize="raw", tol=1e-10).fit(X, y)
    warm = LogisticRegressionProbe(1.0, penalize="raw", tol=1e-10).fit(X, y, start=cold)
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-5)
    assert warm.n_iter_ < cold.n_iter_


def test_too_few_iterations_are_told() -> None:
    probe = LogisticRegressionProbe(100.0, penalize="raw", max_iter=2).fit(*activations())
    assert not probe.converged_


@pytest.mark.parametrize("wrong", [{"C": 0.0}, {"tol": 0.0}, {"penalize": "weights"}])
def test_a_parameter_out_of_range_is_refused(wrong: dict) -> None:
    with pytest.raises(ParameterError, match="expected"):
        LogisticRegressionProbe(**{"penalize": "raw", **wrong}).fit(*activations())


def problem_of(X: np.ndarray, y: np.ndarray, C: float) -> SoftmaxProblem:
    scaler = StandardScaler().fit(X.astype(np.float64))
    n, k = len(y), len(np.unique(y))
    penalties = np.append(1 / (C * n) / scaler.scale_**2, 0)
    return SoftmaxProblem(X, y, np.full(n, 1 / n), scaler.mean_, scaler.scale_, penalties, k)


def test_the_gradient_is_that_of_the_loss() -> None:
    X, y = activations(60, n_features=5)
    problem = problem_of(X, y, C=0.5)
    rng = np.random.default_rng(0)
    weights, direction = rng.normal(size=(2, 6, 4))
    gradient = problem.gradient(weights, problem.loss(weights)[1])
    step = 1e-5
    ahead, behind = (problem.loss(weights + sign * step * direction)[0] for sign in (1, -1))
    assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum(), rel=1e-6)


@pytest.mark.parametrize("C", [1e-3, 100.0])
@pytest.mark.parametrize("is_split", [False, True], ids=["average", "each class's own"])
def test_every_preconditioner_leads_to_the_optimum(
    monkeypatch: pytest.MonkeyPatch, C: float, *, is_split: bool
) -> None:
    problem = problem_of(*activations(), C=C)
    expected = minimize(problem, tol=1e-14)
    monkeypatch.setattr(newton, "_MANY_PRODUCTS", 1 if is_split else 10**6)
    reached = minimize(problem, tol=1e-14)
    assert reached.converged
    np.testing.assert_allclose(reached.weights, expected.weights, atol=1e-6)


def test_rows_in_blocks_give_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(*activations(100), C=1.0)
    weights = np.random.default_rng(0).normal(size=(41, 4))
    loss, shares = problem.loss(weights)
    gradient = problem.gradient(weights, shares)
    monkeypatch.setattr(newton, "_ROWS_AT_ONCE", 7)
    in_blocks, shares = problem.loss(weights)
    assert in_blocks == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(problem.gradient(weights, shares), gradient, atol=1e-12)


def test_rows_of_twice_the_weight_count_as_two() -> None:
    X, y = activations(60)
    problem = problem_of(X, y, C=1.0)
    weights = np.where(np.arange(60) < 20, 2.0, 1.0)
    weighted = replace(problem, row_weights=weights / weights.sum())
    twice = problem_of(np.concatenate([X, X[:20]]), np.concatenate([y, y[:20]]), C=1.0)
    twice = replace(twice, mean=problem.mean, scale=problem.scale, penalties=problem.penalties)
    first, second = (minimize(one, tol=1e-12).weights for one in (weighted, twice))
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_what_all_classes_share_at_the_start_is_gone_at_the_end() -> None:
    problem = problem_of(*activations(100), C=1.0)
    shared = np.random.default_rng(0).normal(size=(41, 1))
    reached = minimize(problem, start=np.repeat(shared, 4, axis=1), tol=1e-12).weights
    np.testing.assert_allclose(reached, minimize(problem, tol=1e-12).weights, atol=1e-5)
