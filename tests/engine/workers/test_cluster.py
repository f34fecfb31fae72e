"""On a Ray cluster of three nodes, all of them on this machine."""

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from freeprune import FreePruneError, Recipe, correlate, prune
from freeprune.engine.asked.settings import Settings
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare
from freeprune.engine.studies.candidates import draw_candidates
from freeprune.engine.workers import base as workers
from freeprune.engine.workers import cluster as ray_workers
from freeprune.engine.workers import connection
from freeprune.engine.workers.base import Placement
from freeprune.engine.workers.pool import check, pool

ray = pytest.importorskip("ray")

# Workers as nice as anyone, and a node that is gone is missed at once.
SYSTEM = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
}
CPU = torch.device("cpu")
NETWORK = """
import torch
from helper import Twice

class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
        self.twice = Twice()

    def forward(self, x):
        return self.twice(self.layers(x))
"""
HELPER = """
import torch

class Twice(torch.nn.Module):
    def forward(self, x):
        return 2 * x
"""


@pytest.fixture(scope="module")
def cluster():
    """Actors go to three nodes of one CPU; the fourth, which has none, is the one that the tests are connected to."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": SYSTEM})
    try:
        for _ in range(3):
            nodes.add_node(num_cpus=1, wait=False)
        nodes.wait_for_nodes()
        yield nodes
    finally:
        nodes.shutdown()


def prepared(model, granularity="channel"):
    settings = Settings(parse_targets(["macs=40%"]), granularity=granularity, calibration_images=32)
    job = prepare(GivenModel(model), "digits", settings, None)
    return job, list(draw_candidates(job.space, 12, 0))


def here(function, items):
    with pool(function, Placement(1)) as given:
        return dict(given.each(items))


def test_a_node_that_goes_costs_its_trials_and_nothing_else(cluster, tmp_path):
    job, trials = prepared("digits:cnn")
    score, started, fifo = job.scorer(), tmp_path / "started", tmp_path / "node"
    os.mkfifo(fifo)

    def scored(trial):
        """The first trial, at its first try, says where it runs and never ends."""
        position, kept = trial
        if position == 0 and not started.exists():
            started.touch()
            fifo.write_text(ray.get_runtime_context().get_node_id())
            threading.Event().wait()
        return score(kept)[0]

    items = list(enumerate(trials))
    found = {}
    with pool(scored, Placement(ray=cluster.address)) as given:
        for position, value in given.each(items):
            if len(found) == 2:
                lost = fifo.read_text()  # waits for the trial to say so
                cluster.remove_node(next(node for node in cluster.worker_nodes if node.node_id == lost), allow_graceful=False)
            found[position] = value
        again = dict(given.each(items))  # a replacement, which nobody can schedule now, keeps nobody waiting
    started.touch()
    assert found == again == here(scored, items)


def test_a_network_from_a_file_travels_with_its_code(cluster, tmp_path):
    (tmp_path / "network.py").write_text(NETWORK)
    (tmp_path / "helper.py").write_text(HELPER)
    job, trials = prepared(f"{tmp_path / 'network.py'}:Own", "weight")
    for path in tmp_path.glob("*.py"):
        path.unlink()  # actors cannot import them
    score = job.scorer()
    with pool(lambda kept: score(kept)[0], Placement(1, ray=cluster.address)) as given:
        assert dict(given.each(trials)) == here(lambda kept: score(kept)[0], trials)


def test_ray_accepts_the_cluster_file_that_users_start_from():
    from ray.autoscaler._private.util import prepare_config, validate_config
    from yaml import safe_load

    given = safe_load((Path(__file__).parents[3] / "examples" / "ray_cluster.yaml").read_text())
    config = prepare_config(given)
    validate_config(config)
    assert config["max_workers"] == len(given["provider"]["worker_ips"])
    for node in ("head", "worker"):
        assert "ray start" in config[f"{node}_start_ray_commands"][-1]


def test_a_study_on_the_cluster_is_the_same(cluster, tmp_path):
    asked = {"target": ["macs=40%"], "candidates": 3, "seeds": 1, "finetune": Recipe(images=64), "calibration_images": 32}
    studies = [
        correlate("digits:cnn", "digits", out=tmp_path / name, metrics=["freeprune", "snip"], **asked, **options)
        for name, options in {"ray": {"ray": cluster.address, "workers": 2}, "here": {"workers": 1}}.items()
    ]
    assert studies[0]["candidates"] == studies[1]["candidates"]


def test_errors_come_through_and_items_that_kill_end_the_run(cluster, monkeypatch):
    monkeypatch.setattr(workers, "DEATHS", 1)  # each costs the start of an actor

    def odd(n):
        if n < 0:
            os._exit(1)
        return 1 / n, np.zeros(3)

    with pool(odd, Placement(1, ray=cluster.address)) as given:
        with pytest.raises(ZeroDivisionError) as caught:
            list(given.each([1, 0]))
        assert "in odd" in caught.value.__notes__[0]
        with pytest.raises(FreePruneError, match="a worker died 1 times at the same item"):
            list(given.each([-1]))


def test_what_no_node_has_is_one_sentence(cluster, monkeypatch):
    monkeypatch.setattr(ray_workers, "PATIENCE", 0.1)
    sentence = "no Ray actor with 1 CPU and 0.25 GPU could be started in"
    with pool(str, Placement(2, ray=cluster.address, gpus=0.25)) as given, pytest.raises(FreePruneError, match=sentence):
        list(given.each([1]))


class Fragile:
    """Can be pickled, and never be unpickled, as on a node where a package is missing."""

    def __reduce__(self):
        return int, ("many",)


def test_actors_that_cannot_start_are_one_sentence(cluster, monkeypatch):
    fragile, placement = Fragile(), Placement(1, ray=cluster.address)
    sentence = r"cannot rebuild what it was sent \(ValueError: invalid literal"
    with pool(lambda n: (n, fragile), placement) as given, pytest.raises(FreePruneError, match=sentence):
        list(given.each([1]))

    class Dying:
        def load(self, packed):
            os._exit(1)

    monkeypatch.setattr(ray_workers, "Actor", Dying)
    sentence = "3 Ray actors in a row died while they started"
    with pool(str, placement) as given, pytest.raises(FreePruneError, match=sentence):
        list(given.each([1]))


def test_there_are_as_many_actors_as_the_cluster_has_room_for():
    class Fake:
        def cluster_resources(self):
            return {"CPU": 8.0, "GPU": 1.0}

    assert ray_workers.room(Fake(), 0.0) == 8
    assert ray_workers.room(Fake(), 0.25) == 4
    assert ray_workers.room(Fake(), 2.0) == 1  # the cluster may yet grow


def test_what_cannot_be_pickled_is_one_sentence(cluster):
    lock = threading.Lock()
    workers = pool(lambda n: (n, lock), Placement(1, ray=cluster.address))
    with pytest.raises(FreePruneError, match=r"cannot be sent to Ray actors \(TypeError: cannot pickle"):
        workers.__enter__()


@pytest.fixture
def port():
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "auto"])
def test_an_unreachable_cluster_is_one_sentence(address, port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")  # where "auto" looks first
    sentence = rf"the Ray cluster at .*:{port}\)? cannot be reached \(ConnectionRefusedError: .*; give HOST:PORT"
    with pytest.raises(FreePruneError, match=sentence):
        check(Placement(ray=address.format(port)), CPU)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:port", "http://127.0.0.1:80"])
def test_an_address_that_is_none_is_one_sentence(address):
    with pytest.raises(
        FreePruneError, match=f"the Ray cluster at {address} cannot be used from here .ValueError: .*; give HOST"
    ) as e:
        check(Placement(ray=address), CPU)
    assert "\n" not in str(e.value)


def test_what_listens_and_is_not_ray_is_one_sentence(monkeypatch):
    """Such as Ray's own dashboard; ray.init would wait for most of a minute and then exit."""
    monkeypatch.setattr(connection, "TRIAL_SECONDS", 3)
    answered = threading.Event()
    with socket.create_server(("", 0)) as server:  # Ray replaces 127.0.0.1 by the address that others see

        def serve():
            with suppress(OSError):  # the socket is closed when the test is over
                while not answered.is_set():
                    with server.accept()[0] as connection:
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(FreePruneError, match="Ray could not connect within 3 seconds"):
            check(Placement(ray=f"127.0.0.1:{server.getsockname()[1]}"), CPU)
        answered.set()


def until_it_ends(actor):
    """Ray ends an actor a moment after it was asked to; until then nothing can be read from b""."""
    for _ in range(1000):
        with suppress(EOFError):
            ray.get(actor.run.remote(b""), timeout=30)


def test_actors_of_a_connection_that_stays_end_with_the_pool(cluster):
    """In the middle of their items, while somebody keeps the loop over them, as a traceback does."""
    stay = threading.Event

    def work(n):
        if n:
            stay().wait()
        return os.getpid()

    ray.init(cluster.address, log_to_driver=False)
    try:
        with pool(work, Placement(2, ray=cluster.address)) as given:
            results = given.each([1, 0])
            assert next(results)[0] == 1  # on the second actor; the first is busy
            actors = list(given.alive)
            assert len(actors) == 2
        for actor in actors:
            with pytest.raises(ray.exceptions.RayActorError):
                until_it_ends(actor)
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_gpu_on_this_side_only_is_refused_where_it_scores(monkeypatch, tmp_path):
    def reach(address):
        raise FreePruneError(f"asked for {address}")

    monkeypatch.setattr(connection, "_reach", reach)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = {"target": {"macs": 0.5}, "ray": "auto", "out": tmp_path / "out"}
    with pytest.raises(FreePruneError, match=r"on this machine's GPU and Ray actors .* have none; .* or `device=cpu`"):
        prune("digits:cnn", "digits", **asked)
    with pytest.raises(FreePruneError, match="asked for auto"):
        prune("digits:cnn", "digits", device="cpu", **asked)
