import json
import socket
import sys
from wsgiref.util import setup_testing_defaults

import numpy as np
import pytest

from freeprune import FreePruneError
from freeprune.engine.command import dashboard
from freeprune.engine.store.ledger import Ledger, Trial


def recorded(folder, name="trials.jsonl"):
    (folder / "config.json").write_text(json.dumps({"groups": [["a", 10], ["b", 4]]}))
    (folder / name).parent.mkdir(exist_ok=True)
    ledger = Ledger(folder / name)
    ledger.add(Trial(np.array([0.1, 0.2]), np.array([5, 4]), 0.5, {"macs": 9.0}, 0.1, True, 0.2, 0.1))
    ledger.add(Trial(np.array([0.1, 0.9]), np.array([10, 1]), -np.inf, {"macs": 8.0}, 0.1, False, 0.4, 0.2))


def test_trials_become_a_study_of_rates(tmp_path):
    recorded(tmp_path)
    storage = dashboard.studies(tmp_path)
    (study,) = storage.get_all_studies()
    assert study.study_name == "trials"
    first, second = storage.get_all_trials(study._study_id)
    assert first.params == {"a": 0.5, "b": 0.0}
    assert first.value == 0.5
    assert first.user_attrs["macs"] == 9.0
    assert second.params == {"a": 0.0, "b": 0.75}
    assert second.state.name == "FAIL"
    assert not second.user_attrs["projected"]


def test_every_ledger_of_a_comparison_is_a_study(tmp_path):
    recorded(tmp_path, "ledgers/random-0.jsonl")
    recorded(tmp_path, "ledgers/tpe-0.jsonl")
    assert [s.study_name for s in dashboard.studies(tmp_path).get_all_studies()] == ["random-0", "tpe-0"]


def test_the_dashboard_is_served(tmp_path):
    optuna_dashboard = pytest.importorskip("optuna_dashboard")
    recorded(tmp_path)
    application = optuna_dashboard.wsgi(dashboard.studies(tmp_path))
    seen, environment = [], {"PATH_INFO": "/api/studies"}
    setup_testing_defaults(environment)
    body = b"".join(application(environment, lambda status, *_: seen.append(status)))
    assert seen == ["200 OK"]
    assert json.loads(body)["study_summaries"][0]["study_name"] == "trials"


@pytest.mark.parametrize("port", [99999, -1, None])
def test_a_port_where_nothing_can_be_served_is_a_sentence(port, tmp_path):
    pytest.importorskip("optuna_dashboard")
    recorded(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] if port is None else port
        with pytest.raises(FreePruneError, match=rf"^nothing can be served at 127.0.0.1, port {port} \(.*\); give another"):
            dashboard.show(tmp_path, port=port)


def test_what_cannot_be_shown_is_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(FreePruneError, match="holds no run"):
        dashboard.show(tmp_path)
    (tmp_path / "config.json").write_text('{"groups": []}')
    with pytest.raises(FreePruneError, match="holds no trials yet"):
        dashboard.show(tmp_path)
    recorded(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)
    with pytest.raises(FreePruneError, match=r"freeprune\[dashboard\]"):
        dashboard.show(tmp_path)
