"""The pipeline: order, bounded work in flight, concurrency, batch sizes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from extract.decode import DecodeOptions
from extract.pipeline import CANDIDATE_BATCH_SIZES, BatchSizes, Pipeline
from extract.preprocess import SCALINGS, Preprocessing
from extract.sources import ArraySource
from extract.sources.base import content_digest

N_IMAGES = 60
IMAGES = np.arange(N_IMAGES, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
SOURCE = ArraySource("x", {"train": (IMAGES, np.arange(N_IMAGES) % 2)}, ("even", "odd"))


class WatchedEngine:
    """Gives back each image's gray value; keeps the largest number of calls at one time."""

    name = "watched"
    n_features = 1

    def __init__(self, n_concurrent: int, seconds: float = 0.0) -> None:
        self.n_concurrent = n_concurrent
        self.seconds = seconds
        self.n_images = 0
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        with self._lock:
            self._now += 1
            self.n_images += len(batch)
            self.most_at_once = max(self.most_at_once, self._now)
        time.sleep(self.seconds)
        with self._lock:
            self._now -= 1
        return batch[:, 0, 0, :1]


def pipeline(engine: WatchedEngine, batch_size: int | None = 4, n_workers: int = 3) -> Pipeline:
    preprocessing = Preprocessing(SCALINGS["identity"], 8)
    return Pipeline(SOURCE, DecodeOptions(), preprocessing, engine, batch_size, n_workers)


def positions() -> list[tuple[str, int]]:
    return [("train", row) for row in range(N_IMAGES)]


@pytest.mark.parametrize("batch_size", [1, 7, 64, None])
def test_rows_come_out_in_the_order_of_the_images(batch_size: int | None) -> None:
    parts = list(pipeline(WatchedEngine(2), batch_size).run(iter(positions())))
    features = np.concatenate([part.features for part in parts])[:, 0]
    np.testing.assert_allclose(features, np.arange(N_IMAGES), atol=1e-4)
    content = np.concatenate([part.content for part in parts])
    np.testing.assert_array_equal(content, SOURCE.manifest.splits["train"].content)


@pytest.mark.parametrize("n_concurrent", [1, 2])
def test_engine_is_never_called_more_often_at_once_than_it_asks_for(n_concurrent: int) -> None:
    engine = WatchedEngine(n_concurrent, seconds=0.002)
    list(pipeline(engine).run(iter(positions())))
    assert engine.most_at_once == n_concurrent


def test_few_images_are_in_flight_when_the_consumer_is_slow() -> None:
    engine = WatchedEngine(3)
    running = pipeline(engine, n_workers=2).run(iter(positions()))
    next(running)
    time.sleep(0.2)
    assert engine.n_images <= 4 * (2 * 2 + 1)
    running.close()


def test_closing_early_starts_no_further_chunk() -> None:
    engine = WatchedEngine(1, seconds=0.05)
    running = pipeline(engine, n_workers=2).run(iter(positions()))
    next(running)
    running.close()
    stopped_at = engine.n_images
    time.sleep(0.2)
    assert engine.n_images == stopped_at < N_IMAGES


def settled_size(seconds: Callable[[int, int], float]) -> int:
    """Return the size in use once each took ``seconds(size, images before)`` an image."""
    sizes, n_images = BatchSizes(), Counter[int]()
    while not sizes.is_settled:
        size = sizes.next_size()
        sizes.report(size, size * seconds(size, n_images[size]))
        n_images[size] += size
    assert set(n_images.values()) == {96}, "every candidate has as many images"
    (settled,) = {sizes.next_size() for _ in range(5)}
    return settled


@pytest.mark.parametrize("cheapest", CANDIDATE_BATCH_SIZES)
def test_measured_batch_size_is_the_one_with_the_least_time_an_image(cheapest: int) -> None:
    assert settled_size(lambda size, _: 0.5 if size == cheapest else 1.0) == cheapest


def test_chunks_in_which_the_engine_was_starting_do_not_decide() -> None:
    first = CANDIDATE_BATCH_SIZES[0]
    assert settled_size(lambda size, n: 9.0 if size == first and n < 32 else 1.0) == first


@pytest.mark.parametrize(("gain", "is_taken"), [(0.05, False), (0.15, True)])
def test_gain_has_to_be_worth_smaller_chunks(gain: float, is_taken: bool) -> None:
    first, other = CANDIDATE_BATCH_SIZES[0], CANDIDATE_BATCH_SIZES[-2]
    settled = settled_size(lambda size, _: 1.0 - gain if size == other else 1.0)
    assert settled == (other if is_taken else first)


def test_batch_size_of_the_user_is_used_throughout() -> None:
    sizes = BatchSizes(5)
    sizes.report(5, 1.0)
    assert [sizes.next_size() for _ in range(20)] == [5] * 20


def test_profile_counts_every_stage() -> None:
    one = pipeline(WatchedEngine(2, seconds=0.001))
    list(one.run(iter(positions())))
    assert set(one.profile.seconds) == {"read", "hash", "decode", "resize", "forward"}
    assert all(seconds >= 0 for seconds in one.profile.seconds.values())


def test_images_of_many_shapes_and_a_refused_one_keep_their_places() -> None:
    rng = np.random.default_rng(0)
    shapes = [(8, 8), (8, 8), (40, 30), (8, 8), (5, 9), (5, 9)]
    images = [np.full(shape, rng.integers(256), np.uint8) for shape in shapes]
    too_bright = np.full((8, 8), 300.0, np.float32)
    mixed = [*images[:3], too_bright, *images[3:]]

    class Mixed(ArraySource):
        def fetch(self, split: str, row: int) -> NDArray:
            return mixed[row]

    source = Mixed("x", {"train": (IMAGES[: len(mixed)], np.arange(len(mixed)) % 2)}, ("a", "b"))
    for row, image in enumerate(mixed):
        source.manifest.splits["train"].content[row] = np.frombuffer(content_digest(image), "u1")
    one = Pipeline(
        source, DecodeOptions(), Preprocessing(SCALINGS["identity"], 8), WatchedEngine(1), 7
    )
    (part,) = one.run(("train", row) for row in range(len(mixed)))
    assert [image.id for image in part.bad_images] == ["train/000003"]
    np.testing.assert_allclose(part.features[:, 0], [image[0, 0] for image in images], atol=1e-3)
