"""Which form of the score ranks best: ablations of the FreePrune score over the studies' fine-tuned candidates.

    python benchmarks/score_form.py --data DIR [--only CELL ...] [--images | --sizes]

Nothing is fine-tuned: the candidates and their accuracies are those of `benchmarks/studies/*/study.json`. Each cell's scores go
to `score_form.json` beside it (`image_counts.json` with `--images`, `layer_sizes.json` with `--sizes`); what is there of as
many candidates is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from studies import CELLS, FOLDER
from torch import Tensor, nn

from freeprune.common import Batch, Candidate
from freeprune.disk import write_atomically
from freeprune.engine.asked.settings import recorded
from freeprune.engine.asked.targets import parse_targets
from freeprune.engine.inputs.batches import split
from freeprune.engine.inputs.calibration import draw
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import Job, prepare
from freeprune.metrics.agreement import cosine
from freeprune.metrics.base import Reference, weights
from freeprune.metrics.calibratedkl import divergence as calibrated
from freeprune.metrics.freeprune import freeprune, log_kept
from freeprune.metrics.magnitude import magnitude
from freeprune.metrics.statistics import spearman
from freeprune.metrics.taylor import taylor
from freeprune.metrics.volume import log_volume

COUNTS = (16, 32, 64, 128, 256, 512, 1024)
DRAWS = 3  # of the calibration images, in the curve over their number
POWERS = (0, 0.25, 0.5, 1)  # of a layer's size, in the mean of what is kept

# By network, the modules that end a stage and the parameter whose first dimension holds the ids of the channels that they give.
STAGES = {
    "cifar:resnet20": {f"layer{i}.2": f"layer{i}.2.bn2.weight" for i in (1, 2, 3)},
    "networks.py:vgg": {"6": "4.weight", "13": "11.weight", "20": "18.weight", "27": "25.weight"},
    "networks.py:plain": {"3": "2.weight", "7": "6.weight", "9": "8.weight"},
}


@dataclass(frozen=True)
class Seen:
    """A pass: the outputs `(N, K)`, and each stage's features `(N, C, H, W)`, of the kept channels only."""

    output: Tensor
    features: list[Tensor]


@contextmanager
def hooked(modules: dict[str, nn.Module], hook: Callable[..., Any]) -> Iterator[None]:
    handles = [m.register_forward_hook(lambda _m, _i, out, n=n: hook(n, out)) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def seen(candidate: Candidate, stages: dict[str, str], images: Tensor, normalise: bool) -> Seen:
    """One pass with the batch's statistics, or with the stored ones."""
    modules = dict(candidate.skeleton.network.named_modules())
    features: dict[str, Tensor] = {}
    with torch.no_grad(), hooked({n: modules[n] for n in stages}, lambda n, out: features.update({n: out})):
        output = candidate(images) if normalise else candidate.run(candidate.tensors, images)
    return Seen(output.double(), [features[n] for n in stages])


def rescaled(candidate: Candidate, dense: Candidate, images: Tensor) -> Tensor:
    """The outputs where each layer's output is scaled, channel by channel, to the dense network's mean and deviation."""
    moments: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str, out: Tensor) -> None:
        axes = [d for d in range(out.dim()) if d != 1]
        moments[name] = out.mean(axes, keepdim=True), out.std(axes, keepdim=True)

    def scale(name: str, out: Tensor) -> Tensor:
        axes = [d for d in range(out.dim()) if d != 1]
        ids = candidate.kept.get(f"{name}.weight", {}).get(0)
        mean, deviation = (m if ids is None else m[:, torch.from_numpy(ids)] for m in moments[name])
        own = out.std(axes, keepdim=True)
        return (out - out.mean(axes, keepdim=True)) * (deviation / own.clamp_min(1e-6)) + mean

    def layers(network: nn.Module) -> dict[str, nn.Module]:
        return {n: m for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    with torch.no_grad():
        with hooked(layers(dense.skeleton.network), note):
            dense(images)
        with hooked(layers(candidate.skeleton.network), scale):
            return candidate(images).double()


def divergence(dense: Tensor, pruned: Tensor, temperature: float) -> float:
    """Minus `KL(dense || pruned)` at a temperature; both `(N, K)`."""
    p, q = torch.log_softmax(dense / temperature, 1), torch.log_softmax(pruned / temperature, 1)
    return -float((p.exp() * (p - q)).sum(1).mean())


def explained(dense: Tensor, pruned: Tensor, ids: np.ndarray | None) -> float:
    """R², mean over the dense channels; a channel that is gone explains nothing."""
    a, b = (x.double().transpose(0, 1).flatten(1) for x in (dense, pruned))
    kept = a if ids is None else a[torch.from_numpy(ids)]
    centred = kept - kept.mean(1, keepdim=True)
    share = 1 - (kept - b).square().sum(1) / centred.square().sum(1).clamp_min(1e-12)
    return float(share.clamp_min(-1).sum() / len(a))


def read_out(dense: Tensor, pruned: Tensor) -> float:
    """How much of the variance of the dense features a linear map of the pruned ones explains; mean over channels."""
    a, b = (x.float().transpose(0, 1).flatten(1).T for x in (dense, pruned))
    a, b = a - a.mean(0), b - b.mean(0)
    gram = (b.T @ b).double()
    gram += 1e-4 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    cross = (b.T @ a).double()
    solved = torch.linalg.solve(gram, cross)
    gain = (cross * solved).sum(0)  # what the regression explains of each channel's sum of squares
    return float((gain / a.double().square().sum(0).clamp_min(1e-12)).clamp(0, 1).mean())


def forms(
    candidate: Candidate, against: Reference, stages: dict[str, str], images: Batch, whole: dict[str, Seen]
) -> dict[str, float]:
    """Every form of the score of one candidate; larger is better. `whole` holds the dense network's passes."""
    batch = seen(candidate, stages, images.inputs[0], normalise=True)
    stored = seen(candidate, {}, images.inputs[0], normalise=False)
    reference, frozen = whole["batch"], whole["stored"]
    ids = [candidate.kept.get(parameter, {}).get(0) for parameter in stages.values()]
    agreed = [explained(a, b, i) for a, b, i in zip(reference.features, batch.features, ids, strict=True)]
    error = (reference.output - batch.output).square().sum() / reference.output.square().sum()
    knows, spread = calibrated(reference.output, batch.output), log_volume(reference.output, batch.output)
    kept = log_kept(candidate)
    more = {
        "norm left": magnitude(candidate, against, images),
        "first-order importance left (labels)": taylor(candidate, against, images),
    }
    instead = {  # of the divergence at the best scale
        "stored statistics": calibrated(frozen.output, stored.output),
        "layers rescaled to the dense moments": calibrated(
            reference.output, rescaled(candidate, against.dense, images.inputs[0])
        ),
        **{f"KL at the scale that is there, T={t}": divergence(reference.output, batch.output, t) for t in (1, 4)},
        "cosine": cosine(reference.output, batch.output),
        "same class": float((reference.output.argmax(1) == batch.output.argmax(1)).double().mean()),
        "minus relative error": -float(error),
        "features R², last stage": agreed[-1],
        "features R², worst stage": min(agreed),
        "features R², mean of stages": float(np.mean(agreed)),
        "features, linear read-out of the last stage": read_out(reference.features[-1], batch.features[-1]),
    }
    rest = (spread + kept) / 2
    result = {"the score: divergence + volume / 2 + log kept / 2": knows + rest}
    result |= {"without the divergence": rest, "without the volume": knows + kept / 2}
    result |= {"without the log kept (the form before)": knows + spread / 2}
    result |= {"divergence alone": knows, "volume alone": spread, "log kept alone": kept}
    result |= {f"with volume {text}": knows + w * spread + kept / 2 for text, w in (("/ 4", 0.25), ("* 1", 1.0))}
    result |= {f"with log kept {text}": knows + spread / 2 + w * kept for text, w in (("/ 4", 0.25), ("* 1", 1.0))}
    result |= {f"{name} / 2 instead of the log kept": knows + (spread + value) / 2 for name, value in more.items()}
    result |= {f"the score + {name} / 2": knows + rest + value / 2 for name, value in more.items()}
    result["cosine + norm left (an earlier form)"] = instead["cosine"] + more["norm left"]
    result |= {f"{name}, + volume / 2 + log kept / 2": found + rest for name, found in instead.items()}
    result |= {f"{name}, alone": found for name, found in instead.items()}
    return result


def job_of(name: str, data: Any) -> Job:
    """What a study was asked, made ready again."""
    config = json.loads((FOLDER / name / "study.json").read_text())["config"]
    if config["granularity"] == "channel":  # older studies had widths of any size and no branches, and no words for it
        config |= {"depth": False, "round_to": 1}
    given = GivenModel(config["model"], config["weights"])
    return prepare(given, data, recorded(config, parse_targets(config["target"])), None)


def compare_forms(job: Job, kept: np.ndarray) -> list[dict[str, float]]:
    stages, dense, images = STAGES[job.config["model"]], job.dense.dense, job.scored
    whole = {
        "batch": seen(dense, stages, images.inputs[0], normalise=True),
        "stored": seen(dense, {}, images.inputs[0], normalise=False),
    }
    return [forms(job.backend.candidate(row), job.dense, stages, images, whole) for row in kept]


def over_image_counts(job: Job, kept: np.ndarray) -> list[dict[str, float]]:
    """The score itself by the number of calibration images, several draws each, none of them shared."""
    training, _ = split(job.data, job.settings.seed)
    most = max(COUNTS)
    pool = draw(training, job.data, DRAWS * most, job.settings.seed).inputs[0].contiguous(memory_format=torch.channels_last)
    batches = {f"{n} images, draw {d}": Batch((pool[d * most :][:n],)) for n in COUNTS for d in range(DRAWS)}
    dense = {name: Reference(job.network, batch) for name, batch in batches.items()}
    candidates = [job.backend.candidate(row) for row in kept]
    return [{name: freeprune(c, dense[name], batch) for name, batch in batches.items()} for c in candidates]


def over_layer_sizes(job: Job, kept: np.ndarray) -> list[dict[str, float]]:
    """What is kept of the layers, in logs: a mean in which each weighs a power of its size; half of it, as in the score."""
    found = []
    for row in kept:
        tensors = weights(job.backend.candidate(row)).values()
        counts = np.array([(int(own.count_nonzero()), int(before.count_nonzero())) for own, before in tensors], np.float64)
        logs = np.log(np.maximum(counts[:, 0], 1) / counts[:, 1])
        found.append({f"size ** {power}": float(np.average(logs, weights=counts[:, 1] ** power)) / 2 for power in POWERS})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", nargs="*", default=list(CELLS))
    parser.add_argument("--images", action="store_true", help="the curve over the number of calibration images instead")
    parser.add_argument("--sizes", action="store_true", help="layers weighed by their size in what is kept instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = replace(load_data(f"imagefolder:{options.data}"), source="CIFAR-10 as JPEG")
    os.chdir(FOLDER)
    function, file = compare_forms, "score_form.json"
    if options.images:
        function, file = over_image_counts, "image_counts.json"
    if options.sizes:
        function, file = over_layer_sizes, "layer_sizes.json"
    for name in options.only:
        out = Path(name) / file
        if not (Path(name) / "study.json").exists():
            continue
        candidates = json.loads((Path(name) / "study.json").read_text())["candidates"]
        accuracies = np.array([np.mean(c["accuracies"]) for c in candidates])
        found = json.loads(out.read_text())["candidates"] if out.exists() else []
        if len(found) < len(candidates):
            kept = np.array([c["kept"] for c in candidates[len(found) :]])
            found += function(job_of(name, data), kept)
        scores = [c["scores"] for c in candidates]
        others = np.array([s["calibratedkl"] + s["volume"] / 2 if options.sizes else 0 for s in scores])
        rho = {form: float(spearman(np.array([c[form] for c in found]) + others, accuracies)) for form in found[0]}
        write_atomically(out, json.dumps({"spearman": rho, "candidates": found}, indent=1).encode())
        print(name, len(found), {form: round(r, 3) for form, r in rho.items()}, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
