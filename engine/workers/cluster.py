"""Applies a function to many items on the actors of a running Ray cluster.

Each actor is sent the function once, with the network and the images that it closes over, and then only items, such as rate
vectors. They are pickled, as everything in Ray is, between processes that trust each other; no file is unpickled.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch

from ...errors import FreePruneError, brief, cause
from .base import DEATHS, Backlog, Placement, attempt

REACH = 5.0  # seconds to wait for a connection to the address
TRIAL_SECONDS = 20.0  # seconds for a process to import Ray and connect
PATIENCE = 300.0  # seconds to wait for a first actor: some clusters start machines on demand
# Connects to an address; if that fails, prints why.
TRIAL = """
import sys
try:
    import ray
    ray.init(sys.argv[1], log_to_driver=False)
    ray.shutdown()
except Exception as error:
    print(type(error).__name__, str(error).strip().partition("\\n")[0], sep=": ")
    sys.exit(1)
"""
CLIENT_PORT = 10001  # of ray:// if the address has none
PACKAGE = __name__.partition(".")[0]
STANDARD = Path(sysconfig.get_path("stdlib"))


def check(placement: Placement) -> None:
    """Refuse an address without a cluster that this process can use.

    Raises:
        FreePruneError: Ray is not installed, nothing answers, or this machine has a GPU and the actors have none.
    """
    if torch.cuda.is_available() and not placement.gpus:
        raise FreePruneError(
            "the network is on this machine's GPU and Ray actors without `ray_gpus` have none; give `ray_gpus`, such as 0.25, "
            "or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    assert placement.ray is not None
    if not _ray().is_initialized():
        _reach(placement.ray)


@contextmanager
def actors(function: Callable[[Any], Any], placement: Placement) -> Iterator[_Actors]:
    """Actors that hold a function, with 1 CPU and `placement.gpus` GPUs each.

    An existing connection of this process is used and left open.

    Raises:
        FreePruneError: no connection, or the function cannot be pickled.
    """
    assert placement.ray is not None
    ray = _ray()
    with _connected(ray, placement.ray):
        pool = _Actors(ray, ray.put(_packed(function)), placement)
        try:
            yield pool
        finally:
            pool.stop()


class _Actor:
    """The class of the actors on the cluster."""

    def load(self, packed: bytes) -> tuple[bool, Any]:
        torch.set_num_threads(1)
        return attempt(self._load, packed)

    def _load(self, packed: bytes) -> None:
        self._function = _cloudpickle().loads(packed)

    def run(self, packed: bytes) -> tuple[bool, Any]:
        # Unpacked here and not by Ray, whose arrays are read-only.
        return attempt(self._function, _cloudpickle().loads(packed))


class _Actors:
    """Actors, started as they are needed and replaced when they die."""

    def __init__(self, ray: Any, function: Any, placement: Placement) -> None:
        self._ray, self._function = ray, function
        self._count = _room(ray, placement.gpus) if placement.workers is None else placement.workers
        self._needs = "1 CPU" + (f" and {placement.gpus:g} GPU" if placement.gpus else "")
        # Spread, so that a node that dies takes few actors with it.
        self._actor = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=placement.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._alive: set[Any] = set()
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the reference that becomes ready when the actor has started
        self._failed: list[str] = []  # why actors did not start, since the last one that did

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        ray, pack, backlog = self._ray, _cloudpickle().dumps, Backlog(len(items))
        self._failed.clear()
        running: dict[Any, tuple[Any, int]] = {}
        try:
            while backlog.waiting or running:
                while backlog.waiting and self._idle:
                    actor, position = self._idle.pop(), backlog.waiting.popleft()
                    running[actor.run.remote(pack(items[position]))] = actor, position
                self._start(min(self._count - len(running), len(backlog.waiting)))
                if not running and not self._starting:
                    raise FreePruneError(
                        f"{len(self._failed)} Ray actors in a row died while they started ({self._failed[-1]}); install the "
                        "same versions of freeprune, torch and Ray on every node, then go on with `resume=True`"
                    )
                # Do not wait for an actor that is not scheduled as long as another one works.
                ready, _ = ray.wait([*self._starting, *running], timeout=None if running else PATIENCE)
                if not ready:
                    raise FreePruneError(
                        f"no Ray actor with {self._needs} could be started in {PATIENCE:.0f} seconds; see with `ray status` "
                        "what is free, then go on with `resume=True`"
                    )
                if ready[0] in self._starting:
                    self._started(ready[0])
                    continue
                actor, position = running.pop(ready[0])
                try:
                    done, result = ray.get(ready[0])
                except ray.exceptions.RayTaskError:  # the call itself failed, and would fail again
                    self._end(actor)
                    raise
                except ray.exceptions.RayError:  # the actor, its node or the connection died
                    self._end(actor)
                    backlog.again(position)
                    continue
                self._idle.append(actor)
                if not done:
                    raise result
                yield position, result
        finally:
            for actor, _ in running.values():  # still busy after an error; their results are not needed
                self._end(actor)

    def _start(self, wanted: int) -> None:
        """Request actors until `wanted` are starting, without waiting for them."""
        if len(self._failed) < DEATHS:
            for _ in range(wanted - len(self._starting)):
                actor = self._actor.remote()
                self._alive.add(actor)
                self._starting[actor.load.remote(self._function)] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            done, error = self._ray.get(reference)
        except self._ray.exceptions.RayError as failure:
            self._end(actor)
            self._failed.append(cause(failure))
            return
        if not done:
            raise FreePruneError(
                f"a Ray actor cannot rebuild what it was sent ({cause(error)}); install the same versions of freeprune, "
                "torch and what the network needs on every node"
            )
        self._failed.clear()
        self._idle.append(actor)

    def _end(self, actor: Any) -> None:
        if actor in self._alive:
            self._alive.remove(actor)
            self._ray.kill(actor)

    def stop(self) -> None:
        """End all actors, also those still busy because `each` was left early."""
        for actor in list(self._alive):
            self._end(actor)


def _ray() -> Any:
    if "ray" not in sys.modules:  # read when Ray is imported; without it Ray prints messages about actors to stdout
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FreePruneError(
            f"`ray` needs Ray, which cannot be imported ({cause(error)}); pip install 'freeprune[ray]'"
        ) from None


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
    except (Exception, SystemExit) as error:  # Ray exits the process if it cannot connect
        raise _unusable(address, cause(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


@functools.cache
def _reach(address: str) -> None:
    """Try to connect in a separate process, once for each address.

    If no Ray answers, Ray waits for most of a minute, logs and exits; the separate process does so instead of this one.

    Raises:
        FreePruneError: nothing listens there, or connecting fails.
    """
    _knock(address)
    try:
        tried = subprocess.run(
            [sys.executable, "-P", "-c", TRIAL, address], capture_output=True, text=True, timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise _unusable(address, f"Ray could not connect within {TRIAL_SECONDS:g} seconds") from None
    if tried.returncode:
        lines = [line for line in tried.stdout.splitlines() if line]
        raise _unusable(address, brief(lines[-1]) if lines else "Ray exited without a message")


def _knock(address: str) -> None:
    """Check that something listens at an address with host and port; other addresses only Ray understands."""
    known = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address  # as Ray itself does
    try:
        place = urlsplit(f"//{known.removeprefix('ray://')}")
        port = place.port or (CLIENT_PORT if known.startswith("ray://") else None)
    except ValueError:
        return
    if place.hostname and port:
        try:
            socket.create_connection((place.hostname, port), REACH).close()
        except OSError as error:
            raise FreePruneError(
                f"the Ray cluster at {known} cannot be reached ({cause(error)}); give HOST:PORT as `ray start --head` shows "
                "it, or ray://HOST:10001"
            ) from None


def _unusable(address: str, reason: str) -> FreePruneError:
    return FreePruneError(
        f"the Ray cluster at {address} cannot be used from here ({reason}); give HOST:PORT as `ray start --head` shows it and "
        "run this on one of its nodes with the same versions of Python and Ray, or connect to ray://HOST:10001 with "
        "'ray[client]' installed"
    )


def _room(ray: Any, gpus: float) -> int:
    """How many actors fit on the whole cluster; at least one, since the cluster may grow."""
    has = ray.cluster_resources()
    room = has.get("CPU", 0) if not gpus else min(has.get("CPU", 0), has.get("GPU", 0) / gpus)
    return max(int(room), 1)


def _cloudpickle() -> Any:
    return importlib.import_module("ray.cloudpickle")


def _packed(function: Callable[[Any], Any]) -> bytes:
    """A pickled function, with the code of modules that are not installed, such as the user's own file."""
    cloudpickle = _cloudpickle()
    with _by_value(cloudpickle):
        try:
            packed: bytes = cloudpickle.dumps(function)
        except Exception as error:
            raise FreePruneError(
                f"the network or the data cannot be sent to Ray actors ({cause(error)}); leave out `ray`, or keep what cannot "
                "be pickled (open files, locks) out of them"
            ) from error
    return packed


@contextmanager
def _by_value(cloudpickle: Any) -> Iterator[None]:
    known = cloudpickle.list_registry_pickle_by_value()
    local = [module for name, module in sys.modules.copy().items() if name not in known and _is_local(name, module)]
    for module in local:
        cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in local:
            cloudpickle.unregister_pickle_by_value(module)


def _is_local(name: str, module: Any) -> bool:
    """Whether a module is the user's own code, which a node may lack, rather than an installed package."""
    if not isinstance(module, ModuleType) or module.__name__ != name or name.partition(".")[0] == PACKAGE:
        return False
    file = module.__dict__.get("__file__")
    if file is None or name == "__main__":
        return False
    path = Path(file)
    return STANDARD not in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)
