"""Where images come from: folders, tables, arrays, data set libraries, anything iterable.

:func:`open_source` looks at what the user names and lists it: every image with its label, its
content digest and its split, in one :class:`~data_cache.rows.Manifest`.
"""

from extract.sources.arrays import ArraySource
from extract.sources.base import FORMATS, Source, SourceOptions
from extract.sources.files import FileSource, ImageFile
from extract.sources.iterables import IterableSource, Sample
from extract.sources.opening import open_source

__all__ = [
    "FORMATS",
    "ArraySource",
    "FileSource",
    "ImageFile",
    "IterableSource",
    "Sample",
    "Source",
    "SourceOptions",
    "open_source",
]
