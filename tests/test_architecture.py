"""The rules of the house, held by reading the imports."""

import ast
from pathlib import Path

import pytest

import freeprune

ROOT = Path(freeprune.__file__).parent
FOLDERS = ("search", "metrics", "backends")


def imported(path):
    """The first part of every relative import that leaves the folder of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level >= 2:
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not (getattr(node, "level", 0) == 0 and any(n.split(".")[0] == "freeprune" for n in names)), path


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_three_folders_know_neither_each_other_nor_engine(folder):
    for path in sorted((ROOT / folder).glob("*.py")):
        assert set(imported(path)) <= {"common", "copies"}, path


def test_engine_knows_the_other_three():
    found = {name for path in (ROOT / "engine").glob("*.py") for name in imported(path)}
    assert found == {*FOLDERS, "common", "copies"}


def test_the_public_surface():
    functions = ["compare", "correlate", "load", "pick", "prune", "score", "sweep"]
    assert sorted(freeprune.__all__) == ["FreePruneError", "Recipe", "Result", *functions]
    assert all(getattr(freeprune, name) for name in freeprune.__all__)


def test_nothing_is_unpickled():
    for path in ROOT.glob("[bems]*/*.py"):
        if path.parent.name in (*FOLDERS, "engine"):
            text = path.read_text()
            assert "import pickle" not in text
            assert "torch.load(" not in text or "weights_only=True" in text
            assert "allow_pickle=True" not in text
