"""Finding and fetching the files that a user does not name: ImageNet weights and built-in sets.

A file is looked for in this order, and the first place that has it wins:

1. the folders that the environment variable ``HEADSTART_ASSETS`` names, separated as in ``PATH``,
   and ``weights``, ``models`` and ``datasets`` below each;
2. Keras's own cache: ``~/.keras``, or the folder that ``KERAS_HOME`` names;
3. folders that belong to one file only, such as where a Debian package puts it;
4. Keras's download, into Keras's cache.

A file under its official name must have its published digest, where there is one.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from urllib.error import HTTPError

from data_cache.console import import_keras, say, warn
from data_cache.errors import AssetError
from data_cache.files import whole_file

ASSETS_VARIABLE = "HEADSTART_ASSETS"
_SUBFOLDERS = ("", "weights", "models", "datasets")
_STALLED_SECONDS = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A file that can be downloaded.

    Attributes
    ----------
    name : its official name, which is also its path in that folder of Keras's cache
    url : where it is
    digest : its SHA-256 (64 hex digits) or MD5 (32), or empty where none is known
    aliases : further names under which ``HEADSTART_ASSETS`` may hold a file that stands in for
        it; such a file is not held to the digest
    folder : its folder in Keras's cache
    places : full paths at which a package of the operating system may have put it
    """

    name: str
    url: str
    digest: str = ""
    aliases: tuple[str, ...] = ()
    folder: str = "models"
    places: tuple[Path, ...] = ()


@dataclass(frozen=True)
class FoundFile:
    """Where a file was found.

    Attributes
    ----------
    path : the file
    name : its official name, or the alias that it was found under
    place : in words, where that is
    is_official : whether it has its published digest
    """

    path: Path
    name: str
    place: str
    is_official: bool


def find(file: RemoteFile) -> FoundFile:
    """Return a file from the first place that has it, downloading it if no place has.

    Raises
    ------
    AssetError
        The file is nowhere; the message lists what was tried. Or a file under its official name
        does not have its published digest.
    """
    return find_here(file) or _download_to_cache(file)


def find_here(file: RemoteFile) -> FoundFile | None:
    """Return a file from the first place on this machine that has it, or None."""
    for path, name, place in _candidates(file):
        if path.is_file():
            return FoundFile(path, name, place, _is_official(path, file))
    return None


def fetch(file: RemoteFile, folder: Path) -> Path:
    """Put a file into ``folder``, copied from the first place that has it or else downloaded.

    Returns its path there. A file that is there already is left as it is; one that only has the
    official name is refused as :func:`find` refuses it.
    """
    target = folder / file.name
    if target.is_file() and (_is_official(target, file) or not file.digest):
        return target
    found = find_here(file)
    if found is None:
        _download(file, target)
        return target
    copy = folder / found.name
    if found.path.resolve() != copy.resolve():
        _copy(found.path, copy)
    return copy


def keras_home() -> Path:
    """Return the folder in which Keras keeps what it downloads."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")


def assets_folders() -> list[Path]:
    """Return the folders that ``HEADSTART_ASSETS`` names, separated as in ``PATH``."""
    names = os.environ.get(ASSETS_VARIABLE, "").split(os.pathsep)
    folders = [Path(name).expanduser() for name in names if name]
    for folder in folders:
        if not folder.is_dir():
            warn(f"{ASSETS_VARIABLE} names {folder}, which is not a folder: passed over")
    return [folder for folder in folders if folder.is_dir()]


def _candidates(file: RemoteFile) -> Iterator[tuple[Path, str, str]]:
    """Yield every path on this machine at which a file may be, its name, the place in words."""
    folders = assets_folders()
    for name, folder, below in product((file.name, *file.aliases), folders, _SUBFOLDERS):
        yield folder / below / name, name, ASSETS_VARIABLE
    yield keras_home() / file.folder / file.name, file.name, "Keras's cache"
    for path in file.places:
        names = (name for name in (file.name, *file.aliases) if Path(name).name == path.name)
        yield path, next(names, file.name), str(path.parent)


def _is_official(path: Path, file: RemoteFile) -> bool:
    """Tell whether a file has its published digest; refuse one that only has the name."""
    if not file.digest:
        return False
    algorithm = "sha256" if len(file.digest) == hashlib.sha256().digest_size * 2 else "md5"
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, algorithm).hexdigest()
    if digest == file.digest:
        return True
    if path.name != Path(file.name).name:
        return False
    raise AssetError(
        f"{path} is not the official file: its {algorithm} is {digest[:12]}…, expected "
        f"{file.digest[:12]}…; remove it to have it fetched again, or name a file of your own"
    )


def _download_to_cache(file: RemoteFile) -> FoundFile:
    """Download a file into Keras's cache; on failure say all that was tried."""
    target = keras_home() / file.folder / file.name
    try:
        _download(file, target)
    except AssetError as error:
        raise AssetError(f"{_tried(file)}; {error}") from error
    return FoundFile(
        target, file.name, f"downloaded from {file.url}", is_official=bool(file.digest)
    )


def _tried(file: RemoteFile) -> str:
    """Say in words where a file was looked for."""
    assets = os.environ.get(ASSETS_VARIABLE) or "not set"
    names = " or ".join((file.name, *file.aliases))
    places = "".join(f", {folder}" for folder in {str(path.parent) for path in file.places})
    return (
        f"{names} is neither in {ASSETS_VARIABLE} ({assets}) "
        f"nor in {keras_home() / file.folder}{places}"
    )


def _download(file: RemoteFile, target: Path) -> None:
    """Download a file with Keras's ``get_file``, checked where a digest is known, whole or not."""
    keras = import_keras()
    say(f"downloading {file.url}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(target) as temporary, _keras_download_manners():
            keras.utils.get_file(
                temporary.name,
                file.url,
                cache_dir=str(target.parent.parent),
                cache_subdir=target.parent.name,
                file_hash=file.digest or None,
            )
    except Exception as error:  # get_file raises bare exceptions
        if isinstance(error.__context__, HTTPError):
            error.__context__.close()
        reason = re.sub(r"^URL fetch failure on \S+: (None -- )?", "", str(error))
        raise AssetError(f"the download of {file.url} failed ({reason})") from error


@contextmanager
def _keras_download_manners() -> Iterator[None]:
    """Keep Keras's progress off standard output, and give up on a connection that stalls."""
    kept = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_SECONDS)
    try:
        with redirect_stdout(sys.stderr if sys.stderr.isatty() else io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(kept)


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that the copy is whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)
