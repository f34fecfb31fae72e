"""What workers bring: local processes beside an executor's, Ray actors beside local processes, and how well many of them scale.

    OMP_NUM_THREADS=1 python benchmarks/workers.py --data DIR --weights DIR [--only local actors scaling]

`local`: two processes of ours and two of a `ProcessPoolExecutor`, in turns: the time to start, the overhead of an item that
does nothing, and the time for items of 10 ms. The fastest turn counts, since other jobs slow down the others. It needs no DIR.

`actors`: ResNet-56, `channel`, `macs=50%`: the same candidates on 2 and 4 local processes and on as many Ray actors of the same
machine, in turns: what the actors cost, and what it costs that they are more than the cores. `scaling`: a metric that only
sleeps, on 32 actors. DIR of --data holds CIFAR-10 (JPEG) as an image folder, DIR of --weights the pretrained networks. Writes
`results/workers.json`; what is not measured this time stays there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from main_job import RESULTS
from ray.cluster_utils import Cluster

from freeprune.engine.asked.settings import Settings
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare
from freeprune.engine.studies.candidates import draw_candidates
from freeprune.engine.workers.base import Placement, Pool
from freeprune.engine.workers.pool import pool

NAP = 0.5  # seconds that the sleeping metric takes
ACTORS = 32
ROUNDS = 25  # of `local`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9, help="of `actors`")
    parser.add_argument("--only", nargs="*", default=["local", "actors", "scaling"])
    options = parser.parse_args()
    path = RESULTS / "workers.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only:
        results[name] = {"local": local, "actors": lambda: actors(options), "scaling": scaling}[name]()
        path.write_text(json.dumps(results, indent=2) + "\n")
        print(name, json.dumps(results[name]), flush=True)  # noqa: T201


INPUT = torch.rand(160, 160) / 160


def work(count: int) -> int:
    """10 ms where `count` is 60."""
    x = INPUT
    for _ in range(count):
        x = torch.tanh(x @ INPUT)
    return os.getpid()


class Executor:
    """What local workers would be on the standard library, without what becomes of those that die."""

    def __init__(self) -> None:
        fork = multiprocessing.get_context("fork")
        self.processes = ProcessPoolExecutor(2, fork, initializer=torch.set_num_threads, initargs=(1,))

    def each(self, items: Sequence) -> Iterator[tuple[int, int]]:
        futures = {self.processes.submit(work, item): position for position, item in enumerate(items)}
        for future in as_completed(futures):
            yield futures[future], future.result()


@contextmanager
def executor() -> Iterator[Executor]:
    workers = Executor()
    with workers.processes:
        yield workers


def local() -> dict:
    kinds = {"ours": lambda: pool(work, Placement(2)), "ours again": lambda: pool(work, Placement(2)), "executor": executor}
    seconds = {name: {"start": [], "item": [], "thirty items of 10 ms": []} for name in kinds}
    for turn in range(ROUNDS):
        for name in list(kinds)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            with kinds[name]() as workers:
                list(workers.each([0, 0]))
                seconds[name]["start"].append(time.perf_counter() - begin)
                seconds[name]["item"].append(timed(lambda each=workers.each: list(each([0] * 400))) / 400)
                seconds[name]["thirty items of 10 ms"].append(timed(lambda each=workers.each: list(each([60] * 30))))
    fastest = {name: {what: min(values) for what, values in found.items()} for name, found in seconds.items()}
    ratio = lambda name: {what: fastest[name][what] / value for what, value in fastest["ours"].items()}  # noqa: E731
    return {
        "rounds": ROUNDS,
        "cores": os.cpu_count(),
        "fastest_seconds": fastest,
        "executor_over_ours": ratio("executor"),
        "noise": ratio("ours again"),
        "load": os.getloadavg()[0],
    }


@contextmanager
def cluster(cpus: int) -> Iterator[str]:
    """The address of one on this machine, whose workers are as nice as the processes that they are compared with."""
    head = {"num_cpus": cpus, "include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes.address
    finally:
        nodes.shutdown()


def actors(options: argparse.Namespace) -> dict:
    settings = Settings(parse_targets(["macs=50%"]))
    weights = options.weights / "resnet56-cifar10.safetensors"
    job = prepare(GivenModel("cifar:resnet56", weights), load_data(f"imagefolder:{options.data}"), settings, None)
    kept = list(draw_candidates(job.space, options.candidates, 0))
    score = job.scorer()

    def scored(item: object) -> object:
        if isinstance(item, int):
            time.sleep(NAP)
            return os.getpid()
        return score(item)[0]

    with ExitStack() as stack:  # processes are forked before this one has Ray's threads
        kinds: dict[str, Pool] = {}

        def add(kind: str, count: int, address: str | None = None) -> None:
            kinds[f"{count} {kind}"] = workers = stack.enter_context(pool(scored, Placement(count, ray=address)))
            started(workers, count)

        for count in (2, 4):
            add("processes", count)
        address = stack.enter_context(cluster(6))
        for count in (2, 4):
            add("actors", count, address)
        seconds: dict[str, list[float]] = {name: [] for name in kinds}
        found = {}
        for turn in range(options.rounds):
            for name in list(kinds)[:: 1 if turn % 2 else -1]:
                begin = time.perf_counter()
                found[name] = dict(kinds[name].each(kept))
                seconds[name].append(time.perf_counter() - begin)

    def over_two_processes(name: str) -> dict:
        ratios = [a / b for a, b in zip(seconds[name], seconds["2 processes"], strict=True)]
        return {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}

    return {
        "candidates": len(kept),
        "cores": os.cpu_count(),
        "seconds": seconds,
        "over_2_processes": {name: over_two_processes(name) for name in kinds if name != "2 processes"},
        "scores_equal": all(scores == found["2 processes"] for scores in found.values()),
        "load": os.getloadavg()[0],
    }


def scaling() -> dict:
    def nap(item: int) -> int:
        time.sleep(NAP)
        return os.getpid()

    with cluster(ACTORS) as address, pool(nap, Placement(ACTORS, ray=address)) as workers:
        started(workers, ACTORS)
        at_once = timed(lambda: list(workers.each(range(20 * ACTORS))))
        in_batches = timed(lambda: [list(workers.each(range(ACTORS))) for _ in range(20)])
    ideal = 20 * NAP
    return {
        "actors": ACTORS,
        "cores": os.cpu_count(),
        "seconds_of_an_item": NAP,
        "efficiency": {"at_once": ideal / at_once, "in_batches_of_32": ideal / in_batches},
        "load": os.getloadavg()[0],
    }


def started(workers: Pool, count: int) -> None:
    """Wait until so many of them take part."""
    while len({process for _, process in workers.each(range(count))}) < count:
        pass


def timed(function: Callable[[], Sequence]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
