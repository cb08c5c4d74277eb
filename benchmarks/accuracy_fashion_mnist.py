"""The accuracy that probes reach on a cache of Fashion-MNIST, or of anything else.

Every probe is tuned on validation rows, one of them is named the best by its accuracy there (of
equals by its log loss), and each is refitted to training and validation rows. Then the test labels
of a cache are opened, once, and each is scored, with its 95% Wilson interval. Make a cache with::

    extract-features fashion_mnist --image-size 96 --output fashion.h5
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sklearn.base import clone

from classify.estimators import LogitsClassifier
from classify.probes import PROBES, TunedProbe, Tuning
from classify.selection.division import Division, divide
from classify.selection.sealed_test import SealedTest
from classify.statistics.intervals import wilson_interval
from classify.statistics.scoring import score
from data_cache.cache import FeatureCache


@dataclass(frozen=True)
class Fitted:
    """A tuned probe, and the same refitted to training and validation rows."""

    tuned: TunedProbe
    refitted: LogitsClassifier
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("caches", type=Path, nargs="+", help="feature caches of the same images")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=list(PROBES))
    parser.add_argument("--validation", type=float, default=0.2, help="share (default 0.2)")
    parser.add_argument("--select-by", choices=("log_loss", "accuracy"), default="log_loss")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rows = []
    for path in options.caches:
        with FeatureCache.open(path) as cache:
            division = divide(cache, fraction=options.validation, seed=0, test_split="test")
            tuning = Tuning(select_by=options.select_by)
            fitted = {name: fit(name, division, tuning) for name in options.probes}
            rows += score_on_test(SealedTest(cache, "test"), path, fitted)
    report(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def fit(name: str, division: Division, tuning: Tuning) -> Fitted:
    """Tune a probe on validation rows and refit it to those too."""
    start = time.perf_counter()
    training, validation = division.training, division.validation
    tuned = PROBES[name](
        (training.features, training.labels), (validation.features, validation.labels), tuning
    )
    both = training.join(validation)
    refitted = clone(tuned.probe).fit(both.features, both.labels)
    seconds = time.perf_counter() - start
    point = tuned.point
    print(
        f"{name}: validation accuracy {point.accuracy:.4f}, log loss {point.log_loss:.4f}, "
        f"{dict(point.hyperparameters)}, best of {len(tuned.points)} in {seconds:.0f} s",
        flush=True,
    )
    return Fitted(tuned, refitted, seconds)


def score_on_test(test: SealedTest, cache: Path, fitted: Mapping[str, Fitted]) -> list[dict]:
    """Open the test labels and score every probe, after every choice was made."""
    features = test.features()
    labels = test.open(tuple(fitted), cache).labels
    rows = []
    for name, one in fitted.items():
        right = int((score(one.refitted, features, labels).predictions == labels).sum())
        rows.append(
            {
                "cache": cache.name,
                "probe": name,
                "hyperparameters": dict(one.tuned.hyperparameters),
                "n_tried": len(one.tuned.points),
                "validation_accuracy": one.tuned.point.accuracy,
                "validation_log_loss": one.tuned.point.log_loss,
                "test_accuracy": right / len(labels),
                "test_accuracy_ci95": wilson_interval(right, len(labels)),
                "seconds": round(one.seconds, 1),
            }
        )
    return rows


def report(rows: list[dict]) -> None:
    """Print the table, the best on validation marked."""
    merits = [(row["validation_accuracy"], -row["validation_log_loss"]) for row in rows]
    best = merits.index(max(merits))
    print(f"{'cache':<18} {'probe':<20} {'validation':>10} {'test':>8}   95% interval")
    for position, row in enumerate(rows):
        low, high = row["test_accuracy_ci95"]
        mark = "  <- chosen on validation" if position == best else ""
        print(
            f"{row['cache']:<18} {row['probe']:<20} {row['validation_accuracy']:>10.4f} "
            f"{row['test_accuracy']:>8.4f}   {low:.4f} to {high:.4f}{mark}"
        )


if __name__ == "__main__":
    main()
