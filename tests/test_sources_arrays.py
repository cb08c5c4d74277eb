"""Arrays of images, in memory and in files: their ranges, their names, their digests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from cache_tools import write_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from data_cache.errors import SourceError
from extract.decode import decode
from extract.sources import ArraySource, Source, SourceOptions, open_source
from extract.sources.base import content_digest

ALL_TRAIN = SourceOptions(test_fraction=0.0)


def images(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def two_classes(n_images: int) -> NDArray[np.int64]:
    return np.arange(n_images) % 2


def counts(source: Source) -> dict[str, int]:
    return {split: len(rows) for split, rows in source.manifest.splits.items()}


# ---------------------------------------------------------------- in memory


@pytest.mark.parametrize("shape", [(5, 7, 8), (5, 7, 8, 1), (5, 7, 8, 3), (5, 7, 8, 4)])
def test_rows_are_the_images_in_their_order(shape: tuple[int, ...]) -> None:
    train, test = images(*shape), images(*shape, seed=1)
    splits = {"train": (train, two_classes(5)), "test": (test, two_classes(5))}
    source = ArraySource("mine", splits, ("a", "b"))
    assert source.manifest.splits["train"].ids.tolist()[4] == b"train/000004"
    assert source.manifest.splits["test"].labels.tolist() == [0, 1, 0, 1, 0]
    for split, array in (("train", train), ("test", test)):
        for row in range(5):
            np.testing.assert_array_equal(source.fetch(split, row), array[row])
            digest = source.manifest.splits[split].content[row].tobytes()
            assert digest == content_digest(array[row])


def test_digests_are_of_type_shape_and_bytes() -> None:
    image = images(2, 3)
    expected = hashlib.sha256(b"uint8[2, 3]" + image.tobytes()).digest()
    assert content_digest(image) == expected
    assert content_digest(image[::-1][::-1]) == expected
    others = [image.reshape(3, 2), image.astype(np.float32), image[..., None]]
    assert len({content_digest(other) for other in [*others, image]}) == 4
    big_endian = image.astype(">f4")
    assert content_digest(big_endian) == content_digest(image.astype("<f4"))


def test_float_images_in_either_range_become_pixels() -> None:
    pixels = images(6, 4, 4, 3)
    pixels[0, 0, 0] = 255
    labels = two_classes(6)
    by_255 = ArraySource("a", {"train": (pixels.astype(np.float64), labels)}, ("a", "b"))
    by_1 = ArraySource("b", {"train": (pixels / 255, labels)}, ("a", "b"))
    assert by_1.notes == ("float pixels up to 1: 1 is read as white",)
    assert by_255.notes == ()
    for row in range(6):
        np.testing.assert_array_equal(by_255.fetch("train", row), pixels[row])
        np.testing.assert_allclose(by_1.fetch("train", row), pixels[row], atol=1e-4)
        assert by_1.fetch("train", row).dtype == np.float32
    assert by_1.manifest.splits["train"].content[0].tobytes() == content_digest(
        by_1.fetch("train", 0)
    )


@pytest.mark.parametrize(
    ("lowest", "highest"), [(-1, 1), (0, 16), (0, 1.5), (0, 300), (np.nan, 1), (0, np.inf)]
)
def test_float_images_in_no_known_range_are_refused(lowest: float, highest: float) -> None:
    values = np.full((3, 4, 4), 0.5)
    values[0, 0, 0], values[2, 3, 3] = lowest, highest
    with pytest.raises(SourceError, match=r"scale them to \[0, 1\] or \[0, 255\]"):
        ArraySource("mine", {"train": (values, two_classes(3))}, ("a", "b"))


def test_the_range_is_that_of_all_splits() -> None:
    dark, light = np.full((2, 4, 4), 0.9), np.full((2, 4, 4), 200.0)
    splits = {"train": (dark, two_classes(2)), "test": (light, two_classes(2))}
    source = ArraySource("mine", splits, ("a", "b"))
    np.testing.assert_allclose(source.fetch("train", 0), 0.9)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (images(3, 4), "shape"),
        (images(3, 4, 4, 2), "shape"),
        (images(3, 0, 4), "shape"),
        (images(3, 4, 4).astype(np.int32), "type int32"),
        (images(3, 4, 4).astype(bool), "type bool"),
        (images(3, 4, 4).astype(np.uint16), "type uint16"),
    ],
)
def test_what_are_not_images_is_refused(array: NDArray, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        ArraySource("mine", {"train": (array, two_classes(3))}, ("a", "b"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1]), "one label each"),
        (np.eye(3), "several labels an image are not supported yet"),
        (np.array([0.0, 1.0, 0.0]), "type float64, where whole numbers"),
        (np.array([0, 2, 0]), "label 2 in row 1, where 0 to 1 is expected"),
        (np.array([0, 1, -1]), "label -1 in row 2"),
    ],
)
def test_what_are_not_labels_is_refused(labels: NDArray, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        ArraySource("mine", {"train": (images(3, 4, 4), labels)}, ("a", "b"))


# ---------------------------------------------------------------- files


def test_keras_style_npz_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mnist.npz"
    x, y = images(6, 5, 5), np.array([3, 1, 3, 7, 1, 3], np.uint8)
    np.savez(path, x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:, None])
    source = open_source(str(path))
    assert source.manifest.classes == ("1", "3", "7")
    assert source.manifest.splits["train"].labels.tolist() == [1, 0, 1, 2]
    assert source.manifest.splits["test"].labels.tolist() == [0, 1]
    np.testing.assert_array_equal(source.fetch("test", 1), x[5])


def test_text_labels_and_class_names_and_groups_are_read(tmp_path: Path) -> None:
    x = images(4, 5, 5)
    np.savez(tmp_path / "text.npz", images=x, labels=np.array(["dog", "cat", "dog", "cat"]))
    text = open_source(str(tmp_path / "text.npz"), ALL_TRAIN)
    assert text.manifest.classes == ("cat", "dog")
    assert text.manifest.splits["train"].labels.tolist() == [1, 0, 1, 0]
    np.savez(
        tmp_path / "named.npz",
        images=x,
        labels=np.array([0, 2, 2, 0]),
        classes=np.array(["cat", "cow", "dog"]),
        groups=np.array([7, 8, 7, 9]),
    )
    named = open_source(str(tmp_path / "named.npz"), ALL_TRAIN)
    assert named.manifest.classes == ("cat", "cow", "dog")
    assert named.manifest.splits["train"].labels.tolist() == [0, 2, 2, 0]
    assert named.manifest.splits["train"].groups.tolist() == [b"7", b"8", b"7", b"9"]


def test_arrays_without_splits_are_divided_and_limited(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", x=images(200, 4, 4), y=two_classes(200))
    source = open_source(str(tmp_path / "all.npz"), SourceOptions(train_limit=50))
    assert counts(source)["train"] == 50
    assert counts(source)["test"] == pytest.approx(40, abs=23)
    for split, rows in source.manifest.splits.items():
        for row, one in enumerate(rows.ids.tolist()):
            assert one.startswith(b"all/")
            assert rows.labels[row] == int(one[4:]) % 2
            digest = content_digest(source.fetch(split, row))
            assert rows.content[row].tobytes() == digest


@pytest.mark.parametrize(
    ("name", "beside"), [("digits", "digits_labels"), ("x", "y"), ("images", "labels")]
)
def test_npy_has_its_labels_beside_it(name: str, beside: str, tmp_path: Path) -> None:
    x = images(4, 5, 5, 3)
    np.save(tmp_path / f"{name}.npy", x)
    with pytest.raises(SourceError, match="has no labels beside it"):
        open_source(str(tmp_path / f"{name}.npy"))
    np.save(tmp_path / f"{beside}.npy", two_classes(4))
    source = open_source(str(tmp_path / f"{name}.npy"), ALL_TRAIN)
    np.testing.assert_array_equal(source.fetch("train", 3), x[3])


def test_hdf5_is_read_in_groups_or_flat(tmp_path: Path) -> None:
    x, y = images(6, 5, 5, 3), two_classes(6)
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for split, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
            file[f"{split}/images"] = x[rows]
            file[f"{split}/labels"] = y[rows]
        file["class_names"] = ["no", "yes"]
    with h5py.File(tmp_path / "flat.hdf5", "w") as file:
        file["images"], file["labels"] = x / 255, [["no", "yes"][label] for label in y]
    groups = open_source(str(tmp_path / "groups.h5"))
    flat = open_source(str(tmp_path / "flat.hdf5"), ALL_TRAIN)
    assert counts(groups) == {"train": 4, "test": 2}
    assert groups.manifest.classes == flat.manifest.classes == ("no", "yes")
    np.testing.assert_array_equal(groups.fetch("test", 0), x[4])
    np.testing.assert_allclose(flat.fetch("train", 4), x[4], atol=1e-4)


def test_a_feature_cache_is_not_taken_for_images(tmp_path: Path) -> None:
    path = write_cache(tmp_path / "features.h5", {"train": (np.eye(4), [0, 1, 0, 1])})
    with pytest.raises(SourceError, match="features, not images: give it to train-head"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": images(3, 4, 4)}, "has the arrays images: images and labels"),
        ({"foo": images(3, 4, 4), "labels": two_classes(3)}, "has the arrays foo, labels"),
        ({"arr_0": images(3, 4, 4)}, "x_train and y_train"),
        (
            {"x_train": images(3, 4, 4), "y_train": two_classes(3), "x_test": images(3, 4, 4)},
            "are expected",
        ),
        ({"x": images(3, 4, 4), "y": np.array([0, -1, 1])}, "images without a label are not"),
        ({"x": images(3, 4, 4), "y": np.eye(3)}, "several labels"),
        ({"x": images(3, 4, 4), "y": np.array([0.5, 1, 2])}, "whole numbers or text"),
        ({"x": images(3, 4, 4), "y": two_classes(3), "group": np.arange(2)}, "lacks a group"),
        ({"x": images(3, 4, 4), "y": np.zeros(3, int)}, "one class only"),
    ],
)
def test_archives_that_lack_something_are_refused(
    arrays: dict[str, NDArray], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "some.npz", **arrays)
    with pytest.raises(SourceError, match=message):
        open_source(str(tmp_path / "some.npz"), ALL_TRAIN)


@pytest.mark.parametrize("name", ["broken.npz", "broken.npy", "broken.h5"])
def test_files_that_cannot_be_read_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"not an array at all")
    (tmp_path / "broken_labels.npy").write_bytes(b"x")
    with pytest.raises(SourceError, match="cannot be read as"):
        open_source(str(tmp_path / name))


def test_archive_that_breaks_off_is_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, x=images(9, 20, 20), y=np.arange(9) % 2)
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:1000])
    with pytest.raises(SourceError, match="cannot be read as npz"):
        open_source(str(tmp_path / "cut.npz"))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    labels = np.array([{"a": 1}, {"b": 2}], dtype=object)
    np.savez(tmp_path / "objects.npz", x=images(2, 4, 4), y=labels)
    with pytest.raises(SourceError, match="never unpickled here"):
        open_source(str(tmp_path / "objects.npz"))


def test_the_format_can_be_forced(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=images(3, 4, 4), y=two_classes(3))
    path = (tmp_path / "x.npz").rename(tmp_path / "download")
    with pytest.raises(SourceError, match="say which it is with --format"):
        open_source(str(path))
    assert len(open_source(str(path), SourceOptions(format="npz")).manifest) == 3


@settings(max_examples=25, deadline=None)
@given(
    n_images=st.integers(2, 12),
    shape=st.sampled_from([(4, 4), (4, 4, 1), (4, 4, 3)]),
    as_float=st.booleans(),
)
def test_a_file_an_array_and_a_table_decode_to_the_same_pixels(
    n_images: int, shape: tuple[int, ...], as_float: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("same")
    x = images(n_images, *shape)
    x[0].flat[0] = 255
    for i, image in enumerate(x):
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    lines = ["path,label", *(f"{i}.png,{'ab'[i % 2]}" for i in range(n_images))]
    (folder / "all.csv").write_text("\n".join(lines))
    np.savez(folder / "all.npz", x=x / 255 if as_float else x, y=two_classes(n_images))
    table, arrays = (open_source(str(folder / f"all.{s}"), ALL_TRAIN) for s in ("csv", "npz"))
    for row in range(n_images):
        from_file, from_array = (decode(one.fetch("train", row)) for one in (table, arrays))
        np.testing.assert_allclose(from_file, from_array, atol=1e-4)
