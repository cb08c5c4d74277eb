"""``fine-tune`` from end to end: the better model is kept, whatever happens on the way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from fine_tune_tools import OPTIONS, Bench, kill_fine_tuning, make_bench, stripes
from numpy.typing import NDArray
from tiny_backbone import TINY

import classify
from classify.export.exporting import ExportOptions, export_model
from classify.fine_tune import tuning
from classify.fine_tune.cli import fine_tune as command
from classify.fine_tune.features import Features
from classify.fine_tune.job import state_folder
from classify.fine_tune.options import Demands
from classify.fine_tune.pixels import PixelInputs
from classify.fine_tune.rows import SourceRows
from classify.fine_tune.summary import summarize
from classify.fine_tune.tuning import fine_tune
from classify.predict.classifiers import PredictOptions
from classify.probes import LogisticRegressionProbe
from classify.results import runs
from classify.results.runs import Run, load_run
from classify.statistics.intervals import wilson_interval
from data_cache.cache import FeatureCache
from data_cache.console import import_keras
from data_cache.errors import HeadstartError, OutputExistsError, TrainingError, WeightsError
from data_cache.files import TEMPORARY_MARK
from extract.backbones import BACKBONES
from extract.preprocess import Preprocessing, preprocess
from extract.sources import SourceOptions, open_source
from extract.weights import random_weights


@pytest.fixture(scope="module", autouse=True)
def tiny_in_registry() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "tiny", TINY)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, tiny_in_registry: None) -> Bench:
    return make_bench(tmp_path_factory.mktemp("fine_tune"))


@pytest.fixture(scope="module")
def tuned(bench: Bench) -> Run:
    return fine_tune(bench.source(), bench.head, bench.folder / "tuned", OPTIONS)


@pytest.fixture(scope="module")
def destroyed(bench: Bench) -> Run:
    """What comes of a setting that can only do harm."""
    harmful = replace(OPTIONS, learning_rate=1.0, unfreeze_layers=10, epochs=1)
    return fine_tune(bench.source(), bench.head, bench.folder / "destroyed", harmful)


def read_csv(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text().splitlines()]


def tuned_logits(run: Run, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Compute a run's logits with Keras alone, from its two files."""
    keras = import_keras()
    backbone = TINY.build(16)
    backbone.load_weights(run.path / "backbone.weights.h5")
    head = keras.saving.load_model(run.path / "head.keras", compile=False)
    pixels = preprocess(images, Preprocessing(TINY.scaling, 16))
    return np.asarray(head(backbone(pixels, training=False), training=False))


def test_what_beats_the_probe_is_kept_and_its_files_give_the_figures(tuned: Run) -> None:
    images, labels = stripes(90, seed=1)
    predictions = tuned_logits(tuned, images).argmax(axis=1)
    right = int((predictions == labels).sum())
    assert tuned.kind == "fine-tuned"
    assert tuned.metrics["test_accuracy"] == pytest.approx(right / 90)
    assert tuned.metrics["test_accuracy_ci95"] == pytest.approx(wilson_interval(right, 90))
    rows = read_csv(tuned.path / "test_predictions.csv")[1:]
    assert [row[2] for row in rows] == [str(one) for one in predictions]
    assert [row[1] for row in rows] == [str(one) for one in labels]


def test_it_beats_the_probe_on_the_rows_that_decide(bench: Bench, tuned: Run) -> None:
    head, attempt = load_run(bench.head), tuned.metrics["fine_tuning"]
    labels = dict(zip(*labeled_ids(bench, "train"), strict=True))
    features = features_by_id(bench, "train")
    probe = LogisticRegressionProbe(head.metrics["logistic_regression"]["C"])
    train, validation = (head.part_ids(part) for part in ("train", "validation"))
    probe.fit([features[one] for one in train], [labels[one] for one in train])
    expected = probe.score(
        [features[one] for one in validation], [labels[one] for one in validation]
    )
    assert attempt["probe_accuracy"] == pytest.approx(expected)
    assert attempt["kept"] == "fine-tuned"
    assert attempt["lower_bound"] > 0
    assert summarize(tuned).startswith("Fine-tuning is kept: on the 60 validation rows")


def labeled_ids(bench: Bench, split: str) -> tuple[list[str], list[int]]:
    rows = bench.source().manifest.splits[split]
    return [one.decode() for one in rows.ids.tolist()], rows.labels.tolist()


def features_by_id(bench: Bench, split: str) -> dict[str, NDArray[np.float32]]:
    with FeatureCache.open(bench.cache) as cache:
        ids = [one.decode() for one in cache.rows(split).ids.tolist()]
        return dict(zip(ids, cache.features(split), strict=True))


def test_the_same_rows_train_and_validate_as_in_the_head(bench: Bench, tuned: Run) -> None:
    head = load_run(bench.head)
    for part in ("train", "validation", "test"):
        assert tuned.part_ids(part) == head.part_ids(part)


def test_new_images_are_classified_by_the_tuned_backbone(tuned: Run) -> None:
    images, _ = stripes(6, seed=2)
    classifier = classify.load(
        tuned.path, PredictOptions(engine="keras", probabilities="calibrated")
    )
    logits = tuned_logits(tuned, images).astype(float) / tuned.metrics["dense"]["temperature"]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.predict(images).probabilities, shares, atol=1e-5)


def test_a_fine_tuned_run_is_exported_with_its_own_backbone(tuned: Run, tmp_path: Path) -> None:
    exported = export_model(tuned.path, tmp_path / "m.keras", ExportOptions(format="keras"))
    images, _ = stripes(4, seed=2)
    model = import_keras().saving.load_model(exported.path, compile=False)
    expected = tuned_logits(tuned, images)
    found = model(images.astype(np.float32))
    np.testing.assert_allclose(np.asarray(found["logits"]), expected, atol=1e-4)


def test_only_the_layers_asked_for_have_changed_and_no_statistics(tuned: Run) -> None:
    backbone = TINY.build(16)
    backbone.load_weights(tuned.path / "backbone.weights.h5")
    start = {
        layer.name: arrays
        for layer, arrays in zip(TINY.layout().layers, random_weights(TINY).arrays, strict=True)
    }
    changed = {
        name
        for layer in backbone.layers
        for name, one in ([(layer.name, layer)] if layer.name in start else sublayers(layer))
        for before, after in zip(start.get(name, ()), one.get_weights(), strict=False)
        if not np.array_equal(before, after)
    }
    assert {"top_conv", "mix_conv", "down_conv", "block_depthwise"} <= changed
    assert not changed & {"stem_conv", "stem_bn", "block_bn"}
    assert tuned.metrics["trainable_parameters"] < backbone.count_params()


def sublayers(layer: Any) -> list[tuple[str, Any]]:
    return [(one.name, one) for one in getattr(layer, "layers", [])]


def test_the_run_has_every_file_and_no_state_is_left(tuned: Run) -> None:
    names = {one.name for one in tuned.path.iterdir()}
    assert names == {
        "backbone.weights.h5",
        "head.keras",
        "metrics.json",
        "split.csv",
        "history.csv",
        "learning_curves.png",
        "confusion_matrix.png",
        "test_predictions.csv",
        "report.html",
    }
    assert not state_folder(tuned.path).exists()
    history = read_csv(tuned.path / "history.csv")
    assert history[0] == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy"]
    assert len(history) == 1 + OPTIONS.epochs


def test_what_does_harm_leaves_the_probe_and_says_so(bench: Bench, destroyed: Run) -> None:
    head = load_run(bench.head)
    attempt = destroyed.metrics["fine_tuning"]
    assert (destroyed.kind, destroyed.recipe) == ("head", head.recipe)
    assert destroyed.metrics["test_accuracy"] == head.metrics["test_accuracy"]
    for name in runs.MODEL_FILES.values():
        assert (destroyed.path / name).read_bytes() == (bench.head / name).read_bytes()
    assert not (destroyed.path / "backbone.weights.h5").exists()
    words = summarize(destroyed)
    assert words.startswith("The probe is kept")
    assert f"{attempt['tuned_accuracy']:.4f}" in words
    assert f"{attempt['probe_accuracy']:.4f}" in words


def test_the_test_is_opened_once_and_only_for_what_is_kept(
    bench: Bench, tuned: Run, destroyed: Run
) -> None:
    log = bench.cache.with_name("stripes.h5.scorings.jsonl")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    by_run = {record["run"]: record["models"] for record in records}
    assert by_run[str(tuned.path)] == ["fine-tuned"]
    assert str(destroyed.path) not in by_run
    assert [record["run"] for record in records].count(str(tuned.path)) == 1


def test_killed_in_the_middle_of_an_epoch_and_resumed_it_ends_with_the_same_weights(
    bench: Bench, tuned: Run, tmp_path: Path
) -> None:
    output = tmp_path / "killed"
    kill_fine_tuning(bench.images, bench.head, output, OPTIONS)
    assert not output.exists()
    with pytest.raises(OutputExistsError, match="--resume"):
        fine_tune(bench.source(), bench.head, output, OPTIONS)
    resumed = fine_tune(bench.source(), bench.head, output, replace(OPTIONS, resume=True))
    assert resumed.recipe.weights_digest == tuned.recipe.weights_digest
    for ours, theirs in zip(head_weights(resumed), head_weights(tuned), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (output / "history.csv").read_bytes() == (tuned.path / "history.csv").read_bytes()
    assert not any(TEMPORARY_MARK in one.name for one in tmp_path.rglob("*"))


def head_weights(run: Run) -> list[NDArray[np.float32]]:
    model = import_keras().saving.load_model(run.path / "head.keras", compile=False)
    return [np.asarray(one) for one in model.get_weights()]


def test_interrupted_it_keeps_the_last_epoch_and_writes_no_run(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "interrupted"
    batch = PixelInputs.batch

    def interrupted(inputs: PixelInputs, rows: NDArray[np.int64], epoch: int) -> Any:
        if epoch == 1:
            raise KeyboardInterrupt
        return batch(inputs, rows, epoch)

    monkeypatch.setattr(PixelInputs, "batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(bench.source(), bench.head, output, OPTIONS)
    assert not output.exists()
    assert [one.name for one in state_folder(output).iterdir()] == ["checkpoint.h5"]
    other = replace(OPTIONS, resume=True, learning_rate=1e-3)
    with pytest.raises(HeadstartError, match=r"learning_rate 0\.01, not 0\.001"):
        fine_tune(bench.source(), bench.head, output, other)


def test_a_head_is_trained_on_the_spot_where_none_is_given(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "alone"
    options = replace(
        OPTIONS,
        epochs=1,
        weights="random",
        no_test=True,
        cache=tmp_path / "own.h5",
        demands=Demands(backbone="tiny", image_size=16),
    )
    shutil.copy(bench.cache, tmp_path / "own.h5")
    run = fine_tune(bench.source(), None, output, options)
    assert run.metrics["fine_tuning"]["head"].endswith("head")
    assert run.part_ids("train") == load_run(bench.head).part_ids("train")
    assert run.metrics["test_accuracy"] is None
    assert not state_folder(output).exists()


def test_the_command_prints_the_decision(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(bench.images), "--head", str(bench.head), "--output", str(tmp_path / "run")]
    words += ["--epochs", "1", "--unfreeze-layers", "3", "--augment", "--schedule", "cosine"]
    words += ["--resume"]
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 0, done.output
    assert "The probe is kept" in done.stdout
    assert "logits within" in done.stderr
    nothing = f"nothing to go on with at {tmp_path / 'run.fine-tuning'}: beginning anew"
    assert done.stderr.count(nothing) == 1


@pytest.mark.parametrize(
    ("n_layers", "words"),
    [
        (0, "the head alone"),
        (1, "the last layer of tiny and the head"),
        (20, "the last 20 layers of tiny and the head"),
    ],
)
def test_what_is_trained_is_said_in_words(n_layers: int, words: str) -> None:
    assert tuning._what_trains(n_layers, "tiny") == words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unfreeze_layers": 12}, "12 layers to unfreeze, but tiny has 11"),
        ({"demands": Demands(backbone="resnet50")}, "backbone tiny, not resnet50"),
        ({"demands": Demands(image_size=32)}, "image size 16, not 32"),
        ({"demands": Demands(resize_mode="crop")}, "resize mode stretch, not crop"),
        ({"mixed_precision": True}, "mixed precision needs a GPU"),
    ],
)
def test_what_the_head_cannot_be_is_refused_with_both_values(
    bench: Bench, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(HeadstartError, match=message):
        fine_tune(bench.source(), bench.head, tmp_path / "run", replace(OPTIONS, **changes))
    assert not any(tmp_path.iterdir())


def test_other_weights_than_the_heads_are_refused(bench: Bench, tmp_path: Path) -> None:
    model = TINY.build(16)
    model.save_weights(tmp_path / "other.weights.h5")
    options = replace(OPTIONS, weights=str(tmp_path / "other.weights.h5"))
    with pytest.raises(WeightsError, match="but the features were made with those of digest"):
        fine_tune(bench.source(), bench.head, tmp_path / "run", options)


def changed_head(bench: Bench, folder: Path, **changes: Any) -> Path:
    shutil.copytree(bench.head, folder)
    metrics = json.loads((folder / "metrics.json").read_text()) | changes
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def test_a_head_that_learned_from_its_validation_rows_is_refused(
    bench: Bench, tmp_path: Path
) -> None:
    head = changed_head(bench, tmp_path / "head", refit="train+val")
    with pytest.raises(HeadstartError, match="--refit train"):
        fine_tune(bench.source(), head, tmp_path / "run", OPTIONS)


def test_a_head_on_another_layer_is_refused(bench: Bench, tmp_path: Path) -> None:
    recipe = json.loads((bench.head / "metrics.json").read_text())["recipe"]
    head = changed_head(bench, tmp_path / "head", recipe=recipe | {"feature_layer": "mix_add"})
    with pytest.raises(HeadstartError, match=r"layer mix_add.*avg_pool"):
        fine_tune(bench.source(), head, tmp_path / "run", OPTIONS)


def test_other_classes_are_refused_with_both(bench: Bench, tmp_path: Path) -> None:
    head = changed_head(bench, tmp_path / "head", classes=["0", "1", "zebra"])
    with pytest.raises(HeadstartError, match=r"'2'.*'zebra'"):
        fine_tune(bench.source(), head, tmp_path / "run", OPTIONS)


def test_rows_that_the_source_lacks_are_refused_and_more_take_no_part(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = open_source(str(bench.images), SourceOptions(train_limit=200))
    with pytest.raises(HeadstartError, match=r"lacks \d+ of the 240 train rows"):
        fine_tune(source, bench.head, tmp_path / "run", OPTIONS)
    head = tmp_path / "head"
    shutil.copytree(bench.head, head)
    lines = (head / "split.csv").read_text().splitlines(keepends=True)
    (head / "split.csv").write_text("".join(lines[:1] + lines[4:]))
    small = replace(OPTIONS, epochs=1)
    run = fine_tune(bench.source(), head, tmp_path / "run", small)
    assert "3 images" in capsys.readouterr().err
    assert len(run.part_ids("train")) == 237


def test_two_paths_that_differ_stop_the_run(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Features.of

    def spoiled(features: Features, rows: SourceRows) -> NDArray[np.float32]:
        return of(features, rows) * np.float32(1.01)

    monkeypatch.setattr(Features, "of", spoiled)
    with pytest.raises(TrainingError, match="give other logits"):
        fine_tune(bench.source(), bench.head, tmp_path / "run", OPTIONS)


def test_a_loss_that_is_no_number_ends_it_and_keeps_the_last_good_epoch(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = PixelInputs.batch

    def spoiled(inputs: PixelInputs, rows: NDArray[np.int64], epoch: int) -> Any:
        (pixels,) = batch(inputs, rows, epoch)
        return (pixels * np.float32(np.nan if epoch == 1 else 1),)

    monkeypatch.setattr(PixelInputs, "batch", spoiled)
    words = [str(bench.images), "--head", str(bench.head), "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(command, [*words, "--epochs", "3", "--unfreeze-layers", "3"])
    assert done.exit_code == 1
    assert "the loss became nan in epoch 2" in done.stderr
    assert (state_folder(tmp_path / "run") / "checkpoint.h5").exists()
    assert not (tmp_path / "run").exists()


def test_an_image_that_changed_since_is_refused(bench: Bench, tmp_path: Path) -> None:
    source = bench.source()
    fetch = source.fetch
    source.fetch = lambda split, row: fetch(split, (row + 1) % 90)  # type: ignore[method-assign]
    with pytest.raises(HeadstartError, match="changed after it was listed"):
        fine_tune(source, bench.head, tmp_path / "run", OPTIONS)
