"""The lesson's whole job, start-up and imports included: two commands against one Keras script.

The script is what the lesson writes: the frozen base inside the model, ``fit`` for 5 epochs on
4,000 Fashion-MNIST images, ``evaluate`` on 3,000. ``cold`` extracts and trains; ``warm`` finds the
cache up to date. The converted backbone is there beforehand; its own time is reported apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import Report, alternate, arguments, ratio

from extract.backbones import get_backbone
from extract.weights import find_weights

LIMITS = ("--train-limit", "4000", "--test-limit", "3000")
MOST_APART = 0.03

LESSON = """
import sys
import numpy as np
import tensorflow as tf
from tensorflow import keras
from tensorflow.keras import layers
from tensorflow.keras.applications.mobilenet_v2 import preprocess_input
from extract.datasets import get_dataset

splits = get_dataset("fashion_mnist").load({"train": 4000, "test": 3000}).splits
def preprocess(images):
    x = np.repeat(images.astype("float32")[..., None], 3, axis=-1)
    return preprocess_input(tf.image.resize(x, (96, 96)).numpy())
(x_train, y_train), (x_test, y_test) = ((preprocess(x), y) for x, y in splits.values())
base = keras.applications.MobileNetV2(
    include_top=False, weights=sys.argv[1], input_shape=(96, 96, 3))
base.trainable = False
inputs = keras.Input((96, 96, 3))
pooled = layers.GlobalAveragePooling2D()(base(inputs, training=False))
model = keras.Model(inputs, layers.Dense(10)(layers.Dropout(0.2)(pooled)))
model.compile(keras.optimizers.Adam(1e-3),
              keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
model.fit(x_train, y_train, validation_split=0.2, epochs=5, batch_size=64, verbose=0)
print("accuracy", model.evaluate(x_test, y_test, verbose=0)[1])
"""


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    report = Report("the lesson's whole job")
    print(report.title)
    weights = find_weights("imagenet", get_backbone("mobilenet_v2"), 96).path
    accuracies: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache, run = folder / "fashion.h5", folder / "run"

        def two_commands() -> None:
            extract = ["fashion_mnist", "--output", str(cache), "--image-size", "96", *LIMITS]
            command("extract-features", *extract)
            command("train-head", str(cache), "--output", str(run), "--overwrite")
            metrics = json.loads((run / "metrics.json").read_text())
            accuracies["headstart"] = metrics["test_accuracy"]

        def cold() -> None:
            cache.unlink(missing_ok=True)
            two_commands()

        def lesson() -> None:
            printed = execute([sys.executable, "-c", LESSON, str(weights)])
            accuracies["lesson"] = float(printed.split("accuracy")[-1])

        converting = time.perf_counter()
        cold()
        report.add("first run of all, conversion included", time.perf_counter() - converting, "s")
        sides = {"lesson": lesson, "cold": cold, "warm": two_commands}
        seconds = alternate(sides, options.rounds)
    assert abs(accuracies["headstart"] - accuracies["lesson"]) < MOST_APART, accuracies
    for name, accuracy in accuracies.items():
        report.add(f"test accuracy, {name}", accuracy)
    for name, taken in seconds.items():
        report.add(f"{name}, whole job", median(taken), "s")
    report.add("lesson / cold", ratio(seconds["lesson"], seconds["cold"]), "x")
    report.add("lesson / warm", ratio(seconds["lesson"], seconds["warm"]), "x")
    report.write(options.json)


def command(name: str, *words: str) -> None:
    """Run one of the project's commands."""
    execute([str(Path(sys.executable).with_name(name)), *words])


def execute(words: list[str]) -> str:
    """Run a program; return what it prints. Python keeps what it compiles, as it does for users."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(words, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


if __name__ == "__main__":
    main()
