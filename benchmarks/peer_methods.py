"""What `peers.py` holds side by side: each method takes a problem and gives the plan of a pruned network.

To add one: write a function here and add its line to METHODS. Torch-Pruning and ModelOpt are imported where they are used.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import freeprune
from freeprune.backends import BACKENDS, Plan, apply, importance
from freeprune.engine.asked.settings import settings
from freeprune.engine.inputs.batches import Data, split, stack
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.inputs.networks import PadShortcut
from freeprune.engine.run.job import Job, prepare
from freeprune.search.points import POINTS

CRITERION = "l2"
HALVINGS = 14  # of Torch-Pruning's ratio
# EagleEye as its authors give it: 100 batches renew the statistics, held-out images are judged, no rate is above 0.7 (0.8 where
# three quarters go). They draw about 1,000 candidates; here fewer.
EAGLEEYE = {"candidates": 100, "batches": 100, "batch_size": 128, "judged": 5000}
# ModelOpt renews statistics on 50 batches by default. It runs nearly every width of every layer, in steps of 32 channels by
# default: as few as possible in networks that are this narrow, yet enough of them to meet a budget.
FASTNAS = {"step": 4, "batches": 50, "batch_size": 128, "judged": 5000}
FASTNAS_ROUNDS = 4  # searches under another limit, from the same measurements, while the network is smaller than it may be
NEAR = 0.99


@dataclass(frozen=True)
class Problem:
    """What is to be pruned, and to what.

    Attributes:
        target: as for `prune`, one cost and its share.
        options: what the granularity takes besides.
        effort: 1; less for a quick check that everything runs.
    """

    network: nn.Module
    data: Data
    granularity: str
    target: Mapping[str, float]
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    effort: float = 1.0

    @property
    def share(self) -> float:
        (share,) = self.target.values()
        return share

    @property
    def steps(self) -> dict[str, int]:
        """Single channels, since these tables are about counted costs."""
        return {"round_to": 1} if self.granularity == "channel" else {}

    def some(self, count: int) -> int:
        """So many, or fewer where less effort is asked for."""
        return max(2, round(count * self.effort))

    def job(self) -> Job:
        """The groups, their costs and the budget, as every search of the package sees them."""
        options = {"granularity": self.granularity, "criterion": CRITERION, "seed": self.seed, **self.steps, **self.options}
        return prepare(GivenModel(self.network), self.data, settings(self.target, options), None)


@dataclass(frozen=True)
class Answer:
    """What a method would keep.

    Attributes:
        plan: for the network of the problem.
        evaluated: the networks that were run to get there.
        seconds: from the dense network to the plan, on the wall.
        processor_seconds: the same by the processor's clock, which other programs on the machine do not lengthen.
        notes: what is worth knowing beside that.
    """

    plan: Plan
    evaluated: int
    seconds: float = 0.0
    processor_seconds: float = 0.0
    notes: Mapping[str, Any] = field(default_factory=dict)


class Clock:
    """Seconds since it was made, also those until it was last stopped."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), time.process_time()
        self.stop()

    def stop(self) -> None:
        self.read = {
            "seconds": time.perf_counter() - self._start[0],
            "processor_seconds": time.process_time() - self._start[1],
        }


def searched(problem: Problem, **options: Any) -> Answer:
    """`prune` with its defaults, up to the plan: what follows belongs to all methods alike."""
    clock = Clock()

    def tell(what: str, done: int, total: int, text: str) -> None:
        if what == "search":
            clock.stop()

    trials = {} if problem.effort == 1 else {"trials": problem.some(300)}
    unseen = replace(problem.data, test=Subset(problem.data.test, range(100)))  # `prune` reports on them; they are not needed
    with tempfile.TemporaryDirectory() as scratch:
        found = freeprune.prune(
            problem.network, unseen, target=problem.target, granularity=problem.granularity, seed=problem.seed,
            criterion=CRITERION, finetune=None, compaction=False, out=Path(scratch) / "run", progress=tell,
            **{**problem.steps, **problem.options, **trials, **options},
        )  # fmt: skip
    notes = {"scores": found.summary.score.to_json()}
    return Answer(found.plan, found.summary.trials, **clock.read, notes=notes)


def allocated(problem: Problem, choose: Callable[[Problem, Job], np.ndarray]) -> Answer:
    """Rates that are known without running a network."""
    clock = Clock()
    job = problem.job()
    chosen = job.space.proposal(choose(problem, job))
    plan = job.backend.plan(job.space.project(chosen[None])[0])  # what a rule leaves of the budget is given back
    clock.stop()
    return Answer(plan, 0, **clock.read)


def dense(problem: Problem) -> Answer:
    job = problem.job()
    return Answer(job.backend.plan(job.space.units), 0)


def of_widths(problem: Problem, widths: Mapping[str, int]) -> Plan:
    """The plan of a network that was pruned elsewhere: as many channels in each layer, those with the largest norm.

    Raises:
        ValueError: the widths do not say it, since some of a layer's channels go with another layer's.
    """
    backend = problem.job().backend
    plan = backend.plan(np.array([min(widths[group.name], group.units) for group in backend.groups]))
    found = widths_of(apply(problem.network, plan))
    wrong = [name for name, width in widths.items() if found[name] != width]
    if wrong:
        raise ValueError(f"channels of {wrong[0]} go with those of other layers: widths alone do not say which stay")
    return plan


def widths_of(network: nn.Module) -> dict[str, int]:
    """The outputs of all convolutions and linear layers."""
    return {name: m.weight.shape[0] for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


def drawn(problem: Problem, job: Job) -> np.ndarray:
    """One random network on the budget."""
    return job.space.project(np.random.default_rng([problem.seed, 7]).random((1, job.space.size)))[0]


def warm_start(name: str, problem: Problem, job: Job) -> np.ndarray:
    return POINTS[name](job.space, job.backend.profile(job.importance))


def eagleeye(problem: Problem) -> Answer:
    """Random allocations, statistics renewed on many batches, accuracy on images that training did not see."""
    clock = Clock()
    job = problem.job()
    rng = np.random.default_rng([problem.seed, 8])
    judge = Judge(problem, EAGLEEYE)
    limit = 0.7 if problem.share > 0.3 else 0.8
    count = problem.some(EAGLEEYE["candidates"])
    rates = rng.random((count, job.space.size)) * limit
    candidates = job.space.project(np.clip(rates / (1 - job.space.minimum / job.space.units), 0, 1))
    best, plan = -1.0, None
    for kept in candidates:
        one = job.backend.plan(kept)
        found = judge.accuracy(judge.renewed(apply(problem.network, one)))
        if found > best:
            best, plan = found, one
    clock.stop()
    assert plan is not None
    notes = {**EAGLEEYE, "best_before_finetuning": best}
    return Answer(plan, count, **clock.read, notes=notes)


class Judge:
    """Accuracy of networks that are not trained on, on held-out training images; everything read once."""

    def __init__(self, problem: Problem, numbers: Mapping[str, int]) -> None:
        training, aside = split(problem.data, problem.seed)
        judged = min(problem.some(numbers["judged"]), len(aside))
        images, labels = stack(aside, range(judged), problem.data.collate)
        self.parts = list(zip(channels_last(images[0]).split(500), labels.split(500), strict=True))
        order = np.random.default_rng([problem.seed, 9]).permutation(len(training))
        count = problem.some(numbers["batches"]) * numbers["batch_size"]
        images, labels = stack(training, order[:count].tolist(), problem.data.collate)
        size = numbers["batch_size"]
        self.batches = list(zip(channels_last(images[0]).split(size), labels.split(size), strict=True))

    def accuracy(self, network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            right = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in self.parts)
        return right / sum(len(labels) for _, labels in self.parts)

    def renewed(self, network: nn.Module) -> nn.Module:
        """The network with the mean statistics of the batches."""
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        network.train()
        with torch.no_grad():
            for images, _ in self.batches:
                network(images)
        return network.eval()


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def torch_pruning(problem: Problem, **kind: bool) -> Answer:
    """DepGraph with the L2 norm of groups, all groups at one ratio; the largest network within the budget.

    Shortcuts that pad channels on both sides it takes for ones that leave channels where they are: channel 0 of one stage goes
    with channel 0 of the next, not with the one that it is added to. Streams with such shortcuts are left whole.
    """
    import torch_pruning as peer

    clock = Clock()
    example = stack(problem.data.train, [0, 1], problem.data.collate)[0][0]
    limit = problem.share * macs(problem.network, example)
    padded = any(isinstance(m, PadShortcut) for m in problem.network.modules())
    whole = [n for n, _ in problem.network.named_modules() if padded and (n == "conv1" or n.endswith(".conv2"))]

    def pruned(ratio: float, others: Sequence[int] = (), other: float = 0.0) -> nn.Module:
        """Some layers at another ratio, where that is asked for."""
        network = copy.deepcopy(problem.network)
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        pruner = peer.pruner.BasePruner(
            network, example, peer.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio,
            pruning_ratio_dict={layers[i]: other for i in others},
            ignored_layers=[layers[-1], *(network.get_submodule(name) for name in whole)], **kind,
        )  # fmt: skip
        pruner.step()
        return network

    low, high = 0.0, 1.0 - 1e-3  # too large; small enough
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if macs(pruned(middle), example) <= limit else (middle, high)
    network, others = pruned(high), []
    if not kind:  # a ratio for all moves all widths at once: the layers for which there is room stay at the next one
        for layer in range(sum(isinstance(m, nn.Conv2d) for m in network.modules())):
            larger = pruned(high, [*others, layer], low)
            if macs(larger, example) <= limit:
                network, others = larger, [*others, layer]
    clock.stop()
    notes = {"torch-pruning": version("torch-pruning"), "ratio": high}
    return Answer(of_widths(problem, widths_of(network)), 0, **clock.read, notes=notes)


def fastnas(problem: Problem) -> Answer:
    """ModelOpt's FastNAS, its score the accuracy on held-out images.

    Its limit is an upper bound, below which it may stay far. It is then searched again under larger ones, by bisection, which
    costs it little, since what it has measured is kept.
    """
    clock = Clock()
    with quiet():
        import modelopt.torch.prune as peer
    judge = Judge(problem, FASTNAS)
    example = judge.parts[0][0][:2]
    dense, evaluated = macs(problem.network, example), 0

    def score(network: nn.Module) -> float:
        nonlocal evaluated
        evaluated += 1
        return 100 * judge.accuracy(network)

    step = FASTNAS["step"]
    steps = {"nn.Conv2d": {"*": {"channel_divisor": step}}, "nn.BatchNorm2d": {"*": {"feature_divisor": step}}}
    loader = DataLoader(judge.batches, batch_size=None)
    best, tried = None, []
    low = allowed = problem.share
    high = min(1.0, 1.25 * low)
    with tempfile.TemporaryDirectory() as scratch:
        config = {
            "data_loader": loader, "score_func": score, "checkpoint": os.path.join(scratch, "measured.pth"),
            "max_iter_data_loader": problem.some(FASTNAS["batches"]), "verbose": False,
        }  # fmt: skip
        for _ in range(FASTNAS_ROUNDS):
            with quiet(), torch.random.fork_rng():
                torch.manual_seed(problem.seed)
                np.random.seed(problem.seed)  # noqa: NPY002
                found, _ = peer.prune(
                    copy.deepcopy(problem.network), mode=[("fastnas", steps)], constraints={"flops": f"{100 * allowed:.2f}%"},
                    dummy_input=example[:1], config=config,
                )  # fmt: skip
            share = macs(found, example) / dense
            tried.append({"limit": allowed, "share": share})
            if share <= problem.share * 1.005:
                if best is None or share > best[0]:
                    best = share, found
                if share >= NEAR * problem.share:
                    break
                low = allowed
            else:
                high = allowed
            allowed = (low + high) / 2
    clock.stop()
    assert best is not None
    notes = {"nvidia-modelopt": version("nvidia-modelopt"), **FASTNAS, "rounds": tried}
    return Answer(of_widths(problem, widths_of(best[1])), evaluated, **clock.read, notes=notes)


def macs(network: nn.Module, example: Tensor) -> float:
    """Multiplications of a network's weights for one image by the package's own tracer, whoever pruned it."""
    backend = BACKENDS["weight"](network, (example,), importance(CRITERION, network))
    return float(backend.costs(np.array([[group.units for group in backend.groups]]))["macs"][0])


@contextlib.contextmanager
def quiet():
    """Without the progress bars of others."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


METHODS: dict[str, Callable[[Problem], Answer]] = {
    "dense": dense,
    "freeprune": searched,
    "uniform": partial(allocated, choose=lambda problem, job: job.space.uniform()),
    "random": partial(allocated, choose=drawn),
    "erk": partial(allocated, choose=partial(warm_start, "erk")),
    "lamp": partial(allocated, choose=partial(warm_start, "global")),
    "magnitude": partial(allocated, choose=partial(warm_start, "magnitude")),
    "eagleeye-256": partial(searched, metric="adaptivebn", strategy="random", warm_starts=()),
    "eagleeye": eagleeye,
    "torch-pruning": torch_pruning,
    "torch-pruning-global": partial(torch_pruning, global_pruning=True),
    "torch-pruning-isomorphic": partial(torch_pruning, global_pruning=True, isomorphic=True),
    "fastnas": fastnas,
}

# What the report says of each.
DESCRIBED = {
    "freeprune": "`freeprune prune` with its defaults",
    "uniform": "the same rate in every group (`--trials 0`)",
    "random": "one random allocation for each seed",
    "erk": "Erdős-Rényi-kernel densities",
    "lamp": "one threshold on the LAMP scores of all units",
    "magnitude": "one threshold on the norm of all units",
    "eagleeye-256": "EagleEye's score on the images that FreePrune's is computed on: as many random allocations as FreePrune "
    "has trials, accuracy on 256 labelled images under their own statistics (`--strategy random --metric adaptivebn`)",
    "eagleeye": f"EagleEye's published protocol: {EAGLEEYE['candidates']} random allocations (its authors draw about 1,000), "
    f"statistics from {EAGLEEYE['batches']} batches of {EAGLEEYE['batch_size']}, accuracy on {EAGLEEYE['judged']:,} held-out "
    "images",
    "torch-pruning": "Torch-Pruning (DepGraph, group L2), one ratio for all layers",
    "torch-pruning-global": "Torch-Pruning, one threshold over all groups",
    "torch-pruning-isomorphic": "Torch-Pruning, one threshold for each kind of isomorphic groups",
    "fastnas": f"ModelOpt's FastNAS: {FASTNAS['judged']:,} held-out images, widths in steps of {FASTNAS['step']}, searched up "
    f"to {FASTNAS_ROUNDS} times for a network that uses the budget",
    "dense": "the dense network after the same fine-tuning",
}
