"""Reading run folders: whatever is no run is refused with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from lzma import LZMAError
from pathlib import Path
from typing import Any

import cache_tools
import pytest

from classify.results.runs import (
    load_run,
    reading_model,
    write_history,
    write_metrics,
    write_split,
)
from data_cache.errors import RunError

METRICS = {
    "classes": ["ant", "bee"],
    "selected": "dense",
    "recipe": asdict(cache_tools.RECIPE),
    "provenance": asdict(cache_tools.PROVENANCE),
}


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    write_metrics(tmp_path, METRICS)
    run = load_run(str(tmp_path))
    assert (run.classes, run.selected) == (("ant", "bee"), "dense")
    assert (run.recipe, run.provenance) == (cache_tools.RECIPE, cache_tools.PROVENANCE)


def edit(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        marked = {"format": "headstart-run", "format_version": 1, **METRICS} | changes
        kept = {name: value for name, value in marked.items() if value is not None}
        (folder / "metrics.json").write_text(json.dumps(kept), encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: None, "is no run: it has no readable metrics.json"),
        (lambda folder: (folder / "metrics.json").write_text("{"), "no readable metrics.json"),
        (lambda folder: (folder / "metrics.json").write_text("[]"), "is something else's"),
        (edit(format="another"), "is something else's"),
        (edit(format_version=2), "of format version 2; this program reads version 1"),
        (edit(classes=None), "is not whole"),
        (edit(recipe={"unknown": 1}), "is not whole"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path)
    with pytest.raises(RunError, match=message):
        load_run(tmp_path)


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not there: expected a run"):
        load_run(tmp_path / "nope")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="is a file: expected a run"):
        load_run(tmp_path / "file")


@pytest.mark.parametrize("name", ["dense", "logistic_regression"])
@pytest.mark.parametrize("content", [None, b"damaged"])
def test_a_model_that_is_missing_or_damaged_is_refused(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    write_metrics(tmp_path, METRICS)
    if content is not None:
        for file in ("head.keras", "logistic_regression.npz"):
            (tmp_path / file).write_bytes(content)
    with pytest.raises(RunError, match=r"head\.keras|logistic_regression\.npz"):
        load_run(tmp_path).model(name)


@pytest.mark.parametrize("name", ["dense", "logistic_regression"])
def test_a_model_that_is_no_regular_file_is_not_opened(tmp_path: Path, name: str) -> None:
    write_metrics(tmp_path, METRICS)
    for file in ("head.keras", "logistic_regression.npz"):
        (tmp_path / file).symlink_to("/dev/zero")
    with pytest.raises(RunError, match="is no regular file"):
        load_run(tmp_path).model(name)


def test_what_a_damaged_file_provokes_is_cut_short() -> None:
    for error in (MemoryError("x" * 10_000), EOFError("two\nlines"), OverflowError(), LZMAError()):
        with (
            pytest.raises(RunError, match=r"cannot be read: \S") as caught,
            reading_model(Path("a")),
        ):
            raise error
        assert len(str(caught.value)) < 250
        assert "\n" not in str(caught.value)


def test_a_model_that_no_run_has_is_refused(tmp_path: Path) -> None:
    write_metrics(tmp_path, METRICS)
    with pytest.raises(RunError, match="expected dense or logistic_regression"):
        load_run(tmp_path).model("forest")


def test_ids_survive_commas_quotes_and_line_ends(tmp_path: Path) -> None:
    write_metrics(tmp_path, METRICS)
    ids = ["a,b.jpg", 'say "x".png', "two\nlines", "été"]
    write_split(tmp_path, {"train": [one.encode() for one in ids], "test": [b"t"]})
    assert load_run(tmp_path).part_ids("train") == tuple(ids)
    assert load_run(tmp_path).part_ids("test") == ("t",)


def test_metrics_that_json_cannot_say_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path, {"accuracy": float("nan")})


def test_the_history_has_full_precision(tmp_path: Path) -> None:
    write_history(tmp_path, {"loss": [1 / 3], "val_loss": [0.1]})
    assert (tmp_path / "history.csv").read_text() == f"epoch,loss,val_loss\n1,{1 / 3!r},0.1\n"
