"""A small fine-tuning for tests: a tiny backbone, and stripes that it can learn to tell apart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_backbone import TINY

from classify.fine_tune.options import FineTuneOptions
from classify.fine_tune.pixels import PixelInputs
from classify.fine_tune.tuning import fine_tune
from classify.train_head.job import TrainingOptions, train_head
from extract.backbones import BACKBONES
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import Source, SourceOptions, open_source

SIDE = 16
OPTIONS = FineTuneOptions(unfreeze_layers=9, learning_rate=1e-2, epochs=5, batch_size=16)
"""What beats the probe on the stripes."""

STRIPES, NOISE = 40, 40


def stripes(n: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return n noisy images of lying, standing and slanted stripes, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    rows, columns = np.mgrid[:SIDE, :SIDE]
    directions = np.stack([rows, columns, (rows + columns) / np.sqrt(2)])
    frequency, phase = rng.uniform(0.25, 0.45, n), rng.uniform(0, 7, n)
    waves = np.sin(2 * np.pi * frequency[:, None, None] * directions[labels] + phase[:, None, None])
    pixels = 128 + STRIPES * waves[..., None] + rng.normal(0, NOISE, (n, SIDE, SIDE, 3))
    return pixels.clip(0, 255).astype(np.uint8), labels


@dataclass(frozen=True)
class Bench:
    """Images, their cache and the run of a head on it, in one folder."""

    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "stripes.npz"

    @property
    def cache(self) -> Path:
        return self.folder / "stripes.h5"

    @property
    def head(self) -> Path:
        return self.folder / "head"

    def source(self) -> Source:
        return open_source(str(self.images), SourceOptions())


def make_bench(folder: Path) -> Bench:
    """Make images, extract their features and train a head; TINY must be in the registry."""
    bench = Bench(folder)
    x_train, y_train = stripes(300, seed=0)
    x_test, y_test = stripes(90, seed=1)
    np.savez(bench.images, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    options = ExtractionOptions("tiny", "random", image_size=SIDE, engine="keras")
    extract_features(bench.source(), bench.cache, options)
    train_head(bench.cache, bench.head, TrainingOptions(epochs=20, learning_rate=1e-2))
    return bench


def kill_fine_tuning(source: Path, head: Path, output: Path, options: FineTuneOptions) -> None:
    """Fine-tune in a process of its own, which is killed in the middle of its second last epoch."""
    choices = {name: value for name, value in options.training.items() if name in CHOICES}
    words = [str(one) for one in (source, head, output)]
    done = subprocess.run(
        [sys.executable, __file__, *words, json.dumps(choices)],
        capture_output=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


CHOICES = ("unfreeze_layers", "learning_rate", "epochs", "batch_size", "seed")


def kill_in_epoch(patch: pytest.MonkeyPatch, epoch: int) -> None:
    """Have this process killed at the seventh batch that an epoch, from 0, asks for."""
    taken = 0
    batch = PixelInputs.batch

    def counted(inputs: PixelInputs, rows: NDArray[np.int64], number: int) -> object:
        nonlocal taken
        taken += number == epoch
        if taken == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return batch(inputs, rows, number)

    patch.setattr(PixelInputs, "batch", counted)


def main() -> None:
    """Fine-tune as the words of the command line say, and be killed."""
    source, head, output = sys.argv[1:4]
    options = FineTuneOptions(**json.loads(sys.argv[4]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        kill_in_epoch(patch, options.epochs - 2)
        fine_tune(open_source(source, SourceOptions()), Path(head), Path(output), options)


if __name__ == "__main__":
    main()
