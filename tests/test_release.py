"""What a release holds: every package and data file, every import declared, every licence named."""

import ast
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

import freeprune

ROOT = Path(freeprune.__file__).parent
TOML = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, SETUP = TOML["project"], TOML["tool"]["setuptools"]
LEFT_OUT = {"tests", "docs", "examples", "benchmarks", "build", "runs"}
IMPORTED_AS = {"pillow": "PIL", "scikit-learn": "sklearn"}  # where it is not the name of the package
ALSO = {"IPython", "markupsafe", "onnx_ir"}  # they come with ipykernel, jinja2 and onnxscript


def script():
    """`docs/licences.py` as a module."""
    spec = importlib.util.spec_from_file_location("licences", ROOT / "docs" / "licences.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LICENCES = script()
CORE = LICENCES.names(PROJECT["dependencies"])
EXTRAS = {name for some in PROJECT["optional-dependencies"].values() for name in LICENCES.names(some)}


def shipped():
    """Files of the package, as they are in the repository."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and parts[0] not in LEFT_OUT and not any(part.startswith((".", "__pycache__")) for part in parts):
            yield path


def test_every_folder_is_a_package_of_the_wheel():
    folders = {path.parent.relative_to(ROOT).parts for path in shipped() if path.suffix == ".py"}
    assert sorted(SETUP["packages"]) == sorted(".".join(("freeprune", *parts)) for parts in folders)


def test_every_data_file_is_in_the_wheel():
    """Whatever lies in a folder of the package and is no code."""
    patterns = {
        path
        for package, globs in SETUP["package-data"].items()
        for pattern in globs
        for path in ROOT.joinpath(*package.split(".")[1:]).glob(pattern)
    }
    data = {path for path in shipped() if path.suffix != ".py" and path.parent != ROOT} | {ROOT / "py.typed"}
    assert {path for path in data if "egg-info" not in str(path)} == patterns


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_every_import_is_a_declared_dependency():
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in (*CORE, *EXTRAS)}
    found = {name for path in shipped() if path.suffix == ".py" for name in imported(path)}
    assert found - declared - set(sys.stdlib_module_names) - {"freeprune"} <= ALSO


@pytest.mark.parametrize("name", sorted({*CORE, *EXTRAS}))
def test_every_dependency_has_its_licence_on_the_page(name):
    found = re.search(rf"^\| {re.escape(name)} \| (.*?) \|", LICENCES.PAGE.read_text(), re.MULTILINE)
    assert found, f"run python docs/licences.py: {name} is not on its page"
    assert found[1] not in ("not installed", "see its files")


def test_the_page_of_licences_lists_no_dependency_that_is_gone():
    direct = LICENCES.PAGE.read_text().split("## What the first table needs")[0]
    listed = {name for name in re.findall(r"^\| (\S+) \|", direct, re.MULTILINE) if name != "package"}
    assert listed == {*CORE, *EXTRAS}


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in text
    assert f"\nlicense: {PROJECT['license']}\n" in text
