r"""MiniLM embeds sentences with 60% of its MACs, without labels and without any training.

    python examples/minilm_embeddings.py --data sst2 --no-depth [--out runs/minilm-embeddings] [--seeds 0 1 2] [--macs 0.6]

Needs what `minilm_sst2.py` needs; no label is read. What counts is the order of similarities: Spearman's correlation of the
cosines of pairs of test sentences with those of the dense network.
"""

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from sentences import TINY, Results, Sentences, by_torch_pruning, macs, made_up, minilm, options, outputs, sst2
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertModel

import freeprune

PAIRS = 20_000


class Embedder(nn.Module):
    """The mean of the last layer over the tokens of a sentence."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = self.encoder(input_ids, attention_mask)[0]
        counts = attention_mask[:, :, None].to(tokens.dtype)
        return (tokens * counts).sum(1) / counts.sum(1)


def given(asked: Namespace) -> tuple[nn.Module, Sentences, Sentences]:
    """The dense network, sentences to calibrate on, and those for the test."""
    torch.manual_seed(0)
    if asked.tiny:
        encoder, train, test = BertModel(BertConfig(**TINY), add_pooling_layer=False), made_up(200, 12, 0), made_up(100, 12, 1)
    else:
        folder = minilm(asked.weights)
        encoder = BertModel.from_pretrained(folder, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        train, test = (sst2(asked.data / f"{name}.tsv", tokenizer, asked.length) for name in ("train", "test"))
    return Embedder(encoder).eval(), train.some(slice(None), labelled=False), test.some(slice(asked.sentences), labelled=False)


def similarities(network: nn.Module, data: Sentences) -> np.ndarray:
    """The cosines of random pairs of sentences."""
    vectors = nn.functional.normalize(outputs(network, data), dim=1)
    one, other = np.random.default_rng(0).integers(0, len(data), (2, PAIRS))
    different = one != other
    return (vectors[one[different]] * vectors[other[different]]).sum(1).numpy()


def main() -> None:
    parser, parsed = options(__doc__, "minilm-embeddings", macs=0.6, sentences=1000, length=24, trials=40, calibration=1536)
    parser.add_argument("--data", type=Path, default=Path("sst2"), help="folder of SST-2")
    parser.add_argument("--weights", type=Path, help="folder of MiniLM, as Hugging Face has it; by default the package's")
    asked = parsed()
    network, train, test = given(asked)
    expected = similarities(network, test)

    def judged(found: nn.Module) -> float:
        return float(spearmanr(expected, similarities(found, test)).statistic)

    def searched(seed: int, trials: int, recovery: bool = True) -> dict[str, float]:
        result = freeprune.prune(
            network, (train, test.some(slice(64))), target={"macs": asked.macs}, task="embedding", finetune=None, trials=trials,
            seed=seed, depth=trials > 0 and not asked.no_depth, recovery=recovery, criterion="obs", metric="calibratedkl",
            calibration_images=asked.calibration,
            out=asked.out / f"{trials}-{seed}", force=True, latency_batch=8, rehearsal=trials > 0,
        )  # fmt: skip
        cost, ms = result.summary.cost["macs"], result.summary.onnx.latency_ms
        return {"Spearman": judged(result.network), "macs": cost.pruned / cost.dense, "latency": ms.pruned / ms.dense}

    def peer(_: int) -> dict[str, float]:
        found = by_torch_pruning(network, asked.macs, train)
        return {"Spearman": judged(found), "macs": macs(found, asked.length) / macs(network, asked.length)}

    keep = Results(asked.out)
    for seed in asked.seeds:
        keep("searched", seed, partial(searched, trials=asked.trials))
        keep("equal rates", seed, partial(searched, trials=0))
        if not asked.tiny:
            keep("equal rates, plain", seed, partial(searched, trials=0, recovery=False))
        try:
            keep("Torch-Pruning", seed, peer)
        except ImportError:
            print("Torch-Pruning isn't installed")  # noqa: T201
    keep.summed(("searched", "equal rates", "equal rates, plain", "Torch-Pruning"), asked.seeds, "Spearman")


if __name__ == "__main__":
    main()
