"""Every oddity of image files is decoded as a person sees it, or refused with a reason."""

from __future__ import annotations

import csv
import io
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from data_cache.errors import BadImageError
from extract.decode import FORMATS, MAX_PIXELS, DecodeOptions, decode

HERE = Path(__file__).parent
ODD_IMAGES = HERE.parent.parent / "shared/data/odd_images"
needs_odd_images = pytest.mark.skipif(
    not ODD_IMAGES.is_dir(), reason="../shared/data/odd_images is not here"
)

TOLERANT = DecodeOptions(tolerate_truncated=True)
LOSSLESS = ["PNG", "TIFF", "BMP", "WEBP"]


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    if image_format == "WEBP":
        options = {"lossless": True, "exact": True, **options}
    image.save(stream, image_format, **options)
    return stream.getvalue()


def random_pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def smooth_image(height: int = 40, width: int = 60) -> Image.Image:
    """A picture that lossy formats keep, and that no turn or mirror leaves as it was."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    blue = np.where((x < width / 3) & (y < height / 3), 255, 0)
    return Image.fromarray(np.stack([red, green, blue], axis=2).astype(np.uint8))


# ---------------------------------------------------------------- what a viewer shows


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_lossless_formats_give_their_pixels(image_format: str) -> None:
    pixels = random_pixels(13, 17, 3)
    got = decode(encoded(Image.fromarray(pixels), image_format))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, pixels)


@pytest.mark.parametrize("image_format", ["JPEG", "WEBP", "AVIF", "GIF", "JPEG2000", "ICO", "PPM"])
def test_every_format_is_decoded(image_format: str) -> None:
    options = {"lossless": False} if image_format == "WEBP" else {}
    got = decode(encoded(smooth_image(48, 48), image_format, **options))
    difference = np.abs(got.astype(int) - np.asarray(smooth_image(48, 48)).astype(int))
    assert difference.mean() < 8


def test_gray_stays_one_channel() -> None:
    pixels = random_pixels(5, 7)
    got = decode(encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(got, pixels[:, :, None])


def test_one_bit_is_black_and_white() -> None:
    bits = random_pixels(5, 7) > 127
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits)))[:, :, 0], bits * 255)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(orientation: int, image_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = encoded(smooth_image(), image_format, exif=exif)
    with Image.open(io.BytesIO(raw)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    got = decode(raw)
    np.testing.assert_array_equal(got, expected)
    if image_format != "TIFF" and orientation > 4:
        assert got.shape == (60, 40, 3)
    upright = np.asarray(smooth_image()).astype(int)
    assert (got.shape == upright.shape and np.abs(got - upright).mean() < 5) == (orientation == 1)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"II*\0", b"junk", b"MM\0*\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x09"]
)
def test_broken_metadata_is_no_reason_to_refuse(exif: bytes, image_format: str) -> None:
    raw = encoded(smooth_image(), image_format, exif=b"Exif\0\0" + exif)
    assert decode(raw).shape == (40, 60, 3)


@pytest.mark.parametrize(("background", "behind"), [("white", 255), ("black", 0)])
@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_laid_on_the_background(image_format: str, background: str, behind: int) -> None:
    rgba = random_pixels(11, 12, 4)
    got = decode(encoded(Image.fromarray(rgba), image_format), DecodeOptions(background=background))
    opacity = rgba[..., 3:] / 255
    expected = rgba[..., :3] * opacity + behind * (1 - opacity)
    np.testing.assert_allclose(got, expected, atol=0.51)


def test_gray_with_alpha_is_laid_on_the_background() -> None:
    la = random_pixels(11, 12, 2)
    got = decode(encoded(Image.fromarray(la, "LA")))
    expected = la[..., :1] * (la[..., 1:] / 255) + 255 - la[..., 1:]
    assert got.shape == (11, 12, 1)
    np.testing.assert_allclose(got, expected, atol=0.51)


def test_palettes_with_transparency_show_the_background() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    one_color = encoded(image, transparency=1)
    by_entry = encoded(image, transparency=bytes([255, 0, 128]))
    np.testing.assert_array_equal(decode(one_color)[0], [(255, 0, 0), (255, 255, 255), (0, 0, 255)])
    np.testing.assert_array_equal(
        decode(by_entry)[0], [(255, 0, 0), (255, 255, 255), (127, 127, 255)]
    )


def test_a_transparent_color_shows_the_background() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (40, 50, 60))
    raw = encoded(image, transparency=(40, 50, 60))
    np.testing.assert_array_equal(decode(raw)[0], [(10, 20, 30), (255, 255, 255)])


def test_cmyk_is_converted() -> None:
    inks = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # magenta and yellow ink make red
    np.testing.assert_allclose(decode(encoded(inks, "TIFF"))[8, 8], (255, 0, 0))
    np.testing.assert_allclose(decode(encoded(inks, "JPEG"))[8, 8], (255, 0, 0), atol=3)


def test_sixteen_bit_gray_is_scaled_and_keeps_its_depth() -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    for image_format in ("PNG", "TIFF"):
        got = decode(encoded(Image.fromarray(values), image_format))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got[..., 0], values / 257, rtol=1e-6)


def test_twelve_bits_in_sixteen_are_scaled_by_the_white_level() -> None:
    values = np.linspace(0, 4095, 256).astype(np.uint16).reshape(16, 16)
    raw = encoded(Image.fromarray(values), "TIFF")
    got = decode(raw, DecodeOptions(white_level=4095))
    np.testing.assert_allclose(got[..., 0], values / 4095 * 255, rtol=1e-5)
    with pytest.raises(BadImageError, match="0 to 4095, where 0 is black and 1023 white"):
        decode(raw, DecodeOptions(white_level=1023))


@pytest.mark.parametrize(("white", "top"), [(1.0, 1.0), (255.0, 254.0)])
def test_floating_point_gray_is_read_in_either_range(white: float, top: float) -> None:
    values = np.linspace(0, top, 256, dtype=np.float32).reshape(16, 16)
    got = decode(encoded(Image.fromarray(values), "TIFF"))
    np.testing.assert_allclose(got[..., 0], values * (255 / white), rtol=1e-6)


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf, 70000.0])
def test_floating_point_gray_in_no_known_range_is_refused(value: float) -> None:
    values = np.full((4, 4), 0.5, np.float32)
    values[1, 1] = value
    with pytest.raises(BadImageError, match="--white-level"):
        decode(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animations_give_their_first_frame(image_format: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    raw = encoded(frames[0], image_format, save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(raw), np.full((8, 8, 3), (255, 0, 0)))


def test_large_images_are_taken_out_in_strips_without_a_seam() -> None:
    pixels = random_pixels(1500, 1400, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(pixels), compress_level=0)), pixels
    )
    turned = decode(encoded(Image.fromarray(pixels), compress_level=0, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))
    deep = pixels[..., 0].astype(np.uint16) * 257
    got = decode(encoded(Image.fromarray(deep), "TIFF"))
    np.testing.assert_allclose(got[..., 0], pixels[..., 0], rtol=1e-6)


# ---------------------------------------------------------------- rows of arrays


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_array_rows_keep_their_values(shape: tuple[int, ...], dtype: type) -> None:
    row = random_pixels(*shape).astype(dtype)
    got = decode(row)
    assert got.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(got.squeeze(), row.squeeze())
    assert got.ndim == 3


def test_array_rows_with_alpha_equal_the_same_file() -> None:
    rgba = random_pixels(6, 7, 4)
    np.testing.assert_array_equal(decode(rgba), decode(encoded(Image.fromarray(rgba))))
    np.testing.assert_allclose(decode(rgba.astype(np.float32)), decode(rgba), atol=0.51)


@pytest.mark.parametrize("shape", [(6,), (6, 7, 2), (0, 7, 3), (6, 7, 3, 1)])
def test_array_rows_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(BadImageError, match="shape"):
        decode(np.zeros(shape, np.uint8))


# ---------------------------------------------------------------- what cannot be decoded


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404 not found", "web page"),
        (b"\n <html>", "web page"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        (b"PK\x03\x04abc", "ZIP"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"GIF89a", "begins as GIF"),
        (b"\xff\xd8\xff\xe0", "truncated|JPEG"),
        (b"hello", "no known format begins with the bytes 68 65 6c 6c"),
        (bytes(1000), "not an image"),
    ],
)
def test_what_is_no_image_is_refused_by_what_it_is(raw: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode(raw)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP"])
def test_truncated_images_are_refused(image_format: str) -> None:
    raw = encoded(Image.fromarray(random_pixels(64, 64, 3)), image_format)
    for part in (0.3, 0.6, 0.9):
        with pytest.raises(BadImageError):
            decode(raw[: int(len(raw) * part)])


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_truncated_images_are_decoded_as_far_as_they_go_on_demand(image_format: str) -> None:
    options = {"quality": 95} if image_format == "JPEG" else {}
    whole = encoded(smooth_image(200, 300), image_format, **options)
    got = decode(whole[: len(whole) // 2], TOLERANT)
    assert got.shape == (200, 300, 3)
    np.testing.assert_array_equal(got[:60], decode(whole)[:60])
    np.testing.assert_array_equal(decode(whole, TOLERANT), decode(whole))


def test_tolerance_is_of_each_thread_and_leaves_pillow_as_it_was() -> None:
    whole = encoded(Image.fromarray(random_pixels(64, 64, 3)), "JPEG")
    broken = whole[: len(whole) // 2]
    tolerated = decode(broken, TOLERANT)

    def attempt(i: int) -> bool:
        if i % 2:
            np.testing.assert_array_equal(decode(broken, TOLERANT), tolerated)
            return True
        with pytest.raises(BadImageError, match="truncated"):
            decode(broken)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(attempt, range(200)))
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    with Image.open(io.BytesIO(broken)) as image, pytest.raises(OSError, match="truncated"):
        image.load()


def test_pillow_set_to_tolerate_truncation_elsewhere_changes_nothing_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = encoded(Image.fromarray(random_pixels(64, 64, 3)), "JPEG")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(BadImageError, match="truncated"):
        decode(whole[: len(whole) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def shape_or_reason(raw: bytes, options: DecodeOptions) -> tuple[int, ...] | str:
    try:
        return decode(raw, options).shape
    except BadImageError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(
    image_format=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "ICO", "PPM"]),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
)
@example(image_format="TIFF", changes=[(4, 255)])
def test_damage_of_any_kind_is_refused_or_decoded_but_never_raises_otherwise(
    image_format: str, changes: list[tuple[int, int]]
) -> None:
    damaged = bytearray(encoded(smooth_image(16, 16), image_format))
    for place, value in changes:
        damaged[place % len(damaged)] = value
    for options in (DecodeOptions(), TOLERANT):
        outcome = shape_or_reason(bytes(damaged), options)
        assert outcome[2] in (1, 3) if isinstance(outcome, tuple) else len(outcome.split("\n")) == 1


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60000, 60000), (8000, 8000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header(size: tuple[int, int]) -> None:
    with pytest.raises(BadImageError, match=r"too large: [\d ,x]+ pixels"):
        decode(png_header(*size))


def test_the_pixel_limit_can_be_set() -> None:
    raw = encoded(Image.new("RGB", (20, 10)))
    assert decode(raw, DecodeOptions(max_pixels=200)).shape == (10, 20, 3)
    with pytest.raises(BadImageError, match="too large: 20 x 10 pixels, where 199 are allowed"):
        decode(raw, DecodeOptions(max_pixels=199))


def test_a_side_longer_than_any_camera_makes_is_refused() -> None:
    with pytest.raises(BadImageError, match="too long"):
        decode(encoded(Image.new("1", (70000, 1))))


def test_formats_that_start_programs_are_left_out() -> None:
    assert not {"EPS", "WMF", "PDF", "MIC", "FPX"} & set(FORMATS)


def test_pillow_warnings_are_not_shown_and_do_not_refuse(recwarn: pytest.WarningsRecorder) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([9] * 768)
    raw = encoded(image, transparency=bytes([7] * 4))
    for action in ("error", "always"):
        warnings.simplefilter(action)
        assert decode(raw).shape == (4, 4, 3)
    assert not [warning for warning in recwarn if "PIL" in warning.filename]


def test_many_threads_decode_what_one_decodes() -> None:
    raws = [
        encoded(smooth_image(20 + i, 30), one) for i in range(4) for one in ("JPEG", "PNG", "GIF")
    ]
    expected = [decode(raw) for raw in raws]
    with ThreadPoolExecutor(8) as pool:
        for got, one in zip(pool.map(decode, raws * 5), expected * 5, strict=True):
            np.testing.assert_array_equal(got, one)
    assert threading.active_count() < 50


PEAK = """
import sys
from pathlib import Path
from extract.decode import decode
decode(Path(sys.argv[1]).read_bytes())
status = Path("/proc/self/status").read_text()
print(status.split("VmHWM:")[1].split()[0])
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_the_largest_image_allowed_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / "large.webp"  # of all formats the one whose decoder takes most
    image = Image.new("RGBA", (side, side), (9, 99, 199, 128))
    image.save(path, "WEBP", lossless=True, quality=0, method=0)
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=HERE.parent,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert int(run.stdout) * 1024 < 1e9


def test_identities_are_pinned_because_caches_are_keyed_by_them() -> None:
    """A change here makes every cache out of date: raise the version only with the results."""
    assert DecodeOptions().identity == "rgb8/1 alpha=white"
    chosen = DecodeOptions("black", tolerate_truncated=True, white_level=4095, max_pixels=9)
    assert chosen.identity == "rgb8/1 alpha=black truncated=tolerated white=4095"


# ---------------------------------------------------------------- files that break other tools

with (HERE / "data/odd_images.csv").open(newline="") as stream:
    EXPECTED = list(csv.DictReader(stream))


@needs_odd_images
@pytest.mark.parametrize("expected", EXPECTED, ids=lambda expected: expected["file"])
def test_odd_images_are_right_or_refused(expected: dict[str, str]) -> None:
    """``odd_images.csv`` holds what each file shows, as looked at: its size and mean color."""
    raw = (ODD_IMAGES / expected["file"]).read_bytes()
    if expected["refused"]:
        with pytest.raises(BadImageError, match=re.escape(expected["refused"])):
            decode(raw)
        return
    got = decode(raw)
    shape = tuple(int(expected[side]) for side in ("height", "width", "channels"))
    assert (got.shape, got.dtype.name) == (shape, expected["dtype"])
    color = np.array([float(expected[channel]) for channel in ("red", "green", "blue")])
    np.testing.assert_allclose(got.mean(axis=(0, 1)) * np.ones(3), color, atol=2)


@needs_odd_images
def test_every_odd_image_has_an_expectation() -> None:
    with (ODD_IMAGES / "readability.csv").open(newline="") as stream:
        assert {row["file"] for row in csv.DictReader(stream)} == {one["file"] for one in EXPECTED}


@needs_odd_images
def test_libtiff_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for path in sorted(ODD_IMAGES.glob("*/*.tif")):
        shape_or_reason(path.read_bytes(), DecodeOptions())
    assert capfd.readouterr() == ("", "")


def difference(file: str, other: str) -> float:
    """Mean difference of two files in gray levels, after halving the noise of compression."""
    one, two = (decode((ODD_IMAGES / name).read_bytes()) for name in (file, other))
    assert one.shape == two.shape
    return float(np.abs(one.astype(int) - two.astype(int)).mean())


@needs_odd_images
@pytest.mark.parametrize(
    ("file", "upright"),
    [
        *[
            (f"exif_rotated/pillow__hopper_orientation_{name}", "made_here/png_named.jpg")
            for name in ("2.jpg", "5.jpg", "6.jpg", "7.jpg", "5.webp", "6.webp", "8.webp")
        ],
        *[
            (
                f"exif_rotated/exiforient__Portrait_{i}.jpg",
                "exif_rotated/exiforient__Portrait_0.jpg",
            )
            for i in (3, 4, 5)
        ],
        (
            "exif_rotated/exiforient__Landscape_7.jpg",
            "exif_rotated/exiforient__Landscape_0.jpg",
        ),
        ("cmyk/pillow__hopper.Lab.tif", "made_here/png_named.jpg"),
        ("webp_avif_other_formats/pillow__hopper.avif", "made_here/png_named.jpg"),
        ("webp_avif_other_formats/pillow__hopper.gif", "made_here/png_named.jpg"),
        ("palette_and_alpha/pillow__transparent.webp", "palette_and_alpha/pillow__transparent.png"),
        ("palette_and_alpha/pillow__transparent.gif", "palette_and_alpha/pillow__transparent.png"),
        ("palette_and_alpha/pillow__pil123p.png", "palette_and_alpha/pillow__pil123rgba.png"),
    ],
)
def test_odd_images_of_one_motif_agree(file: str, upright: str) -> None:
    assert difference(file, upright) < 8
