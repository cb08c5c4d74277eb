"""Every exception that the project raises on purpose.

::

    HeadstartError                            the base of all
    ├── SourceError            (ValueError)        images cannot be listed or understood
    │   ├── UnknownSourceError     (LookupError)
    │   ├── DataUnavailableError   (FileNotFoundError)  a built-in set that is not on this machine
    │   ├── BadImageError                              one image that cannot be decoded
    │   │   └── ImageUnavailableError                  one that cannot be read at the moment
    │   └── BadImagesError                             more bad images than were allowed
    ├── BackboneError          (ValueError)        unknown backbone, impossible image size
    ├── WeightsError           (ValueError)        a weights file that does not fit
    │   └── WeightsUnavailableError (FileNotFoundError)
    ├── AssetError             (FileNotFoundError) a file to be fetched that cannot be had
    ├── EngineError            (RuntimeError)      an engine that cannot run, or disagrees
    ├── CacheError             (ValueError)        anything about a feature cache
    │   ├── CacheNotFoundError     (FileNotFoundError)
    │   ├── CacheFormatError                           not a cache
    │   │   └── CacheVersionError                      a cache of another format version
    │   ├── CacheCorruptError                          bytes that are not what was written
    │   ├── RecipeMismatchError                        a cache made by another recipe
    │   ├── CacheLockedError       (BlockingIOError)   another process is writing it
    │   └── CacheFullError         (OSError)           no room left to write
    ├── OutputExistsError      (FileExistsError)   a result that would be overwritten
    ├── OutputError            (OSError)           a place where nothing can be written
    │   └── OutputFullError                            no room left for a result
    ├── DataError              (ValueError)        labels or features that cannot be learnt from
    ├── ParameterError         (ValueError)        a parameter out of its range
    ├── RunError               (ValueError)        a run folder that is missing or not whole
    ├── ModelError             (ValueError)        an exported model, foreign, damaged or unsafe
    ├── TrainingError          (RuntimeError)      training that went wrong (a loss of NaN)
    ├── ExportError            (RuntimeError)      a model that cannot be exported, or disagrees
    └── ClusterError           (RuntimeError)      workers that cannot be had, or that differ

Each is also a builtin kind of error, so both ways of catching work::

    try:
        cache = FeatureCache.open("fashion.h5")
    except HeadstartError as error:
        print(error)  # one line: what was found, what was expected, how to mend it
        raise SystemExit(error.exit_code)

``exit_code`` is what a command ends with: 2 where the user can mend it by calling differently,
1 where the machine or the data failed. A command may also end without an error and with 3, where
images were left out, or 4, where a new model was trained and the champion stays in use.
"""

from __future__ import annotations

EXIT_SOME_LEFT_OUT = 3
"""What a command ends with that did its work, but for images that it had to leave out."""


class HeadstartError(Exception):
    """Base of every error that is raised on purpose."""

    exit_code: int = 2


class SourceError(HeadstartError, ValueError):
    """A source whose images cannot be listed or understood."""


class UnknownSourceError(SourceError, LookupError):
    """A source that is neither a built-in set nor anything on disk."""


class DataUnavailableError(SourceError, FileNotFoundError):
    """A built-in set that is not on this machine and could not be downloaded."""

    exit_code = 1


class BadImageError(SourceError):
    """One image that cannot be decoded; the message is the reason, without the path."""


class ImageUnavailableError(BadImageError):
    """One image that could not be read as it was listed; the next run may read it."""


class BadImagesError(SourceError):
    """More images are bad than were allowed."""

    exit_code = 1


class BackboneError(HeadstartError, ValueError):
    """A backbone that is not registered, or an image size that it cannot take."""


class WeightsError(HeadstartError, ValueError):
    """A weights file that does not fit the backbone."""


class WeightsUnavailableError(WeightsError, FileNotFoundError):
    """Weights that are not on this machine and could not be downloaded."""


class AssetError(HeadstartError, FileNotFoundError):
    """A file that is nowhere, cannot be downloaded, or is not the official one of its name."""

    exit_code = 1


class EngineError(HeadstartError, RuntimeError):
    """An engine that is not installed, cannot run, or disagrees with the reference."""

    exit_code = 1


class CacheError(HeadstartError, ValueError):
    """Anything about a feature cache."""


class CacheNotFoundError(CacheError, FileNotFoundError):
    """There is no cache at the path."""


class CacheFormatError(CacheError):
    """The file is not a feature cache, or not one that can be read."""


class CacheVersionError(CacheFormatError):
    """The file is a feature cache of a format version that is not known."""


class CacheCorruptError(CacheError):
    """The file is a cache, but not the bytes that were written."""

    exit_code = 1


class RecipeMismatchError(CacheError):
    """The cache holds features that another recipe made."""


class CacheLockedError(CacheError, BlockingIOError):
    """Another process is writing the cache."""

    exit_code = 1


class CacheFullError(CacheError, OSError):
    """The file system has no room left for the cache."""

    exit_code = 1


class OutputExistsError(HeadstartError, FileExistsError):
    """A result is already there, and overwriting it was not asked for."""


class OutputError(HeadstartError, OSError):
    """A file or folder that cannot be created where it was asked for."""


class OutputFullError(OutputError):
    """The file system has no room left for a result."""

    exit_code = 1


class DataError(HeadstartError, ValueError):
    """Labels or features that cannot be learnt from."""


class ParameterError(HeadstartError, ValueError):
    """A parameter of a model, or of how it is trained, that is out of its range."""


class RunError(HeadstartError, ValueError):
    """A run folder that is missing, not whole, or not of this program."""


class ModelError(HeadstartError, ValueError):
    """An exported model that is missing, foreign or damaged, or that might run code."""


class TrainingError(HeadstartError, RuntimeError):
    """Training that went wrong in a way that no option mends by itself."""

    exit_code = 1


class ExportError(HeadstartError, RuntimeError):
    """A model that a format cannot hold, or whose exported file predicts something else."""

    exit_code = 1


class ClusterError(HeadstartError, RuntimeError):
    """A cluster that cannot be reached, or workers that are lost or not like this process."""

    exit_code = 1
