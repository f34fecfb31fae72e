"""The rules of the house, held by reading the imports of every file, those inside functions too."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import freeprune

ROOT = Path(freeprune.__file__).parent
FOLDERS = ("search", "metrics", "backends")
SHARED = {
    "channels_last",
    "common",
    "copies",
    "disk",
    "errors",
    "granularity_options",
    "lending",
    "options",
    "reading",
    "registry",
}
# From the ground up: a room imports from itself and from those before it, and files beside the rooms stand among them.
BACKENDS = [
    "difference",
    "plan",
    "tracing",
    "surgery",
    "recovery",
    "criteria",
    "base",
    "cost",
    "coupling",
    "granularity",
    "mask",
    "compaction",
    "onnx",
]
ENGINE = [
    "progress", "modes", "randomness", "shown", "user_code", "tasks", "asked", "inputs", "store", "run", "workers",
    "inspection", "training", "latency", "report", "delivery", "opening", "apply", "load", "score", "train", "prune", "studies",
    "command",
]  # fmt: skip


def package():
    """Every file of the package, by its dotted name below the root."""
    paths = [ROOT / f"{name}.py" for name in sorted(SHARED)]
    paths += [path for folder in (*FOLDERS, "engine") for path in sorted((ROOT / folder).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return dict(zip(names, paths, strict=True))


FILES = package()


def for_types_only(tree):
    """What is imported for type checkers alone."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def imported(name):
    """The modules of the package that a file imports, dotted, below the root."""
    path = FILES[name]
    tree = ast.parse(path.read_text())
    skipped = for_types_only(tree)
    here = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in skipped:
            absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert getattr(node, "level", 0) or not any(n.split(".")[0] == "freeprune" for n in absolute), path
            if getattr(node, "level", 0):
                base = [*here[: len(here) - node.level + 1], *filter(None, [node.module])]
                for alias in node.names:
                    inner = ".".join([*base, alias.name])
                    yield inner if inner in FILES else ".".join(base)


@cache
def graph():
    return {name: set(imported(name)) - {name} for name in FILES}


def reached(name):
    seen, todo = set(), list(graph()[name])
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            todo += graph().get(one, ())
    return seen


def test_all_levels_are_read():
    assert max(name.count(".") for name in FILES) == 2
    assert len(FILES) > 140
    assert "backends.tracing.labels" in graph()["backends.tracing.tracer"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_three_folders_know_neither_each_other_nor_engine(folder):
    for name in FILES:
        if name.split(".")[0] == folder:
            assert {other.split(".")[0] for other in graph()[name]} <= {folder, *SHARED}, name


def test_engine_knows_the_other_three():
    found = {other.split(".")[0] for name in FILES if name.startswith("engine") for other in graph()[name]}
    assert found == {*FOLDERS, *SHARED, "engine"}


def test_there_is_no_circle_of_imports():
    assert [name for name in FILES if name in reached(name)] == []


@pytest.mark.parametrize(("folder", "floors"), [("backends", BACKENDS), ("engine", ENGINE)])
def test_no_import_runs_up(folder, floors):
    def floor(name):
        return floors.index(name.split(".")[1])

    inside = [name for name in FILES if name.startswith(f"{folder}.")]
    assert {name.split(".")[1] for name in inside} == set(floors)
    up = [(a, b) for a in inside for b in graph()[a] if b.startswith(f"{folder}.") and floor(b) > floor(a)]
    assert up == []


def test_every_room_is_in_the_wheel():
    listed = (ROOT / "pyproject.toml").read_text()
    rooms = {path.parent.relative_to(ROOT) for path in FILES.values() if path.name == "__init__.py"}
    assert all(f'"freeprune.{".".join(room.parts)}"' in listed for room in rooms)


def test_the_public_surface():
    functions = [
        "apply", "compare", "correlate", "inspect", "load", "pick", "prune", "report", "score", "sweep", "train",
    ]  # fmt: skip
    assert sorted(freeprune.__all__) == ["FreePruneError", "FreePruneWarning", "OwnTask", "Recipe", "Result", *functions]
    assert all(getattr(freeprune, name) for name in freeprune.__all__)


def test_what_is_not_public_is_no_attribute():
    assert set(freeprune.__all__) <= set(dir(freeprune))
    with pytest.raises(AttributeError, match="'freeprune' has no attribute 'prnue'"):
        _ = freeprune.prnue


def test_nothing_is_unpickled():
    for path in FILES.values():
        text = path.read_text()
        assert "import pickle" not in text
        assert "torch.load(" not in text or "weights_only=True" in text
        assert "allow_pickle=True" not in text


def sentences(path):
    """The texts of a file that are no docstrings, pieces of an f-string together, without what stands between backticks."""
    tree = ast.parse(path.read_text())
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(piece) for piece in node.values}
            text = "".join(piece.value if isinstance(piece, ast.Constant) else "…" for piece in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            text = node.value
        else:
            continue
        yield re.sub("`[^`]*`", "", text)


# Where options are declared, and where they are written as a command line.
OPTIONS = {"options", "engine.asked.declaration", "engine.asked.recipe", "engine.asked.commands"}


@pytest.mark.parametrize("name", [name for name in FILES if name not in OPTIONS and not name.startswith("engine.command.")])
def test_sentences_name_arguments(name):
    """The command line makes options of them; see `wording.py`."""
    assert [text for text in sentences(FILES[name]) if re.search(r"--[a-z]", text)] == []
