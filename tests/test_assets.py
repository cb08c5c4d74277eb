"""Finding and fetching files, with a stand-in for the servers on the loopback interface."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from data_cache.errors import AssetError, WeightsError, WeightsUnavailableError
from extract import backbones, datasets
from extract.assets import RemoteFile, fetch, find, find_here
from extract.assets_cli import headstart_assets
from extract.backbones import get_backbone
from extract.weights import find_weights

CONTENT = b"what the server has"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves a folder on the loopback interface and remembers what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                asked.append(self.path)
                if self.path == "/short":
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(CONTENT)))
                    self.end_headers()
                    self.wfile.write(CONTENT[:5])
                else:
                    super().do_GET()

        handler = functools.partial(Handler, directory=str(folder))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # so that closing waits for their sockets
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serve a folder that holds one file, ``file.bin``."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Give HEADSTART_ASSETS and Keras's cache empty folders of their own; return both."""
    for name, variable in (("assets", "HEADSTART_ASSETS"), ("keras", "KERAS_HOME")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path / "assets", tmp_path / "keras"


def remote(server: Server, digest: str = "", **changes: object) -> RemoteFile:
    return replace(RemoteFile("file.bin", f"{server.url}file.bin", digest), **changes)


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_places_are_tried_in_the_order_promised(server: Server, places: tuple[Path, Path]) -> None:
    assets, keras = places
    system = put(keras.parent / "system" / "file.bin")
    file = remote(server, places=(system,))
    in_order = [
        (system, str(system.parent)),
        (keras / "models" / "file.bin", "Keras's cache"),
        (assets / "datasets" / "file.bin", "HEADSTART_ASSETS"),
        (assets / "models" / "file.bin", "HEADSTART_ASSETS"),
        (assets / "weights" / "file.bin", "HEADSTART_ASSETS"),
        (assets / "file.bin", "HEADSTART_ASSETS"),
    ]
    for path, place in in_order:
        put(path)
        found = find(file)
        assert (found.path, found.place) == (path, place)
    assert not server.asked


def test_file_that_is_nowhere_is_downloaded_into_keras_cache(
    server: Server, places: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = find(remote(server, SHA256))
    assert found.path == places[1] / "models" / "file.bin"
    assert found.path.read_bytes() == CONTENT
    assert found.is_official
    assert find(remote(server, SHA256)).place == "Keras's cache"
    assert server.asked == ["/file.bin"]
    output = capsys.readouterr()
    assert not output.out
    assert output.err == f"downloading {server.url}file.bin\n"


@pytest.mark.parametrize("digest", [SHA256, MD5])
def test_file_of_the_published_digest_is_official(
    digest: str, server: Server, places: tuple[Path, Path]
) -> None:
    put(places[0] / "file.bin")
    assert find(remote(server, digest)).is_official
    assert not find(remote(server)).is_official


@pytest.mark.parametrize("digest", [SHA256, MD5])
def test_file_that_only_has_the_official_name_is_refused(
    digest: str, server: Server, places: tuple[Path, Path]
) -> None:
    put(places[0] / "file.bin", b"something else")
    with pytest.raises(AssetError, match=r"assets/file\.bin is not the official file"):
        find(remote(server, digest))


def test_stand_in_under_an_alias_is_taken_but_not_called_official(
    server: Server, places: tuple[Path, Path]
) -> None:
    put(places[0] / "short.bin", b"something else")
    found = find(remote(server, SHA256, aliases=("short.bin",)))
    assert found.name == "short.bin"
    assert not found.is_official


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"url": "missing.bin"}, "404"),
        ({"digest": "0" * 64}, "hash does not match"),
        ({"url": "short"}, "retrieval incomplete"),
    ],
)
def test_failed_download_says_what_was_tried_and_leaves_nothing(
    changes: dict[str, str], reason: str, server: Server, places: tuple[Path, Path]
) -> None:
    url = server.url + changes.get("url", "file.bin")
    file = remote(server, changes.get("digest", ""), url=url)
    with pytest.raises(AssetError) as caught:
        find(file)
    message = str(caught.value)
    assert "\n" not in message
    for part in (reason, url, f"HEADSTART_ASSETS ({places[0]})", str(places[1] / "models")):
        assert part in message
    assert not list((places[1] / "models").iterdir())


def test_assets_folder_that_is_not_there_is_passed_over_with_a_warning(
    server: Server,
    places: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HEADSTART_ASSETS", str(places[0] / "none"))
    put(places[1] / "models" / "file.bin")
    found = find_here(remote(server))
    assert found is not None
    assert found.place == "Keras's cache"
    assert "none, which is not a folder" in capsys.readouterr().err


def test_fetch_copies_what_is_here_and_downloads_what_is_not(
    server: Server, places: tuple[Path, Path], tmp_path: Path
) -> None:
    put(places[1] / "models" / "file.bin")
    put(server.folder / "far.bin", b"far")
    file, far = remote(server), RemoteFile("sub/far.bin", f"{server.url}far.bin")
    paths = [fetch(one, tmp_path / "to") for one in (file, far)]
    assert [path.read_bytes() for path in paths] == [CONTENT, b"far"]
    assert server.asked == ["/far.bin"]
    assert [fetch(one, tmp_path / "to") for one in (file, far)] == paths
    assert server.asked == ["/far.bin"]


def test_fetch_keeps_the_name_of_a_stand_in(
    server: Server, places: tuple[Path, Path], tmp_path: Path
) -> None:
    put(places[0] / "short.bin", b"something else")
    file = remote(server, SHA256, aliases=("short.bin",))
    assert fetch(file, tmp_path / "to") == tmp_path / "to" / "short.bin"


@pytest.fixture
def rerouted(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Let the registries name the stand-in server."""
    for registry, kind in ((backbones.BACKBONES, "sized_weights"), (datasets.DATASETS, "files")):
        for name, entry in registry.items():
            monkeypatch.setitem(registry, name, reroute(server, entry, kind))
    return server


def reroute(server: Server, entry: object, kind: str) -> object:
    def here(file: RemoteFile) -> RemoteFile:
        return replace(file, url=f"{server.url}{Path(file.name).name}", digest="", places=())

    files = getattr(entry, kind)
    if isinstance(files, dict):
        return replace(entry, **{kind: {size: here(file) for size, file in files.items()}})
    return replace(entry, **{kind: tuple(map(here, files))})


def test_command_fills_a_folder_that_the_assets_variable_can_name(
    rerouted: Server, places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in datasets.DATASETS["fashion_mnist"].files:
        put(rerouted.folder / Path(name.name).name)
    weights = get_backbone("mobilenet_v2").weights_file(96)
    put(rerouted.folder / weights.name)
    to = tmp_path / "to"
    command = ["fetch", "--to", str(to), "--image-size", "96"]
    result = CliRunner().invoke(headstart_assets, command)
    assert result.exit_code == 0, result.output
    written = sorted(str(path.relative_to(to)) for path in to.rglob("*") if path.is_file())
    assert written == [
        *(
            f"datasets/fashion-mnist/{prefix}-{kind}-ubyte.gz"
            for prefix in ("t10k", "train")
            for kind in ("images-idx3", "labels-idx1")
        ),
        f"weights/{weights.name}",
    ]
    monkeypatch.setenv("HEADSTART_ASSETS", str(to))
    assert find(weights).path == to / "weights" / weights.name
    for file in datasets.DATASETS["fashion_mnist"].files:
        assert find(file).path == to / "datasets" / file.name


def test_command_names_an_unknown_backbone_before_it_fetches(
    rerouted: Server, places: tuple[Path, Path], tmp_path: Path
) -> None:
    command = ["fetch", "--to", str(tmp_path / "to"), "--backbone", "resnet51"]
    result = CliRunner().invoke(headstart_assets, command)
    assert result.exit_code == 2
    assert "did you mean resnet50" in result.output
    assert not rerouted.asked


def test_imagenet_weights_without_a_network_say_how_to_get_them(
    rerouted: Server, places: tuple[Path, Path]
) -> None:
    with pytest.raises(WeightsUnavailableError) as caught:
        find_weights("imagenet", get_backbone("mobilenet_v2"), 96)
    for part in ("HEADSTART_ASSETS", "404", "--weights FILE", "headstart-assets fetch --to DIR"):
        assert part in str(caught.value)


def test_downloaded_imagenet_weights_have_to_fit(
    rerouted: Server, places: tuple[Path, Path]
) -> None:
    name = get_backbone("mobilenet_v2").weights_file(96).name
    put(rerouted.folder / name, b"not a weights file")
    with pytest.raises(WeightsError, match="cannot be read as a Keras weights file"):
        find_weights("imagenet", get_backbone("mobilenet_v2"), 96)
    assert rerouted.asked == [f"/{name}"]


def test_several_assets_folders_are_looked_through_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RemoteFile("w.h5", "http://127.0.0.1:9/w.h5")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    monkeypatch.setenv("HEADSTART_ASSETS", os.pathsep.join([str(first), str(second)]))
    (second / "w.h5").touch()
    found = find_here(file)
    assert found is not None
    assert found.path == second / "w.h5"
    (first / "w.h5").touch()
    found = find_here(file)
    assert found is not None
    assert found.path == first / "w.h5"
