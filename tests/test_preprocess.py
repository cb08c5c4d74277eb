"""Preprocessing equals TensorFlow's resize and Keras's preprocess_input, at any size."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_cache.console import import_keras
from data_cache.errors import BadImageError
from extract import preprocess as room
from extract.preprocess import (
    PAD_FILL,
    RESIZE_MODES,
    SCALINGS,
    Preprocessing,
    ResizeMode,
    preprocess,
)

# (height, width): smaller and larger than the result, odd, long, as large as the result.
SIZES = [(28, 28), (200, 256), (33, 57), (1, 5000), (96, 96), (1, 1), (2, 3), (375, 500), (1023, 7)]
KERAS_MODULES = {
    "tf": ["mobilenet_v2", "inception_v3", "xception"],
    "caffe": ["resnet50", "vgg16"],
    "torch": ["densenet"],
    "identity": ["efficientnet_v2", "mobilenet_v3", "convnext", "efficientnet"],
}
OPENBLAS_THREADED_ABOVE = 262_144
OPENBLAS_VECTOR_THREADED_ABOVE = 9216

Resize = Callable[[NDArray, tuple[int, int]], NDArray[np.float32]]


@pytest.fixture(scope="module")
def keras() -> ModuleType:
    return import_keras()


@pytest.fixture(scope="module")
def tf_resize(keras: ModuleType) -> Resize:
    import tensorflow as tf

    def resize(images: NDArray, size: tuple[int, int]) -> NDArray[np.float32]:
        resized = tf.image.resize(images, size, method="bilinear", antialias=True)
        return resized.numpy().astype(np.float32)

    return resize


def random_images(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_tensorflow(
    images: NDArray, size: int, mode: ResizeMode, resize: Resize
) -> NDArray[np.float32]:
    """What preprocessing does before the scaling, from TensorFlow's resize alone."""
    height, width = images.shape[1:3]
    rgb = np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images
    if mode == "stretch":
        return resize(rgb, (size, size))
    anchor = min(height, width) if mode == "crop" else max(height, width)
    h, w = (max(1, int(np.floor(side * size / anchor + 0.5))) for side in (height, width))
    resized = resize(rgb, (h, w))
    if mode == "crop":
        top, left = (h - size) // 2, (w - size) // 2
        return resized[:, top : top + size, left : left + size]
    top, left = (size - h) // 2, (size - w) // 2
    margins = ((0, 0), (top, size - h - top), (left, size - w - left), (0, 0))
    return np.pad(resized, margins, constant_values=PAD_FILL)


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("n_channels", [1, 3])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_equals_tensorflow_and_keras(
    height: int,
    width: int,
    n_channels: int,
    mode: ResizeMode,
    keras: ModuleType,
    tf_resize: Resize,
) -> None:
    images = random_images((2, height, width, n_channels))
    if mode == "crop" and max(height, width) > 1000:
        images = images[:, :100, :100]  # TensorFlow would make all of the long side
    for size in (96, 97):
        resized = by_tensorflow(images, size, mode, tf_resize)
        for name, modules in KERAS_MODULES.items():
            scaling = SCALINGS[name]
            module = getattr(keras.applications, modules[0])
            expected = module.preprocess_input(resized.copy())
            got = preprocess(images, Preprocessing(scaling, size, mode))
            assert got.shape == (2, size, size, 3)
            assert got.dtype == np.float32
            span = scaling.highest - scaling.lowest
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * span)


@pytest.mark.parametrize(
    ("name", "module"), [(name, one) for name, some in KERAS_MODULES.items() for one in some]
)
def test_scalings_equal_those_of_keras_applications(
    name: str, module: str, keras: ModuleType
) -> None:
    images = random_images((1, 8, 8, 3))
    expected = getattr(keras.applications, module).preprocess_input(images.astype(np.float32))
    got = preprocess(images, Preprocessing(SCALINGS[name], 8))
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_float_images_equal_tensorflow_between_the_gray_levels(tf_resize: Resize) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (2, 50, 70, 3)).astype(np.float32)
    got = preprocess(images, Preprocessing(SCALINGS["identity"], 96))
    np.testing.assert_allclose(got, tf_resize(images, (96, 96)), rtol=0, atol=255e-5)


def test_a_large_photo_equals_tensorflow(tf_resize: Resize) -> None:
    images = random_images((1, 1200, 1801, 3))
    got = preprocess(images, Preprocessing(SCALINGS["identity"], 224))
    np.testing.assert_allclose(got, tf_resize(images, (224, 224)), rtol=0, atol=255e-5)


sides = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(
    height=sides,
    width=sides,
    size=st.integers(1, 64),
    mode=st.sampled_from(["stretch", "crop"]),
    level=st.integers(0, 255),
    n_channels=st.sampled_from([1, 3]),
)
def test_a_uniform_image_stays_uniform(
    height: int, width: int, size: int, mode: ResizeMode, level: int, n_channels: int
) -> None:
    image = np.full((1, height, width, n_channels), level, np.uint8)
    got = preprocess(image, Preprocessing(SCALINGS["tf"], size, mode))
    np.testing.assert_allclose(got, level / 127.5 - 1, rtol=0, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(height=sides, width=sides, size=st.integers(1, 64), mode=st.sampled_from(RESIZE_MODES))
def test_the_result_stays_in_range(height: int, width: int, size: int, mode: ResizeMode) -> None:
    image = random_images((1, height, width, 3)) // 255 * 255
    for scaling in SCALINGS.values():
        got = preprocess(image, Preprocessing(scaling, size, mode))
        slack = 1e-4 * (scaling.highest - scaling.lowest)
        assert scaling.lowest - slack <= got.min() <= got.max() <= scaling.highest + slack


def test_mobilenet_v2_sees_minus_one_to_one() -> None:
    assert (SCALINGS["tf"].lowest, SCALINGS["tf"].highest) == pytest.approx((-1, 1))
    extremes = np.array([0, 255], np.uint8).reshape(1, 1, 2, 1)
    got = preprocess(extremes, Preprocessing(SCALINGS["tf"], 2))
    np.testing.assert_allclose(got[0, 0, :, 0], [-1, 1], atol=1e-6)


def test_gray_is_repeated_to_three_channels() -> None:
    gray = random_images((3, 20, 30, 1))
    for scaling in SCALINGS.values():
        chosen = Preprocessing(scaling, 16)
        as_rgb = preprocess(np.repeat(gray, 3, axis=3), chosen)
        np.testing.assert_allclose(preprocess(gray, chosen), as_rgb, rtol=0, atol=1e-4)


def test_a_batch_gives_what_its_images_give_alone() -> None:
    images = random_images((70, 28, 28, 1))  # more than are worked on at a time
    chosen = Preprocessing(SCALINGS["tf"], 96)
    alone = np.concatenate([preprocess(image[None], chosen) for image in images])
    np.testing.assert_allclose(preprocess(images, chosen), alone, rtol=0, atol=1e-6)


def test_no_images_give_no_results() -> None:
    nothing = np.empty((0, 28, 28, 1), np.uint8)
    assert preprocess(nothing, Preprocessing(SCALINGS["tf"], 96)).shape == (0, 96, 96, 3)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_out_is_filled_wherever_it_lies(mode: ResizeMode) -> None:
    images = random_images((1, 30, 80, 3))
    chosen = Preprocessing(SCALINGS["torch"], 24, mode)
    batch = np.full((3, 24, 24, 3), np.nan, np.float32)
    assert np.shares_memory(preprocess(images, chosen, out=batch[1:2]), batch)
    np.testing.assert_array_equal(batch[1], preprocess(images, chosen)[0])
    assert np.isnan(batch[[0, 2]]).all()


@pytest.mark.parametrize(
    "out",
    [
        np.empty((1, 24, 24, 3), np.float64),
        np.empty((2, 24, 24, 3), np.float32),
        np.empty((1, 24, 24, 6), np.float32)[..., ::2],
    ],
)
def test_an_out_that_cannot_be_filled_is_refused(out: NDArray) -> None:
    with pytest.raises(ValueError, match="C-contiguous float32"):
        preprocess(random_images((1, 9, 9, 3)), Preprocessing(SCALINGS["tf"], 24), out=out)


@pytest.mark.parametrize("value", [256.0, -1.0, np.nan, np.inf])
def test_float_pixels_out_of_range_are_refused(value: float) -> None:
    image = np.full((1, 9, 9, 3), 100, np.float32)
    image[0, 4:7, 4:7] = value
    with pytest.raises(BadImageError, match="0 to 255"):
        preprocess(image, Preprocessing(SCALINGS["tf"], 24))


def test_crop_keeps_the_middle_of_the_long_side() -> None:
    image = np.zeros((1, 10, 30, 1), np.uint8)
    image[:, :, 10:20] = 255
    got = preprocess(image, Preprocessing(SCALINGS["identity"], 10, "crop"))
    np.testing.assert_allclose(got, 255, atol=1e-3)


def test_pad_centers_the_image_on_gray() -> None:
    image = np.full((1, 10, 30, 3), 255, np.uint8)
    got = preprocess(image, Preprocessing(SCALINGS["tf"], 30, "pad"))
    np.testing.assert_allclose(got[0, 10:20], 1, atol=1e-5)
    np.testing.assert_allclose(got[0, :10], 0, atol=1e-6)
    np.testing.assert_allclose(got[0, 20:], 0, atol=1e-6)


def test_many_threads_give_what_one_gives() -> None:
    images = [random_images((1, 20 + i, 40 - i, 3), seed=i) for i in range(16)] * 4
    chosen = Preprocessing(SCALINGS["tf"], 32)
    expected = [preprocess(image, chosen) for image in images]
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda image: preprocess(image, chosen), images))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (200, 256), (3000, 4000), (1, 30000)])
@pytest.mark.parametrize("size", [96, 97, 224, 299])
def test_no_product_is_large_enough_to_wake_other_threads(
    height: int, width: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many threads preprocess at once; threads of BLAS would be in their way."""
    products = products_of((height, width), size, monkeypatch)
    assert all(m > 1 or k * n < OPENBLAS_VECTOR_THREADED_ABOVE for m, k, n in products)
    assert max(m * k * n for m, k, n in products) <= OPENBLAS_THREADED_ABOVE


@pytest.mark.parametrize(("height", "width"), [(28, 28), (200, 256), (375, 250)])
@pytest.mark.parametrize("size", [96, 97, 224])
def test_a_small_image_takes_one_product_a_side_so_threads_do_not_hand_the_lock_around(
    height: int, width: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_blocks = -(-height * width * 3 // room._BLOCK_VALUES)
    assert len(products_of((height, width), size, monkeypatch)) <= n_blocks + 2


def products_of(
    shape: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, int, int]]:
    """Return m, k and n of the matrices in each call that preprocessing an image makes."""
    products = []
    matmul = np.matmul

    def noting(a: NDArray, b: NDArray, out: NDArray) -> None:
        products.append((*a.shape[-2:], b.shape[-1]))
        matmul(a, b, out=out)

    monkeypatch.setattr(room.np, "matmul", noting)
    preprocess(np.zeros((1, *shape, 3), np.uint8), Preprocessing(SCALINGS["tf"], size))
    return products


def test_identities_are_pinned_because_caches_are_keyed_by_them() -> None:
    """A change here makes every cache out of date: raise the version only with the results."""
    assert {name: scaling.identity for name, scaling in SCALINGS.items()} == {
        "tf": "tf/1",
        "caffe": "caffe/1",
        "torch": "torch/1",
        "identity": "identity/1",
    }
    assert Preprocessing(SCALINGS["tf"], 96).identity == "triangle/1 tf/1"
