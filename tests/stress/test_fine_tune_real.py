"""Fine-tuning with real weights on photos: a kill that leaves no trace, and harm that is undone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fine_tune_tools import kill_fine_tuning

from classify.fine_tune.options import FineTuneOptions
from classify.fine_tune.summary import summarize
from classify.fine_tune.tuning import fine_tune
from classify.results.runs import Run, load_run
from classify.train_head.job import TrainingOptions, train_head
from data_cache.console import import_keras
from extract.extraction import ExtractionOptions, extract_features
from extract.sources import Source, SourceOptions, open_source

SHARED = Path(__file__).parents[3] / "shared"
PHOTOS = SHARED / "data" / "cats_dogs"
WEIGHTS = SHARED / "weights" / "mobilenet_v2_1.0_96_no_top.h5"

pytestmark = [
    pytest.mark.stress,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not WEIGHTS.exists(), reason="no real weights in ../shared"),
]

OPTIONS = FineTuneOptions(learning_rate=1e-4, epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def source() -> Source:
    return open_source(str(PHOTOS), SourceOptions(train_limit=320, test_limit=100))


@pytest.fixture(scope="module")
def head(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("real")
    options = ExtractionOptions(weights=str(WEIGHTS), image_size=96)
    extract_features(source, folder / "photos.h5", options)
    return train_head(folder / "photos.h5", folder / "head", TrainingOptions())


def weights_of(run: Run) -> list[np.ndarray]:
    model = import_keras().saving.load_model(run.path / "head.keras", compile=False)
    return [np.asarray(one) for one in model.get_weights()]


def test_killed_and_resumed_it_ends_with_the_same_weights(
    source: Source, head: Run, tmp_path: Path
) -> None:
    whole = fine_tune(source, head.path, tmp_path / "whole", OPTIONS)
    kill_fine_tuning(PHOTOS, head.path, tmp_path / "killed", OPTIONS)
    assert not (tmp_path / "killed").exists()
    resumed = fine_tune(source, head.path, tmp_path / "killed", replace(OPTIONS, resume=True))
    whole_attempt, attempt = (one.metrics["fine_tuning"] for one in (whole, resumed))
    assert attempt["history"] == whole_attempt["history"]
    assert resumed.recipe.weights_digest == whole.recipe.weights_digest
    for ours, theirs in zip(weights_of(resumed), weights_of(whole), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_destructive_setting_leaves_the_probe(source: Source, head: Run, tmp_path: Path) -> None:
    options = replace(OPTIONS, learning_rate=1e-2, unfreeze_layers=154, epochs=1)
    run = fine_tune(source, head.path, tmp_path / "run", options)
    assert run.kind == "head"
    assert run.recipe == load_run(head.path).recipe
    assert run.metrics["test_accuracy"] == head.metrics["test_accuracy"]
    assert summarize(run).startswith("The probe is kept")
