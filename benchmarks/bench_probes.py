"""Logistic regression penalized on raw features: ours against scikit-learn's lbfgs on them.

Both minimize the same objective, C times the summed cross-entropy plus half the squared weights.
The objective that each reaches is compared before anything is reported: ours may be no more than
1e-5 of it above lbfgs's. The path over C and every penalty of the ridge classifier are timed too.
Seconds are of the processor, all threads together: what others do on the machine counts for less.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import numpy as np
from harness import Report, Side, alternate, arguments, ratio
from sklearn.linear_model import LogisticRegression

from classify.probes import PROBES, LogisticRegressionProbe, Tuning, logistic_path
from classify.statistics import metrics
from data_cache.cache import FeatureCache

TOLERANCE = 1e-5


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="a feature cache; drawn features by default")
    parser.add_argument("--C", type=float, default=1.0, help="inverse penalty (default 1)")
    parser.add_argument("--tol", type=float, default=1e-6, help="lbfgs's tolerance (default 1e-6)")
    options = parser.parse_args()
    X, y = read(options.cache) if options.cache else draw()
    report = Report(f"probes on {X.shape[0]} x {X.shape[1]} features, {len(np.unique(y))} classes")
    print(report.title)
    objectives: dict[str, float] = {}
    seconds = alternate(
        {
            "headstart, raw penalty": ours(X, y, options.C, objectives),
            "lbfgs, raw features": lbfgs(X, y, options.C, options.tol, objectives),
        },
        options.rounds,
    )
    mine, theirs = objectives["headstart"], objectives["lbfgs"]
    assert mine <= theirs * (1 + TOLERANCE), objectives
    for name, taken in seconds.items():
        report.add(name, median(taken), "s")
    times = ratio(seconds["lbfgs, raw features"], seconds["headstart, raw penalty"])
    report.add("lbfgs / headstart", times, "x")
    report.add("objective above lbfgs's", 1e6 * (mine / theirs - 1), "millionths")
    time_tuning(X, y, report)
    report.write(options.json)


def ours(X: np.ndarray, y: np.ndarray, C: float, objectives: dict[str, float]) -> Side:
    """Return our side, which leaves its objective behind."""

    def fit() -> float:
        start = time.process_time()
        probe = LogisticRegressionProbe(C, penalize="raw").fit(X, y)
        taken = time.process_time() - start
        coef = probe.coef_ / probe.scale_
        objectives["headstart"] = objective(probe.logits(X), coef, y, C)
        return taken

    return fit


def lbfgs(X: np.ndarray, y: np.ndarray, C: float, tol: float, objectives: dict[str, float]) -> Side:
    """Return scikit-learn's side, which leaves its objective behind."""
    wide = X.astype(np.float64)

    def fit() -> float:
        start = time.process_time()
        model = LogisticRegression(C=C, tol=tol, max_iter=100_000).fit(wide, y)
        taken = time.process_time() - start
        objectives["lbfgs"] = objective(model.decision_function(wide), model.coef_, y, C)
        return taken

    return fit


def objective(logits: np.ndarray, coef: np.ndarray, y: np.ndarray, C: float) -> float:
    """Return C times the summed cross-entropy plus half the squared weights."""
    return C * len(y) * metrics.log_loss(y, logits) + float((coef**2).sum()) / 2


def time_tuning(X: np.ndarray, y: np.ndarray, report: Report) -> None:
    """Time, once, the probes that are tuned over many values at the price of about one."""
    n = len(y) * 4 // 5
    training, validation = (X[:n], y[:n]), (X[n:], y[n:])
    start = time.process_time()
    path = logistic_path(training, validation)
    report.add(f"logistic path, {len(path.points)} values of C", time.process_time() - start, "s")
    for name in ("ridge", "discriminant", "neighbors"):
        start = time.process_time()
        tuned = PROBES[name](training, validation, Tuning())
        report.add(f"{name}, {len(tuned.points)} choices", time.process_time() - start, "s")


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a cache's training rows."""
    with FeatureCache.open(path) as cache:
        return cache.features("train"), cache.rows("train").labels


def draw() -> tuple[np.ndarray, np.ndarray]:
    """Return 4,000 rows such as MobileNetV2's: 1,280 correlated features in [0, 6], 10 classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 4000)
    hidden = rng.normal(size=(4000, 200)) + 1.2 * rng.normal(size=(10, 200))[y] / np.sqrt(10)
    spectrum = np.linspace(1, 0.05, 200)[:, None]
    X = hidden @ (spectrum * rng.normal(size=(200, 1280))) / 8 + rng.normal(size=(4000, 1280)) / 8
    return X.clip(0, 6).astype(np.float32), y


if __name__ == "__main__":
    main()
