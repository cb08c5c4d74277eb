"""The library call behind ``extract-features``, with an engine that counts what it is given."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from counting_engine import CountingEngine
from numpy.typing import NDArray

from data_cache.bad_images import bad_images_file
from data_cache.cache import FeatureCache
from data_cache.console import import_keras
from data_cache.errors import (
    BadImageError,
    BadImagesError,
    ImageUnavailableError,
    RecipeMismatchError,
)
from data_cache.files import TEMPORARY_MARK
from data_cache.update import UpdateOptions
from extract import extractor
from extract.cli import extract_features as extract_command
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import ArraySource

SIDE = 32
OPTIONS = ExtractionOptions(weights="random", image_size=SIDE, batch_size=4)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (30, 20, 20), np.uint8)
LABELS = np.arange(30) % 3
CLASSES = ("ant", "bee", "cat")


class PartlyBadSource(ArraySource):
    """Some rows of ``train`` cannot be read."""

    bad_rows: frozenset[int] = frozenset({3, 7})

    def fetch(self, split: str, row: int) -> NDArray:
        if split == "train" and row in self.bad_rows:
            raise BadImageError("it is torn")
        return super().fetch(split, row)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> CountingEngine:
    counting = CountingEngine()
    monkeypatch.setattr(extractor, "choose_engine", lambda *_args, **_kwargs: counting)
    return counting


def source(n_train: int = 20, kind: type[ArraySource] = ArraySource) -> ArraySource:
    splits = {
        "train": (IMAGES[:n_train], LABELS[:n_train]),
        "test": (IMAGES[20:], LABELS[20:]),
    }
    return kind("made-up", splits, CLASSES)


def expected(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the mean of each resized image, scaled to [-1, 1] as MobileNetV2 wants it."""
    import_keras()
    import tensorflow as tf

    resized = tf.image.resize(images[..., None], (SIDE, SIDE), antialias=True).numpy()
    return np.repeat(resized.mean(axis=(1, 2)), 3, axis=1) / 127.5 - 1


def test_every_row_has_the_features_of_its_own_image(
    tmp_path: Path, engine: CountingEngine
) -> None:
    extract_features(source(), tmp_path / "c.h5", OPTIONS)
    with h5py.File(tmp_path / "c.h5") as file:
        np.testing.assert_allclose(file["train/features"][:], expected(IMAGES[:20]), atol=1e-5)
        np.testing.assert_allclose(file["test/features"][:], expected(IMAGES[20:]), atol=1e-5)
        np.testing.assert_array_equal(file["test/labels"][:], LABELS[20:])
        assert file["train/ids"][17] == b"train/000017"
        assert [name.decode() for name in file["classes"][:]] == list(CLASSES)


def test_second_identical_run_is_up_to_date_and_runs_no_forward_pass(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    extract_features(source(), path, OPTIONS)
    before = path.read_bytes()
    report = extract_features(source(), path, OPTIONS)
    assert (report.outcome, report.n_extracted, engine.n_images) == ("up to date", 0, 30)
    assert path.read_bytes() == before


def test_run_with_more_images_extracts_only_those(tmp_path: Path, engine: CountingEngine) -> None:
    extract_features(source(n_train=12), tmp_path / "c.h5", OPTIONS)
    report = extract_features(source(n_train=20), tmp_path / "c.h5", OPTIONS)
    assert (report.n_extracted, engine.n_images) == (8, 30)


def test_identical_images_are_extracted_once(tmp_path: Path, engine: CountingEngine) -> None:
    twins = ArraySource("twins", {"train": (IMAGES[[0, 1, 0, 1, 0]], LABELS[:5])}, CLASSES)
    extract_features(twins, tmp_path / "c.h5", OPTIONS)
    assert engine.n_images == 2
    with FeatureCache.open(tmp_path / "c.h5") as cache:
        np.testing.assert_allclose(
            cache.features("train"), expected(IMAGES[[0, 1, 0, 1, 0]]), atol=1e-5
        )


def test_other_recipe_is_refused_and_nothing_is_lost(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    extract_features(source(), path, OPTIONS)
    before = path.read_bytes()
    with pytest.raises(RecipeMismatchError, match=r"image size 48, was 32"):
        extract_features(source(), path, replace(OPTIONS, image_size=48))
    assert path.read_bytes() == before


def test_overwrite_replaces_a_cache_of_another_recipe(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    extract_features(source(), path, OPTIONS)
    extract_features(source(), path, replace(OPTIONS, image_size=48, overwrite=True))
    with FeatureCache.open(path) as cache:
        assert cache.recipe.image_size == 48


def test_bad_images_are_left_out_listed_and_reported_with_exit_code_3(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    report = extract_features(source(kind=PartlyBadSource), path, OPTIONS)
    assert report.exit_code == 3
    assert [image.id for image in report.bad_images] == ["train/000003", "train/000007"]
    with FeatureCache.open(path) as cache:
        assert cache.n_rows("train") == 18
        assert b"train/000003" not in cache.rows("train").ids
        kept = np.delete(np.arange(20), [3, 7])
        np.testing.assert_allclose(cache.features("train"), expected(IMAGES[kept]), atol=1e-5)
    with bad_images_file(path).open(newline="") as stream:
        assert list(csv.reader(stream))[1] == ["train", "train/000003", "it is torn"]


def test_skip_allows_bad_images_up_to_the_share_given(
    tmp_path: Path, engine: CountingEngine
) -> None:
    few = replace(OPTIONS, on_bad_image="skip", max_bad=0.1)
    assert extract_features(source(kind=PartlyBadSource), tmp_path / "a.h5", few).exit_code == 0
    with pytest.raises(BadImagesError, match="2 of 30 images are bad"):
        extract_features(
            source(kind=PartlyBadSource), tmp_path / "b.h5", replace(few, max_bad=0.05)
        )
    assert not (tmp_path / "b.h5").exists()


def test_fail_stops_at_the_first_bad_image_and_keeps_what_is_done(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    with pytest.raises(BadImagesError, match="train/000003: it is torn"):
        extract_features(source(kind=PartlyBadSource), path, replace(OPTIONS, on_bad_image="fail"))
    assert not path.exists()
    done = engine.n_images
    report = extract_features(source(), path, OPTIONS)
    assert 0 < report.n_extracted < 30
    assert engine.n_images < done + 30


def test_no_readable_image_at_all_writes_no_cache(tmp_path: Path, engine: CountingEngine) -> None:
    hopeless = PartlyBadSource("x", {"train": (IMAGES[:3], LABELS[:3])}, CLASSES)
    hopeless.bad_rows = frozenset(range(3))
    with pytest.raises(BadImagesError, match="not one of 3 images"):
        extract_features(hopeless, tmp_path / "c.h5", OPTIONS)
    assert not (tmp_path / "c.h5").exists()


def test_interrupted_run_is_resumed_where_it_stopped(
    tmp_path: Path, engine: CountingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.h5"
    options = replace(OPTIONS, update=UpdateOptions(shard_rows=4))
    healthy = CountingEngine.__call__

    def interrupted(self: CountingEngine, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.n_images >= 16:
            raise KeyboardInterrupt
        return healthy(self, batch)

    monkeypatch.setattr(CountingEngine, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract_features(source(), path, options)
    assert not path.exists()
    monkeypatch.setattr(CountingEngine, "__call__", healthy)
    report = extract_features(source(), path, options)
    assert report.n_extracted <= 30 - 8
    with FeatureCache.open(path) as cache:
        np.testing.assert_allclose(cache.features("train"), expected(IMAGES[:20]), atol=1e-5)
    assert not list(tmp_path.rglob(f"*{TEMPORARY_MARK}*"))


def test_image_that_changed_since_it_was_listed_is_left_out(
    tmp_path: Path, engine: CountingEngine
) -> None:
    images = IMAGES[:6].copy()
    changing = ArraySource("x", {"train": (images, LABELS[:6])}, CLASSES)
    images[2] += 1
    report = extract_features(changing, tmp_path / "c.h5", OPTIONS)
    assert [image.id for image in report.bad_images] == ["train/000002"]
    assert "changed" in report.bad_images[0].reason


def test_engine_that_ran_is_recorded_and_stays_when_only_labels_change(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    extract_features(source(), path, OPTIONS)
    relabeled = {"train": (IMAGES[:20], LABELS[:20][::-1]), "test": (IMAGES[20:], LABELS[20:])}
    extract_features(ArraySource("made-up", relabeled, CLASSES), path, OPTIONS)
    with FeatureCache.open(path) as cache:
        assert cache.provenance.engine == "counting"
        np.testing.assert_array_equal(cache.rows("train").labels, LABELS[:20][::-1])
    assert engine.n_images == 30


def test_copies_of_a_bad_image_are_left_out_with_it(tmp_path: Path, engine: CountingEngine) -> None:
    images = IMAGES[[0, 1, 2, 3, 4, 3]]
    path = tmp_path / "c.h5"
    partly = PartlyBadSource("x", {"train": (images, LABELS[:6])}, CLASSES)
    report = extract_features(partly, path, OPTIONS)
    assert [image.id for image in report.bad_images] == ["train/000003", "train/000005"]
    with FeatureCache.open(path) as cache:
        assert cache.n_rows("train") == 4


def test_image_that_could_not_be_decoded_is_not_tried_again_unless_asked(
    tmp_path: Path, engine: CountingEngine
) -> None:
    path = tmp_path / "c.h5"
    extract_features(source(kind=PartlyBadSource), path, OPTIONS)
    again = extract_features(source(), path, OPTIONS)
    assert (again.n_extracted, again.exit_code) == (0, 3)
    retried = extract_features(
        source(), path, replace(OPTIONS, update=UpdateOptions(retry_bad=True))
    )
    assert (retried.n_extracted, retried.exit_code) == (2, 0)


def test_image_that_could_not_be_read_is_tried_again_by_the_next_run(
    tmp_path: Path, engine: CountingEngine
) -> None:
    class Unplugged(PartlyBadSource):
        def fetch(self, split: str, row: int) -> NDArray:
            if split == "train" and row in self.bad_rows:
                raise ImageUnavailableError("the disk is gone")
            return ArraySource.fetch(self, split, row)

    path = tmp_path / "c.h5"
    assert extract_features(source(kind=Unplugged), path, OPTIONS).exit_code == 3
    report = extract_features(source(), path, OPTIONS)
    assert (report.n_extracted, report.exit_code) == (2, 0)
    assert not bad_images_file(path).exists()


def test_command_stores_features_as_asked_and_a_later_run_keeps_it_so(
    tmp_path: Path, engine: CountingEngine
) -> None:
    np.savez(tmp_path / "x.npz", x_train=IMAGES, y_train=LABELS)
    words = [str(tmp_path / "x.npz"), "--output", str(tmp_path / "c.h5"), "--weights", "random"]
    words += ["--image-size", "32", "--test-fraction", "0.3"]
    first = CliRunner().invoke(
        extract_command, [*words, "--sharded", "--dtype", "float16", "--compression", "1"]
    )
    assert first.exit_code == 0, first.output
    again = CliRunner().invoke(extract_command, words)
    assert "up to date" in again.output
    with FeatureCache.open(tmp_path / "c.h5") as cache:
        assert (cache.storage.dtype, cache.storage.compression) == ("float16", 1)
        assert cache.storage.sharded
    assert (tmp_path / "c.h5.parts").is_dir()
