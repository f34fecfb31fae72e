"""Names and descriptions of the entries of a table, read from its source code, so that nothing heavy is imported."""

from __future__ import annotations

import ast
from pathlib import Path

from ...errors import FreePruneError, first_line, nearest
from ...registry import loaded, plugins

ROOT = Path(__file__).parents[2]
# For each list: the file with the table, the name of the table, and the kind of entry that plug-ins add.
TABLES = {
    "metrics": ("metrics/__init__.py", "METRICS", "metric"),
    "strategies": ("search/__init__.py", "STRATEGIES", "strategy"),
    "granularities": ("backends/__init__.py", "BACKENDS", "granularity"),
    "tasks": ("engine/tasks/__init__.py", "TASKS", "task"),
    "criteria": ("backends/criteria.py", "CRITERIA", "criterion"),
}


def listed(what: str) -> dict[str, str]:
    """The first docstring line of each entry, by name; entries of other packages come first.

    Raises:
        FreePruneError: there is no such list, or another package cannot be imported.
    """
    if what not in TABLES:
        raise FreePruneError(f"there is no list of {what!r}; {nearest(what, sorted(TABLES))}")
    file, table, kind = TABLES[what]
    foreign = {name: first_line(loaded(point, kind).__doc__ or "") for name, point in plugins(kind).items()}
    return {**foreign, **_built_in(ROOT / file, table)}


def _built_in(path: Path, table: str) -> dict[str, str]:
    """The entries of a table written as a dictionary whose values the file defines or imports."""
    tree = ast.parse(path.read_text())
    entries = next(
        node.value for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict) and ast.unparse(node.target) == table
    )  # fmt: skip
    homes = {
        alias.asname or alias.name: path.parent / f"{(node.module or '').replace('.', '/')}.py"
        for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1 for alias in node.names
    }  # fmt: skip
    made = (ast.unparse(value).removesuffix("()") for value in entries.values)  # a class, or an instance of one
    values = zip(map(ast.literal_eval, filter(None, entries.keys)), made, strict=True)
    return {name: _documented(homes.get(value, path), value) for name, value in values}


def _documented(path: Path, name: str) -> str:
    defined = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name
    )
    return first_line(ast.get_docstring(next(defined)) or "")
