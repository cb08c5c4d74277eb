"""Every look at a test split is counted, whoever looks and however many at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from classify.selection.test_log import Scorings, log_path, ordinal, record_scorings

IDS = np.array([b"test/0", b"test/1"])


def record(cache: Path, *models: str, ids: np.ndarray = IDS) -> Scorings | None:
    return record_scorings(cache, ids, models, Path("run"))


def test_models_are_counted_over_runs(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    assert record(cache, "dense", "logistic_regression") == Scorings(1, 2)
    assert record(cache, "dense") == Scorings(3, 3)


def test_each_test_split_has_a_count_of_its_own(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    record(cache, "dense")
    assert record(cache, "dense", ids=np.array([b"other"])) == Scorings(1, 1)


def test_the_order_of_the_rows_makes_no_other_test(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    record(cache, "dense")
    assert record(cache, "dense", ids=IDS[::-1]) == Scorings(2, 2)


def test_the_count_moves_with_the_cache(tmp_path: Path) -> None:
    cache, moved = tmp_path / "c.h5", tmp_path / "elsewhere" / "c.h5"
    record(cache, "dense")
    moved.parent.mkdir()
    log_path(cache).rename(log_path(moved))
    assert record(moved, "dense") == Scorings(2, 2)


def test_a_line_that_a_killed_writer_left_unfinished_costs_no_other(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    record(cache, "dense")
    with log_path(cache).open("a", encoding="utf-8") as stream:
        stream.write('{"test": "ab')
    assert record(cache, "dense") == Scorings(2, 2)
    assert record(cache, "dense") == Scorings(3, 3)


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from classify.selection.test_log import record_scorings

cache = Path(sys.argv[1])
print("ready", flush=True)
while not (cache.parent / "go").exists():
    time.sleep(0.001)
for _ in range(100):
    print(record_scorings(cache, np.array([b"a"]), ["m"], Path("run")).last)
"""


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    cache = tmp_path / "c.h5"
    words = [sys.executable, "-c", WRITER, str(cache)]
    writers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    (tmp_path / "go").touch()
    places = [int(line) for writer in writers for line in writer.communicate()[0].split()]
    assert sorted(places) == list(range(1, 301))
    lines = log_path(cache).read_text("utf-8").splitlines()
    assert [json.loads(line)["models"] for line in lines] == [["m"]] * 300


def test_where_nothing_can_be_written_the_user_is_warned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_path(tmp_path / "c.h5").mkdir()
    assert record(tmp_path / "c.h5", "dense") is None
    assert "Warning: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scorings", "sentence"),
    [
        (Scorings(17, 17), "This is the 17th model scored on this test"),
        (Scorings(1, 2), "These are the 1st and 2nd models scored on this test"),
        (Scorings(9, 11), "These are the 9th to 11th models scored on this test"),
    ],
)
def test_scorings_are_told_in_words(scorings: Scorings, sentence: str) -> None:
    assert scorings.sentence() == sentence


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (1, "1st"),
        (3, "3rd"),
        (11, "11th"),
        (12, "12th"),
        (22, "22nd"),
        (113, "113th"),
        (1001, "1,001st"),
    ],
)
def test_ordinals(number: int, word: str) -> None:
    assert ordinal(number) == word
