"""Processes that train together: who they are, how they are started, and what one sends to the others.

The first process does everything else: it searches, writes, and reports. The others train alone, each on its part of every
batch. There are two ways to start them:

- with `devices` above 1 the first process starts the others when the training begins, and they end with it;
- `torchrun` starts the same command in all of them. The others then load network and data too, and wait for the training.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from ...common import FreePruneError
from ..asked.declaration import Hardware
from ..inputs.devices import count_of, device_of
from ..workers.base import attempt

VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
WAITED = timedelta(days=30)  # by processes of torchrun, for the search to end
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


def check_hardware(hardware: Hardware) -> None:
    """Refuse hardware that is not there, before anything long begins.

    Raises:
        FreePruneError: there are fewer devices, or torchrun started another number of processes.
    """
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


def together(function: Callable[[Any, bool], Any], given: Any, hardware: Hardware) -> Any:
    """What a function returns in the first process; it runs in all that train together.

    Args:
        function: of what is given and whether this is the first process; at the top of a module.
        given: sent to the processes that are started here; where they are forked, they have it already.
        hardware: how many there are.

    Raises:
        FreePruneError: what the function raised, in whichever process.
    """
    world = world_of(hardware)
    if world == 1 or by_torchrun():
        return function(given, is_first())
    kind = device_of(hardware.device).type
    context = multiprocessing.get_context("fork" if kind == "cpu" else "spawn")  # a process that uses a GPU cannot be forked
    port = _free_port()
    helpers = []
    try:
        for rank in range(1, world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_help, args=(function, given, port, rank, world, theirs, torch.get_num_threads()))
            try:
                process.start()
            except (AttributeError, TypeError, ValueError) as error:  # something that cannot be pickled
                raise FreePruneError(
                    f"the network or the data cannot be sent to a process of another device ({error}); start the command with "
                    f"torchrun, in {world} processes"
                ) from error
            theirs.close()
            helpers.append((process, ours))
        with _variables(port, 0, world):
            done, found = attempt(lambda given: function(given, True), given)
        if not done:
            raise _first_error(helpers, found)
        return found
    finally:
        for process, pipe in helpers:
            process.kill()  # one that is done has nothing left to do
            process.join()
            pipe.close()
        _leave()


def _first_error(helpers: list[tuple[Any, Any]], own: Exception) -> Exception:
    """The error of a helper where it had one before the connection to it broke; else this process's own."""
    for process, pipe in helpers:
        if pipe.poll(1):
            try:
                done, found = pipe.recv()
            except EOFError:
                if process.exitcode not in (0, None):
                    return FreePruneError(
                        "a process that trains on another device died, perhaps out of memory; lower `batch_size`, and go on "
                        "with `resume=True`"
                    )
                continue
            if not done and isinstance(found, FreePruneError):
                return found
    return own


def _help(function: Callable[[Any, bool], Any], given: Any, port: int, rank: int, world: int, pipe: Any, threads: int) -> None:
    """The life of a process that was started to train."""
    torch.set_num_threads(threads)
    with _variables(port, rank, world):
        done, found = attempt(lambda given: function(given, False), given)
    pipe.send((done, None if done else found))
    pipe.close()
    _leave()


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


def _leave() -> None:
    """Leave the group of processes, so that the next training can make another."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
