"""The same function on many items, on the actors of a running Ray cluster.

Each actor is sent the function once, with the network and the images that it closes over, and then only items: rate vectors,
say. They travel pickled, as everything in Ray does, between processes that trust each other; nothing on a disk is unpickled.
"""

from __future__ import annotations

import importlib
import logging
import os
import socket
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch

from ...common import FreePruneError, cause
from .base import DEATHS, Backlog, Placement, attempt

REACH = 5.0  # seconds within which the cluster has to answer
PATIENCE = 300.0  # seconds to wait for a first actor: some clusters start machines on demand
# What a client of gRPC, which is what Ray's servers speak, says first, with its empty settings; and the byte that marks
# settings in the server's answer (RFC 9113, sections 3.4 and 6.5).
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS = 4
CLIENT_PORT = 10001  # of ray:// where the address names none
PACKAGE = __name__.partition(".")[0]
STANDARD = Path(sysconfig.get_path("stdlib"))


def check(placement: Placement) -> None:
    """Whether there is a cluster at the address that this process can use.

    Raises:
        FreePruneError: Ray is not installed, nothing answers, or only one of this machine and the actors would have a GPU.
    """
    if torch.cuda.is_available() and not placement.gpus:
        raise FreePruneError(
            "the network is on this machine's GPU and Ray actors without --ray-gpus have none; give --ray-gpus, such as 0.25, "
            "or hide the GPU with CUDA_VISIBLE_DEVICES="
        )
    assert placement.ray is not None
    ray = _ray()
    if not ray.is_initialized():
        _reach(placement.ray)


@contextmanager
def actors(function: Callable[[Any], Any], placement: Placement) -> Iterator[_Actors]:
    """Actors that hold a function, of 1 CPU and `placement.gpus` GPUs each.

    A connection that the process already has is used and left open.

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
    """What runs on the cluster."""

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
        # Spread: a node that dies should cost as few of them as possible.
        self._actor = ray.remote(_Actor).options(
            num_cpus=1, num_gpus=placement.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the reference that is ready when they are
        self._failed: list[str] = []  # why the last of them did not start, since one did

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
                        "same versions of freeprune, torch and Ray on every node, then go on with --resume"
                    )
                # An actor that nobody schedules keeps nobody waiting, as long as another one works.
                ready, _ = ray.wait([*self._starting, *running], timeout=None if running else PATIENCE)
                if not ready:
                    raise FreePruneError(
                        f"no Ray actor of {self._needs} was to be had in {PATIENCE:.0f} seconds; see what `ray status` says is "
                        "free, then go on with --resume"
                    )
                if ready[0] in self._starting:
                    self._started(ready[0])
                    continue
                actor, position = running.pop(ready[0])
                try:
                    done, result = ray.get(ready[0])
                except ray.exceptions.RayTaskError:  # the call itself went wrong, and would again
                    ray.kill(actor)
                    raise
                except ray.exceptions.RayError:  # the actor or its node died, or the network between did
                    ray.kill(actor)
                    backlog.again(position)
                    continue
                self._idle.append(actor)
                if not done:
                    raise result
                yield position, result
        finally:
            for actor, _ in running.values():  # left over by an error: nobody waits for their results
                ray.kill(actor)

    def _start(self, wanted: int) -> None:
        """Ask for actors, up to so many starting ones; none of them is waited for."""
        if len(self._failed) < DEATHS:
            for _ in range(wanted - len(self._starting)):
                actor = self._actor.remote()
                self._starting[actor.load.remote(self._function)] = actor

    def _started(self, reference: Any) -> None:
        actor = self._starting.pop(reference)
        try:
            done, error = self._ray.get(reference)
        except self._ray.exceptions.RayError as failure:
            self._failed.append(cause(failure))
            return
        if not done:
            raise FreePruneError(
                f"a Ray actor cannot rebuild what it was sent ({cause(error)}); install the same versions of freeprune, "
                "torch and what the network needs on every node"
            )
        self._failed.clear()
        self._idle.append(actor)

    def stop(self) -> None:
        for actor in [*self._idle, *self._starting.values()]:
            self._ray.kill(actor)


def _ray() -> Any:
    if "ray" not in sys.modules:  # read when Ray is imported: without it, what happens to actors is printed to stdout
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FreePruneError(
            f"--ray needs Ray, which cannot be imported ({cause(error)}); pip install 'freeprune[ray]'"
        ) from None


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    try:
        ray.init(_reach(address), log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:
        raise FreePruneError(
            f"the Ray cluster at {address} cannot be used from here ({cause(error)}); run this on one of its nodes with the "
            "same versions of Python and Ray, or connect to ray://HOST:10001 with 'ray[client]' installed"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> str:
    """The address as Ray itself would understand it, once something there has answered.

    Ray alone would try for two minutes and then end this very process.
    """
    where = address.removeprefix("ray://")
    if where == address:
        services = importlib.import_module("ray._private.services")
        try:
            where = services.canonicalize_bootstrap_address_or_die(address)
        except Exception as error:  # "auto" where no cluster runs, a host that does not resolve
            raise FreePruneError(
                f"there is no Ray cluster at {address} ({cause(error)}); start one with `ray start --head`, or give HOST:PORT "
                "of a running one"
            ) from None
    try:
        place = urlsplit(f"//{where}")
        with socket.create_connection((place.hostname, place.port or CLIENT_PORT), REACH) as connection:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):  # an encrypted one would have to be greeted otherwise
                connection.sendall(PREFACE)
                answer = connection.recv(9, socket.MSG_WAITALL)
                if len(answer) < 9 or answer[3] != SETTINGS:
                    raise ConnectionError("what answers is not Ray")
        if not address.startswith("ray://"):
            _ask(where)
    except (OSError, ValueError) as error:
        at = address if where in address else f"{address} ({where})"
        raise FreePruneError(
            f"the Ray cluster at {at} cannot be reached ({cause(error)}); give HOST:PORT as `ray start --head` shows it, or "
            "ray://HOST:10001"
        ) from None
    return address if address.startswith("ray://") else where


def _ask(where: str) -> None:
    """Whether what speaks the protocol knows Ray, and is no proxy. Ray's client has no time limit of its own: a thread does."""
    refused: list[Exception] = []

    def ask() -> None:
        try:
            raylet.GcsClient(address=where)
        except Exception as error:
            refused.append(error)

    raylet = importlib.import_module("ray._raylet")
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH)
    if refused:
        raise ConnectionError(f"what answers is not Ray: {cause(refused[0])}")
    if thread.is_alive():
        raise ConnectionError(f"nothing that Ray understands came within {REACH:g} seconds")


def _room(ray: Any, gpus: float) -> int:
    """How many actors the whole cluster has room for; at least one, for which it may make room."""
    has = ray.cluster_resources()
    room = has.get("CPU", 0) if not gpus else min(has.get("CPU", 0), has.get("GPU", 0) / gpus)
    return max(int(room), 1)


def _cloudpickle() -> Any:
    return importlib.import_module("ray.cloudpickle")


def _packed(function: Callable[[Any], Any]) -> bytes:
    """Pickled, with the code of everything that is not installed: a network from the user's own file, say."""
    cloudpickle = _cloudpickle()
    with _by_value(cloudpickle):
        try:
            packed: bytes = cloudpickle.dumps(function)
        except Exception as error:
            raise FreePruneError(
                f"the network or the data cannot be sent to Ray actors ({cause(error)}); leave out --ray, or keep what cannot "
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
    """Whether a module is the user's own code, which a node may not have, and no installed package."""
    if not isinstance(module, ModuleType) or module.__name__ != name or name.partition(".")[0] == PACKAGE:
        return False
    file = module.__dict__.get("__file__")
    if file is None or name == "__main__":
        return False
    path = Path(file)
    return STANDARD not in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)
