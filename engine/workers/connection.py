"""The connection to a running Ray cluster, and what is said where there is none."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import torch

from ...errors import FreePruneError, brief, cause
from .base import Placement

REACH = 5.0  # seconds to wait for a connection to the address
TRIAL_SECONDS = 20.0  # seconds for a process to import Ray and connect
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


def check(placement: Placement, device: torch.device) -> None:
    """Refuse an address without a cluster that this process can use.

    Args:
        device: where the networks are that actors are sent.

    Raises:
        FreePruneError: Ray is not installed, nothing answers, or the networks are on a GPU and the actors have none.
    """
    if device.type == "cuda" and not placement.gpus:
        raise FreePruneError(
            "the network is on this machine's GPU and Ray actors without `ray_gpus` have none; give `ray_gpus`, such as 0.25, "
            "or `device=cpu`"
        )
    assert placement.ray is not None
    if not ray_module().is_initialized():
        _reach(placement.ray)


def ray_module() -> Any:
    """Ray, which is imported where it is asked for."""
    if "ray" not in sys.modules:  # read when Ray is imported; without it Ray prints messages about actors to stdout
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise FreePruneError(
            f"`ray` needs Ray, which cannot be imported ({cause(error)}); pip install 'freeprune[ray]'"
        ) from None


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """Within it this process is connected; a connection that it has already is used, and left open."""
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
