"""An epoch of fine-tuning, from the cache against end to end: the same rows, network and seed.

3,200 Fashion-MNIST images train at 96 pixels and 800 validate, with the last 20 layers of
MobileNetV2 unfrozen. Each side trains for two epochs, and the second counts, so that no graph is
built in it; an epoch includes its measuring on validation rows. Where the rest goes is measured on
its own afterwards.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from harness import Report, arguments, ratio

from classify.fine_tune.assembly import unfreeze
from classify.fine_tune.cut import find_cut
from classify.fine_tune.from_cache import Material, material, open_activations
from classify.fine_tune.job import Job
from classify.fine_tune.network import LabeledRows, Network, batches, make_forward
from classify.fine_tune.options import FineTuneOptions
from classify.fine_tune.training import Listener, train
from classify.train_head.job import TrainingOptions, train_head
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import SourceOptions, open_source

N_TRAIN, IMAGE_SIZE = 4000, 96
END_TO_END, FROM_CACHE = "end to end", "from the cache"
MOST_APART = 0.01


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--images", type=int, default=N_TRAIN)
    options = parser.parse_args()
    report = Report("fine-tuning from the cache")
    print(report.title)
    with tempfile.TemporaryDirectory() as name:
        job = prepare(Path(name), options.weights, options.images)
        measure(job, options.rounds, report)
    report.write(options.json)


def prepare(folder: Path, weights: str, n_images: int) -> Job:
    """Extract features and train a head; the activations are extracted by the first that asks."""
    source = open_source("fashion_mnist", SourceOptions(train_limit=n_images, test_limit=10))
    extraction = ExtractionOptions(weights=weights, image_size=IMAGE_SIZE)
    extract_features(source, folder / "cache.h5", extraction)
    head = train_head(folder / "cache.h5", folder / "head", TrainingOptions(no_test=True))
    options = FineTuneOptions(epochs=2, weights=weights, from_cache=True)
    return Job.open(source, head.path, folder / "tuned", options)


@dataclass
class Race:
    """One network that both sides train from the same start, in turn."""

    network: Network
    start: list[Any] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)

    def run(self, name: str, trained_on: Material, job: Job) -> float:
        """Train two epochs from the start; return the seconds of the second."""
        for variable, value in zip(self.network.trained_variables, self.start, strict=True):
            variable.assign(value)
        ends = []

        def end(_epoch: int, _row: Mapping[str, float]) -> None:
            ends.append(time.perf_counter())
            self.weights.setdefault(name, flat(self.network))

        listener = Listener(on_epoch=end)
        rows = trained_on.training, trained_on.validation
        figures = count(0, -1)

        def prefer_the_last(_logits: np.ndarray) -> tuple[float, float]:
            return next(figures), 0

        train(trained_on.network, *rows, job.spec, choose=prefer_the_last, listener=listener)
        return ends[1] - ends[0]

    def distance(self, start: np.ndarray) -> float:
        """Return how far apart the sides are after an epoch, in units of how far they went."""
        went = np.linalg.norm(self.weights[END_TO_END] - start)
        return float(np.linalg.norm(self.weights[FROM_CACHE] - self.weights[END_TO_END]) / went)


def flat(network: Network) -> np.ndarray:
    return np.concatenate([one.numpy().ravel() for one in network.trained_variables])


def measure(job: Job, rounds: int, report: Report) -> None:
    network = job.network(job.head())
    unfreeze(network.trunk, job.options.unfreeze_layers)
    race = Race(network, [one.numpy() for one in network.trained_variables])
    start = flat(network)
    end_to_end = replace(job, options=replace(job.options, from_cache=False))
    with timed() as extracting, open_activations(job, find_cut(network.trunk)):
        pass
    seconds: dict[str, list[float]] = {END_TO_END: [], FROM_CACHE: []}
    with material(end_to_end, network) as on_images, material(job, network) as on_cache:
        for _ in range(rounds):
            seconds[END_TO_END].append(race.run(END_TO_END, on_images, job))
            seconds[FROM_CACHE].append(race.run(FROM_CACHE, on_cache, job))
        distance = race.distance(start)
        assert distance < MOST_APART, f"the sides are {distance:.1e} apart"
        report.add("distance after an epoch, of the way gone", distance)
        report.add("extracting the activations, once", extracting(), "s")
        for name, taken in seconds.items():
            report.add(f"an epoch {name}", median(taken), "s")
        report.add("ratio", ratio(seconds[END_TO_END], seconds[FROM_CACHE]), "x (goal 3)")
        say_where_the_rest_goes(on_cache, job, median(seconds[FROM_CACHE]), report)


def say_where_the_rest_goes(on_cache: Material, job: Job, epoch: float, report: Report) -> None:
    """Time the parts of an epoch from the cache; what is left is the way back and Adam."""
    size = job.options.batch_size
    forward = make_forward(on_cache.network, size)
    rows = on_cache.training
    parts = {
        "reading activations": lambda: read(rows, size),
        "the forward pass": lambda: forward(rows.inputs, len(rows)),
        "measuring on validation rows": lambda: forward(
            on_cache.validation.inputs, len(on_cache.validation)
        ),
    }
    left = epoch
    for name, work in parts.items():
        work()
        with timed() as taken:
            work()
        report.add(f"of it {name}", taken(), "s")
        left -= taken() if name != "reading activations" else 0
    report.add("of it the way back, and Adam", left, "s")


def read(rows: LabeledRows, size: int) -> None:
    for _ in batches(rows.inputs, np.arange(len(rows)), size, 0):
        pass


@contextmanager
def timed() -> Iterator[Callable[[], float]]:
    """Yield what returns the seconds that the body took."""
    start, taken = time.perf_counter(), [0.0]
    yield lambda: taken[0]
    taken[0] = time.perf_counter() - start


if __name__ == "__main__":
    main()
