from importlib.metadata import EntryPoint

import pytest

from freeprune import registry
from freeprune.errors import FreePruneError
from freeprune.registry import find


def test_a_table_comes_first_then_other_packages(monkeypatch):
    asked = []

    def points(group):
        asked.append(group)
        return [EntryPoint("sqrt", "math:sqrt", group)]

    monkeypatch.setattr(registry, "entry_points", points)
    assert find({"freeprune": 1}, "freeprune", "metric") == 1
    assert find({}, "sqrt", "strategy")(9) == 3
    assert asked == ["freeprune.strategies"]
    with pytest.raises(FreePruneError, match=r"there is no granularity 'sqr'; did you mean 'sqrt'\? \(known: channel, sqrt\)"):
        find({"channel": 1}, "sqr", "granularity")
