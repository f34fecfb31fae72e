"""Writes `docs/licences.md`: what FreePrune depends on, and under which licence, from the metadata of what is installed.

python docs/licences.py
"""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = Path(__file__).with_suffix(".md")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
SHORT = 60  # a longer licence field is the text of the licence
# What its authors state, for packages that are seldom installed beside all others.
STATED = {
    "datasets": "Apache-2.0",
    "openvino": "Apache-2.0",
    "timm": "Apache-2.0",
    "torchvision": "BSD-3-Clause",
    "transformers": "Apache-2.0",
}
SPELLED = {
    "Apache Software License": "Apache-2.0", "Apache 2.0": "Apache-2.0", "Apache License, Version 2.0": "Apache-2.0",
    "BSD License": "BSD", "MIT License": "MIT", "Python Software Foundation License": "PSF-based",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL-3.0",
}  # fmt: skip
HEAD = """# Licences of the dependencies

FreePrune itself is under [Apache-2.0](../LICENSE). The packages below are installed beside it and imported; nothing of them
is copied. This page is written by `python docs/licences.py` from their metadata.
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> list[str]:
    return [normal(NAME.match(text)[0]) for text in requirements if "extra ==" not in text]


def licence(found: Distribution) -> str:
    """The licence as the package states it: its expression, else its classifier, else its licence field."""
    told = found.metadata
    classifiers = [text.rsplit(" :: ", 1)[1] for text in told.get_all("Classifier", []) if text.startswith("License ::")]
    field = (told.get("License") or "").strip()
    stated = [told.get("License-Expression"), *classifiers, field if len(field) < SHORT and "\n" not in field else None]
    text = next((one for one in stated if one and one != "OSI Approved"), "see its files")
    return SPELLED.get(text, text)


def row(name: str, *more: str) -> str:
    stated = licence(distribution(name)) if installed(name) else STATED.get(name, "not installed")
    return "| " + " | ".join([name, stated, *more]) + " |"


def table(*head: str, rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def further(direct: list[str]) -> list[str]:
    """What the installed packages need in turn."""
    seen, waiting = set(direct), list(direct)
    while waiting:
        name = waiting.pop()
        needed = names(distribution(name).requires or []) if installed(name) else []
        waiting += [name for name in needed if name not in seen]
        seen.update(needed)
    return sorted(name for name in seen - set(direct) if installed(name))


def installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def page() -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = names(project["dependencies"])
    extras: dict[str, list[str]] = {}
    for extra, requirements in project["optional-dependencies"].items():
        for name in names(requirements):
            extras.setdefault(name, []).append(f"`{extra}`")
    parts = [
        HEAD,
        "## Always installed\n",
        table("package", "licence", rows=[row(name) for name in sorted(core)]),
        "\nThe LGPL of DEAP and of moocore, which DEAP needs, asks that users can put another version of them in place;\n"
        "an ordinary installation lets them.\n\n## With extras\n",
        table("package", "licence", "extra", rows=[row(name, ", ".join(extras[name])) for name in sorted(extras)]),
        "\n## What the first table needs in turn\n",
        table("package", "licence", rows=[row(name) for name in further(core)]),
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
