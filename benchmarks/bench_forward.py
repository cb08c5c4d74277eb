"""The forward pass alone, on preprocessed images in memory: the engines against what others call.

Every side runs the same MobileNetV2 with the same weights on the same images: this project's LiteRT
and ONNX engines from as many threads as there are cores, Keras ``predict``, the same model as a
``tf.function``, and torchvision's model where torch is installed, given Keras's weights. Features
are compared before times are.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from harness import Report, alternate, arguments, ratio, threaded
from numpy.typing import NDArray

from extract.backbones import get_backbone
from extract.datasets import get_dataset
from extract.engines import KerasEngine, choose_engine
from extract.preprocess import Preprocessing, preprocess
from extract.weights import find_weights, set_weights

TOLERANCE = 1e-4
TORCH = "torchvision, inference mode"

Features = NDArray[np.float32]


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--images", type=int, default=512, help="images a round (default 512)")
    parser.add_argument("--batch", type=int, default=32, help="of all but the engine (default 32)")
    parser.add_argument("--engine-batch", type=int, default=8, help="the engines' (default 8)")
    parser.add_argument("--weights", default="imagenet")
    options = parser.parse_args()
    has_torch = importlib.util.find_spec("torchvision") is not None
    if has_torch:
        importlib.import_module("torchvision")  # it crashes where TensorFlow was imported first
    report = Report(f"forward pass at {options.image_size} pixels")
    print(report.title)
    backbone = get_backbone("mobilenet_v2")
    weights = find_weights(options.weights, backbone, options.image_size)
    images = get_dataset("fashion_mnist").load({"train": options.images, "test": 1})
    pixels = images.splits["train"][0][..., None]
    batch = preprocess(pixels, Preprocessing(backbone.scaling, options.image_size))
    model = backbone.build(options.image_size)
    set_weights(model, weights)
    engines = {
        name: choose_engine(name, backbone, weights, options.image_size)
        for name in ("litert", "onnx")
    }
    compiled = KerasEngine(backbone, weights, options.image_size)
    work: dict[str, Callable[[], Features]] = {
        **{
            name: partial(threaded, engine, batch, options.engine_batch)
            for name, engine in engines.items()
        },
        "Keras predict": lambda: model.predict(batch, batch_size=options.batch, verbose=0),
        "tf.function": lambda: in_turn(compiled, batch, options.batch),
    }
    if has_torch:
        rival = torch_model(model)
        work[TORCH] = lambda: in_turn(rival, batch, options.batch)
    else:
        print("  torchvision is not installed: left out")
    results: dict[str, Features] = {}
    sides = {name: keep(results, name, run) for name, run in work.items()}
    seconds = alternate(sides, options.rounds)
    scale = np.abs(results["Keras predict"]).max()
    for name, features in results.items():
        error = np.abs(features - results["Keras predict"]).max() / scale
        assert error < TOLERANCE, (name, error)
    print(f"  features agree within {TOLERANCE:g} of the largest")
    report.add_rates(seconds, dict.fromkeys(seconds, len(batch)))
    for engine_name in engines:
        for name in list(work)[len(engines) :]:
            report.add(f"{engine_name} / {name}", ratio(seconds[name], seconds[engine_name]), "x")
    report.write(options.json)


def keep(
    results: dict[str, Features], name: str, run: Callable[[], Features]
) -> Callable[[], None]:
    """Return a side that leaves its features behind."""

    def side() -> None:
        results[name] = run()

    return side


def in_turn(model: Callable[[Features], Features], batch: Features, size: int) -> Features:
    """Run a model that uses all cores in each call."""
    return np.concatenate([model(batch[at : at + size]) for at in range(0, len(batch), size)])


def torch_model(keras_model: Any) -> Callable[[Features], Features]:
    """Return torchvision's MobileNetV2 with the weights of Keras's, from images to features.

    Keras pads an even side for a stride of 2 by a pixel at its end, torchvision by one on each
    side: here it is done Keras's way, so that both compute the same.
    """
    import torch
    import torchvision

    network = torchvision.models.mobilenet_v2(weights=None).features
    ours = [one for one in keras_model.layers if one.weights]
    theirs = [
        one for one in network.modules() if isinstance(one, torch.nn.Conv2d | torch.nn.BatchNorm2d)
    ]
    for source, target in zip(ours, theirs, strict=True):
        copy_weights(source, target)
    for block in list(network.modules()):
        for name, child in list(block.named_children()):
            if isinstance(child, torch.nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                setattr(block, name, torch.nn.Sequential(torch.nn.ZeroPad2d((0, 1, 0, 1)), child))
    network.eval()

    def forward(batch: Features) -> Features:
        with torch.inference_mode():
            pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
            features: Features = network(pixels).mean((2, 3)).numpy()
        return features

    return forward


def copy_weights(source: Any, target: Any) -> None:
    """Give a torch convolution or batch normalization the weights of a Keras layer."""
    import torch

    arrays = [torch.from_numpy(np.ascontiguousarray(one)) for one in source.get_weights()]
    if isinstance(target, torch.nn.Conv2d):
        order = (2, 3, 0, 1) if target.groups > 1 else (3, 2, 0, 1)
        target.weight.data = arrays[0].permute(*order).contiguous()
        return
    target.weight.data, target.bias.data, target.running_mean, target.running_var = arrays
    target.eps = source.epsilon


if __name__ == "__main__":
    main()
