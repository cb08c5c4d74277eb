"""The command train-baseline: a network from scratch, its run, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from image_files import write_images
from PIL import Image
from scipy.stats import binomtest

from classify.baseline.cli import train_baseline
from classify.baseline.convnet import ConvNet, build_convnet
from classify.baseline.images import ImageOptions, load_images
from classify.export.cli import export_model
from classify.heads.dense import epoch_order
from classify.predict.cli import predict_images
from classify.results.runs import load_run, open_run
from classify.selection.division import draw_validation
from data_cache.console import import_keras
from data_cache.errors import BadImagesError, DataError, RunError, SourceError, TrainingError
from extract.sources import SourceOptions, open_source

SIDE, N_TRAIN, N_TEST, N_CLASSES = 8, 150, 60, 3
FILES = {
    "baseline.keras",
    "history.csv",
    "split.csv",
    "test_predictions.csv",
    "metrics.json",
    "learning_curves.png",
    "confusion_matrix.png",
    "report.html",
}


def bars(n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images (n, 8, 8) uint8, each with a bright bar where its class has it."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n_rows)
    images = rng.integers(0, 120, (n_rows, SIDE, SIDE))
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label + 1] += 80
    return images.astype(np.uint8), labels


def write_arrays(path: Path, **changes: Any) -> Path:
    (x, y), (x_test, y_test) = bars(N_TRAIN, 0), bars(N_TEST, 1)
    arrays = {"x_train": x, "y_train": y, "x_test": x_test, "y_test": y_test}
    np.savez(path, **(arrays | changes))
    return path


def command(source: Path | str, output: Path, *more: str) -> Result:
    words = [str(source), "--output", str(output), "--epochs", "2", "--batch-size", "16", *more]
    return CliRunner().invoke(train_baseline, words)


def assert_refused(result: Result, message: str, exit_code: int = 2) -> None:
    assert result.exit_code == exit_code, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baseline")


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return write_arrays(folder / "bars.npz")


@pytest.fixture(scope="module")
def trained(source: Path, folder: Path) -> tuple[Path, Result]:
    result = command(source, folder / "first", "--epochs", "6", "--seed", "4")
    assert result.exit_code == 0, result.output
    return folder / "first", result


@pytest.fixture(scope="module")
def run(trained: tuple[Path, Result]) -> Path:
    return trained[0]


@pytest.fixture(scope="module")
def metrics(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text(encoding="utf-8"))


def test_a_run_holds_these_files_and_no_others(run: Path) -> None:
    assert {one.name for one in run.iterdir()} == FILES


def test_metrics_count_images_classes_and_parameters(metrics: dict[str, Any]) -> None:
    convolutions = (9 + 1) * 32 + (9 * 32 + 1) * 64
    dense = ((SIDE // 4) ** 2 * 64 + 1) * 64 + (64 + 1) * N_CLASSES
    expected = {
        "kind": "baseline",
        "selected": "baseline",
        "n_train": 120,
        "n_validation": 30,
        "n_test": N_TEST,
        "n_classes": N_CLASSES,
        "n_left_out": 0,
        "trainable_parameters": convolutions + dense,
        "non_trainable_parameters": 0,
        "test_split": "test",
        "epochs": 6,
        "seed": 4,
    }
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["images"]["channels"] == 1
    assert metrics["images"]["pixel_scaling"] == "x / 255"


def test_the_file_is_the_whole_network_from_pixels_to_logits(
    run: Path, metrics: dict[str, Any]
) -> None:
    model = import_keras().saving.load_model(run / "baseline.keras")
    images, labels = bars(N_TEST, 1)
    predicted = np.asarray(model(images[..., None].astype(np.float32))).argmax(axis=1)
    rows = read_csv(run / "test_predictions.csv")
    assert [row["baseline"] for row in rows] == [str(label) for label in predicted]
    assert [row["class"] for row in rows] == [str(label) for label in labels]
    assert metrics["test_accuracy"] == (predicted == labels).mean()


def test_it_learns_what_can_be_learned(metrics: dict[str, Any]) -> None:
    assert metrics["test_accuracy"] > 0.8
    assert metrics["baseline"]["test_accuracy"] == metrics["test_accuracy"]


def test_the_interval_is_wilsons(metrics: dict[str, Any]) -> None:
    right = round(metrics["test_accuracy"] * N_TEST)
    interval = binomtest(right, N_TEST).proportion_ci(method="wilson")
    np.testing.assert_allclose(metrics["test_accuracy_ci95"], interval)


def test_validation_rows_are_drawn_as_for_a_head(run: Path) -> None:
    _, labels = bars(N_TRAIN, 0)
    drawn = draw_validation(labels, None, fraction=0.2, seed=4)
    ids = [f"train/{row:06d}" for row in np.flatnonzero(drawn)]
    assert open_run(run).part_ids("validation") == tuple(ids)


def test_the_history_ends_at_the_figures_on_validation(run: Path, metrics: dict[str, Any]) -> None:
    history = read_csv(run / "history.csv")
    assert [row["epoch"] for row in history] == [str(epoch) for epoch in range(1, 7)]
    assert float(history[-1]["val_accuracy"]) == metrics["validation_accuracy"]
    assert float(history[-1]["val_loss"]) == metrics["validation_log_loss"]


def test_every_scoring_of_the_test_is_counted_beside_the_runs(
    source: Path, trained: tuple[Path, Result], folder: Path
) -> None:
    log = folder / "bars.npz.scorings.jsonl"
    assert (
        f"This is the 1st model scored on this test (60 rows), as far as {log} knows; caches keep "
        "logs of their own.\n"
    ) in trained[1].output
    assert log.exists()
    again = command(source, folder / "second", "--epochs", "1")
    assert "This is the 2nd model scored on this test (60 rows)" in again.output
    assert "1 epoch over" in again.output


def test_without_a_test_nothing_is_scored(source: Path, tmp_path: Path) -> None:
    result = command(source, tmp_path / "run", "--no-test", "--epochs", "1")
    assert "The test was left alone" in result.output
    assert {one.name for one in (tmp_path / "run").iterdir()} == FILES - {"test_predictions.csv"}
    assert {one.name for one in tmp_path.iterdir()} == {"run"}
    assert open_run(tmp_path / "run").metrics["test_accuracy"] is None


def fitted(**parameters: Any) -> ConvNet:
    images, labels = bars(40, 2)
    validation = (images[..., None], labels)
    net = ConvNet(**{"epochs": 2, "batch_size": 16} | parameters)
    return net.fit(images[..., None], labels, n_classes=N_CLASSES, validation=validation)


def test_training_is_adam_on_the_cross_entropy_in_our_order() -> None:
    keras = import_keras()
    net = fitted(dropout=0.0, seed=3)
    images, labels = bars(40, 2)
    model = build_convnet((SIDE, SIDE, 1), N_CLASSES, ConvNet(dropout=0.0, seed=3))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for epoch in range(2):
        order = epoch_order(3, epoch, 40)
        for start in range(0, 40, 16):
            rows = order[start : start + 16]
            model.train_on_batch(images[rows, :, :, None].astype(np.float32), labels[rows])
    for ours, theirs in zip(net.model_.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_seed_decides_the_network() -> None:
    first, again = fitted(seed=1, epochs=1), fitted(seed=1, epochs=1)
    images = bars(10, 3)[0][..., None]
    np.testing.assert_array_equal(first.logits(images), again.logits(images))
    starts = [build_convnet((SIDE, SIDE, 1), N_CLASSES, ConvNet(seed=seed)) for seed in (1, 2)]
    kernels = [[w for w in model.get_weights() if w.ndim > 1] for model in starts]
    assert all((one != other).all() for one, other in zip(*kernels, strict=True))


def test_pixels_are_divided_by_255() -> None:
    keras = import_keras()
    model = build_convnet((SIDE, SIDE, 1), N_CLASSES, ConvNet())
    images = bars(2, 0)[0][..., None].astype(np.float32)
    unscaled = keras.Sequential(model.layers[1:])
    np.testing.assert_allclose(model(images), unscaled(images / 255), atol=1e-5)


def test_a_loss_of_nan_stops_the_run_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    result = command(source, tmp_path / "run", "--learning-rate", "1e30")
    assert_refused(result, "the loss became", TrainingError.exit_code)
    assert not (tmp_path / "run").exists()


def test_training_images_of_one_class_are_refused(tmp_path: Path) -> None:
    path = write_arrays(tmp_path / "one.npz", y_train=np.zeros(N_TRAIN, int))
    result = command(path, tmp_path / "run")
    assert_refused(result, "training rows have 1 class", DataError.exit_code)


def test_an_output_that_exists_is_refused(source: Path, run: Path) -> None:
    before = (run / "metrics.json").read_bytes()
    assert_refused(command(source, run), "exists already")
    assert (run / "metrics.json").read_bytes() == before


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    assert_refused(command(tmp_path / "nowhere", tmp_path / "run"), "no source")


def test_commands_that_need_features_refuse_a_baseline(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is a baseline, a network from pixels"):
        load_run(run)
    photo = write_images(tmp_path / "photos", 1)[0]
    words = [str(run), str(photo)]
    assert_refused(CliRunner().invoke(predict_images, words), "is a baseline")
    words = [str(run), "--output", str(tmp_path / "model.onnx"), "--format", "onnx"]
    assert_refused(CliRunner().invoke(export_model, words), "is a baseline")


def write_photos(folder: Path, modes: dict[str, str], side: int = SIDE) -> Path:
    """Write twelve photos of each class, in the mode that it names."""
    rng = np.random.default_rng(0)
    for name, mode in modes.items():
        (folder / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{number}.png")
    return folder


def images_of(folder: Path, size: int | None = None) -> Any:
    return load_images(open_source(str(folder), SourceOptions()), ImageOptions(size))


@pytest.mark.parametrize(
    ("first", "second", "n_channels"), [("L", "L", 1), ("L", "RGB", 3), ("RGB", "RGB", 3)]
)
def test_gray_stays_one_channel_unless_there_is_color(
    tmp_path: Path, first: str, second: str, n_channels: int
) -> None:
    photos = write_photos(tmp_path / "photos", {"a": first, "b": second})
    images = images_of(photos)
    assert images.shape == (SIDE, SIDE, n_channels)
    split = images.split_names[0]
    with Image.open(photos / images.rows(split).ids[0].decode()) as photo:
        expected = np.asarray(photo.convert("RGB"))[..., :n_channels]
    np.testing.assert_array_equal(images.features(split)[0], expected)


def test_resized_images_are_tensorflows(tmp_path: Path) -> None:
    import_keras()
    import tensorflow as tf

    photos = write_photos(tmp_path / "photos", {"a": "RGB", "b": "RGB"}, side=20)
    images = images_of(photos, 8)
    split = images.split_names[0]
    with Image.open(photos / images.rows(split).ids[0].decode()) as photo:
        pixels = np.asarray(photo, np.float32)
    expected = np.rint(tf.image.resize(pixels, (8, 8), antialias=True))
    difference = images.features(split)[0].astype(int) - expected
    assert np.abs(difference).max() <= 1
    assert (difference == 0).mean() > 0.99


def test_images_of_several_sizes_need_one(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"a": "RGB"}, side=9)
    write_photos(photos, {"b": "RGB"}, side=12)
    with pytest.raises(SourceError, match=r"12 x 12 pixels and others 9 x 9: .* --image-size"):
        images_of(photos)
    assert images_of(photos, 8).shape == (8, 8, 3)


@pytest.mark.parametrize(("side", "message"), [(300, "sides up to 256"), (3, "at least 4 x 4")])
def test_images_that_no_network_takes_need_a_size(tmp_path: Path, side: int, message: str) -> None:
    photos = write_photos(tmp_path / "photos", {"a": "L", "b": "L"}, side=side)
    with pytest.raises(SourceError, match=message):
        images_of(photos)


def test_images_that_cannot_be_read_are_left_out_and_named(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"a": "L", "b": "L"})
    (photos / "a" / "0.png").write_bytes(b"not an image")
    result = command(photos, tmp_path / "run", "--batch-size", "8")
    assert result.exit_code == 3, result.output
    assert "a/0.png" in result.output
    metrics = open_run(tmp_path / "run").metrics
    assert metrics["n_left_out"] == 1
    assert metrics["n_train"] + metrics["n_validation"] + metrics["n_test"] == 23


def test_a_source_whose_images_are_all_excluded_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"a": "L", "b": "L"})
    images = images_of(photos)
    rows = [
        f"{split},{one.decode()}" for split in images.split_names for one in images.rows(split).ids
    ]
    (tmp_path / "all.csv").write_text("\n".join(["split,id", *rows]))
    result = command(photos, tmp_path / "run", "--exclude", str(tmp_path / "all.csv"))
    assert_refused(result, "every image is left out")


def test_a_source_without_a_readable_image_is_refused(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", {"a": "L", "b": "L"})
    for photo in photos.rglob("*.png"):
        photo.write_bytes(b"not an image")
    with pytest.raises(BadImagesError, match="not one of 24 images could be read"):
        images_of(photos)
