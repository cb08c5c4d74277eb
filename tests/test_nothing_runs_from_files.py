"""No module of the package unpickles, evaluates or hands to a shell anything at all."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("extract", "classify", "data_cache")
FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve"}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "joblib.load",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "pandas.read_pickle",
    "os.system",
    "os.popen",
    "keras.config.enable_unsafe_deserialization",
}


def sources() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def offences(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""] + [f"{node.module}.{one.name}" for one in node.names]
        else:
            names = []
        for name in names:
            if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS:
                yield f"line {node.lineno}: imports {name}"
        if isinstance(node, ast.Call):
            yield from call_offences(node)


def call_offences(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if name in FORBIDDEN_CALLS:
        yield f"line {node.lineno}: calls {name}"
    if given.get("shell", "False") != "False":
        yield f"line {node.lineno}: calls {name} with a shell"
    if name in {"np.load", "numpy.load"} and given.get("allow_pickle") != "False":
        yield f"line {node.lineno}: np.load without allow_pickle=False"
    if name.endswith("saving.load_model") and given.get("safe_mode") != "True":
        yield f"line {node.lineno}: load_model without safe_mode=True"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_module_unpickles_and_evaluates_nothing(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import load",
        "import os.path, dill as d",
        "from joblib import load",
        "joblib.load(x)",
        "torch.load(x, weights_only=True)",
        "np.load(x)",
        "np.load(x, allow_pickle=True)",
        "numpy.load(x, None, flag, allow_pickle=flag)",
        "yaml.load(x)",
        "eval('1')",
        "exec(x)",
        "subprocess.run(x, shell=True)",
        "subprocess.run(x, shell=flag)",
        "import_keras().saving.load_model(path)",
        "keras.saving.load_model(path, safe_mode=False)",
    ],
)
def test_search_finds_what_it_is_for(source: str) -> None:
    assert list(offences(source))
