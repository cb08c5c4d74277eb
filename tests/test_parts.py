"""Parts: any jobs side by side, bound to what one run over the whole source gives."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cache_tools import RECIPE, assert_same_cache, contents_of, fake_engine
from click.testing import CliRunner, Result
from extraction_process import extract, start
from hypothesis import given
from hypothesis import strategies as st
from image_files import png_bytes, write_images
from tiny_onnx import write_tiny_onnx

from data_cache import shards
from data_cache.bad_images import bad_images_file
from data_cache.cache import FeatureCache
from data_cache.cli import feature_cache
from data_cache.errors import ParameterError
from data_cache.files import TEMPORARY_MARK
from data_cache.layout import RECORD_PATTERN, SHARD_PATTERN, Storage, parts_folder
from data_cache.part import Part
from data_cache.shards import write_shard
from data_cache.update import UpdateOptions
from data_cache.verify import verify
from extract.cli import extract_features
from extract.sources import SourceOptions, files, open_source

N_PARTS = 3
N_IMAGES = 40
NEW_IMAGE = np.array([b"bee/new.png"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, one of them of a single image; a copy, and two files that are no images."""
    root = tmp_path_factory.mktemp("source") / "photos"
    for k, name in enumerate(("ant", "bee", "cat")):
        write_images(root / name, N_IMAGES if k < 2 else 1, seed=1000 * k)
    (root / "bee" / "copy.png").write_bytes(png_bytes(3))
    (root / "ant" / "bad.png").write_bytes(b"no image")
    (root / "bee" / "worse.png").write_bytes(b"none either")
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    name, preprocess = write_tiny_onnx(tmp_path_factory.mktemp("model"))
    return ["--backbone", name, "--preprocess", str(preprocess), "--batch-size", "8"]


def run(source: Path, output: Path, *words: str) -> Result:
    return CliRunner().invoke(
        extract_features, [str(source), "--output", str(output), *words], catch_exceptions=False
    )


def run_parts(source: Path, output: Path, *words: str) -> list[Result]:
    """Run every part, the last first."""
    return [run(source, output, "--part", f"{k}/{N_PARTS}", *words) for k in range(N_PARTS, 0, -1)]


def two_classes(folder: Path) -> Path:
    """Write a few images of two classes; return their folder."""
    for k, name in enumerate(("ant", "bee")):
        write_images(folder / "photos" / name, 20, seed=100 * k)
    return folder / "photos"


def merge(*words: object) -> Result:
    return CliRunner().invoke(feature_cache, ["merge", *map(str, words)], catch_exceptions=False)


def contents_of_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.lists(st.binary(min_size=1, max_size=20), unique=True), st.integers(1, 9))
def test_every_image_is_in_one_part_whatever_other_images_there_are(
    names: list[bytes], n_parts: int
) -> None:
    ids = np.array(names, object)
    members = np.array([Part(k, n_parts).has(ids) for k in range(1, n_parts + 1)])
    assert (members.sum(axis=0) == 1).all()
    few = ids[::2]
    again = np.array([Part(k, n_parts).has(few) for k in range(1, n_parts + 1)])
    np.testing.assert_array_equal(again, members[:, ::2])


def test_parts_are_of_about_one_size() -> None:
    ids = np.array([f"train/{k:06d}".encode() for k in range(64_000)])
    sizes = [int(Part(k, 64).has(ids).sum()) for k in (1, 17, 64)]
    assert all(abs(size - 1000) < 5 * 1000**0.5 for size in sizes)


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "1/0", "-1/4", "1/4/2", ""])
def test_part_that_is_none_is_refused_with_exit_code_2(text: str, tmp_path: Path) -> None:
    with pytest.raises(ParameterError):
        Part.parse(text)
    result = run(tmp_path, tmp_path / "c.h5", "--part", text)
    assert result.exit_code == 2
    assert "part" in result.output


@pytest.mark.parametrize(
    "options", [(), ("--sharded", "--dtype", "float16"), ("--train-limit", "50")]
)
@pytest.mark.parametrize("bind", ["merge", "extract"])
def test_parts_bound_are_what_one_run_gives(
    photos: Path, backbone: list[str], tmp_path: Path, bind: str, options: tuple[str, ...]
) -> None:
    path = tmp_path / "parts.h5"
    results = run_parts(photos, path, *backbone, *options)
    assert {result.exit_code for result in results} <= {0, 3}
    assert 3 in {result.exit_code for result in results}
    assert not path.exists()
    bound = merge(path) if bind == "merge" else run(photos, path, *backbone, *options)
    assert bound.exit_code == 3
    assert bind == "merge" or "left out as before" in bound.output
    whole = run(photos, tmp_path / "whole.h5", *backbone, *options)
    assert whole.exit_code == 3
    assert_same_cache(path, tmp_path / "whole.h5")
    assert parts_folder(path).exists() == ("--sharded" in options)
    lists = [bad_images_file(one).read_text() for one in (path, tmp_path / "whole.h5")]
    assert len(set(map(frozenset, (text.splitlines() for text in lists)))) == 1
    assert "up to date" in run(photos, path, *backbone, *options).output


def test_parts_of_arrays_bound_are_what_one_run_gives(backbone: list[str], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    source = tmp_path / "x.npz"
    np.savez(
        source,
        x_train=rng.integers(0, 256, (50, 9, 9), np.uint8),
        y_train=np.arange(50) % 3,
        x_test=rng.integers(0, 256, (9, 9, 9), np.uint8),
        y_test=np.arange(9) % 3,
    )
    run_parts(source, tmp_path / "parts.h5", *backbone)
    assert merge(tmp_path / "parts.h5").exit_code == 0
    run(source, tmp_path / "whole.h5", *backbone)
    assert_same_cache(tmp_path / "parts.h5", tmp_path / "whole.h5")


def test_part_that_runs_again_changes_nothing(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    run(photos, path, *backbone, "--part", "2/3")
    before = contents_of_folder(parts_folder(path))
    assert "0 extracted" in run(photos, path, *backbone, "--part", "2/3").output
    assert contents_of_folder(parts_folder(path)) == before
    run_parts(photos, path, *backbone)
    assert merge(path).exit_code == 3
    bound = path.read_bytes()
    for result in run_parts(photos, path, *backbone):
        assert "up to date" in result.output
    assert merge(path).exit_code == 3
    assert path.read_bytes() == bound
    assert not parts_folder(path).exists()


def test_part_reads_no_file_of_another_part(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    digest = files._digest

    def noted(path: Path) -> object:
        read.append(path.relative_to(photos).as_posix())
        return digest(path)

    monkeypatch.setattr(files, "_digest", noted)
    per_part = []
    for k in range(1, N_PARTS + 1):
        read.clear()
        open_source(str(photos), SourceOptions(part=Part(k, N_PARTS), rehash=True))
        per_part.append(set(read))
    n_files = sum(path.is_file() for path in photos.rglob("*"))
    assert sum(map(len, per_part)) == len(set.union(*per_part)) == n_files


def test_parts_that_have_not_finished_are_named(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    assert "has no finished parts" in merge(path).output
    run(photos, path, *backbone, "--part", "2/4")
    result = merge(path)
    assert (result.exit_code, path.exists()) == (2, False)
    assert "3 of 4 parts have not finished: run --part 1/4, 3/4, 4/4 again" in result.output


def test_parts_of_different_lists_are_not_bound_together(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    run(photos, path, *backbone, "--part", "1/2")
    run(photos, path, *backbone, "--part", "2/2", "--test-fraction", "0.5")
    result = merge(path)
    assert result.exit_code == 2
    assert "were not cut from the same list of images with the same options" in result.output
    assert "with the options of part" in result.output
    run(photos, path, *backbone, "--part", "2/2")
    assert merge(path).exit_code == 3


def test_record_of_another_number_of_parts_is_left_out_and_dropped(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    few = [*backbone, "--train-limit", "20"]
    run(photos, path, *few, "--part", "1/3")
    run(photos, path, *few, "--part", "3/3")
    run(photos, path, *backbone, "--part", "2/2")
    lacking = merge(path)
    assert (lacking.exit_code, path.exists()) == (2, False)
    assert "part 2/2 and 1/3 were not cut from the same list" in lacking.output
    assert "run --part 2/3 again with the options of parts 1/3, 3/3" in lacking.output
    run(photos, path, *few, "--part", "2/3")
    bound = merge(path)
    assert bound.exit_code == 3
    assert "part 2/2 left out" in bound.output
    run(photos, tmp_path / "whole.h5", *few)
    assert_same_cache(path, tmp_path / "whole.h5")
    assert not list(parts_folder(path).glob(RECORD_PATTERN))


def test_parts_cut_twice_from_one_list_name_what_is_lacking(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    for part in ("1/3", "3/3", "2/2"):
        run(photos, path, *backbone, "--part", part)
    assert (
        "1 of 3 parts have not finished, and part 2/2 cut it into another number of parts: "
        "run --part 2/3 again\n" in merge(path).output
    )


def test_two_whole_sets_of_parts_are_not_chosen_between(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    run(photos, path, *backbone, "--part", "1/1", "--seed", "5")
    for part in ("1/2", "2/2"):
        run(photos, path, *backbone, "--part", part)
    result = merge(path)
    assert (result.exit_code, path.exists()) == (2, False)
    assert "part 1/1 and parts 1/2, 2/2 are each all parts of a source" in result.output


@pytest.mark.parametrize("options", [(), ("--sharded",)])
def test_parts_of_a_source_that_grew_by_one_image_are_bound(
    backbone: list[str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    photos, path = two_classes(tmp_path), tmp_path / "c.h5"
    run_parts(photos, path, *backbone, *options)
    assert merge(path).exit_code == 0
    (photos / "bee" / "new.png").write_bytes(png_bytes(77))
    outcomes = [result.output for result in run_parts(photos, path, *backbone, *options)]
    assert sum("up to date" in text for text in outcomes) == N_PARTS - 1
    for _ in range(2):
        bound = merge(path)
        assert (bound.exit_code, bound.stderr) == (0, "")
        assert not list(tmp_path.rglob(RECORD_PATTERN))
    run(photos, tmp_path / "whole.h5", *backbone)
    assert_same_cache(path, tmp_path / "whole.h5")


def test_part_that_died_before_the_others_had_news_is_missed(
    backbone: list[str], tmp_path: Path
) -> None:
    photos, path = two_classes(tmp_path), tmp_path / "c.h5"
    run_parts(photos, path, *backbone)
    assert merge(path).exit_code == 0
    (photos / "bee" / "new.png").write_bytes(png_bytes(77))
    quiet = next(k for k in range(1, N_PARTS + 1) if not Part(k, N_PARTS).has(NEW_IMAGE).any())
    run(photos, path, *backbone, "--part", f"{quiet}/{N_PARTS}")
    result = merge(path)
    others = ", ".join(f"{k}/{N_PARTS}" for k in range(1, N_PARTS + 1) if k != quiet)
    assert result.exit_code == 2
    assert f"run --part {others} again\n" in result.output


def test_sharded_cache_with_shards_that_no_part_finished_is_not_called_bound(
    backbone: list[str], tmp_path: Path
) -> None:
    photos, path = two_classes(tmp_path), tmp_path / "c.h5"
    run(photos, path, *backbone, "--sharded")
    assert merge(path).exit_code == 0
    content = contents_of(["unbound"])
    write_shard(parts_folder(path), RECIPE, content, fake_engine(content), Storage(sharded=True))
    assert "has no finished parts" in merge(path).output


def test_stale_record_goes_when_its_part_runs_again(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    run_parts(photos, path, *backbone)
    assert merge(path).exit_code == 3
    run(photos, path, *backbone, "--part", "1/3", "--seed", "5")
    assert merge(path).exit_code == 2
    run_parts(photos, path, *backbone)
    assert merge(path).exit_code == 3
    assert not parts_folder(path).exists()


def test_verification_says_that_parts_are_not_bound_yet(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    run_parts(photos, path, *backbone)
    words = ["verify", str(path)]
    unbound = CliRunner().invoke(feature_cache, words)
    assert f"3 parts are not bound yet: `feature-cache merge {path}`" in unbound.output
    assert unbound.exit_code == 0
    merge(path)
    assert "not bound" not in CliRunner().invoke(feature_cache, words).output


def test_parts_take_no_lock(photos: Path, backbone: list[str], tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    run(photos, path, *backbone, "--part", "1/2")
    assert not (tmp_path / ".c.h5.lock").exists()


def test_shard_that_a_binder_cleared_away_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, folder = shards.write_all, parts_folder(tmp_path / "c.h5")
    n_calls = 0

    def cleared(stream: object, data: memoryview) -> None:
        nonlocal n_calls
        n_calls += 1
        write(stream, data)
        if n_calls < 3:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    monkeypatch.setattr(shards, "write_all", cleared)
    content = contents_of(["a", "b"])
    shard = write_shard(folder, RECIPE, content, fake_engine(content), Storage())
    assert (n_calls, shard.stored.path.exists()) == (3, True)
    assert verify(tmp_path / "c.h5").faults == ()


def test_damaged_record_is_named_and_repair_drops_it(
    photos: Path, backbone: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "c.h5"
    run_parts(photos, path, *backbone)
    record = parts_folder(path) / "part-2-of-3.h5"
    data = bytearray(record.read_bytes())
    data[-9] ^= 1
    record.write_bytes(data)
    assert [fault.path for fault in verify(path).faults] == [record]
    assert merge(path).exit_code == 1
    CliRunner().invoke(feature_cache, ["repair", str(path)])
    assert "run --part 2/3 again" in merge(path).output
    assert "0 extracted" in run(photos, path, *backbone, "--part", "2/3").output
    assert merge(path).exit_code == 3


def test_pruning_and_appending_concern_the_whole(tmp_path: Path) -> None:
    for word in ("prune", "append"):
        with pytest.raises(ParameterError, match="concern the whole source"):
            UpdateOptions(part=Part(1, 2), **{word: True})


def test_images_that_come_later_are_extracted_by_their_parts_alone(
    backbone: list[str], tmp_path: Path
) -> None:
    for k, name in enumerate(("ant", "bee")):
        write_images(tmp_path / "photos" / name, 20, seed=100 * k)
    path = tmp_path / "c.h5"
    run_parts(tmp_path / "photos", path, *backbone)
    assert merge(path).exit_code == 0
    write_images(tmp_path / "photos" / "cow", 6, seed=900)
    outputs = [result.output for result in run_parts(tmp_path / "photos", path, *backbone)]
    assert sum(int(text.split(" extracted")[0].split()[-1]) for text in outputs) == 6
    assert merge(path).exit_code == 0
    run(tmp_path / "photos", tmp_path / "whole.h5", *backbone)
    with FeatureCache.open(path) as cache:
        assert cache.classes == ("ant", "bee", "cow")
        assert sum(map(cache.n_rows, cache.split_names)) == 46
    assert_same_cache(path, tmp_path / "whole.h5")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
@pytest.mark.parametrize(
    "n_kills", [1, pytest.param(12, marks=[pytest.mark.stress, pytest.mark.timeout(600)])]
)
def test_parts_killed_and_run_again_side_by_side_are_what_one_run_gives(
    tmp_path: Path, n_kills: int
) -> None:
    rng = np.random.default_rng(n_kills)
    for k, name in enumerate(("ant", "bee")):
        write_images(tmp_path / "photos" / name, 120, seed=1000 * k)
    write_tiny_onnx(tmp_path, n_layers=12)
    path = tmp_path / "c.h5"

    def start_all() -> list[subprocess.Popen[bytes]]:
        parts = [f"{k}/{N_PARTS}" for k in range(1, N_PARTS + 1)]
        return [start(tmp_path / "photos", path, tmp_path, part=part) for part in parts]

    for _ in range(n_kills):
        jobs = start_all()
        _wait_for_shards(path, jobs)
        time.sleep(rng.uniform(0, 0.3))
        for job in jobs:
            job.kill()
            job.wait()
    jobs = start_all()
    assert [job.wait(timeout=120) for job in jobs] == [0] * N_PARTS
    assert merge(path).exit_code == 0
    extract(tmp_path / "photos", tmp_path / "whole.h5", tmp_path)
    assert_same_cache(path, tmp_path / "whole.h5")
    assert not [one for one in tmp_path.rglob("*") if TEMPORARY_MARK in one.name]


def _wait_for_shards(path: Path, jobs: list[subprocess.Popen[bytes]]) -> None:
    """Wait until a shard more is there, or the jobs are done."""
    n_before = len(list(parts_folder(path).glob(SHARD_PATTERN)))
    end = time.monotonic() + 60
    while time.monotonic() < end and any(job.poll() is None for job in jobs):
        if len(list(parts_folder(path).glob(SHARD_PATTERN))) > n_before:
            return
        time.sleep(0.02)
