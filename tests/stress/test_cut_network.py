"""A scheduler and a worker on addresses of their own, cut off from each other and joined again.

Two network namespaces stand for two machines that share a file system; a veth pair is the cable.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cache_tools import assert_same_cache
from extraction_process import extract
from image_files import write_images
from tiny_onnx import write_tiny_onnx

from data_cache.layout import SHARD_PATTERN, parts_folder

pytest.importorskip("distributed")

pytestmark = [pytest.mark.stress, pytest.mark.timeout(600)]

SCHEDULER, WORKER = "headstart-a", "headstart-b"
ADDRESSES = {SCHEDULER: "10.203.77.1", WORKER: "10.203.77.2"}
PORT = 8786
N_IMAGES = 600
TCP_SECONDS = 12
"""After so long without an answer a connection counts as broken; Dask takes no less than 11."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def machines() -> Iterator[None]:
    """Two namespaces, joined by a cable."""
    if shutil.which("ip") is None:
        pytest.skip("network namespaces are made with the command `ip`, which is not here")
    try:
        for name in ADDRESSES:
            ip("netns", "add", name)
        ip("link", "add", "hs0", "netns", SCHEDULER, "type", "veth", "peer", "hs0", "netns", WORKER)
    except subprocess.CalledProcessError as error:
        _remove()
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    for name, address in ADDRESSES.items():
        ip("-n", name, "address", "add", f"{address}/24", "dev", "hs0")
        for device in ("lo", "hs0"):
            ip("-n", name, "link", "set", device, "up")
    yield
    _remove()


def _remove() -> None:
    for name in ADDRESSES:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def python(machine: str, log: Path, *words: object) -> subprocess.Popen[bytes]:
    """Start Python on a machine."""
    command = ["ip", "netns", "exec", machine, sys.executable, *map(str, words)]
    settings = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": f"{TCP_SECONDS}s"}
    with log.open("ab") as stream:
        return subprocess.Popen(
            command, env=os.environ | settings, stdout=stream, stderr=stream, cwd=log.parent
        )


def start_worker(folder: Path) -> subprocess.Popen[bytes]:
    words = ["-m", "distributed.cli.dask_worker", f"tcp://{ADDRESSES[SCHEDULER]}:{PORT}"]
    words += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)]
    return python(WORKER, folder / "worker.log", *words)


def wait_for_shards(path: Path, n_more: int) -> None:
    n_before = len(list(parts_folder(path).glob(SHARD_PATTERN)))
    end = time.monotonic() + 90
    while len(list(parts_folder(path).glob(SHARD_PATTERN))) < n_before + n_more:
        assert time.monotonic() < end, "no shard came for too long"
        time.sleep(0.05)


def cut_for(seconds: float) -> None:
    """Pull the cable, and put it back."""
    ip("-n", WORKER, "link", "set", "hs0", "down")
    time.sleep(seconds)
    ip("-n", WORKER, "link", "set", "hs0", "up")


def test_cut_off_worker_goes_on_when_it_is_joined_again(machines: None, tmp_path: Path) -> None:
    for k, name in enumerate(("ant", "bee")):
        write_images(tmp_path / "photos" / name, N_IMAGES // 2, seed=1000 * k)
    write_tiny_onnx(tmp_path, n_layers=60)
    path = tmp_path / "c.h5"
    script = Path(__file__).parents[1] / "extraction_process.py"
    address = f"tcp://{ADDRESSES[SCHEDULER]}:{PORT}"
    scheduler = python(
        SCHEDULER,
        tmp_path / "scheduler.log",
        *("-m", "distributed.cli.dask_scheduler", "--host", ADDRESSES[SCHEDULER]),
        *("--port", PORT, "--no-dashboard"),
    )
    worker = start_worker(tmp_path)
    words = [script, tmp_path / "photos", path, tmp_path, "", address]
    driver = python(SCHEDULER, tmp_path / "driver.log", *words)
    try:
        wait_for_shards(path, 2)
        cut_for(TCP_SECONDS / 3)
        wait_for_shards(path, 2)
        assert worker.poll() is None, "a short cut ended the worker"
        cut_for(TCP_SECONDS * 2.5)
        deadline = time.monotonic() + 300
        while driver.poll() is None and time.monotonic() < deadline:
            if worker.poll() is not None:  # as whatever started it would
                worker = start_worker(tmp_path)
            time.sleep(0.2)
        assert driver.poll() == 0, (tmp_path / "driver.log").read_text()
    finally:
        for process in (driver, worker, scheduler):
            process.terminate()
            process.wait(timeout=30)
    extract(tmp_path / "photos", tmp_path / "whole.h5", tmp_path)
    assert_same_cache(path, tmp_path / "whole.h5")
