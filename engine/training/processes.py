"""Processes that train together: who they are, how they are started, and what one sends to the others.

One process searches, measures and reports. When the training begins there are as many as there are devices, each of which
trains on its part of every batch; the first of them writes checkpoints. There are two ways to start them:

- with `devices` above 1 they are started when the training begins, and end with it;
- `torchrun` starts the same command in all of them. The first does everything else as well; the others load network and data
  too, and wait for the training.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import wait
from pickle import PicklingError
from typing import Any

import torch
from numpy.typing import NDArray

from ...errors import FreePruneError
from ..asked.declaration import Hardware
from ..inputs.devices import count_of, device_of
from ..workers.base import attempt

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
WAITED = timedelta(days=30)  # by processes of torchrun, for the search to end
TOLD, DONE, FAILED = "told", "done", "failed"  # kinds of messages
LEAST = 2  # images of a batch for each device; batch norm needs two


def by_torchrun() -> bool:
    """Whether torchrun, or something that sets the same variables, started this process with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def is_first() -> bool:
    """Whether this process does everything but its part of the training."""
    return not by_torchrun() or os.environ["RANK"] == "0"


def world_of(hardware: Hardware) -> int:
    """How many processes train together."""
    return hardware.devices * hardware.nodes


def check_hardware(hardware: Hardware, *, helped: bool = True) -> None:
    """Refuse hardware that is not there, before anything long begins.

    Args:
        helped: whether other processes, of torchrun, may take part; there are several machines only then.

    Raises:
        FreePruneError: there are fewer devices, or torchrun started another number of processes.
    """
    if not helped and by_torchrun():
        raise FreePruneError(
            "torchrun started this in several processes, and only prune and train take part in them; start it in one, with "
            "`devices`"
        )
    if not helped and hardware.nodes > 1:
        raise FreePruneError(f"`nodes={hardware.nodes}` was given, and only prune and train use several machines; leave it out")
    if by_torchrun():
        found, asked = int(os.environ["WORLD_SIZE"]), world_of(hardware)
        if asked != found:
            raise FreePruneError(
                f"`devices={hardware.devices}` and `nodes={hardware.nodes}` are {asked} processes, but torchrun started "
                f"{found}; give the numbers that torchrun has"
            )
    elif hardware.nodes > 1:
        raise FreePruneError(
            f"`nodes={hardware.nodes}` was given, but this process was not started by torchrun; start the same command on each "
            "machine with torchrun, as the page on scale shows"
        )
    kind = device_of(hardware.device).type
    if hardware.devices == 1 or kind == "cpu":
        return
    if ":" in hardware.device:
        raise FreePruneError(
            f"`devices={hardware.devices}` was given with `device={hardware.device}`, which is one; give `device={kind}`, and "
            "choose devices with CUDA_VISIBLE_DEVICES"
        )
    if hardware.devices > count_of(kind):
        raise FreePruneError(
            f"`devices` is {hardware.devices}, but this machine has {count_of(kind)} of {kind}; give at most that many, or "
            "`device=cpu`"
        )


def check_batch(batch_size: int, world: int) -> None:
    """Refuse a batch that is too small to be divided."""
    if world > 1 and batch_size < LEAST * world:
        raise FreePruneError(
            f"`batch_size` is {batch_size} for {world} processes that train together; give at least {LEAST * world}, or fewer "
            "`devices`"
        )


Told = Callable[..., None]
Function = Callable[[Any, Told], Mapping[str, NDArray[Any]]]


def together(function: Function, given: Any, told: Told, hardware: Hardware) -> Mapping[str, NDArray[Any]]:
    """What a function returns in the first of several processes of this machine, which are started here and end here.

    Args:
        function: of what is given and of `told`; at the top of a module.
        given: sent to the processes; where they are forked, they have it already.
        told: called here with what the first process calls it with.
        hardware: how many there are.

    Raises:
        FreePruneError: what the function raised first, in whichever process; or one of them died.
    """
    world = world_of(hardware)
    kind = device_of(hardware.device).type
    # A process that uses a GPU cannot be forked.
    context: Any = multiprocessing.get_context("fork" if kind == "cpu" else "spawn")
    if kind == "cpu":
        import torch._dynamo  # which every process would need a few seconds to import
    port, helpers = _free_port(), {}
    try:
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_help, args=(function, given, port, rank, world, theirs, torch.get_num_threads()))
            try:
                process.start()
            except (AttributeError, TypeError, ValueError, PicklingError) as error:
                raise FreePruneError(
                    f"the network or the data cannot be sent to a process of another device ({error}); start the command with "
                    f"torchrun, in {world} processes"
                ) from error
            theirs.close()
            helpers[ours] = process
        return _listened(list(helpers), told)
    finally:
        for pipe, process in helpers.items():
            process.kill()  # one that is done has nothing left to do
            process.join()
            pipe.close()


def _listened(pipes: list[Any], told: Told) -> Mapping[str, NDArray[Any]]:
    """What the first process returns; what it tells on the way is passed on."""
    failures: list[tuple[float, Exception]] = []
    died = False
    while not failures and not died:
        ready: list[Any] = wait(pipes)
        for pipe in ready:
            try:
                kind, found = pipe.recv()
            except (EOFError, OSError):
                died = True
                continue
            if kind == TOLD:
                told(*found)
            elif kind == FAILED:
                failures.append(found)
            elif pipe is pipes[0]:
                return found  # type: ignore[no-any-return]
            else:  # another one is done
                pipes = [one for one in pipes if one is not pipe]
    for pipe in pipes:  # an error in one process breaks the connections of the others, which tell of that alone
        with suppress(EOFError, OSError):
            while pipe.poll(1):
                kind, found = pipe.recv()
                if kind == FAILED:
                    failures.append(found)
    if failures and not died:
        raise min(failures, key=lambda one: one[0])[1]
    raise FreePruneError(
        "a process that trains on another device died, perhaps out of memory; lower `batch_size`, and go on with `resume=True`"
    )


def _help(function: Function, given: Any, port: int, rank: int, world: int, pipe: Any, threads: int) -> None:
    """The life of a process that was started to train."""
    torch.set_num_threads(threads)

    def told(*found: Any) -> None:
        if rank == 0:
            pipe.send((TOLD, found))

    with _variables(port, rank, world):
        done, found = attempt(lambda given: function(given, told), given)
    pipe.send((DONE, found if rank == 0 else None) if done else (FAILED, (time.monotonic(), found)))
    if not done:
        pipe.recv()  # waits to be ended: connections to the others break then, and they would tell of that


@contextmanager
def _variables(port: int, rank: int, world: int) -> Iterator[None]:
    """The variables by which processes find each other, as torchrun sets them."""
    before = {name: os.environ.get(name) for name in VARIABLES}
    values = ("127.0.0.1", port, world, rank, rank, world, 0)
    os.environ.update({name: str(value) for name, value in zip(VARIABLES, values, strict=True)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
