"""Training on activations from a cache, against training on the images themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from image_files import write_images
from tiny_backbone import TINY

from classify.fine_tune.assembly import unfreeze
from classify.fine_tune.cli import fine_tune as command
from classify.fine_tune.cut import find_cut
from classify.fine_tune.from_cache import (
    activations_folder,
    check_activations,
    material,
    open_activations,
)
from classify.fine_tune.job import Job
from classify.fine_tune.network import MEASURING
from classify.fine_tune.options import FineTuneOptions
from classify.fine_tune.pixels import Room
from classify.fine_tune.training import train
from classify.fine_tune.tuning import fine_tune
from classify.results.runs import load_run
from classify.train_head.job import TrainingOptions, train_head
from data_cache.cache import FeatureCache
from data_cache.console import import_keras
from data_cache.errors import BadImagesError, OutputError, ParameterError, RecipeMismatchError
from extract import extractor
from extract.augment import View
from extract.backbones import BACKBONES, Backbone
from extract.decode import decode
from extract.engines import choose_engine
from extract.extraction import ExtractionOptions, extract_features
from extract.extractor import WeightsChoice, open_extractor
from extract.feature_layers import load_feature_model
from extract.preprocess import SCALINGS, preprocess
from extract.sources import Source, SourceOptions, open_source

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_96_no_top.h5"
OPTIONS = FineTuneOptions(
    unfreeze_layers=4, learning_rate=1e-3, epochs=2, batch_size=8, weights="random"
)
FROM_CACHE = replace(OPTIONS, from_cache=True)
MOST_APART = 0.01


def build_crossing(
    include_top: bool, weights: None, pooling: str, input_shape: tuple[int, int, int]
) -> Any:
    """Build a backbone whose residual connection runs past two convolutions."""
    layers = import_keras().layers
    images = layers.Input(input_shape)
    x = layers.Conv2D(6, 3, 2, "same", name="stem")(images)
    y = layers.Conv2D(9, 1, activation="relu", name="expand")(x)
    y = layers.Conv2D(6, 3, padding="same", name="project")(y)
    y = layers.Add(name="add")([x, y])
    y = layers.GlobalAveragePooling2D(name="avg_pool")(y)
    return import_keras().Model(images, y, name="crossing")


CROSSING = Backbone("crossing", build_crossing, SCALINGS["tf"], 6, native_size=32, min_size=8)


@pytest.fixture(scope="module", autouse=True)
def tiny_in_the_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        patch.setitem(BACKBONES, "crossing", CROSSING)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("from_cache") / "photos"
    for seed, name in enumerate(("ant", "bee", "cat")):
        write_images(folder / name, 16, seed=100 * seed)
    return open_source(str(folder), SourceOptions(test_fraction=0.2))


@pytest.fixture(scope="module")
def head(source: Source) -> Path:
    return train_on(source, Path(source.name).parent / "tiny", ExtractionOptions("tiny", "random"))


def train_on(source: Source, folder: Path, options: ExtractionOptions, size: int = 16) -> Path:
    """Extract features and train a head on them; return the run."""
    folder.mkdir()
    extract_features(source, folder / "cache.h5", replace(options, image_size=size))
    training = TrainingOptions(validation_split=0.3)
    return train_head(folder / "cache.h5", folder / "run", training).path


def tuned_weights(
    source: Source, head: Path, output: Path, options: FineTuneOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Return all weights that are trained, before and after."""
    job = Job.open(source, head, output, options)
    network = job.network(job.head())
    unfreeze(network.trunk, options.unfreeze_layers)
    before = values(network.trained_variables)
    with material(job, network) as trained_on:
        train(trained_on.network, trained_on.training, trained_on.validation, job.spec)
    return before, values(network.trained_variables)


def values(variables: list[Any]) -> np.ndarray:
    return np.concatenate([one.numpy().ravel() for one in variables])


def distance(source: Source, head: Path, output: Path, options: FineTuneOptions) -> float:
    """Return how far the two paths are apart, in units of how far training went."""
    from_cache = replace(options, from_cache=True)
    start, end_to_end = tuned_weights(source, head, output, options)
    same_start, cached = tuned_weights(source, head, output, from_cache)
    np.testing.assert_array_equal(start, same_start)
    return float(np.linalg.norm(cached - end_to_end) / np.linalg.norm(end_to_end - start))


def test_it_follows_the_end_to_end_path(source: Source, head: Path, tmp_path: Path) -> None:
    assert distance(source, head, tmp_path / "out", OPTIONS) < MOST_APART


def test_it_follows_the_end_to_end_path_where_a_residual_crosses_the_cut(
    source: Source, tmp_path: Path
) -> None:
    head = train_on(source, tmp_path / "head", ExtractionOptions("crossing", "random"))
    options = replace(OPTIONS, unfreeze_layers=2)
    assert distance(source, head, tmp_path / "out", options) < MOST_APART
    (cache,) = activations_folder(tmp_path / "out").glob("*.h5")
    with FeatureCache.open(cache) as opened:
        assert opened.recipe.feature_layer == "stem+expand"
        assert opened.n_features == 8 * 8 * (6 + 9)


@pytest.mark.skipif(not WEIGHTS.exists(), reason="../shared/weights is not there")
@pytest.mark.skipif(not (SHARED / "data").exists(), reason="../shared/data is not there")
def test_it_follows_the_end_to_end_path_with_real_weights_on_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extractor, "choose_engine", partial(choose_keras, choose_engine))
    photos = str(SHARED / "data" / "cats_dogs")
    source = open_source(photos, SourceOptions(train_limit=80, test_limit=2))
    weights = str(WEIGHTS)
    head = train_on(source, tmp_path / "head", ExtractionOptions(weights=weights), 96)
    options = FineTuneOptions(epochs=1, batch_size=16, weights=weights)
    assert distance(source, head, tmp_path / "out", options) < MOST_APART


def choose_keras(choose: Any, _name: str, *which: Any, **how: Any) -> Any:
    """Save the conversion."""
    return choose("keras", *which, **how)


def job_of(source: Source, head: Path, output: Path, options: FineTuneOptions) -> tuple[Job, Any]:
    job = Job.open(source, head, output, options)
    network = job.network(job.head())
    unfreeze(network.trunk, options.unfreeze_layers)
    return job, find_cut(network.trunk)


def test_what_is_there_is_used_again(
    source: Source, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(FROM_CACHE, views=1, activations=tmp_path / "kept")
    job, cut = job_of(source, head, tmp_path / "out", options)
    rows = np.arange(len(job.rows.training))
    with open_activations(job, cut) as caches:
        first = caches.inputs(job.rows.training, shows_views=True).batch(rows, 0)
    monkeypatch.setattr(extractor, "choose_engine", lambda *_args, **_more: pytest.fail("again"))
    with open_activations(job, cut) as caches:
        second = caches.inputs(job.rows.training, shows_views=True).batch(rows, 0)
    np.testing.assert_array_equal(first, second)
    assert not activations_folder(tmp_path / "out").exists()


def test_what_does_not_fit_into_memory_is_read_for_every_batch(
    source: Source, head: Path, tmp_path: Path
) -> None:
    job, cut = job_of(source, head, tmp_path / "out", FROM_CACHE)
    rows = np.array([5, 2, 9])
    with open_activations(job, cut, Room(0)) as caches:
        stored = caches.inputs(job.rows.training)
        assert not hasattr(stored.plain, "values")
        found = stored.batch(rows, 0)
    with open_activations(job, cut) as caches:
        held = caches.inputs(job.rows.training)
    np.testing.assert_array_equal(found, held.batch(rows, 0))


def test_epochs_take_the_views_in_turn_and_measuring_takes_none(
    source: Source, head: Path, tmp_path: Path
) -> None:
    job, cut = job_of(source, head, tmp_path / "out", replace(FROM_CACHE, views=2))
    rows = np.arange(4)
    with open_activations(job, cut) as caches:
        seen = caches.inputs(job.rows.training, shows_views=True)
        plain = caches.inputs(job.rows.training)
    views = [seen.batch(rows, epoch)[0] for epoch in range(4)]
    np.testing.assert_array_equal(views[0], views[2])
    np.testing.assert_array_equal(views[1], views[3])
    np.testing.assert_array_equal(seen.batch(rows, MEASURING), plain.batch(rows, MEASURING))
    for one, other in ((views[0], views[1]), (views[0], plain.batch(rows, 0)[0])):
        assert all(not np.allclose(*pair) for pair in zip(one, other, strict=True))


def test_a_cached_view_is_what_its_recipe_says(source: Source, head: Path, tmp_path: Path) -> None:
    """Every step by hand: read, decode, draw the view, scale, and ask Keras for the layer."""
    options = replace(FROM_CACHE, views=2, seed=3)
    job, cut = job_of(source, head, tmp_path / "out", options)
    with open_activations(job, cut) as caches:
        recipes = [one.recipe for one in (caches.plain, *caches.views)]
        (found,) = caches.inputs(job.rows.training, shows_views=True).batch(np.array([1]), 1)
    assert len({one.digest() for one in recipes}) == 3
    assert recipes[2].decoding == f"{recipes[0].decoding} augment/1 seed=3 view=1"
    raw = source.fetch(*job.rows.training.positions[1])
    assert isinstance(raw, bytes)
    view = View(3, 1).of(decode(raw), hashlib.sha256(raw).digest())
    backbone = replace(TINY, feature_layer=cut.feature_layer)
    model = load_feature_model(backbone, job.extractor.weights, 16)
    expected = np.asarray(model(preprocess(view[None], job.extractor.preprocessing)))
    np.testing.assert_allclose(found.reshape(1, -1), expected, rtol=1e-4, atol=1e-5)


def test_features_of_views_are_no_features_of_images(source: Source, head: Path) -> None:
    recipe = Job.open(source, head, head, OPTIONS).run.recipe
    recipe = replace(recipe, decoding=f"{recipe.decoding} {View(0, 0).identity}")
    with pytest.raises(RecipeMismatchError, match="the features are of random views"):
        open_extractor(recipe, WeightsChoice("random"))


def test_a_whole_fine_tuning_from_the_cache_ends_as_one_on_images(
    source: Source, head: Path, tmp_path: Path
) -> None:
    runs = [
        fine_tune(source, head, tmp_path / name, options)
        for name, options in (("images", OPTIONS), ("cache", FROM_CACHE))
    ]
    images, cache = (run.metrics["fine_tuning"] for run in runs)
    assert (images["from_cache"], cache["from_cache"]) == (False, True)
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(cache["history"][name], images["history"][name], rtol=1e-3)
    assert cache["trained_parameters"] == images["trained_parameters"]


def test_an_image_that_cannot_be_read_stops_it(source: Source, head: Path, tmp_path: Path) -> None:
    job, cut = job_of(source, head, tmp_path / "out", FROM_CACHE)
    split, row = job.rows.training.positions[0]
    path = Path(source.name) / source.listed(split, row).id
    kept = path.read_bytes()
    try:
        path.write_bytes(b"torn")
        with pytest.raises(BadImagesError, match=path.name), open_activations(job, cut):
            pytest.fail("it was opened")
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"views": 2}, "go with --from-cache"),
        ({"activations": Path("kept")}, "go with --from-cache"),
        ({"from_cache": True, "augment": True}, "give --views K"),
        ({"from_cache": True, "views": -1}, "views is -1: expected 0 or more"),
    ],
)
def test_choices_that_go_against_each_other_are_refused(
    choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ParameterError, match=message):
        FineTuneOptions(**choices)


def test_the_command_trains_on_cached_views(source: Source, head: Path, tmp_path: Path) -> None:
    arguments = [source.name, "--head", head, "--output", tmp_path / "out", "--epochs", 2]
    arguments += ["--from-cache", "--views", 2, "--activations", tmp_path / "kept"]
    arguments += ["--unfreeze-layers", 1, "--no-test"]
    result = CliRunner().invoke(command, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    assert "training on what mix_add (8 x 8 x 16 = 1,024 numbers) is" in result.stderr
    assert load_run(tmp_path / "out").metrics["fine_tuning"]["views"] == 2
    assert len(list((tmp_path / "kept").glob("mix_add-*.h5"))) == 3
    assert f"{tmp_path / 'kept'} keeps the activations for another" in result.stderr
    check_activations(tmp_path / "kept")


def test_a_folder_with_other_files_is_refused_before_anything_is_written(
    source: Source, head: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    for name in (".DS_Store", "block_6-0123456789ab.h5", "block_6-0123456789ab.h5.parts"):
        (kept / name).touch()
    check_activations(kept)
    (kept / "holiday.jpg").touch()
    options = replace(FROM_CACHE, activations=kept)
    with pytest.raises(OutputError, match=r"kept .* holds holiday\.jpg too"):
        fine_tune(source, head, tmp_path / "out", options)
    assert [one.name for one in tmp_path.iterdir()] == ["kept"]
