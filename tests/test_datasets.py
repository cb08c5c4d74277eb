"""The built-in sets, written here in their own formats and read back."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data_cache.errors import DataUnavailableError, SourceError, UnknownSourceError
from extract import datasets
from extract.assets import RemoteFile
from extract.datasets import DATASETS, get_dataset, read_idx

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let HEADSTART_ASSETS be the only place with files, and nothing be downloaded."""
    folder = tmp_path / "assets"
    folder.mkdir()
    monkeypatch.setenv("HEADSTART_ASSETS", str(folder))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for name, dataset in list(DATASETS.items()):
        files = tuple(
            RemoteFile(f.name, "http://127.0.0.1:9/", "", f.aliases) for f in dataset.files
        )
        changed = datasets.BuiltInSet(name, files, dataset.read, dataset.read_images)
        monkeypatch.setitem(DATASETS, name, changed)
    return folder


def idx(values: np.ndarray) -> bytes:
    """Write IDX by the format's description."""
    sizes = b"".join(int(size).to_bytes(4, "big") for size in values.shape)
    return bytes((0, 0, 8, values.ndim)) + sizes + values.tobytes()


def write_fashion(folder: Path, n_train: int = 6, n_test: int = 4, *, zipped: bool = True) -> None:
    generator = np.random.default_rng(0)
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        images = generator.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(values)
            path = folder / "fashion-mnist" / f"{prefix}-{name}-ubyte{'.gz' if zipped else ''}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(gzip.compress(content) if zipped else content)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def cifar_records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    """Write CIFAR records: label bytes, then the red, the green and the blue plane."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.hstack([*(label[:, None] for label in labels), planes]).astype(np.uint8).tobytes()


@given(
    values=arrays.arrays(np.uint8, arrays.array_shapes(max_dims=4, max_side=6)),
    zipped=st.booleans(),
)
def test_idx_round_trip(
    values: np.ndarray, zipped: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "values"
    path.write_bytes(gzip.compress(idx(values)) if zipped else idx(values))
    np.testing.assert_array_equal(read_idx(path), values)


GOOD_IDX = idx(np.arange(12, dtype=np.uint8).reshape(3, 4))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it starts with nothing, not 000008"),
        (b"GIF89a", "it starts with 474946"),
        (b"\x00\x00\x0d" + GOOD_IDX[3:], "it starts with 00000d"),
        (GOOD_IDX[:-1], "it has 11 values, its header says 12"),
        (GOOD_IDX + b"x", "it has 13 or more values, its header says 12"),
        (gzip.compress(GOOD_IDX, mtime=0)[:-9], "ended before the end-of-stream"),
    ],
)
def test_damaged_idx_is_refused_with_the_reason(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "values").write_bytes(content)
    with pytest.raises(SourceError, match=f"values is damaged .*{reason}"):
        read_idx(tmp_path / "values")


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_is_read_from_the_assets_folder(zipped: bool, assets: Path) -> None:
    write_fashion(assets, zipped=zipped)
    loaded = get_dataset("fashion_mnist").load()
    assert {split: images.shape for split, (images, _) in loaded.splits.items()} == {
        "train": (6, 28, 28),
        "test": (4, 28, 28),
    }
    assert loaded.splits["train"][1].tolist() == [0, 1, 2, 3, 4, 5]
    assert loaded.splits["train"][1].dtype == np.int64
    assert loaded.classes[9] == "Ankle boot"


def test_limits_keep_the_first_rows(assets: Path) -> None:
    write_fashion(assets)
    whole = get_dataset("fashion_mnist").load()
    limited = get_dataset("fashion_mnist").load({"train": 2})
    np.testing.assert_array_equal(
        limited.splits["train"][0], whole.splits["train"][0][:2], strict=True
    )
    assert limited.splits["train"][1].tolist() == [0, 1]
    assert len(limited.splits["test"][0]) == 4


@pytest.mark.parametrize("damaged", ["train-images-idx3", "t10k-labels-idx1"])
def test_the_images_of_a_split_are_read_without_the_rest(damaged: str, assets: Path) -> None:
    write_fashion(assets)
    expected = get_dataset("fashion_mnist").load().splits["test"][0]
    (assets / "fashion-mnist" / f"{damaged}-ubyte.gz").write_bytes(b"damaged")
    np.testing.assert_array_equal(get_dataset("fashion_mnist").images("test"), expected)
    with pytest.raises(LookupError):
        get_dataset("fashion_mnist").images("val")


def test_images_of_a_set_in_one_file_are_those_of_the_split(assets: Path) -> None:
    pixels = np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2)
    np.savez(assets / "mnist.npz", x_train=pixels, y_train=[0, 1], x_test=pixels + 9, y_test=[2, 3])
    np.testing.assert_array_equal(get_dataset("mnist").images("test"), pixels + 9)


def test_images_without_their_labels_are_refused(assets: Path) -> None:
    write_fashion(assets)
    path = assets / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(idx(np.zeros(3, np.uint8)))
    with pytest.raises(SourceError, match="split test has 4 images and 3 labels"):
        get_dataset("fashion_mnist").load()


def test_label_beyond_the_classes_is_refused(assets: Path) -> None:
    write_fashion(assets)
    path = assets / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(idx(np.array([0, 10, 2, 3], np.uint8)))
    with pytest.raises(SourceError, match="split test has the label 10, expected 0 to 9"):
        get_dataset("fashion_mnist").load()


def test_mnist_is_read_from_npz(assets: Path) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28)
    labels = np.array([7, 2], np.uint8)
    np.savez(
        assets / "mnist.npz", x_train=images, y_train=labels, x_test=images[:1], y_test=labels[:1]
    )
    loaded = get_dataset("mnist").load()
    np.testing.assert_array_equal(loaded.splits["train"][0], images)
    assert loaded.splits["test"][1].tolist() == [7]
    assert loaded.classes == tuple("0123456789")


class Bomb:
    """Tells when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def test_pickled_objects_in_npz_are_never_unpickled(assets: Path) -> None:
    np.savez(assets / "mnist.npz", x_train=np.array([Bomb()], object))
    with pytest.raises(SourceError, match=r"mnist\.npz is damaged .*pickle"):
        get_dataset("mnist").load()


def test_cifar_10_is_read_from_the_binary_archive(assets: Path) -> None:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    labels = np.arange(12) % 10
    members = {
        f"cifar-10-batches-bin/data_batch_{part + 1}.bin": cifar_records(
            images[2 * part : 2 * part + 2], labels[2 * part : 2 * part + 2]
        )
        for part in range(5)
    }
    members["cifar-10-batches-bin/test_batch.bin"] = cifar_records(images[10:], labels[10:])
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    members["cifar-10-batches-bin/batches.meta.txt"] = "\n".join([*names, ""]).encode()
    write_tar(assets / "cifar-10-binary.tar.gz", members)
    loaded = get_dataset("cifar10").load()
    np.testing.assert_array_equal(loaded.splits["train"][0], images[:10])
    np.testing.assert_array_equal(loaded.splits["test"][0], images[10:])
    assert loaded.splits["train"][1].tolist() == labels[:10].tolist()
    assert loaded.classes == tuple(names)


def test_cifar_100_has_the_fine_labels(assets: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    coarse, fine = np.array([1, 1, 1]), np.array([0, 99, 5])
    content = cifar_records(images, coarse, fine)
    write_tar(
        assets / "cifar-100-binary.tar.gz",
        {
            "cifar-100-binary/train.bin": content,
            "cifar-100-binary/test.bin": content,
            "cifar-100-binary/fine_label_names.txt": "\n".join(map(str, range(100))).encode(),
        },
    )
    loaded = get_dataset("cifar100").load()
    assert loaded.splits["test"][1].tolist() == [0, 99, 5]
    np.testing.assert_array_equal(loaded.splits["train"][0], images)
    assert len(loaded.classes) == 100


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"data_batch_1": pickle.dumps(Bomb())}, "has no file cifar-10-batches-bin/data_batch_1"),
        (
            {f"cifar-10-batches-bin/data_batch_{part}.bin": b"odd" for part in range(1, 6)},
            "cannot reshape",
        ),
    ],
)
def test_archive_of_another_kind_is_refused(
    members: dict[str, bytes], reason: str, assets: Path
) -> None:
    write_tar(assets / "cifar-10-binary.tar.gz", members)
    with pytest.raises(SourceError, match=reason):
        get_dataset("cifar10").load()


def test_file_that_is_no_archive_is_refused(assets: Path) -> None:
    (assets / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(SourceError, match="is damaged"):
        get_dataset("cifar10").load()


def test_set_that_cannot_be_had_says_how_to_get_it(assets: Path) -> None:
    with pytest.raises(DataUnavailableError) as caught:
        get_dataset("mnist").load()
    for part in (
        f"HEADSTART_ASSETS ({assets})",
        "http://127.0.0.1:9/",
        "headstart-assets fetch --dataset mnist --to DIR",
    ):
        assert part in str(caught.value)


def test_unknown_set_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownSourceError, match="fashion_mnist, mnist, cifar10, cifar100"):
        get_dataset("imagenet")


def test_debian_package_is_a_place_of_fashion_mnist() -> None:
    file = DATASETS["fashion_mnist"].files[0]
    name = "train-images-idx3-ubyte"
    assert file.places == (DEBIAN / f"{name}.gz", DEBIAN / name)


def test_names_and_digests_are_keras_own_where_keras_reads_the_same_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from data_cache.console import import_keras

    import_keras()
    from keras.src.datasets import mnist

    asked: dict[str, str] = {}

    def get_file(fname: str, origin: str, file_hash: str) -> str:
        asked.update(name=fname, url=origin, digest=file_hash)
        raise LookupError

    monkeypatch.setattr(mnist, "get_file", get_file)
    with pytest.raises(LookupError):
        mnist.load_data()
    (file,) = DATASETS["mnist"].files
    assert asked == {"name": file.name, "url": file.url, "digest": file.digest}
