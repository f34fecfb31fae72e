"""Another package adds a granularity and a metric through its entry points, as if it had been installed."""

import sys

import pytest
from click.testing import CliRunner

import freeprune
from freeprune.engine.command.cli import main
from freeprune.engine.inputs.networks import NETWORKS

PACKAGE = '''
import numpy as np
from freeprune.backends.mask import Masked, ranked


class Rows(Masked):
    """Whole output rows become zero, in place."""

    name = "rows"

    def ranks(self, scores, importance):
        sums = {name: values.reshape(len(values), -1).sum(axis=1) for name, values in scores.items()}
        return {
            name: np.broadcast_to(ranked(importance.total(sums[name])).reshape(-1, *[1] * (values.ndim - 1)), values.shape)
            for name, values in scores.items()
        }


def first(candidate, dense, batch):
    """Always the same."""
    return 1.0
'''
ENTRY_POINTS = "[freeprune.backends]\nrows = tiny_rows:Rows\n\n[freeprune.metrics]\nfirst = tiny_rows:first\n"


@pytest.fixture
def installed(tmp_path, monkeypatch):
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


def test_without_it_the_name_is_unknown(tmp_path):
    with pytest.raises(freeprune.FreePruneError, match="there is no granularity 'rows'"):
        freeprune.prune(NETWORKS["digits:cnn"](), "digits", target={"macs": 0.5}, granularity="rows", out=tmp_path / "out")
