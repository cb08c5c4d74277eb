"""Classifying new images: the head applied to the features that a cache would have of them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from click.testing import CliRunner, Result
from counting_engine import CountingEngine
from image_files import png_bytes, write_images
from numpy.typing import NDArray
from PIL import Image

import classify
from classify.predict.classifiers import Predictions, PredictOptions
from classify.predict.cli import predict_images
from classify.probes import LogisticRegressionProbe, NearestMeanProbe, RidgeProbe
from classify.results.runs import MODEL_FILES, PROBE_FILES, write_metrics
from data_cache.cache import FeatureCache
from data_cache.errors import (
    BadImagesError,
    HeadstartError,
    RunError,
    SourceError,
    WeightsError,
)
from data_cache.files import TEMPORARY_MARK
from extract import extraction, extractor
from extract.backbones import get_backbone
from extract.decode import DecodeOptions
from extract.extraction import ExtractionOptions
from extract.sources import SourceOptions, open_source
from extract.sources.unlabeled import NamedImage
from extract.weights import Weights, random_weights

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_96_no_top.h5"
CLASSES = ("ant", "bee, red", "cät")
SIDE = 32
RANDOM = PredictOptions(weights="random", batch_size=4)


@pytest.fixture(autouse=True)
def engine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> CountingEngine:
    counting = CountingEngine()
    if "real_engine" not in request.fixturenames:
        monkeypatch.setattr(extractor, "choose_engine", lambda *_args, **_kwargs: counting)
    return counting


@pytest.fixture
def real_engine() -> None:
    """Leave the choice of the engine alone."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict") / "photos"
    for seed, name in enumerate(CLASSES):
        write_images(folder / name, 7, seed=100 * seed)
    (folder / CLASSES[0] / "torn.png").write_bytes(png_bytes(999)[:60])
    (folder / CLASSES[1] / "page.jpg").write_bytes(b"<html>not found</html>")
    return folder


@pytest.fixture(scope="module")
def cache(photos: Path) -> Path:
    path = photos.parent / "photos.h5"
    options = ExtractionOptions(weights="random", image_size=SIDE, batch_size=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extractor, "choose_engine", lambda *_args, **_kwargs: CountingEngine())
        extraction.extract_features(
            open_source(str(photos), SourceOptions(test_fraction=0.3)), path, options
        )
    return path


@pytest.fixture(scope="module")
def probe() -> LogisticRegressionProbe:
    rng = np.random.default_rng(0)
    features = rng.normal(0, 0.06, (90, 3)).astype(np.float32)
    return LogisticRegressionProbe(C=100).fit(features, rng.integers(0, 3, 90))


def write_run(folder: Path, cache: Path, probe: LogisticRegressionProbe, **changes: Any) -> Path:
    """Write a run whose features are those of a cache; changes go to the metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    with FeatureCache.open(cache) as opened:
        said = {"recipe": asdict(opened.recipe), "provenance": asdict(opened.provenance)}
    said |= {"classes": list(CLASSES), "selected": "logistic_regression"} | changes
    write_metrics(folder, said)
    probe.save(folder / "logistic_regression.npz")
    return folder


@pytest.fixture(scope="module")
def run(cache: Path, probe: LogisticRegressionProbe) -> Path:
    return write_run(cache.parent / "run", cache, probe)


@pytest.fixture(scope="module")
def expected(cache: Path, probe: LogisticRegressionProbe) -> dict[str, NDArray[np.float64]]:
    """The probabilities of each image of the cache, by its id."""
    with FeatureCache.open(cache) as opened:
        return {
            name.decode(): row
            for split in opened.split_names
            for name, row in zip(
                opened.rows(split).ids,
                probe.predict_proba(opened.features(split)),
                strict=True,
            )
        }


def command(run: Path, *words: str | Path) -> Result:
    given = [str(run), *map(str, words)]
    return CliRunner().invoke(predict_images, [*given, "--weights", "random", "--batch-size", "4"])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_predictions_are_the_heads_on_the_features_that_extraction_caches(
    run: Path, photos: Path, expected: dict[str, NDArray[np.float64]], tmp_path: Path
) -> None:
    result = command(run, photos, "--output", tmp_path / "out.csv")
    rows = {row["path"]: row for row in read_csv(tmp_path / "out.csv") if not row["error"]}
    assert (result.exit_code, len(rows)) == (3, len(expected) == 21 and 21)
    for name, probabilities in expected.items():
        row = rows[str(photos / name)]
        assert row["class"] == CLASSES[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(probabilities.max(), abs=1e-6)
    assert len({row["class"] for row in rows.values()}) == 3, "every class is predicted"


def test_json_lines_tell_the_likeliest_classes_first(
    run: Path, photos: Path, expected: dict[str, NDArray[np.float64]], tmp_path: Path
) -> None:
    command(run, photos, "--output", tmp_path / "out.jsonl", "--top-k", "3")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    said = {one["path"]: one for one in map(json.loads, lines)}
    assert len(said) == 23
    for name, probabilities in expected.items():
        one = said[str(photos / name)]
        order = np.argsort(-probabilities)
        assert [top["class"] for top in one["top"]] == [CLASSES[i] for i in order]
        told = [top["probability"] for top in one["top"]]
        np.testing.assert_allclose(told, probabilities[order], atol=1e-6)
        assert (one["class"], one["probability"]) == (one["top"][0]["class"], told[0])


def test_csv_tells_the_top_classes_in_columns_of_their_own(
    run: Path, photos: Path, expected: dict[str, NDArray[np.float64]], tmp_path: Path
) -> None:
    command(run, photos, "--output", tmp_path / "out.csv", "--top-k", "2", "--threshold", "1")
    rows = read_csv(tmp_path / "out.csv")
    names = ["path", "class", "probability", "class_1", "probability_1"]
    assert list(rows[0]) == [*names, "class_2", "probability_2", "error"]
    row = next(row for row in rows if row["path"] == str(photos / CLASSES[2] / "0203.png"))
    order = np.argsort(-expected[f"{CLASSES[2]}/0203.png"])
    assert [row["class_1"], row["class_2"]] == [CLASSES[i] for i in order[:2]]
    assert row["class"] == "unsure"


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_images_below_the_threshold_are_unsure_and_no_others(
    run: Path,
    photos: Path,
    expected: dict[str, NDArray[np.float64]],
    tmp_path: Path,
    share: float,
) -> None:
    threshold = float(np.quantile([p.max() for p in expected.values()], share)) + 1e-6
    words = ("--output", tmp_path / "out.csv", "--threshold", threshold)
    result = command(run, photos, *map(str, words))
    rows = [row for row in read_csv(tmp_path / "out.csv") if not row["error"]]
    unsure = {row["path"] for row in rows if row["class"] == "unsure"}
    below = {str(photos / name) for name, p in expected.items() if p.max() < threshold}
    assert unsure == below
    assert 0 < len(below) < len(expected)
    assert f"{len(below)} of them unsure" in result.stderr


def test_threshold_is_refused_where_a_class_is_called_unsure(
    cache: Path, probe: LogisticRegressionProbe, photos: Path, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", cache, probe, classes=["a", "b", "unsure"])
    result = command(run, photos, "--threshold", "0.5")
    assert result.exit_code == 2
    assert "ambiguous" in result.stderr


def test_bad_images_keep_their_places_and_get_a_reason_and_exit_code_3(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    words = [photos / CLASSES[1] / name for name in ("0100.png", "page.jpg", "0101.png")]
    missing = tmp_path / "table.csv"
    missing.write_text("path\nnowhere.png\n")
    result = command(run, *words, missing, "--output", tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert result.exit_code == 3
    assert [row["path"] for row in rows] == [*map(str, words), "nowhere.png"]
    assert [bool(row["class"]) for row in rows] == [True, False, True, False]
    assert "a web page (HTML)" in rows[1]["error"]
    assert rows[3]["error"] == "there is no such file"
    assert f"left out: {words[1]}: not an image" in result.stderr
    assert "2 images classified, 2 left out" in result.stderr


def test_line_of_a_table_without_a_path_is_a_bad_row_and_stops_nothing(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    good = photos / CLASSES[2] / "0203.png"
    listed = table(tmp_path, f"label,path\n1,{good}\n2,\n3\n\n4,{good}\n")
    result = command(run, listed, "--output", tmp_path / "out.csv")
    rows = read_csv(tmp_path / "out.csv")
    assert result.exit_code == 3
    assert [row["error"] for row in rows] == ["", *["the line has no path"] * 2, ""]
    assert [row["path"] for row in rows[1:3]] == [f"{listed}:3", f"{listed}:4"]


def test_only_bad_images_are_still_told_of(run: Path, photos: Path) -> None:
    result = command(run, photos / CLASSES[0] / "torn.png", "--format", "jsonl")
    assert result.exit_code == 3
    assert "error" in json.loads(result.stdout)


def test_table_is_shown_with_the_paths_last(run: Path, photos: Path) -> None:
    folder = photos / CLASSES[2]
    result = command(run, folder, "--top-k", "2")
    header, *lines = result.stdout.splitlines()
    assert (result.exit_code, len(lines)) == (0, 7)
    assert [line[header.index("path") :] for line in lines] == [
        str(one) for one in sorted(folder.iterdir())
    ]


def test_folder_pattern_and_table_mean_the_same_images(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    table = photos / "list.tsv"
    names = [f"{CLASSES[2]}/{200 + i:04d}.png" for i in range(7)]
    table.write_text("label\tpath\n" + "".join(f"x\t{name}\n" for name in names), encoding="utf-8")
    given = [[photos / CLASSES[2]], [photos / CLASSES[2] / "*.png"], [table]]
    found = []
    for number, words in enumerate(given):
        output = tmp_path / f"{number}.csv"
        assert command(run, *words, "--output", output).exit_code == 0
        found.append([(Path(r["path"]).name, r["class"]) for r in read_csv(output)])
    table.unlink()
    assert found[0] == found[1] == found[2]


def test_pattern_with_two_stars_reaches_every_folder(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    command(run, photos / "**" / "*3.png", "--output", tmp_path / "out.csv")
    assert [Path(row["path"]).name for row in read_csv(tmp_path / "out.csv")] == [
        "0003.png",
        "0103.png",
        "0203.png",
    ]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "nothing", "there is no such file or folder"),
        (lambda folder: folder / "*.png", "as a pattern it matches none"),
        (lambda folder: folder, "no images in"),
        (lambda folder: table(folder, "file,label\n"), "one called path is expected"),
        (lambda folder: table(folder, b"path\n\xff\xfe\n"), "is not UTF-8 text"),
    ],
)
def test_path_that_means_nothing_is_refused_in_one_line_and_nothing_is_written(
    run: Path, tmp_path: Path, write: Callable[[Path], Path], message: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    result = command(run, write(folder), "--output", tmp_path / "out.csv")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert list(tmp_path.iterdir()) == [folder]


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "table.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_output_that_exists_is_refused_unless_it_may_be_replaced(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out.csv"
    output.write_text("mine")
    assert command(run, photos, "--output", output).exit_code == 2
    assert output.read_text() == "mine"
    assert command(run, photos, "--output", output, "--overwrite").exit_code == 3
    assert len(read_csv(output)) == 23


def test_output_of_no_known_format_is_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    result = command(run, photos, "--output", tmp_path / "out.txt")
    assert "which format?" in result.stderr
    result = command(run, photos, "--output", tmp_path / "out.txt", "--format", "table")
    assert (result.exit_code, (tmp_path / "out.txt").exists()) == (3, True)


def test_interrupted_prediction_leaves_no_output(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: CountingEngine, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        raise KeyboardInterrupt

    monkeypatch.setattr(CountingEngine, "__call__", interrupted)
    assert command(run, photos, "--output", tmp_path / "out.csv").exit_code == 1
    assert not list(tmp_path.iterdir())


def test_images_that_a_cache_holds_need_no_forward_pass(
    run: Path, photos: Path, cache: Path, engine: CountingEngine, tmp_path: Path
) -> None:
    (new,) = write_images(tmp_path / "new", 1, seed=7777)
    plain, cached = tmp_path / "plain.csv", tmp_path / "cached.csv"
    command(run, photos, new, "--output", plain)
    assert engine.n_images == 22
    result = command(run, photos, new, "--output", cached, "--cache", cache)
    assert (engine.n_images, result.exit_code) == (23, 3)
    assert plain.read_text() == cached.read_text()


def test_cached_features_are_what_the_head_sees(
    run: Path, photos: Path, cache: Path, tmp_path: Path, make_cache: Callable[..., Path]
) -> None:
    from cache_tools import PROVENANCE

    from data_cache.rows import Manifest, Rows
    from data_cache.update import CacheUpdate

    with FeatureCache.open(cache) as opened:
        rows, recipe = opened.rows("train"), opened.recipe
        features = np.tile(np.float32([9, -9, 9]), (len(rows), 1))
    other = tmp_path / "other.h5"
    with CacheUpdate.begin(other, recipe, PROVENANCE) as update:
        update.append(rows.content, features)
        update.bind(Manifest(CLASSES, {"train": Rows(rows.ids, rows.labels, rows.content)}))
    output = tmp_path / "out.csv"
    command(run, photos / rows.ids[0].decode(), "--output", output, "--cache", other)
    probe = LogisticRegressionProbe.load(run / "logistic_regression.npz")
    told = float(read_csv(output)[0]["probability"])
    assert told == pytest.approx(probe.predict_proba(features[:1]).max(), abs=1e-6)


def test_cache_of_another_recipe_is_refused(
    run: Path, photos: Path, tmp_path: Path, make_cache: Callable[..., Path]
) -> None:
    other = make_cache(tmp_path / "other.h5", {"train": (np.eye(3), [0, 1, 0])})
    result = command(run, photos, "--cache", other)
    assert result.exit_code == 2
    assert "image size 96, was 32" in result.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights_digest": "cd" * 32}, r"digest [0-9a-f]{12}…, but .* digest cdcdcdcdcdcd…"),
        ({"preprocessing": "triangle/9 tf/1"}, "preprocessing triangle/1 tf/1, was triangle/9"),
        ({"decoding": "rgb8/9 alpha=white"}, "decoding 'rgb8/9 alpha=white'"),
        ({"decoding": 5}, "not one of this program"),
        ({"feature_layer": 5}, "feature layer 5, expected a name"),
        ({"resize_mode": "melt"}, "resize mode 'melt', expected stretch, crop, pad"),
        ({"numeric_class": "int8"}, "numeric class 'int8'"),
        ({"image_size": "32"}, "image size '32'"),
        ({"backbone": "alexnet"}, "unknown backbone 'alexnet'"),
        ({"backbone": "onnx"}, "there is no ONNX file"),
    ],
)
def test_recipe_that_cannot_be_followed_is_refused(
    cache: Path,
    probe: LogisticRegressionProbe,
    photos: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    with FeatureCache.open(cache) as opened:
        recipe = asdict(opened.recipe) | changes
    run = write_run(tmp_path / "run", cache, probe, recipe=recipe)
    with pytest.raises(HeadstartError, match=message):
        classify.load(run, RANDOM)
    result = command(run, photos)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def save_arrays(path: Path, **changes: Any) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays}
    np.savez(path, **kept | changes)


class Bomb:
    """Unpickling this fails a test."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file was unpickled",)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda run: (run / "metrics.json").unlink(), "is no run"),
        (lambda run: edit_metrics(run, format_version=9), "format version 9"),
        (lambda run: edit_metrics(run, classes=["a", "b"]), "tells other classes apart"),
        (lambda run: edit_metrics(run, classes=["a", "b", "b"]), "is not whole"),
        (lambda run: edit_metrics(run, classes="abc"), "is not whole"),
        (lambda run: edit_metrics(run, selected=["dense"]), "is not whole"),
        (lambda run: edit_metrics(run, selected="forest"), "no model 'forest'"),
        (lambda run: edit_metrics(run, selected="dense"), r"head\.keras cannot be read"),
        (lambda run: (run / "logistic_regression.npz").unlink(), "No such file"),
        (lambda run: save_arrays(run / "logistic_regression.npz", mean=np.ones(5)), "shape"),
        (lambda run: save_arrays(run / "logistic_regression.npz", scale=np.ones(())), "shape"),
        (
            lambda run: save_arrays(run / "logistic_regression.npz", intercept=np.full(3, np.nan)),
            "not all finite",
        ),
        (
            lambda run: save_arrays(
                run / "logistic_regression.npz", coef=np.array([Bomb()], dtype=object)
            ),
            "allow_pickle=False",
        ),
        (
            lambda run: save_arrays(
                run / "logistic_regression.npz", classes=np.array(["x", "y", "z"])
            ),
            "tells other classes apart",
        ),
        (lambda run: (run / "logistic_regression.npz").write_bytes(b"PK\3\4x"), "holds no"),
    ],
)
def test_tampered_run_is_refused_in_one_line(
    cache: Path,
    probe: LogisticRegressionProbe,
    photos: Path,
    tmp_path: Path,
    tamper: Callable[[Path], object],
    message: str,
) -> None:
    run = write_run(tmp_path / "run", cache, probe)
    tamper(run)
    with pytest.raises(RunError, match=message):
        classify.load(run, RANDOM)
    result = command(run, photos)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)


def edit_metrics(run: Path, **changes: Any) -> None:
    path = run / "metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_model_of_another_backbone_is_refused(
    cache: Path, photos: Path, tmp_path: Path, engine: CountingEngine
) -> None:
    rng = np.random.default_rng(0)
    other = LogisticRegressionProbe().fit(rng.normal(size=(30, 5)), np.arange(30) % 3)
    run = write_run(tmp_path / "run", cache, other)
    with pytest.raises(RunError, match="takes 5 features, but the backbone gives 3"):
        classify.load(run, RANDOM).predict([png_bytes(0)])


def test_calibrated_probabilities_are_those_of_logits_divided_by_the_temperature(
    cache: Path, probe: LogisticRegressionProbe, photos: Path, tmp_path: Path
) -> None:
    figures = {"temperature": 2.0, "temperature_from": "validation"}
    run = write_run(tmp_path / "run", cache, probe, logistic_regression=figures)
    images = sorted((photos / CLASSES[2]).iterdir())
    raw = classify.load(run, RANDOM).predict(images)
    calibrated = classify.load(run, replace(RANDOM, probabilities="calibrated")).predict(images)
    roots = np.sqrt(raw.probabilities)
    expected = roots / roots.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(calibrated.probabilities, expected, atol=1e-9)
    words = ("--probabilities", "calibrated", "--format", "jsonl")
    said = json.loads(command(run, images[0], *words).stdout)
    assert said["probability"] == pytest.approx(expected[0].max(), abs=1e-6)


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ({"temperature": None}, "no temperature was fitted"),
        ({}, "no temperature was fitted"),
        (None, "no temperature was fitted"),
        ({"temperature": 0}, "expected one above 0"),
        ({"temperature": "hot"}, "expected one above 0"),
    ],
)
def test_calibrated_probabilities_are_refused_without_a_temperature(
    cache: Path,
    probe: LogisticRegressionProbe,
    photos: Path,
    tmp_path: Path,
    figures: Any,
    message: str,
) -> None:
    run = write_run(tmp_path / "run", cache, probe, logistic_regression=figures)
    result = command(run, photos, "--probabilities", "calibrated")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert message in result.stderr


def test_weights_are_found_where_the_run_found_them_and_compared_all_the_same(
    cache: Path, probe: LogisticRegressionProbe, photos: Path, tmp_path: Path
) -> None:
    weights = random_weights(get_backbone("mobilenet_v2"), seed=7)
    kept = keras_file_of(weights, tmp_path / "mine.weights.h5")
    with FeatureCache.open(cache) as opened:
        recipe = asdict(replace(opened.recipe, weights_digest=weights.digest))
        provenance = replace(opened.provenance, weights="the file", weights_path=str(kept))
    said = {"recipe": recipe, "provenance": asdict(provenance)}
    run = write_run(tmp_path / "run", cache, probe, **said)
    image = photos / CLASSES[2] / "0203.png"
    assert classify.load(run).predict(image).labels
    keras_file_of(random_weights(get_backbone("mobilenet_v2"), seed=8), kept)
    with pytest.raises(WeightsError, match=f"but .* digest {weights.digest[:12]}"):
        classify.load(run)
    tuned = keras_file_of(weights, run / "backbone.weights.h5")
    assert classify.load(run).extractor.weights.path == tuned, "a fine-tuned run has its own"


def keras_file_of(weights: Weights, path: Path) -> Path:
    """Write weights as ``keras.applications`` lays them out, without Keras."""
    with h5py.File(path, "w") as file:
        for layer, arrays in zip(weights.layout.layers, weights.arrays, strict=True):
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{name}:0" for name, _ in layer.variables]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                group[name] = array
        file.attrs["layer_names"] = [layer.name.encode() for layer in weights.layout.layers]
    return path


def test_class_without_training_rows_has_probability_0(
    cache: Path, photos: Path, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    two = LogisticRegressionProbe().fit(rng.normal(size=(30, 3)), np.arange(30) % 2 * 2)
    run = write_run(tmp_path / "run", cache, two)
    found = classify.load(run, RANDOM).predict([png_bytes(0), png_bytes(1)]).probabilities
    assert found.shape == (2, 3)
    assert not found[:, 1].any()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_paths_bytes_arrays_and_pillow_images_are_predicted_alike(run: Path, photos: Path) -> None:
    classifier = classify.load(str(run), RANDOM)
    paths = sorted((photos / CLASSES[2]).iterdir())
    arrays = np.stack([np.asarray(Image.open(one)) for one in paths])
    reference = classifier.predict(paths)
    assert isinstance(reference, Predictions)
    assert (len(reference), reference.classes) == (7, CLASSES)
    assert reference.labels == tuple(CLASSES[i] for i in reference.probabilities.argmax(axis=1))
    for images in (
        map(str, paths),
        [one.read_bytes() for one in paths],
        arrays,
        list(arrays),
        [Image.open(one) for one in paths],
        arrays.astype(np.float64),
        arrays.astype(np.float32) / 255,
    ):
        found = classifier.predict(images)
        np.testing.assert_allclose(found.probabilities, reference.probabilities, atol=1e-5)
    alone = classifier.predict(paths[0])
    np.testing.assert_allclose(alone.probabilities, reference.probabilities[:1], atol=1e-9)


def test_float_array_is_judged_as_a_whole(run: Path) -> None:
    """A dark image among bright ones keeps its darkness."""
    images = np.zeros((2, 8, 8), np.float32)
    images[0] += 0.9
    images[1] += 200
    classifier = classify.load(run, RANDOM)
    found = classifier.predict(images).probabilities
    as_bytes = classifier.predict(np.rint(images).astype(np.uint8)).probabilities
    np.testing.assert_allclose(found, as_bytes, atol=1e-2)
    with pytest.raises(SourceError, match="scale them"):
        classifier.predict(images - 5)


def test_pillow_image_is_seen_as_its_file_would_be(run: Path) -> None:
    """Orientation, transparency, palettes and CMYK go through the one decoder."""
    classifier = classify.load(run, RANDOM)
    pixels = np.random.default_rng(0).integers(0, 256, (9, 5, 4), np.uint8)
    pixels[:4, :, 0] = 255
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    for made, options in (
        (image, {"format": "PNG"}),
        (image.convert("RGB").quantize(4), {"format": "PNG"}),
        (image.convert("CMYK"), {"format": "TIFF"}),
        (image.convert("RGB"), {"format": "PNG", "exif": exif}),
    ):
        stream = io.BytesIO()
        made.save(stream, **options)
        opened = Image.open(io.BytesIO(stream.getvalue()))
        by_file, by_image = (classifier.predict([one]) for one in (stream.getvalue(), opened))
        np.testing.assert_array_equal(by_file.probabilities, by_image.probabilities)


def test_no_images_give_no_rows(run: Path) -> None:
    assert classify.load(run, RANDOM).predict([]).probabilities.shape == (0, 3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"<html>", "image 1: not an image but a web page"),
        (Path("nowhere.png"), "image nowhere.png: there is no such file"),
        (np.zeros((4, 4, 2), np.uint8), "image 1: an array of shape"),
        (np.zeros((4, 4), np.int64), "image 1: an array of type int64"),
        (np.full((4, 4), 20.0), "image 1: floating-point images from 20 to 20"),
    ],
)
def test_image_that_cannot_be_read_is_named(run: Path, image: Any, message: str) -> None:
    with pytest.raises(BadImagesError, match=message):
        classify.load(run, RANDOM).predict([png_bytes(0), image])


def test_images_are_taken_as_they_are_needed(run: Path, engine: CountingEngine) -> None:
    classifier = classify.load(run, RANDOM)
    n_taken = 0

    def endless() -> Iterator[NamedImage]:
        nonlocal n_taken
        while True:
            n_taken += 1
            yield NamedImage(str(n_taken), png_bytes(n_taken % 5))

    stream = classifier.stream(endless())
    ids = [next(stream).id for _ in range(200)]
    stream.close()
    assert ids == [str(1 + i) for i in range(200)]
    assert n_taken < 200 + 4 * 2 * 2 * 64


def test_decoding_of_the_recipe_is_used(
    cache: Path, probe: LogisticRegressionProbe, tmp_path: Path
) -> None:
    """A transparent image on black has other features than on white."""
    with FeatureCache.open(cache) as opened:
        recipe = opened.recipe
    decoding = DecodeOptions("black", tolerate_truncated=True, white_level=1023).identity
    black = write_run(
        tmp_path / "run", cache, probe, recipe=asdict(replace(recipe, decoding=decoding))
    )
    clear = np.zeros((1, 8, 8, 4), np.uint8)
    found = classify.load(black, RANDOM).predict(clear).probabilities
    as_black = classify.load(black, RANDOM).predict(clear[..., :3]).probabilities
    np.testing.assert_array_equal(found, as_black)
    assert classify.load(black, RANDOM).extractor.decoding.white_level == 1023


def test_package_imports_nothing_heavy_until_a_run_is_loaded() -> None:
    script = "import sys, classify; sys.exit(len({'numpy', 'sklearn', 'extract'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


HEAVY = {"tensorflow", "keras", "sklearn", "scipy", "matplotlib", "pandas", "jinja2"}


@pytest.mark.parametrize(
    "model",
    ["logistic_regression", "dense", "dense_hidden", "ridge", "discriminant", "nearest_mean"],
)
def test_predicting_with_the_onnx_engine_imports_nothing_that_only_training_needs(
    cache: Path, probe: LogisticRegressionProbe, tmp_path: Path, model: str
) -> None:
    """The backbone is an ONNX file of the user's own, so not even a conversion is needed."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file, settings = tmp_path / "mean.onnx", tmp_path / "mean.json"
    helper = onnx.helper
    pixels = helper.make_tensor_value_info("x", 1, ["n", 3, SIDE, SIDE])
    rows = helper.make_tensor_value_info("y", 1, ["n", 3, SIDE, SIDE])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [pixels], [rows])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, file)
    settings.write_text(json.dumps({"image_size": SIDE}))
    recipe = own_recipe(cache, file, settings)
    kind = "head" if model in MODEL_FILES else "comparison"
    run = write_run(tmp_path / "run", cache, probe, recipe=recipe, selected=model, kind=kind)
    write_model(run, model)
    (image,) = write_images(tmp_path, 1)
    script = (
        "import sys\nfrom classify.predict.cli import predict_images\n"
        f"predict_images([{str(run)!r}, {str(image)!r}, '--weights', {str(file)!r}, "
        f"'--preprocess', {str(settings)!r}, '--format', 'csv'], standalone_mode=False)\n"
        f"print({HEAVY} & {{*sys.modules}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "set()"), done.stderr
    assert done.stdout.splitlines()[1].startswith(f"{image},")


def own_recipe(cache: Path, file: Path, settings: Path) -> dict[str, Any]:
    from data_cache.files import file_digest
    from extract.onnx_backbone import open_onnx_backbone
    from extract.preprocess import Preprocessing

    backbone = open_onnx_backbone(file, settings)
    with FeatureCache.open(cache) as opened:
        return asdict(
            replace(
                opened.recipe,
                backbone="onnx",
                weights_digest=file_digest(file),
                preprocessing=Preprocessing(backbone.scaling, SIDE).identity,
                feature_layer=backbone.feature_layer,
            )
        )


def write_model(run: Path, name: str) -> None:
    """Train a model on 3 features and 3 classes."""
    from classify.heads.dense import DenseHead

    models = {
        "logistic_regression": LogisticRegressionProbe(),
        "dense": DenseHead(epochs=1),
        "dense_hidden": DenseHead(epochs=1, hidden_units=4),
        "ridge": RidgeProbe(),
        "discriminant": NearestMeanProbe(0.5),
        "nearest_mean": NearestMeanProbe(),
    }
    rng = np.random.default_rng(0)
    fitted = models[name].fit(rng.normal(size=(30, 3)), np.arange(30) % 3)
    fitted.save(run / PROBE_FILES[name])


@pytest.mark.skipif(not WEIGHTS.exists(), reason="../shared/weights is not there")
@pytest.mark.skipif(not (SHARED / "data").exists(), reason="../shared/data is not there")
def test_photos_are_predicted_as_keras_called_directly_predicts_them(
    cache: Path, tmp_path: Path, real_engine: None
) -> None:
    """Weights, preprocessing and pooling of Keras itself, and the head's formula in NumPy."""
    import keras
    import tensorflow as tf

    from extract.backbones import get_backbone
    from extract.weights import file_weights

    rng = np.random.default_rng(0)
    head = LogisticRegressionProbe().fit(rng.uniform(0, 1, (60, 1280)), np.arange(60) % 3)
    with FeatureCache.open(cache) as opened:
        digest = file_weights(WEIGHTS, get_backbone("mobilenet_v2")).digest
        recipe = asdict(replace(opened.recipe, image_size=96, weights_digest=digest))
    run = write_run(tmp_path / "run", cache, head, recipe=recipe)
    photos = sorted((SHARED / "data" / "cats_dogs" / "test").rglob("*.jpg"))[::40]
    options = PredictOptions(weights=str(WEIGHTS), engine="keras")
    found = classify.load(run, options).predict(photos).probabilities

    model = keras.applications.MobileNetV2(
        include_top=False, weights=str(WEIGHTS), input_shape=(96, 96, 3), pooling="avg"
    )
    images = [np.asarray(Image.open(one).convert("RGB")) for one in photos]
    small = tf.stack([tf.image.resize(one, (96, 96), antialias=True) for one in images])
    scaled = keras.applications.mobilenet_v2.preprocess_input(small)
    features = np.asarray(model(scaled, training=False), np.float64)
    logits = (features - head.mean_) / head.scale_ @ head.coef_.T + head.intercept_
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(found, powers / powers.sum(axis=1, keepdims=True), atol=1e-4)
    assert np.ptp(found, axis=0).max() > 0.01, "the photos are told apart"


def test_nothing_unfinished_is_left(run: Path) -> None:
    assert not [one for one in run.parent.rglob("*") if TEMPORARY_MARK in one.name]
