"""What damaged files of models provoke, and what is quoted of it."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zlib
from zipfile import BadZipFile

SIGNS_OF_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    AssertionError,
    SyntaxError,
    tokenize.TokenError,
    struct.error,
    BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What a file that is damaged, or somebody else's, provokes in NumPy, h5py, Keras and zipfile."""

_MOST_LETTERS = 200


def words_of(error: BaseException) -> str:
    """Return what an error says, in one line; a file may have put any length of text into it."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _MOST_LETTERS else f"{words[:_MOST_LETTERS]}…"
