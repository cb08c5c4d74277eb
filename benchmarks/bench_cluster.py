"""Two local worker processes of one thread each, against two threads of one process.

Both sides extract the same images into a new cache. Start-up is left out on both: of the process
and the engine on one side, of the cluster and its engines on the other, as a run of hours has it.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from harness import Report, Side, alternate, arguments, ratio

from data_cache.cache import FeatureCache
from data_cache.connecting import connected
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import SourceOptions, open_source

TOLERANCE = 1e-5
N_WORKERS = 2


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--source", default="fashion_mnist")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--images", type=int, default=4000, help="images a round (default 4000)")
    parser.add_argument("--weights", default="imagenet")
    options = parser.parse_args()
    report = Report(f"{N_WORKERS} worker processes at {options.image_size} pixels")
    print(report.title)
    source = open_source(options.source, SourceOptions(train_limit=options.images, test_limit=1))
    n_images = len(source.manifest)
    results: dict[str, np.ndarray] = {}

    def side(name: str, cluster: str | None) -> Side:
        def extract() -> float:
            chosen = ExtractionOptions(
                weights=options.weights, image_size=options.image_size, cluster=cluster
            )
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "cache.h5"
                seconds = extract_features(source, path, chosen).seconds
                with FeatureCache.open(path) as cache:
                    results[name] = cache.features("train")
            return seconds

        return extract

    with connected(f"local:{N_WORKERS}") as client:
        address = client.scheduler.address
        sides = {"one process": side("one process", None), "workers": side("workers", address)}
        started = time.perf_counter()
        seconds = alternate(sides, options.rounds)
        report.add("all rounds", time.perf_counter() - started, "s")
    scale = float(np.abs(results["one process"]).max())
    error = float(np.abs(results["workers"] - results["one process"]).max()) / scale
    assert error < TOLERANCE, error
    print(f"  features agree within {TOLERANCE:g} of the largest")
    report.add_rates(seconds, dict.fromkeys(seconds, n_images))
    report.add("workers / one process", ratio(seconds["one process"], seconds["workers"]), "x")
    report.write(options.json)


if __name__ == "__main__":
    main()
