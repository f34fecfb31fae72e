"""Another package adds a granularity and a metric through its entry points, as if it had been installed."""

import json
import re
import sys

import pytest
from click.testing import CliRunner

import freeprune
from freeprune.engine.command.cli import main
from freeprune.engine.inputs.networks import NETWORKS

PACKAGE = '''
import numpy as np
from freeprune.backends.mask import Masked, ranked
from freeprune.options import declare


class Rows(Masked):
    """Whole output rows become zero, in place."""

    name = "rows"
    options = {
        "together": declare(1, "so many neighbouring rows are one unit.", least=1),
        "trials": declare(5, "this name is taken."),
    }

    def __init__(self, *args, together=1, **more):
        self._together = together
        super().__init__(*args, **more)

    def ranks(self, scores, importance):
        found = {}
        for name, values in scores.items():
            sums = values.reshape(len(values), -1).sum(axis=1)
            units = ranked(importance.total(np.add.reduceat(sums, np.arange(0, len(sums), self._together))))
            rows = np.repeat(units, self._together)[: len(sums)]
            found[name] = np.broadcast_to(rows.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
        return found


def first(candidate, dense, batch):
    """Always the same."""
    return 1.0
'''
ENTRY_POINTS = "[freeprune.backends]\nrows = tiny_rows:Rows\n\n[freeprune.metrics]\nfirst = tiny_rows:first\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    for command in main.commands.values():
        monkeypatch.setattr(command, "_made", None)  # the options of a command are made once
    site = tmp_path / "site"
    info = site / "tiny_rows-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "tiny_rows.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("tiny_rows", None)


@pytest.mark.usefixtures("installed")
def test_what_another_package_adds_is_listed_and_used(tmp_path):
    listed = CliRunner().invoke(main, ["list", "granularities"]).stdout
    assert "rows" in listed
    assert "Whole output rows become zero" in listed
    result = freeprune.prune(
        NETWORKS["digits:cnn"](), "digits", target={"nonzero": 0.5}, granularity="rows", metric="first", strategy="random",
        trials=2, calibration_images=64, finetune=None, out=tmp_path / "out",
    )  # fmt: skip
    assert result.plan.granularity == "rows"
    weight = result.network.get_parameter("conv1.weight")
    kept = weight.detach().flatten(1).any(dim=1)
    assert 0 < kept.sum() < len(kept)
    assert len(freeprune.load(tmp_path / "out", NETWORKS["digits:cnn"]()).state_dict()) == len(result.network.state_dict())


TOLD = {"granularity": "rows", "metric": "first", "strategy": "random", "trials": 2, "calibration_images": 64}


@pytest.mark.usefixtures("installed")
def test_its_options_are_those_of_a_run(tmp_path):
    """In the help, to the granularity, checked, in the record and in the command that repeats the run."""
    shown = CliRunner().invoke(main, ["prune", "--help"], terminal_width=200).stdout
    assert re.search(r"--together INTEGER +With rows: so many neighbouring rows are one unit.  \[default: 1\]", shown)
    assert "this name is taken" not in shown
    out = tmp_path / "out"
    words = ["prune", "digits:cnn", "--data", "digits", "--target", "nonzero=50%", "--out", str(out), "--finetune-epochs", "0"]
    words += [word for name, value in TOLD.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    done = CliRunner().invoke(main, [*words, "--together", "4"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    config = json.loads((out / "config.json").read_text())
    assert config["together"] == 4
    assert {units for _, units in config["groups"]} == {3, 8, 16}
    assert "--together 4" in (out / "report.html").read_text()
    words[words.index(str(out))] = str(tmp_path / "refused")
    refused = CliRunner().invoke(main, [*words, "--together", "0"])
    assert refused.stderr == "freeprune: error: --together is 0; give 1 or more\n"
    refused = CliRunner().invoke(main, [*words, "--together", "4", "--granularity", "weight"])
    assert "--together 4 does not apply to granularity weight" in refused.stderr
    seen = CliRunner().invoke(
        main, ["inspect", "digits:cnn", "--input", "1x8x8", "--granularity", "rows", "--together", "4", "--json"]
    )
    assert json.loads(seen.stdout)["options"] == {"together": 4}


@pytest.mark.usefixtures("installed")
def test_its_options_hold_for_a_sweep_and_what_is_picked_from_it(tmp_path):
    asked = {name: value for name, value in TOLD.items() if name != "trials"}
    freeprune.sweep(
        "digits:cnn", "digits", out=tmp_path / "sweep", cost="nonzero", budgets=["60%", "50%"], trials=2, together=2, **asked
    )
    result = freeprune.pick(tmp_path / "sweep", target={"nonzero": 0.6}, out=tmp_path / "out", finetune=None)
    assert json.loads((result.folder / "config.json").read_text())["together"] == 2
    config = json.loads((tmp_path / "sweep" / "config.json").read_text())
    (tmp_path / "sweep" / "config.json").write_text(json.dumps({**config, "together": "two"}))
    with pytest.raises(freeprune.FreePruneError, match="does not say what the sweep was asked"):
        freeprune.pick(tmp_path / "sweep", target={"nonzero": 0.6}, out=tmp_path / "again", finetune=None)


@pytest.mark.usefixtures("installed")
def test_one_that_cannot_be_imported_is_told_where_it_is_asked_for(tmp_path):
    (tmp_path / "site" / "tiny_rows.py").write_text("import numppy\n")
    told = "of the package tiny-rows cannot be imported (ModuleNotFoundError: No module named 'numppy'); mend or uninstall it"
    for what, entry in (("metrics", "metric 'first'"), ("granularities", "granularity 'rows'")):
        listed = CliRunner().invoke(main, ["list", what])
        assert listed.exit_code == 2
        assert listed.stderr == f"freeprune: error: the {entry} {told}\n"
    asked = {"target": {"nonzero": 0.5}, "calibration_images": 64, "out": tmp_path / "out"}
    for call in (
        lambda: freeprune.correlate("digits:cnn", "digits", **asked),  # with all metrics that there are
        lambda: freeprune.prune("digits:cnn", "digits", metric="first", **asked),
    ):
        with pytest.raises(freeprune.FreePruneError, match=re.escape(f"the metric 'first' {told}")):
            call()
    result = freeprune.prune("digits:cnn", "digits", trials=0, finetune=None, rehearsal=False, **asked)  # others go on
    assert result.summary.met


def test_without_it_the_name_is_unknown(tmp_path):
    with pytest.raises(freeprune.FreePruneError, match="there is no granularity 'rows'"):
        freeprune.prune(NETWORKS["digits:cnn"](), "digits", target={"macs": 0.5}, granularity="rows", out=tmp_path / "out")
