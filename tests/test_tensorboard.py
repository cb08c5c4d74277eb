"""TensorBoard's own readers on what is written for it."""

from __future__ import annotations

import csv
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import cache_tools
import numpy as np
import pytest
from click.testing import CliRunner, Result

from classify.results.tensorboard_log import Session, write_sessions
from classify.sweep_heads.cli import sweep_heads
from classify.train_head.cli import train_head
from data_cache.console import import_keras

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")

N_FEATURES = 8
SHAPE = ("--no-test", "--epochs", "3")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    features = rng.normal(size=(3, N_FEATURES))[labels] + rng.normal(size=(120, N_FEATURES))
    path = tmp_path_factory.mktemp("tensorboard") / "c.h5"
    return cache_tools.write_cache(path, {"train": (features, labels)})


def invoke(command: Any, cache: Path, output: Path, *more: str) -> Result:
    return CliRunner().invoke(command, [str(cache), "--output", str(output), *SHAPE, *more])


@pytest.fixture(scope="module")
def run(cache: Path) -> Path:
    result = invoke(train_head, cache, cache.parent / "run", "--tensorboard")
    assert result.exit_code == 0, result.output
    return cache.parent / "run"


@pytest.fixture(scope="module")
def swept(cache: Path) -> Path:
    words = ["--n-trials", "6", "--n-seeds", "2", "--patience", "none,1", "--tensorboard"]
    result = invoke(sweep_heads, cache, cache.parent / "swept", *words)
    assert result.exit_code == 0, result.output
    return cache.parent / "swept"


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    import_keras()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(folder)).Reload().Tensors(tag)
    return [(one.step, float(make_ndarray(one.tensor_proto))) for one in events]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("part", "tag", "column"),
    [
        ("train", "epoch_loss", "loss"),
        ("train", "epoch_accuracy", "accuracy"),
        ("validation", "epoch_loss", "val_loss"),
        ("validation", "epoch_accuracy", "val_accuracy"),
    ],
)
def test_the_curves_are_those_of_history(run: Path, part: str, tag: str, column: str) -> None:
    rows = read_csv(run / "history.csv")
    expected = [(int(row["epoch"]), float(row[column])) for row in rows]
    found = scalars(run / "tensorboard" / part, tag)
    assert [step for step, _ in found] == [step for step, _ in expected] == [1, 2, 3]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def session_groups(folder: Path) -> Any:
    """What the hparams view lists."""
    import_keras()
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import (
        api_pb2,
        backend_context,
        get_experiment,
        list_session_groups,
    )

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(folder))
    context = backend_context.Context(TBContext(logdir=str(folder), data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0,
        slice_size=100,
        allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],
        aggregation_type=api_pb2.AGGREGATION_AVG,
    )
    request.col_params.add(metric={"group": "", "tag": "log_loss"})
    place = (RequestContext(), context, "experiment")
    asked = api_pb2.GetExperimentRequest(include_metrics=True)
    experiment = get_experiment.Handler(*place, asked).run()
    assert {one.name.tag for one in experiment.metric_infos} >= {"accuracy", "log_loss"}
    return list_session_groups.Handler(*place, request).run().session_groups


def test_the_hparams_view_lists_every_trial_with_its_seeds(swept: Path) -> None:
    groups = session_groups(swept / "tensorboard")
    rows = read_csv(swept / "sweep.csv")
    assert len(groups) == 6
    for group in groups:
        trial = [row for row in rows if int(row["trial"]) == int(group.name)]
        assert len(group.sessions) == len(trial) == 2
        given = group.hparams
        assert given["learning_rate"].number_value == float(trial[0]["learning_rate"])
        assert given["standardize"].bool_value == (trial[0]["standardize"] == "True")
        assert ("patience" in given) == (trial[0]["patience"] != "")
        (loss,) = (one.value for one in group.metric_values if one.name.tag == "log_loss")
        mean = np.mean([float(row["log_loss"]) for row in trial])
        assert loss == pytest.approx(mean)


def test_a_diverged_head_is_a_failed_session(tmp_path: Path) -> None:
    figures = {"accuracy": nan, "log_loss": nan}
    whole = Session("00002", "00002", {"dropout": 0.5}, {"accuracy": 0.5, "log_loss": 1.0})
    write_sessions(tmp_path, [Session("00001", "00001", {"dropout": 0.2}, figures), whole])
    groups = {one.name: one for one in session_groups(tmp_path)}
    statuses = {name: group.sessions[0].status for name, group in groups.items()}
    from tensorboard.plugins.hparams import api_pb2

    assert statuses == {"00001": api_pb2.STATUS_FAILURE, "00002": api_pb2.STATUS_SUCCESS}


def test_a_run_with_a_folder_for_tensorboard_is_replaced_whole(cache: Path, run: Path) -> None:
    result = invoke(train_head, cache, run, "--tensorboard", "--overwrite")
    assert result.exit_code == 0, result.output
    assert len(list((run / "tensorboard").iterdir())) == 2


def test_a_strangers_file_among_the_events_is_never_replaced(cache: Path, tmp_path: Path) -> None:
    assert invoke(train_head, cache, tmp_path / "run", "--tensorboard").exit_code == 0
    notes = tmp_path / "run" / "tensorboard" / "train" / "notes.txt"
    notes.write_text("precious")
    result = invoke(train_head, cache, tmp_path / "run", "--overwrite")
    assert result.exit_code == 2
    assert "holds tensorboard/train/notes.txt too" in result.stderr
    assert notes.read_text() == "precious"


@pytest.mark.parametrize("command", [train_head, sweep_heads])
def test_without_the_package_the_extra_is_named_before_anything_is_trained(
    command: Callable[..., Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("classify.results.tensorboard_log.find_spec", lambda _: None)
    result = invoke(command, cache, tmp_path / "run", "--tensorboard")
    assert result.exit_code == 2
    assert "--tensorboard needs tensorboard: pip install '.[tensorboard]'" in result.stderr
