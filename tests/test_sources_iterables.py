"""Anything that yields images is a source; so are the sets of two libraries, where installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from image_files import png_bytes, write_images

from data_cache.errors import SourceError
from extract.sources import IterableSource, Sample, SourceOptions, open_source
from extract.sources.base import content_digest

ALL_TRAIN = SourceOptions(test_fraction=0.0)


def samples(n_samples: int, **fields: Any) -> Iterator[Sample]:
    for i in range(n_samples):
        yield Sample(png_bytes(i), "ab"[i % 2], **fields)


def test_files_bytes_and_arrays_are_kept_as_they_are(tmp_path: Path) -> None:
    path = write_images(tmp_path, 1, seed=9)[0]
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    given = [Sample(png_bytes(1), "b"), Sample(path, "a"), Sample(array, "b")]
    source = IterableSource("mine", iter(given), ALL_TRAIN)
    assert source.name == "mine"
    assert source.manifest.classes == ("a", "b")
    rows = source.manifest.splits["train"]
    assert rows.labels.tolist() == [1, 0, 1]
    assert rows.ids.tolist() == [b"all/000000", b"all/000001", b"all/000002"]
    assert source.fetch("train", 0) == png_bytes(1)
    assert source.fetch("train", 1) == png_bytes(9)
    np.testing.assert_array_equal(source.fetch("train", 2), array)
    for row in range(3):
        assert rows.content[row].tobytes() == content_digest(source.fetch("train", row))


def test_splits_groups_and_ids_are_taken_over() -> None:
    given = [
        Sample(png_bytes(i), i % 2, split, id=f"image {i}", group=f"g{i // 2}")
        for i, split in enumerate(["train", "train", "validation", "test", "train"])
    ]
    source = IterableSource("mine", given, classes=["no", "yes"])
    assert list(source.manifest.splits) == ["train", "val", "test"]
    train = source.manifest.splits["train"]
    assert train.ids.tolist() == [b"image 0", b"image 1", b"image 4"]
    assert train.groups.tolist() == [b"g0", b"g0", b"g2"]
    assert source.manifest.classes == ("no", "yes")


def test_numbers_as_labels_are_classes_in_their_order() -> None:
    given = [Sample(png_bytes(i), label) for i, label in enumerate([10, 9, 10])]
    source = IterableSource("mine", given, ALL_TRAIN)
    assert source.manifest.classes == ("9", "10")
    assert source.manifest.splits["train"].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("given", "classes", "message"),
    [
        ([], None, "no images"),
        ([Sample(b"x", "a"), Sample(b"y", 1)], None, "some labels are text and some numbers"),
        ([Sample(b"x", "a", "train"), Sample(b"y", "b")], None, "1 of 2 samples have a split"),
        ([Sample(b"x", "a", "holdout")], None, "split 'holdout'"),
        ([Sample(b"x", 0), Sample(b"y", 2)], ["no", "yes"], "label 2 is none of the 2 classes"),
        ([Sample(b"x", "maybe")], ["no", "yes"], "label 'maybe' is none of the 2 classes"),
        ([Sample(np.zeros((4, 4, 2), np.uint8), "a")], None, "shape"),
        ([Sample(np.zeros((4, 4)), "a")], None, "type float64: uint8 is expected"),
        ([Sample(Path("/no/such/file"), "a")], None, "No such file"),
    ],
)
def test_samples_that_are_none_are_refused(
    given: list[Sample], classes: list[str] | None, message: str
) -> None:
    with pytest.raises(SourceError, match=message):
        IterableSource("mine", given, classes=classes)


def test_many_threads_read_the_right_images() -> None:
    source = IterableSource("mine", samples(60), ALL_TRAIN)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda row: source.fetch("train", row % 60), range(600)))
    assert got == [png_bytes(i) for i in range(60)] * 10


def test_options_work_as_for_any_source() -> None:
    source = IterableSource("mine", samples(100), SourceOptions(train_limit=20, test_fraction=0.4))
    assert len(source.manifest.splits["train"]) == 20
    row = source.manifest.splits["test"]
    assert content_digest(source.fetch("test", 3)) == row.content[3].tobytes()


# ---------------------------------------------------------------- the libraries


@pytest.mark.parametrize(
    ("text", "package"), [("tfds:cats_vs_dogs", "tensorflow-datasets"), ("hf:beans", "datasets")]
)
def test_a_library_that_is_not_installed_is_named(
    text: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=f"{text} needs a package: pip install {package}"):
        open_source(text)


class ClassLabel:
    """As in both libraries: names, and numbers that count into them."""

    names = ("cat", "dog")


@pytest.fixture
def fake_tfds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The part of tensorflow_datasets that is called, with its signatures."""

    class Builder:
        info = SimpleNamespace(
            features={"image": object(), "label": ClassLabel()}, splits={"train": 4, "test": 2}
        )
        prepared = False

        def download_and_prepare(self) -> None:
            self.prepared = True

        def as_dataset(self, *, split: str, decoders: dict[str, str]) -> list[dict[str, Any]]:
            assert self.prepared
            assert decoders == {"image": "left encoded"}
            start = {"train": 0, "test": 100}[split]
            numbers = range(start, start + self.info.splits[split])
            return [{"image": png_bytes(i), "label": np.int64(i % 2)} for i in numbers]

    def builder(name: str) -> Builder:
        if name != "pets":
            raise ValueError(f"Dataset {name} not\nfound")
        return Builder()

    module = ModuleType("tensorflow_datasets")
    vars(module).update(
        builder=builder,
        as_numpy=iter,
        decode=SimpleNamespace(SkipDecoding=lambda: "left encoded"),
    )
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", module)
    monkeypatch.setattr("extract.sources.hubs.import_keras", lambda: None)
    return module


def test_sets_of_tensorflow_datasets_keep_their_files(fake_tfds: ModuleType) -> None:
    source = open_source("tfds:pets")
    assert source.name == "tfds:pets"
    assert source.manifest.classes == ("cat", "dog")
    assert source.manifest.splits["train"].labels.tolist() == [0, 1, 0, 1]
    assert source.manifest.splits["test"].ids.tolist() == [b"test/000000", b"test/000001"]
    assert source.fetch("test", 1) == png_bytes(101)


def test_a_set_that_cannot_be_had_is_refused_in_one_line(fake_tfds: ModuleType) -> None:
    with pytest.raises(SourceError, match="tfds:pest cannot be had: Dataset pest not found"):
        open_source("tfds:pest")


class FakeSplit(list[dict[str, Any]]):
    """A split of a datasets.DatasetDict; images are encoded only once they are cast."""

    features: dict[str, object]

    def cast_column(self, name: str, feature: object) -> FakeSplit:
        assert (name, feature) == ("img", "left encoded")
        return FakeSplit({**row, "img": row["img"]()} for row in self)


@pytest.fixture
def fake_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The part of Hugging Face's datasets that is called."""
    path = write_images(tmp_path, 1, seed=7)[0]
    rows = [
        {"img": lambda: {"bytes": png_bytes(1), "path": None}, "label": 1},
        {"img": lambda: {"bytes": None, "path": str(path)}, "label": 0},
    ]

    def load_dataset(name: str) -> dict[str, FakeSplit]:
        split = FakeSplit(rows)
        split.features = {"img": object(), "label": ClassLabel()}
        if name == "text":
            split.features = {"text": object()}
        return {"odd" if name == "odd" else "train": split}

    module = ModuleType("datasets")
    vars(module).update(load_dataset=load_dataset, Image=lambda decode: "left encoded")
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def test_sets_of_hugging_face_keep_their_files(fake_datasets: ModuleType) -> None:
    source = open_source("hf:beans", ALL_TRAIN)
    assert source.manifest.classes == ("cat", "dog")
    assert source.manifest.splits["train"].labels.tolist() == [1, 0]
    assert [source.fetch("train", row) for row in range(2)] == [png_bytes(1), png_bytes(7)]


@pytest.mark.parametrize(
    ("name", "message"), [("text", "has the columns text: image or img"), ("odd", "splits odd")]
)
def test_sets_that_are_not_labeled_images_are_refused(
    name: str, message: str, fake_datasets: ModuleType
) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(f"hf:{name}")


LISTING = """
import sys
from extract.decode import decode
from extract.preprocess import SCALINGS, Preprocessing, preprocess
from extract.sources import open_source
source = open_source(sys.argv[1])
image = decode(source.fetch("train", 0))
preprocess(image[None], Preprocessing(SCALINGS["tf"], 96))
print({"tensorflow", "keras", "datasets", "tensorflow_datasets"} & set(sys.modules))
"""


def test_no_heavy_library_is_imported_to_list_decode_and_preprocess(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_images(tmp_path / label, 20, seed=ord(label))
    run = subprocess.run(
        [sys.executable, "-c", LISTING, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent,
    )
    assert run.stdout.strip() == "set()"
