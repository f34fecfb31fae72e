"""The pages build into a site without a warning, and the commands that they quote have the options that they name."""

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

import freeprune
from freeprune.backends import BACKENDS, CRITERIA
from freeprune.engine.asked.commands import COMMANDS, options_of
from freeprune.engine.command.cli import main
from freeprune.metrics import METRICS
from freeprune.search import STRATEGIES

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")])


def commands():
    """(page, words) of every `freeprune ...` in a block of code, continued lines joined."""
    for page in PAGES:
        for block in page.read_text().split("```")[1::2]:
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"^(?:\S+=\S+ )?freeprune (.*?)(?:  #|$)", line.strip())
                if found:
                    yield pytest.param(shlex.split(found[1]), id=f"{page.name}: {found[1][:40]}")


@pytest.mark.parametrize("words", list(commands()))
def test_quoted_commands_exist_with_their_options(words):
    command = main.commands[words[0]]
    options = [option for option in command.params if isinstance(option, click.Option)]
    known = {"--help", *(flag for option in options for flag in (*option.opts, *option.secondary_opts))}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("words", list(commands()))
def test_quoted_commands_are_parsed(words):
    """Values have their types, nothing that is needed is missing; what `...` leaves out is not known."""
    if "..." not in words and "[OPTIONS]" not in words:
        main.commands[words[0]].make_context(words[0], list(words[1:]))


def test_some_commands_are_quoted():
    assert len(list(commands())) > 10


def test_the_site_builds_and_no_link_leads_nowhere(tmp_path):
    """Sphinx resolves every relative link, every anchor and every reference of the API; any warning is an error."""
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-n", "-q", "-c", "docs", ".", tmp_path / "site"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pages = {name: (tmp_path / "site" / "docs" / f"{name}.html").read_text() for name in ("api", "names", "options")}
    assert all(f'id="freeprune.{name}"' in pages["api"] for name in freeprune.__all__)
    assert all(name in pages["names"] for table in (METRICS, STRATEGIES, BACKENDS, CRITERIA) for name in table)
    told = html.unescape(pages["options"])
    for one in [option for command in COMMANDS for option in options_of(command)]:
        assert f'<span class="pre">{one.written}</span>' in told, one.name
        assert f'<span class="pre">{one.name}</span>' in told
