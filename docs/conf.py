"""How Sphinx builds the documentation: `make docs`.

The repository root is Sphinx's source folder, so that a relative link means the same on the site as in the repository, and the
build checks the links and anchors of the other Markdown files as well.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

from freeprune.backends import BACKENDS, CRITERIA
from freeprune.engine.asked.commands import COMMANDS, options_of
from freeprune.engine.asked.recipe import Recipe
from freeprune.engine.tasks import TASKS
from freeprune.metrics import METRICS
from freeprune.options import Kind, Option, declared
from freeprune.search import STRATEGIES

# Where the files can be seen that are no pages of the site, such as https://HOST/OWNER/freeprune/blob/main. Without it, a link
# to such a file downloads it.
REPOSITORY = os.environ.get("REPOSITORY", "").rstrip("/")


def table(entries: Mapping[str, Any]) -> str:
    """What `freeprune list` prints, as a table of Markdown."""
    lines = {name: (inspect.getdoc(entry) or "").strip().splitlines()[0].replace("|", r"\|") for name, entry in entries.items()}
    return "\n".join(["| name | what it is |", "|---|---|", *(f"| `{name}` | {line} |" for name, line in lines.items())])


def table_of_options() -> str:
    """What every command takes, as it is declared, as a table of Markdown."""
    found: dict[tuple[str, str], Option] = {}
    takes: dict[tuple[str, str], list[str]] = {}
    for command in COMMANDS:
        for one in options_of(command):
            found.setdefault((one.name, one.written), one)
            takes.setdefault((one.name, one.written), []).append(f"`{command}`")
    names = {name for name, _ in found}
    found |= {(name, one.written): one for name, one in declared(Recipe).items() if name not in names}
    lines = ["| Python | command line | what it means | default | commands |", "|---|---|---|---|---|"]
    for key, one in found.items():
        flag = "" if one.flag is None else f"`{one.written}`" + (f" `{one.negated}`" if one.kind is Kind.PAIR else "")
        parts = (one.help, one.default_text, ", ".join(takes.get(key, [])))
        lines.append(f"| `{one.name}` | {flag} | " + " | ".join(part.replace("|", r"\|") for part in parts) + " |")
    return "\n".join(lines)


def link_to_repository(app: Sphinx, doctree: nodes.document) -> None:
    """Let links to files that are no pages go to the repository."""
    for node in list(doctree.findall(addnodes.download_reference)) if REPOSITORY else []:
        path = Path(app.env.relfn2path(node["reftarget"], app.env.docname)[0])
        node.replace_self(nodes.reference("", "", *node.children, refuri=f"{REPOSITORY}/{path.as_posix()}"))


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", link_to_repository)


project = "FreePrune"
author = copyright = "The FreePrune authors"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/README.md", "docs/*.md"]
exclude_patterns = [".*", "build", "runs", "tests"]  # not walked through

myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3
myst_substitutions = {
    "metrics": table(METRICS),
    "strategies": table(STRATEGIES),
    "granularities": table(BACKENDS),
    "criteria": table(CRITERIA),
    "tasks": table(TASKS),
    "options": table_of_options(),
}

# Docstrings mark code as Markdown does, by single backticks.
default_role = "code"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# The build needs no network, so it knows no other project's names.
nitpick_ignore_regex = [("py:.*", r"(?!freeprune\.).*")]

html_theme = "furo"
html_title = "FreePrune"
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]
