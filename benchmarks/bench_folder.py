"""Extraction from a folder of photos, against the bound that the cores set.

The bound is cores / (decode + resize + hash + forward), each in core-seconds an image: what the
machine would do if every core did nothing else. The four are measured in the same run as the
extraction, one after the other on one thread, in turn with it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from harness import Report, alternate, arguments

from data_cache.cache import FeatureCache
from data_cache.cores import n_cores
from extract.backbones import get_backbone
from extract.decode import decode
from extract.engines import choose_engine
from extract.extraction import ExtractionOptions, extract_features
from extract.preprocess import Preprocessing, preprocess
from extract.sources import open_source
from extract.sources.base import content_digest
from extract.weights import find_weights

TOLERANCE = 1e-5
PHOTOS = Path(__file__).parent.parent.parent / "shared" / "data" / "cats_dogs"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=PHOTOS, help="of photos")
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    report = Report(f"extraction from JPEG files at {options.image_size} pixels")
    print(report.title)

    source = open_source(str(options.folder))
    rows = [
        (split, row) for split, part in source.manifest.splits.items() for row in range(len(part))
    ]
    backbone = get_backbone("mobilenet_v2")
    weights = find_weights("imagenet", backbone, options.image_size)
    engine = choose_engine("auto", backbone, weights, options.image_size)
    preprocessing = Preprocessing(backbone.scaling, options.image_size)
    side = options.image_size
    batch = np.empty((len(rows), side, side, 3), np.float32)
    results: dict[str, np.ndarray] = {}

    def whole_job() -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.h5"
            done = extract_features(source, path, ExtractionOptions(image_size=side))
            with FeatureCache.open(path) as cache:
                results["headstart"] = np.concatenate(
                    [cache.features(split) for split in source.manifest.splits]
                )
        return done.seconds

    raw = [source.fetch(*position) for position in rows]
    pixels = [decode(data) for data in raw]

    def each(work: Callable[[int], object]) -> Callable[[], float]:
        def on_one_core() -> float:
            start = time.thread_time()
            for number in range(len(rows)):
                work(number)
            return time.thread_time() - start

        return on_one_core

    def forward() -> float:
        start = time.thread_time()
        parts = range(0, len(batch), options.batch)
        results["alone"] = np.concatenate([engine(batch[at : at + options.batch]) for at in parts])
        return time.thread_time() - start

    stages = {
        "decode": each(lambda n: decode(raw[n])),
        "resize": each(lambda n: preprocess(pixels[n][None], preprocessing, batch[n : n + 1])),
        "hash": each(lambda n: content_digest(raw[n])),
        "forward": forward,
    }
    seconds = alternate({"headstart": whole_job, **stages}, options.rounds)
    error = np.abs(results["headstart"] - results["alone"]).max() / np.abs(results["alone"]).max()
    assert error < TOLERANCE, error
    print(f"  features agree within {TOLERANCE:g} of the largest")
    for name in stages:
        report.add(f"{name}, core-milliseconds an image", 1000 * median(seconds[name]) / len(rows))
    bounds = [
        sum(turn) / n_cores() for turn in zip(*(seconds[name] for name in stages), strict=True)
    ]
    report.add("bound of the cores", len(rows) / median(bounds), "images/s")
    report.add("headstart", len(rows) / median(seconds["headstart"]), "images/s")
    shares = [bound / taken for bound, taken in zip(bounds, seconds["headstart"], strict=True)]
    report.add("headstart / bound", median(shares), "x")
    report.write(options.json)


if __name__ == "__main__":
    main()
