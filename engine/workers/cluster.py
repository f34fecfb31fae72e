"""Applies a function to many items on the actors of a running Ray cluster.

Each actor is sent the function once, with the network and the images that it closes over, and then only items, such as rate
vectors. They are pickled, as everything in Ray is, between processes that trust each other; no file is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ...errors import FreePruneError, cause
from .base import DEATHS, Backlog, Placement, attempt
from .connection import connected, ray_module
from .packing import cloudpickle, packed

PATIENCE = 300.0  # seconds to wait for a first actor: some clusters start machines on demand


@contextmanager
def actors(function: Callable[[Any], Any], placement: Placement) -> Iterator[_Actors]:
    """Actors that hold a function, with 1 CPU and `placement.gpus` GPUs each.

    An existing connection of this process is used and left open.

    Raises:
        FreePruneError: no connection, or the function cannot be pickled.
    """
    assert placement.ray is not None
    ray = ray_module()
    with connected(ray, placement.ray):
        pool = _Actors(ray, ray.put(packed(function)), placement)
        try:
            yield pool
        finally:
            pool.stop()


class Actor:
    """The class of the actors on the cluster."""

    def load(self, packed: bytes) -> tuple[bool, Any]:
        torch.set_num_threads(1)
        return attempt(self._load, packed)

    def _load(self, packed: bytes) -> None:
        self._function = cloudpickle().loads(packed)

    def run(self, packed: bytes) -> tuple[bool, Any]:
        # Unpacked here and not by Ray, whose arrays are read-only.
        return attempt(self._function, cloudpickle().loads(packed))


class _Actors:
    """Actors, started as they are needed and replaced when they die."""

    def __init__(self, ray: Any, function: Any, placement: Placement) -> None:
        self._ray, self._function = ray, function
        self._count = room(ray, placement.gpus) if placement.workers is None else placement.workers
        self._needs = "1 CPU" + (f" and {placement.gpus:g} GPU" if placement.gpus else "")
        # Spread, so that a node that dies takes few actors with it.
        self._actor = ray.remote(Actor).options(
            num_cpus=1, num_gpus=placement.gpus, max_restarts=0, scheduling_strategy="SPREAD"
        )
        self.alive: set[Any] = set()
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # by the reference that becomes ready when the actor has started
        self._failed: list[str] = []  # why actors did not start, since the last one that did

    def each(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        ray, pack, backlog = self._ray, cloudpickle().dumps, Backlog(len(items))
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
                self.alive.add(actor)
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
        if actor in self.alive:
            self.alive.remove(actor)
            self._ray.kill(actor)

    def stop(self) -> None:
        """End all actors, also those still busy because `each` was left early."""
        for actor in list(self.alive):
            self._end(actor)


def room(ray: Any, gpus: float) -> int:
    """How many actors fit on the whole cluster; at least one, since the cluster may grow."""
    has = ray.cluster_resources()
    room = has.get("CPU", 0) if not gpus else min(has.get("CPU", 0), has.get("GPU", 0) / gpus)
    return max(int(room), 1)
