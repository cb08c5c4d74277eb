"""A folder of images is listed as a person would: its classes, its splits, nothing else."""

from __future__ import annotations

import csv
import hashlib
import os
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from image_files import png_bytes, write_images
from PIL import Image

from data_cache.errors import BadImageError, DataError, SourceError, UnknownSourceError
from data_cache.part import Part
from data_cache.rows import Rows
from extract.sources import Source, SourceOptions, open_source

SHARED = Path(__file__).parent.parent.parent / "shared/data"

Layout = Callable[[dict[str, int]], Path]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Make a folder of images: ``layout({"train/cat": 3, "train/dog": 2})``."""

    def make(counts: dict[str, int]) -> Path:
        for i, (folder, n_images) in enumerate(counts.items()):
            write_images(tmp_path / "photos" / folder, n_images, seed=1000 * i)
        return tmp_path / "photos"

    return make


def ids(source: Source, split: str) -> list[str]:
    return [one.decode() for one in source.manifest.splits[split].ids.tolist()]


def all_ids(source: Source) -> dict[str, str]:
    return {one: split for split in source.manifest.splits for one in ids(source, split)}


def labels(source: Source, split: str) -> list[str]:
    rows = source.manifest.splits[split]
    return [source.manifest.classes[label] for label in rows.labels]


def without_test(**options: object) -> SourceOptions:
    return SourceOptions(test_fraction=0.0, **options)


# ---------------------------------------------------------------- layouts


def test_class_folders_are_classes_in_sorted_order(layout: Layout) -> None:
    root = layout({"zebra": 2, "Ant": 1, "bee": 3})
    source = open_source(str(root), without_test())
    assert source.manifest.classes == ("Ant", "bee", "zebra")
    assert labels(source, "train") == ["Ant"] + ["bee"] * 3 + ["zebra"] * 2
    assert ids(source, "train")[0] == "Ant/1000.png"
    assert source.manifest.splits["train"].labels.dtype == np.int64


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train", "val", "test"), ["train", "val", "test"]),
        (("training", "validation", "testing"), ["train", "val", "test"]),
        (("Train", "VALID"), ["train", "val"]),
    ],
)
def test_split_folders_are_splits(
    names: tuple[str, ...], splits: list[str], layout: Layout
) -> None:
    root = layout({f"{name}/{label}": 2 for name in names for label in ("cat", "dog")})
    source = open_source(str(root))
    assert list(source.manifest.splits) == splits
    for name, split in zip(names, splits, strict=True):
        assert labels(source, split) == ["cat", "cat", "dog", "dog"]
        assert all(one.startswith(f"{name}/") for one in ids(source, split))
    assert source.notes == ()


def test_content_and_fetch_are_those_of_the_files(layout: Layout) -> None:
    root = layout({"a": 3, "b": 3})
    source = open_source(str(root), without_test())
    rows = source.manifest.splits["train"]
    for i, one in enumerate(ids(source, "train")):
        raw = (root / one).read_bytes()
        assert rows.content[i].tobytes() == hashlib.sha256(raw).digest()
        assert source.fetch("train", i) == raw


@pytest.mark.parametrize(
    "name", ["two words", "naïve café", "日本", "a.b", "#1 100%", "x&y", "-q", "{0}", "quo\"te'"]
)
def test_unusual_names_of_classes_work(name: str, layout: Layout) -> None:
    root = layout({name: 2, "other": 2})
    source = open_source(str(root), without_test())
    assert set(source.manifest.classes) == {name, "other"}
    row = labels(source, "train").index(name)
    assert ids(source, "train")[row].startswith(f"{name}/")
    assert isinstance(source.fetch("train", row), bytes)


def test_class_names_that_differ_in_the_encoding_of_accents_are_one(layout: Layout) -> None:
    composed, taken_apart = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    root = layout({f"train/{composed}": 1, "train/x": 1, f"test/{taken_apart}": 1, "test/x": 1})
    source = open_source(str(root))
    assert source.manifest.classes == (composed, "x")
    assert source.fetch("test", labels(source, "test").index(composed))


@pytest.mark.skipif(os.name == "nt", reason="names are bytes on Unix only")
def test_names_that_are_not_utf_8_work(layout: Layout) -> None:
    root = layout({"a": 1, "b": 1})
    path = os.fsencode(root / "a") + b"/\xff.png"
    try:
        Path(os.fsdecode(path)).write_bytes(png_bytes(77))
    except OSError:
        pytest.skip("this file system takes no such name")
    source = open_source(str(root), without_test())
    row = ids(source, "train").index("a/\\xff.png")
    assert source.fetch("train", row) == png_bytes(77)


def test_the_cifar_class_called_train_is_a_class(layout: Layout) -> None:
    source = open_source(str(layout({"bus": 2, "train": 2, "tractor": 2})), without_test())
    assert source.manifest.classes == ("bus", "tractor", "train")


def test_split_folders_beside_others_are_not_guessed(layout: Layout) -> None:
    root = layout({"train/cat": 2, "train/dog": 2, "extra/cat": 2})
    with pytest.raises(SourceError, match=r"'train', which name splits, beside 'extra'"):
        open_source(str(root))
    as_splits = open_source(str(root), SourceOptions(format="split-folders"))
    assert as_splits.manifest.classes == ("cat", "dog")
    as_classes = open_source(str(root), without_test(format="class-folders"))
    assert as_classes.manifest.classes == ("extra", "train")


def test_deeper_folders_belong_to_the_outer_class(layout: Layout) -> None:
    source = open_source(str(layout({"cat/2019/may": 2, "dog": 1})), without_test())
    assert labels(source, "train") == ["cat", "cat", "dog"]
    assert any("2 images lie deeper" in note for note in source.notes)


# ---------------------------------------------------------------- what is passed over


def test_clutter_is_passed_over_and_counted(layout: Layout) -> None:
    root = layout({"a": 2, "b": 2})
    for name in (".DS_Store", "a/Thumbs.db", "a/.hidden.png", "b/desktop.ini"):
        (root / name).write_bytes(b"x")
    for name in ("readme.txt", "a/labels.csv", "b/notes.md"):
        (root / name).write_text("x")
    write_images(root / ".git", 2)
    write_images(root / "__MACOSX/a", 2)
    source = open_source(str(root), without_test())
    assert len(source.manifest) == 4
    assert "passed over: 6 hidden or left by the system, 3 of other kinds" in source.notes


def test_images_beside_the_class_folders_are_named(layout: Layout) -> None:
    root = layout({"a": 2, "b": 2})
    write_images(root, 1, seed=500)
    source = open_source(str(root), without_test())
    assert len(source.manifest) == 4
    assert any("1 images beside the folders, such as 0500.png" in note for note in source.notes)


def test_empty_class_folders_are_no_classes_and_are_named(layout: Layout) -> None:
    root = layout({"a": 2, "b": 2})
    (root / "c").mkdir()
    source = open_source(str(root), without_test())
    assert source.manifest.classes == ("a", "b")
    assert "no images in 'c'" in source.notes


def test_links_are_followed_and_loops_end(layout: Layout) -> None:
    root = layout({"a": 2, "b": 2})
    elsewhere = write_images(root.parent / "elsewhere", 1, seed=900)[0]
    try:
        (root / "a" / "loop").symlink_to(root)
        (root / "b" / "linked.png").symlink_to(elsewhere)
        (root / "b" / "broken.png").symlink_to(root / "nowhere")
        (root / "b" / "self").symlink_to(root / "b" / "self")
    except OSError:
        pytest.skip("links cannot be made here")
    source = open_source(str(root), without_test())
    assert len(source.manifest) == 5
    note = next(note for note in source.notes if note.startswith("passed over"))
    assert "2 broken links or devices" in note
    assert "1 links to a folder above them" in note


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "no images in it"),
        ({".": 3}, "3 images without a class: a folder for each class is expected"),
        ({"only": 3}, r"one class only \('only'\), where two or more are expected$"),
        ({"photos/cat": 1, "photos/dog": 1}, "did you mean .*photos"),
        (
            {"train": 2, "test": 2},
            "4 images, such as test/1000.png, lie in a split but in no class",
        ),
        ({"val/a": 2, "val/b": 2}, "no split is called train, only val"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(
    counts: dict[str, int], message: str, layout: Layout, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    root = layout(counts)
    with pytest.raises(SourceError, match=message):
        open_source(str(root))


def test_an_unknown_source_is_refused_by_name() -> None:
    with pytest.raises(UnknownSourceError, match=r"no source 'fasion_mnist'.*fashion_mnist"):
        open_source("fasion_mnist")


def test_a_format_that_does_not_go_with_the_path_is_refused(layout: Layout) -> None:
    root = layout({"a": 1, "b": 1})
    with pytest.raises(SourceError, match="is a folder: --format csv does not go with it"):
        open_source(str(root), SourceOptions(format="csv"))
    file = root / "a" / "0000.png"
    with pytest.raises(SourceError, match=r"a folder, \.csv, \.tsv, \.npz, \.npy or \.h5 is"):
        open_source(str(file))
    with pytest.raises(SourceError, match="is a file: --format class-folders"):
        open_source(str(file), SourceOptions(format="class-folders"))


def test_files_that_cannot_be_read_are_listed(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = layout({"a": 2, "b": 2})
    opened = Path.open

    def forbidden(path: Path, *arguments: object, **options: object) -> IO[Any]:
        if path.name == "0000.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    source = open_source(str(root), without_test())
    assert len(source.manifest) == 3
    assert [(bad.id, bad.reason) for bad in source.unreadable] == [
        ("a/0000.png", "it cannot be read: Permission denied")
    ]


def test_a_file_that_is_gone_when_it_is_fetched_is_a_bad_image(layout: Layout) -> None:
    root = layout({"a": 2, "b": 2})
    source = open_source(str(root), without_test())
    (root / "a/0000.png").unlink()
    with pytest.raises(BadImageError, match="there is no such file"):
        source.fetch("train", 0)


# ---------------------------------------------------------------- digests


def test_a_file_written_again_is_read_again(layout: Layout) -> None:
    root = layout({"a": 2, "b": 2})
    open_source(str(root), without_test())
    (root / "a/0000.png").write_bytes(png_bytes(12345))
    source = open_source(str(root), without_test())
    digest = source.manifest.splits["train"].content[0].tobytes()
    assert digest == hashlib.sha256(png_bytes(12345)).digest()


def test_files_left_alone_are_not_read_again_unless_asked(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = layout({"a": 3, "b": 3})
    hour_ago = time.time() - 3600
    for path in root.glob("*/*"):
        os.utime(path, (hour_ago, hour_ago))
    monkeypatch.setattr("data_cache.stat_index._SETTLED_SECONDS", -1.0)
    first = open_source(str(root), without_test())
    read: list[Path] = []
    from extract.sources import files

    digest = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: (read.append(path), digest(path))[1])
    again = open_source(str(root), without_test())
    assert read == []
    assert_same_rows(again.manifest.splits["train"], first.manifest.splits["train"])
    open_source(str(root), without_test(rehash=True))
    assert len(read) == 6


def assert_same_rows(one: Rows, other: Rows) -> None:
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.content, other.content)
    np.testing.assert_array_equal(one.labels, other.labels)


# ---------------------------------------------------------------- splits, limits, exclusions


def test_without_splits_a_fifth_goes_to_test_and_the_user_is_told(layout: Layout) -> None:
    source = open_source(str(layout({"a": 150, "b": 150})))
    n_test = len(source.manifest.splits["test"])
    assert n_test == pytest.approx(60, abs=4 * np.sqrt(300 * 0.2 * 0.8))
    assert len(source.manifest.splits["train"]) == 300 - n_test
    assert any(f"{300 - n_test} train, {n_test} test" in note for note in source.notes)


def test_adding_images_moves_none_of_the_others(layout: Layout) -> None:
    options = SourceOptions(validation_fraction=0.2, test_fraction=0.2)
    root = layout({"a": 60, "b": 60})
    before = all_ids(open_source(str(root), options))
    write_images(root / "a", 10, seed=7000)
    after = all_ids(open_source(str(root), options))
    assert len(after) == 130
    assert {one: after[one] for one in before} == before
    assert set(before.values()) == {"train", "val", "test"}


def test_copies_of_an_image_are_on_one_side(layout: Layout) -> None:
    root = layout({"a": 40, "b": 40})
    for i, path in enumerate(sorted((root / "a").iterdir())):
        (root / "b" / f"copy{i}.png").write_bytes(path.read_bytes())
    sides = all_ids(open_source(str(root), SourceOptions(test_fraction=0.5)))
    for i in range(40):
        assert sides[f"b/copy{i}.png"] == sides[f"a/{i:04d}.png"]


def test_a_missing_split_is_cut_from_train_alone(layout: Layout) -> None:
    root = layout({f"{split}/{label}": 50 for split in ("train", "test") for label in "ab"})
    source = open_source(str(root), SourceOptions(validation_fraction=0.3))
    assert len(source.manifest.splits["test"]) == 100
    assert all(one.startswith("test/") for one in ids(source, "test"))
    assert len(source.manifest.splits["val"]) == pytest.approx(30, abs=19)
    assert all(one.startswith("train/") for one in ids(source, "val"))


def test_classes_without_training_images_are_named(layout: Layout) -> None:
    root = layout({"train/a": 2, "train/b": 2, "test/a": 1, "test/c": 1})
    source = open_source(str(root))
    assert source.manifest.classes == ("a", "b", "c")
    assert source.notes == ("no training images of 'c'",)


def test_a_split_that_is_there_is_not_cut_again(layout: Layout) -> None:
    root = layout({f"{split}/{label}": 2 for split in ("train", "val") for label in "ab"})
    with pytest.raises(
        SourceError, match="a split val of its own: leave out --validation-fraction"
    ):
        open_source(str(root), SourceOptions(validation_fraction=0.3))


def test_limits_draw_each_class_in_its_share(layout: Layout) -> None:
    counts = {"train/a": 60, "train/b": 30, "test/a": 20, "test/b": 20}
    options = SourceOptions(train_limit=30, test_limit=10)
    source = open_source(str(layout(counts)), options)
    for split, expected in (("train", [20, 10]), ("test", [5, 5])):
        assert np.bincount(source.manifest.splits[split].labels).tolist() == expected
    other = open_source(str(layout({})), SourceOptions(train_limit=30, seed=1))
    assert ids(other, "train") != ids(source, "train")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_that_keeps_nothing_is_refused(limit: int, layout: Layout) -> None:
    with pytest.raises(SourceError, match=f"--train-limit {limit}"):
        open_source(str(layout({"a": 1, "b": 1})), SourceOptions(train_limit=limit))


def test_exclusions_leave_rows_out_after_the_draw(layout: Layout, tmp_path: Path) -> None:
    root = layout({"train/a": 9, "train/b": 9, "test/a": 2, "test/b": 2})
    drawn = ids(open_source(str(root), SourceOptions(train_limit=10)), "train")
    path = tmp_path / "leaks.csv"
    with path.open("w", newline="") as stream:
        lines = [("reason", "split", "id"), ("near", "train", drawn[0]), ("near", "val", drawn[1])]
        csv.writer(stream).writerows(lines)
    source = open_source(str(root), SourceOptions(train_limit=10, exclude=path))
    assert ids(source, "train") == drawn[1:]


@pytest.mark.parametrize("n_parts", [None, 2])
def test_exclusions_that_are_not_there_are_warned_of_once(
    n_parts: int | None,
    layout: Layout,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = str(layout({"a": 6, "b": 6}))
    name = all_ids(open_source(root, SourceOptions(test_fraction=0)))
    path = tmp_path / "exclude.csv"
    lines = [f"{split},{one}" for one, split in name.items()][:5]
    path.write_text("\n".join(["split,id", *lines]), encoding="utf-8")
    parts = [None] if n_parts is None else [Part(k, n_parts) for k in range(1, n_parts + 1)]

    def warnings() -> int:
        for part in parts:
            open_source(root, SourceOptions(test_fraction=0, exclude=path, part=part))
        return capsys.readouterr().err.count("first one 'a/gone.png'")

    assert warnings() == 0
    path.write_text("\n".join(["split,id", *lines, "train,a/gone.png"]), encoding="utf-8")
    assert warnings() == 1


@pytest.mark.parametrize(
    ("text", "message"), [("a,b\n1,2\n", "'split' and 'id' are"), (None, "read")]
)
def test_exclusions_that_are_none_are_refused(
    text: str | None, message: str, layout: Layout, tmp_path: Path
) -> None:
    path = tmp_path / "exclude.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        open_source(str(layout({"a": 1, "b": 1})), SourceOptions(exclude=path))


def photo(seed: int) -> Image.Image:
    """A picture with large shapes, as photos have them."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((160, 120), Image.Resampling.BICUBIC)


def test_images_that_look_alike_are_kept_on_one_side_on_demand(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
    for seed in range(24):
        image, folder = photo(seed), root / "ab"[seed % 2]
        image.save(folder / f"{seed:02d}-original.png")
        image.save(folder / f"{seed:02d}-small.jpg", quality=60)
        image.resize((80, 60)).save(folder / f"{seed:02d}-tiny.webp", quality=70)
    (root / "a" / "broken.jpg").write_bytes(b"no image")
    grouped = open_source(str(root), SourceOptions(test_fraction=0.5, group_duplicates=True))
    sides = {one[2:4]: set() for one in all_ids(grouped)}
    for one, split in all_ids(grouped).items():
        sides[one[2:4]].add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert set().union(*sides.values()) == {"train", "test"}
    groups = np.concatenate([rows.groups for rows in grouped.manifest.splits.values()])
    assert len(set(groups.tolist())) == 25
    alone = all_ids(open_source(str(root), SourceOptions(test_fraction=0.5)))
    assert any(
        alone[one] != alone[one.replace("original.png", "small.jpg")]
        for one in alone
        if "original" in one
    )


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is not here")
def test_real_folders_are_listed() -> None:
    ants_bees = open_source(str(SHARED / "ants_bees"))
    assert ants_bees.manifest.classes == ("ants", "bees")
    counts = {split: len(rows) for split, rows in ants_bees.manifest.splits.items()}
    assert counts == {"train": 245, "val": 153}
    cats_dogs = open_source(str(SHARED / "cats_dogs"), SourceOptions(train_limit=100))
    assert np.bincount(cats_dogs.manifest.splits["train"].labels).tolist() == [50, 50]
