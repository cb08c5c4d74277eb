"""The ways of storing features: their size, their speed, and what they do to accuracy.

A real cache is copied into each; every copy is read, in turn, and a logistic regression is fitted
to its features, standardized, and scored on the test split.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path
from statistics import median

import numpy as np
from harness import Report, alternate, arguments
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data_cache.cache import FeatureCache
from data_cache.layout import Storage, parts_folder
from data_cache.update import CacheUpdate, UpdateOptions

STORAGES = {
    "float32": Storage(),
    "float32, gzip 1": Storage(compression=1),
    "float32, gzip 4": Storage(compression=4),
    "float16": Storage("float16"),
    "float16, gzip 1": Storage("float16", compression=1),
    "float32, sharded": Storage(sharded=True),
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path, help="a cache with train and test")
    options = parser.parse_args()
    report = Report("ways of storing features")
    print(report.title)
    with tempfile.TemporaryDirectory() as name:
        os.environ["HEADSTART_MEMORY"] = name
        paths = {
            kind: copy(options.cache, Path(name) / f"{number}.h5", storage)
            for number, (kind, storage) in enumerate(STORAGES.items())
        }
        sides = {kind: lambda path=path: read(path) for kind, path in paths.items()}
        seconds = alternate(sides, options.rounds)
        with FeatureCache.open(options.cache) as cache:
            n_rows = sum(map(cache.n_rows, cache.split_names))
            n_values = n_rows * cache.n_features
        for kind, path in paths.items():
            report.add(f"{kind}, bytes a feature", size(path) / n_values)
            report.add(f"{kind}, read", n_rows / median(seconds[kind]), "rows/s")
            report.add(f"{kind}, test accuracy", accuracy(path))
    report.write(options.json)


def copy(source: Path, target: Path, storage: Storage) -> Path:
    """Write the rows of a cache anew, stored otherwise."""
    options = UpdateOptions(**asdict(storage))
    with FeatureCache.open(source) as cache:
        update = CacheUpdate.begin(target, cache.recipe, cache.provenance, options=options)
        with update:
            update.lend(cache.stores())
            update.bind(cache.manifest())
    return target


def read(path: Path) -> None:
    """Read every feature of a cache."""
    with FeatureCache.open(path, check="never") as cache:
        for split in cache.split_names:
            for _ in cache.blocks(split):
                pass


def size(path: Path) -> int:
    """Return the bytes of a cache, its shards included."""
    return sum(one.stat().st_size for one in [path, *parts_folder(path).glob("*")])


def accuracy(path: Path) -> float:
    """Return the test accuracy of a logistic regression on a cache's features."""
    with FeatureCache.open(path) as cache, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
        model.fit(cache.features("train"), cache.rows("train").labels)
        predicted = model.predict(cache.features("test"))
        return float(np.mean(predicted == cache.rows("test").labels))


if __name__ == "__main__":
    main()
