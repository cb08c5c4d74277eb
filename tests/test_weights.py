"""Weights from every kind of file, against what Keras itself saved."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from tiny_backbone import TINY

from data_cache.console import import_keras
from data_cache.errors import BackboneError, WeightsError, WeightsUnavailableError
from extract.backbones import get_backbone, open_backbone
from extract.layouts import LayerLayout, Layout, model_layout
from extract.weights import Weights, find_weights, random_weights, set_weights

SHARED_WEIGHTS = Path(__file__).parents[1] / ".." / "shared" / "weights"
needs_shared_weights = pytest.mark.skipif(
    not SHARED_WEIGHTS.is_dir(), reason="real weights are not beside the repository"
)


def save_legacy(model: Any, path: Path) -> None:
    """Save weights as keras.applications publishes them; Keras 3 only reads that format."""
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


def save_legacy_renamed(model: Any, path: Path) -> None:
    """Save as an older version, in which the layers had other names."""
    save_legacy(model, path)
    with h5py.File(path, "r+") as file:
        names = [str(name) for name in file.attrs["layer_names"]]
        for name in names:
            file.move(name, f"old {name}")
        file.attrs["layer_names"] = [f"old {name}" for name in names]


def save_keras_3(model: Any, path: Path) -> None:
    model.save_weights(path)


def save_keras_3_nameless(model: Any, path: Path) -> None:
    """Save as the first versions of Keras 3 did, without the names of layers."""
    model.save_weights(path)
    forget_names(path)


def forget_names(path: Path) -> None:
    def forget(_: str, item: Any) -> None:
        item.attrs.pop("name", None)

    with h5py.File(path, "r+") as file:
        file.visititems(forget)


def nested(model: Any) -> Any:
    """Put a model into a classifier as a layer, as a tutorial does."""
    keras = import_keras()
    images = keras.Input(model.input_shape[1:])
    x = keras.layers.Rescaling(1 / 127.5, -1)(images)
    x = keras.layers.Conv2D(3, 1, name="color")(x)
    x = keras.layers.Dropout(0.2)(model(x))
    return keras.Model(images, keras.layers.Dense(5)(x))


def flat(model: Any) -> Any:
    """Put more layers on top of a model's own."""
    keras = import_keras()
    x = keras.layers.BatchNormalization()(model.output)
    return keras.Model(model.input, keras.layers.Dense(5)(x))


def save_nested_partly_trainable(model: Any, path: Path) -> None:
    """Save as after fine-tuning the top: legacy files then list the trainable weights first."""
    model.trainable = True
    for layer in model.layers[:5]:
        layer.trainable = False
    nested(model).save(path)


FORMS: dict[str, Callable[[Any, Path], None]] = {
    "legacy.h5": save_legacy,
    "legacy_renamed.h5": save_legacy_renamed,
    "keras_3.weights.h5": save_keras_3,
    "keras_3_nameless.weights.h5": save_keras_3_nameless,
    "nested.h5": lambda model, path: nested(model).save(path),
    "nested.keras": lambda model, path: nested(model).save(path),
    "nested_nameless.weights.h5": lambda model, path: save_keras_3_nameless(nested(model), path),
    "nested_partly_trainable.h5": save_nested_partly_trainable,
    "flat.h5": lambda model, path: flat(model).save(path),
    "flat.keras": lambda model, path: flat(model).save(path),
    "flat_nameless.weights.h5": lambda model, path: save_keras_3_nameless(flat(model), path),
}


@pytest.fixture(scope="module")
def known() -> tuple[Any, Weights]:
    """Return a tiny model in which every weight has a value of its own, and those weights."""
    model = TINY.build(16)
    generator = np.random.default_rng(1)
    for weight in model.weights:
        weight.assign(generator.uniform(0.5, 1.5, weight.shape))
    arrays = tuple(
        tuple(np.asarray(weight) for weight in layer.weights) for layer in leaf_layers(model)
    )
    return model, Weights(model_layout(model), arrays, "known")


def leaf_layers(model: Any) -> list[Any]:
    """Return the layers with weights in the order of the constructor, written out by hand."""
    inner = model.get_layer("down")
    names = ("stem_conv", "stem_bn", "block_depthwise", "block_bn")
    first = [model.get_layer(name) for name in names]
    return [*first, *inner.layers, model.get_layer("mix_conv"), model.get_layer("top_conv")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_every_form_of_file_gives_the_weights_that_were_saved(
    form: str, known: tuple[Any, Weights], tmp_path: Path
) -> None:
    model, weights = known
    FORMS[form](model, tmp_path / form)
    found = find_weights(str(tmp_path / form), TINY, 16)
    for arrays, expected in zip(found.arrays, weights.arrays, strict=True):
        for array, values in zip(arrays, expected, strict=True):
            np.testing.assert_array_equal(array, values)
    assert found.digest == weights.digest
    assert found.file_sha256 == hashlib.sha256((tmp_path / form).read_bytes()).hexdigest()


def test_model_has_the_weights_that_are_set(known: tuple[Any, Weights]) -> None:
    model, weights = known
    other = TINY.build(16)
    set_weights(other, weights)
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    np.testing.assert_array_equal(model(images, training=False), other(images, training=False))


def test_digest_stays_the_same() -> None:
    """A change of this digest makes every cache stale: it is changed on purpose or not at all."""
    layout = Layout(
        (
            LayerLayout("conv", "conv2d", (("kernel", (1, 1, 3, 2)), ("bias", (2,)))),
            LayerLayout("scale", "layer_scale", (("variable", (2,)),)),
        )
    )
    kernel, bias, scale = np.arange(6.0).reshape(1, 1, 3, 2), np.ones(2), np.zeros(2)
    arrays = ((kernel.astype("f4"), bias.astype("f4")), (scale.astype("f4"),))
    by_hand = hashlib.sha256(
        b"conv/kernel (1, 1, 3, 2)\n"
        + kernel.astype("<f4").tobytes()
        + b"conv/bias (2,)\n"
        + bias.astype("<f4").tobytes()
        + b"scale/variable (2,)\n"
        + scale.astype("<f4").tobytes()
    ).hexdigest()
    assert Weights(layout, arrays, "").digest == by_hand == PINNED_DIGEST


PINNED_DIGEST = "1e341ee9b4d55b413e5c7ee32e556c23cf761e16079c2d946015745874062b12"


def test_one_changed_number_changes_the_digest(known: tuple[Any, Weights]) -> None:
    _, weights = known
    arrays = [list(layer) for layer in weights.arrays]
    arrays[3][2] = arrays[3][2].copy()
    arrays[3][2][-1] = np.nextafter(arrays[3][2][-1], np.float32(2))
    changed = Weights(weights.layout, tuple(map(tuple, arrays)), "known")
    assert changed.digest != weights.digest


def test_random_weights_are_the_same_each_time_and_say_so() -> None:
    backbone = get_backbone("mobilenet_v3_small")
    first, second = find_weights("random", backbone, 96), find_weights("random", backbone, 224)
    assert first.digest == second.digest != random_weights(backbone, seed=1).digest
    assert "random" in first.description
    assert first.path is None
    assert first.n_parameters == 939_120


def test_random_kernels_have_the_variance_of_he() -> None:
    weights = random_weights(get_backbone("resnet50"))
    layer = next(
        arrays
        for layout, arrays in zip(weights.layout.layers, weights.arrays, strict=True)
        if layout.name == "conv4_block1_2_conv"
    )
    assert layer[0].std() == pytest.approx(np.sqrt(2 / (3 * 3 * 256)), rel=0.01)
    assert not layer[1].any()


def test_reading_and_digesting_import_no_tensorflow(
    known: tuple[Any, Weights], tmp_path: Path
) -> None:
    model = get_backbone("mobilenet_v2").build(32)
    model.save_weights(tmp_path / "some.weights.h5")
    program = (
        "import sys\n"
        "from extract.backbones import get_backbone\n"
        "from extract.weights import find_weights\n"
        "weights = find_weights(sys.argv[1], get_backbone('mobilenet_v2'), 96)\n"
        "print(weights.n_parameters, len(weights.digest), 'tensorflow' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "some.weights.h5")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout == "2257984 64 False\n"


def test_misfit_names_the_first_layer_that_differs_with_both_shapes(
    known: tuple[Any, Weights], tmp_path: Path
) -> None:
    path = tmp_path / "wider.h5"
    save_legacy(known[0], path)
    with h5py.File(path, "r+") as file:
        bias = file["top_conv/top_conv/bias"]
        del file["top_conv/top_conv/bias"]
        file["top_conv/top_conv/bias"] = np.zeros(len(bias) + 1, np.float32)
    expected = "layer top_conv has 1x1x16x24 and 24 there, the file has 1x1x16x24 and 25"
    with pytest.raises(WeightsError, match=expected):
        find_weights(str(path), TINY, 16)


def test_missing_layer_is_named(known: tuple[Any, Weights], tmp_path: Path) -> None:
    path = tmp_path / "less.h5"
    save_legacy(known[0], path)
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [
            name for name in file.attrs["layer_names"] if name != "block_bn"
        ]
    with pytest.raises(WeightsError, match=r"layer block_bn has .* the file has no such layer"):
        find_weights(str(path), TINY, 16)


def test_weights_of_another_backbone_do_not_fit(tmp_path: Path) -> None:
    save_keras_3_nameless(get_backbone("mobilenet_v3_small").build(32), tmp_path / "v3.weights.h5")
    expected = "does not fit mobilenet_v2: layer Conv1 has 3x3x3x32 there, the file has 3x3x3x16"
    with pytest.raises(WeightsError, match=expected):
        find_weights(str(tmp_path / "v3.weights.h5"), get_backbone("mobilenet_v2"), 96)


def test_two_backbones_in_one_file_are_refused(tmp_path: Path) -> None:
    keras = import_keras()
    images = keras.Input((16, 16, 3))
    twins = [TINY.build(16), TINY.build(16)]
    for number, twin in enumerate(twins):
        twin.name = f"twin_{number}"
    model = keras.Model(images, keras.layers.Add()([twin(images) for twin in twins]))
    model.save(tmp_path / "twins.keras")
    with pytest.raises(WeightsError, match="holds 2 models that fit tiny"):
        find_weights(str(tmp_path / "twins.keras"), TINY, 16)


def write_garbage(path: Path, _: Any) -> None:
    path.write_bytes(b"not a weights file")


def write_truncated(path: Path, model: Any) -> None:
    save_legacy(model, path)
    path.write_bytes(path.read_bytes()[:-2000])


def write_archive_without_weights(path: Path, _: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


def write_empty(path: Path, _: Any) -> None:
    h5py.File(path, "w").close()


def write_nan(path: Path, model: Any) -> None:
    save_legacy(model, path)
    with h5py.File(path, "r+") as file:
        file["top_conv/top_conv/bias"][3] = np.nan


def write_integers(path: Path, model: Any) -> None:
    save_legacy(model, path)
    with h5py.File(path, "r+") as file:
        shape = file["top_conv/top_conv/bias"].shape
        del file["top_conv/top_conv/bias"]
        file["top_conv/top_conv/bias"] = np.zeros(shape, np.int64)


def write_link_to_another_file(path: Path, model: Any) -> None:
    save_legacy(model, path)
    save_legacy(model, path.with_name("other.h5"))
    with h5py.File(path, "r+") as file:
        del file["top_conv"]["top_conv"]["bias"]
        link = h5py.ExternalLink(str(path.with_name("other.h5")), "top_conv/top_conv/bias")
        file["top_conv"]["top_conv"]["bias"] = link


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_garbage, "cannot be read as a Keras weights file"),
        (write_truncated, "cannot be read as a Keras weights file"),
        (write_archive_without_weights, "cannot be read as a Keras weights file"),
        (write_empty, "it holds no layers with weights"),
        (write_nan, "layer top_conv has weights that are not finite"),
        (write_integers, "has type int64, expected float32"),
        (write_link_to_another_file, "top_conv/bias in it lies outside the file"),
    ],
)
def test_damaged_or_odd_file_is_refused(
    write: Callable[[Path, Any], None],
    message: str,
    known: tuple[Any, Weights],
    tmp_path: Path,
) -> None:
    write(tmp_path / "odd.h5", known[0])
    with pytest.raises(WeightsError, match=message):
        find_weights(str(tmp_path / "odd.h5"), TINY, 16)


def test_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsUnavailableError, match=r"there is no weights file .*none\.h5"):
        find_weights(str(tmp_path / "none.h5"), TINY, 16)


def test_onnx_file_brings_its_own_weights(tmp_path: Path) -> None:
    (tmp_path / "own.onnx").write_bytes(b"own")
    (tmp_path / "own.json").write_text('{"image_size": 32}')
    backbone = open_backbone(f"onnx:{tmp_path / 'own.onnx'}", tmp_path / "own.json")
    weights = find_weights("imagenet", backbone, 32)
    assert weights.digest == hashlib.sha256(b"own").hexdigest()
    with pytest.raises(BackboneError, match="leave --weights out"):
        find_weights("random", backbone, 32)


@needs_shared_weights
@pytest.mark.parametrize("n_images", [1, 64])
def test_features_are_those_of_keras_applications(n_images: int) -> None:
    from extract.engines import KerasEngine

    path = SHARED_WEIGHTS / "mobilenet_v2_1.0_96_no_top.h5"
    keras = import_keras()
    from tensorflow import image

    photos = np.random.default_rng(0).integers(0, 256, (n_images, 28, 28, 3)).astype(np.float32)
    resized = image.resize(photos, (96, 96), antialias=True).numpy()
    batch = keras.applications.mobilenet_v2.preprocess_input(resized)
    reference = keras.applications.MobileNetV2(
        include_top=False, weights=str(path), input_shape=(96, 96, 3), pooling="avg"
    )
    backbone = get_backbone("mobilenet_v2")
    engine = KerasEngine(backbone, find_weights(str(path), backbone, 96), 96)
    expected = np.asarray(reference(batch, training=False))
    np.testing.assert_allclose(engine(batch), expected, atol=1e-4)


@needs_shared_weights
def test_imagenet_weights_are_found_in_the_assets_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HEADSTART_ASSETS", str(SHARED_WEIGHTS))
    backbone = get_backbone("mobilenet_v2")
    weights = find_weights("imagenet", backbone, 96)
    assert weights.path == SHARED_WEIGHTS / "mobilenet_v2_1.0_96_no_top.h5"
    assert "HEADSTART_ASSETS; not checked by a digest" in weights.description
    assert not capsys.readouterr().err
    unlisted = find_weights("imagenet", backbone, 100)
    assert unlisted.path == SHARED_WEIGHTS / "mobilenet_v2_1.0_224_no_top.h5"
    assert "using mobilenet_v2_1.0_224_no_top.h5" in capsys.readouterr().err
