"""The one decoder: the bytes of a file, a row of an array or a Pillow image in; pixels out.

What comes out is what a person sees in an image viewer. The content decides about the format, never
the name. The orientation in the metadata is applied; transparent parts show the background; an
animation gives its first frame; 16-bit and floating-point gray is scaled, never clipped. Color
profiles are left out of account, as Keras, torchvision and the makers of the weights leave them.
Whatever a broken file provokes becomes a :class:`BadImageError` whose message is the reason.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import itertools
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from data_cache.errors import BadImageError
from extract.preprocess import LARGEST_PIXEL, Pixels

Background = Literal["white", "black"]

DECODER = "rgb8/1"
"""Name and version of the decoder; a change of its results is a change of the version."""

MAX_PIXELS = 50 << 20
"""Pixels in the largest image that is decoded, so that none takes 1 GB: 52 million."""

MAX_SIDE = 65_535
"""Pixels in the longest side, as in JPEG."""

# Formats that bytes alone identify. The others that Pillow has are left out with intent: some start
# programs (EPS), some take any bytes for an image (TGA).
FORMATS = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "TIFF",
    "AVIF",
    "MPO",
    "JPEG2000",
    "ICO",
    "PPM",
    "DIB",
    "QOI",
)

_GRAY_MODES = ("1", "L", "LA", "La")
# The orientations of EXIF (JEITA CP-3451, tag 0x0112), as what is done to the stored pixels.
_ROWS_REVERSED = (3, 4, 6, 7)
_COLUMNS_REVERSED = (2, 3, 7, 8)
_TRANSPOSED = (5, 6, 7, 8)

_STRIP_PIXELS = 1 << 20
"""Pixels that are taken out of Pillow at a time."""

# What else is found under the name of an image, by its first bytes.
_NOT_IMAGES = (
    (b"<!doctype html", "a web page (HTML), perhaps saved in place of the image"),
    (b"<html", "a web page (HTML), perhaps saved in place of the image"),
    (b"<svg", "an SVG drawing, which has no pixels"),
    (b"<?xml", "an XML document, perhaps an SVG drawing"),
    (b"%pdf", "a PDF document"),
    (b"%!ps", "a PostScript document"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\xd0\xcf\x11\xe0", "a Windows document or thumbnail store"),
    (b"\x89hdf", "an HDF5 file"),
    (b"version https://git-lfs", "a Git LFS pointer: fetch the file itself with 'git lfs pull'"),
)

# What Pillow would have known, had its header been whole.
_IMAGE_SIGNATURES = (
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "WebP"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\1\0", "ICO"),
)


@dataclass(frozen=True)
class DecodeOptions:
    """What the user may choose about decoding.

    Attributes
    ----------
    background : the color behind transparent parts
    tolerate_truncated : whether an image that breaks off is decoded as far as it goes, the rest
        gray or black, instead of refused
    white_level : the value that is white in gray of more than 8 bits; None is the format's own:
        65535 for integers, 1 for floating-point values up to 1 and 255 for those up to 255
    max_pixels : an image of more pixels is refused from its header, before memory is taken
    """

    background: Background = "white"
    tolerate_truncated: bool = False
    white_level: float | None = None
    max_pixels: int = MAX_PIXELS

    @property
    def identity(self) -> str:
        """What a recipe records: the version, and the options that change pixels."""
        words = [DECODER, f"alpha={self.background}"]
        if self.tolerate_truncated:
            words.append("truncated=tolerated")
        if self.white_level is not None:
            words.append(f"white={self.white_level:g}")
        return " ".join(words)

    @classmethod
    def from_identity(cls, identity: str) -> Self:
        """Return options of an :attr:`identity`; its inverse, for a decoder of this version.

        Raises
        ------
        ValueError
            It is the identity of another decoder, or of none.
        """
        said = dict(word.partition("=")[::2] for word in identity.split()[1:])
        options = cls(
            background="black" if said.get("alpha") == "black" else "white",
            tolerate_truncated="truncated" in said,
            white_level=float(said["white"]) if "white" in said else None,
        )
        if options.identity != identity:
            raise ValueError(f"decoding {identity!r}, where this program has {options.identity!r}")
        return options


DEFAULT_OPTIONS = DecodeOptions()


def decode(raw: bytes | NDArray | Image.Image, options: DecodeOptions = DEFAULT_OPTIONS) -> Pixels:
    """Decode one image; safe to call from many threads.

    Parameters
    ----------
    raw : the bytes of a file; or a row of an array: (h, w), (h, w, 1), (h, w, 3) or (h, w, 4),
        uint8, or floating-point in [0, 255]; or an image that Pillow has opened or made
    options : see :class:`DecodeOptions`

    Returns
    -------
    (h, w, 1) for gray and (h, w, 3) for color: uint8, or float32 in [0, 255] where the image has
    more than 8 bits of gray

    Raises
    ------
    BadImageError
        The image cannot be decoded, whatever the cause; the message is the reason, in words.
    """
    if isinstance(raw, np.ndarray):
        return _decode_array(raw, options)
    _prepare_pillow()
    try:
        with _truncation(tolerated=options.tolerate_truncated):
            return _decode_file(raw, options) if isinstance(raw, bytes) else _load(raw, options)
    except BadImageError:
        raise
    except Exception as error:  # a broken file provokes nearly every class of exception in Pillow
        raise BadImageError(_reason(error, raw if isinstance(raw, bytes) else b"")) from error


def _decode_array(raw: NDArray, options: DecodeOptions) -> Pixels:
    """Bring a row of an array to (h, w, 1 or 3), uint8 or float32."""
    pixels = _with_channels(raw)
    if pixels.shape[2:] not in ((1,), (3,), (4,)) or 0 in pixels.shape:
        raise BadImageError(
            f"an array of shape {raw.shape} where (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) "
            "is expected"
        )
    _check_size(pixels.shape[1], pixels.shape[0], options)
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32, copy=False)
    transparent = pixels.shape[2] == len("RGBA")
    return _on_background(pixels, options.background) if transparent else pixels


def _with_channels(pixels: NDArray) -> NDArray:
    """Return (h, w, c) pixels for (h, w) or (h, w, c) ones."""
    return pixels[:, :, None] if pixels.ndim == len("hw") else pixels


def _decode_file(raw: bytes, options: DecodeOptions) -> Pixels:
    """Decode the bytes of a file; anything that Pillow raises passes through."""
    if not raw:
        raise BadImageError("the file is empty")
    return _upright(*_open(raw, options))


def _open(raw: bytes, options: DecodeOptions) -> tuple[Pixels, int]:
    """Return the pixels as they are stored, and the orientation; Pillow's copies go with this."""
    with Image.open(io.BytesIO(raw), formats=_formats()) as image:
        return _read(image, options)


def _load(image: Image.Image, options: DecodeOptions) -> Pixels:
    """Decode what Pillow has opened or made."""
    return _upright(*_read(image, options))


def _read(image: Image.Image, options: DecodeOptions) -> tuple[Pixels, int]:
    """Return the pixels as they are stored, and the orientation."""
    _check_size(*image.size, options)
    image.load()
    _check_size(*image.size, options)  # an ICO file tells its true size only now
    return _pixels(image, options), _orientation(image)


def _check_size(width: int, height: int, options: DecodeOptions) -> None:
    """Raise :class:`BadImageError` for an image without pixels or with too many."""
    if width < 1 or height < 1:
        raise BadImageError(f"{width} x {height} pixels: it has none")
    if width * height > options.max_pixels:
        raise BadImageError(
            f"too large: {width} x {height} pixels, where {options.max_pixels:,} are allowed"
        )
    if max(width, height) > MAX_SIDE:
        raise BadImageError(
            f"too long: {width} x {height} pixels, where a side may have {MAX_SIDE:,}"
        )


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; broken metadata says nothing, which is 1."""
    orientation = 1
    with contextlib.suppress(Exception):  # nearly every class of exception, as with pixels
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turn (h, w, c) pixels that were stored in an orientation of EXIF, 1 to 8."""
    if orientation == 1:
        return pixels
    rows = slice(None, None, -1 if orientation in _ROWS_REVERSED else 1)
    columns = slice(None, None, -1 if orientation in _COLUMNS_REVERSED else 1)
    turned: NDArray = pixels[rows, columns]
    return np.ascontiguousarray(turned.swapaxes(0, 1) if orientation in _TRANSPOSED else turned)


def _pixels(image: Image.Image, options: DecodeOptions) -> Pixels:
    """Return the pixels of a loaded image of any of Pillow's modes.

    A large image is taken out of Pillow in strips, since every step there makes a copy of it.
    """
    step = max(1, _STRIP_PIXELS // image.width)
    if image.height <= step:
        values = _strip(image, options.background)
    else:
        values = _stack(_strips(image, step, options.background), image.height)
    if values.dtype == np.uint8:
        return values
    return _scale_gray(values.astype(np.float32, copy=False), image.mode, options)


def _strips(image: Image.Image, n_rows: int, background: Background) -> Iterator[Pixels]:
    for top in range(0, image.height, n_rows):
        box = (0, top, image.width, min(top + n_rows, image.height))
        yield _strip(image.crop(box), background)


def _stack(strips: Iterator[Pixels], n_rows: int) -> Pixels:
    """Put strips below one another into an array of ``n_rows`` rows."""
    first = next(strips)
    stacked: Pixels = np.empty((n_rows, *first.shape[1:]), first.dtype)
    top = 0
    for strip in itertools.chain([first], strips):
        stacked[top : top + len(strip)] = strip
        top += len(strip)
    return stacked


def _strip(image: Image.Image, background: Background) -> Pixels:
    """Return (h, w, 1 or 3) uint8; of more than 8 bits of gray, the values as float32."""
    if image.mode.startswith("I") or image.mode == "F":
        return _with_channels(np.asarray(image).astype(np.float32))
    transparent = image.has_transparency_data
    if image.mode in _GRAY_MODES:
        mode = "LA" if transparent else "L"
    else:
        mode = "RGBA" if transparent else "RGB"
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return _on_background(values, background) if transparent else _with_channels(values)


def _scale_gray(
    values: NDArray[np.float32], mode: str, options: DecodeOptions
) -> NDArray[np.float32]:
    """Scale gray values of Pillow's modes ``I`` and ``F`` to [0, 255], in place."""
    lowest, highest = float(values.min()), float(values.max())
    white = options.white_level
    if white is None:
        white = 65535.0 if mode != "F" else 1.0 if highest <= 1 else LARGEST_PIXEL
    if not (lowest >= 0 and highest <= white):  # so written, NaN is refused too
        raise BadImageError(
            f"gray values from {lowest:g} to {highest:g}, where 0 is black and {white:g} white: "
            "say which value is white with --white-level"
        )
    values *= np.float32(LARGEST_PIXEL / white)
    return values


def _on_background(values: Pixels, background: Background) -> Pixels:
    """Lay (h, w, 2 or 4) pixels, whose last channel is opacity, on a background."""
    behind = np.float32(LARGEST_PIXEL if background == "white" else 0)
    colors = values[:, :, :-1].astype(np.float32)
    colors -= behind
    colors *= values[:, :, -1:] / np.float32(LARGEST_PIXEL)
    colors += behind
    return colors if values.dtype != np.uint8 else np.rint(colors).astype(np.uint8)


def _reason(error: Exception, raw: bytes) -> str:
    """Say in words why Pillow failed at ``raw``."""
    if isinstance(error, UnidentifiedImageError):
        return _what_it_is(raw)
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    words = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError):
        found = re.search(r"\d+", words)
        return f"too large: {int(found[0]):,} pixels" if found else f"too large: {words}"
    if re.search("truncated|broken data stream|unrecognized data stream", words, re.IGNORECASE):
        return "truncated: the file breaks off, or is damaged, before the image ends"
    return f"damaged: Pillow says '{words}'"


def _what_it_is(raw: bytes) -> str:
    """Say what a file is that no decoder takes, as far as its first bytes tell."""
    start = raw[:64].lstrip().lower()
    for signature, name in _NOT_IMAGES:
        if start.startswith(signature):
            return f"not an image but {name}"
    if raw[4:8] == b"ftyp" and raw[8:12] in (b"heic", b"heix", b"mif1", b"hevc"):
        return "an HEIC image, which Pillow cannot decode: convert it to JPEG or PNG"
    name = "AVIF" if raw[4:12] == b"ftypavif" else ""
    for signature, format_name in _IMAGE_SIGNATURES:
        name = format_name if raw.startswith(signature) else name
    if name:
        return f"damaged: it begins as {name}, but its header is broken or asks for too much"
    return f"not an image: no known format begins with the bytes {raw[:4].hex(' ')}"


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return those of :data:`FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _prepare_pillow() -> None:
    """Keep Pillow's warnings and libtiff's messages, a screenful for a broken file, from the user.

    The filter is put back where something has taken it away, and never taken away here: the list
    of filters belongs to all threads, and one that restores it would undo the others' changes.
    """
    _silence_libtiff()
    if _WARNING_FILTER not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW_MODULES)


_PILLOW_MODULES = r"PIL\."
_WARNING_FILTER = ("ignore", None, Warning, re.compile(_PILLOW_MODULES), 0)


@functools.cache
def _silence_libtiff() -> None:
    """Take away libtiff's handlers, which write to descriptor 2; Pillow raises regardless."""
    try:
        library = ctypes.CDLL(Image.core.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    except (OSError, AttributeError):  # Pillow without libtiff, or with it linked out of sight
        return


_thread = threading.local()


class _TruncationFlag:
    """Stands in for ``ImageFile.LOAD_TRUNCATED_IMAGES``, which is one for all threads.

    Within :func:`_truncation` it answers for the thread that asks; elsewhere it is ``otherwise``.
    """

    def __init__(self, *, otherwise: bool) -> None:
        self.otherwise = otherwise

    def __bool__(self) -> bool:
        return getattr(_thread, "tolerated", self.otherwise)


@contextlib.contextmanager
def _truncation(*, tolerated: bool) -> Iterator[None]:
    """Have Pillow tolerate or refuse truncated images on this thread while the body runs."""
    flag: object = ImageFile.LOAD_TRUNCATED_IMAGES
    if not isinstance(flag, _TruncationFlag):
        vars(ImageFile)["LOAD_TRUNCATED_IMAGES"] = _TruncationFlag(otherwise=bool(flag))
    _thread.tolerated = tolerated
    try:
        yield
    finally:
        del _thread.tolerated
