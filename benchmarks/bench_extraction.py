"""Extraction from arrays to a finished cache, against Keras's ``predict`` and the bare engine.

``predict`` gets its best case: images already preprocessed, in memory, nothing to decode, nothing
to write. Start-up is left out on every side. The bare engine runs on preprocessed images too, from
as many threads as there are cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from harness import Report, alternate, arguments, ratio, threaded

from data_cache.cache import FeatureCache
from extract.backbones import get_backbone
from extract.datasets import get_dataset
from extract.engines import choose_engine
from extract.extraction import ExtractionOptions, extract_features
from extract.preprocess import Preprocessing, preprocess
from extract.sources import ArraySource
from extract.weights import find_weights, set_weights

TOLERANCE = 1e-4


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--images", type=int, default=2000, help="images a round (default 2000)")
    parser.add_argument("--predict-images", type=int, default=512, help="for predict (default 512)")
    parser.add_argument("--bare-batch", type=int, default=8, help="the bare engine's batch")
    parser.add_argument("--weights", default="imagenet")
    options = parser.parse_args()
    report = Report(f"extraction from arrays at {options.image_size} pixels")
    print(report.title)

    backbone = get_backbone("mobilenet_v2")
    weights = find_weights(options.weights, backbone, options.image_size)
    loaded = get_dataset("fashion_mnist").load({"train": options.images, "test": 1})
    images, labels = loaded.splits["train"]
    source = ArraySource("fashion_mnist", {"train": (images, labels)}, loaded.classes)
    preprocessing = Preprocessing(backbone.scaling, options.image_size)
    scaled = preprocess(images[..., None], preprocessing)

    engine = choose_engine("auto", backbone, weights, options.image_size)
    model = backbone.build(options.image_size)
    set_weights(model, weights)
    few = scaled[: options.predict_images]
    results: dict[str, np.ndarray] = {}

    def whole_job() -> float:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "cache.h5"
            done = extract_features(
                source,
                path,
                ExtractionOptions(weights=options.weights, image_size=options.image_size),
            )
            with FeatureCache.open(path) as cache:
                results["headstart"] = cache.features("train")
        return done.seconds

    def keras_predict() -> None:
        results["predict"] = model.predict(few, batch_size=32, verbose=0)

    def bare_engine() -> None:
        results["bare"] = threaded(engine, scaled, options.bare_batch)

    sides = {"headstart": whole_job, "bare": bare_engine, "predict": keras_predict}
    seconds = alternate(sides, options.rounds)
    scale = np.abs(results["predict"]).max()
    for name in ("headstart", "bare"):
        error = np.abs(results[name][: len(few)] - results["predict"]).max() / scale
        assert error < TOLERANCE, (name, error)
    print(f"  features agree within {TOLERANCE:g} of the largest")
    counts = {"headstart": len(images), "bare": len(images), "predict": len(few)}
    report.add_rates(seconds, counts)
    per_image = {name: [s / counts[name] for s in taken] for name, taken in seconds.items()}
    report.add(
        "headstart / Keras predict", ratio(per_image["predict"], per_image["headstart"]), "x"
    )
    report.add("headstart / bare engine", ratio(per_image["bare"], per_image["headstart"]), "x")
    report.write(options.json)


if __name__ == "__main__":
    main()
