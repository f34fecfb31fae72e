r"""A small GPT-2 that has learned to write English loses 40% of its MACs: perplexity, by a search and at equal rates.

    python examples/gpt_text.py [--text FILE ...] [--out runs/gpt-text] [--seeds 0 1 2] [--macs 0.6]

Needs `transformers`. Bytes are the tokens. Without `--text` it reads what comes with Python: the docstrings of its standard
library.
"""

import ast
import sysconfig
from argparse import Namespace
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentences import Results, options
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

import freeprune

BATCH = 16


class Text(nn.Module):
    """A language model as `nn.Module`s are: tokens `(N, T)` to logits `(N, T, 256)`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens, use_cache=False).logits


def docstrings() -> str:
    """All docstrings of Python's standard library."""
    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8", errors="ignore"))
        nodes = (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)))
        found += [text for node in nodes if (text := ast.get_docstring(node))]
    return "\n\n".join(found)


def given(asked: Namespace) -> tuple[nn.Module, TensorDataset, TensorDataset]:
    """The network with random weights, and text for training and for the test: tokens `(N, T)` that are their own labels."""
    if asked.tiny:
        text = "the cat sat on the mat and looked at the rat " * 300
        sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": asked.length}
    else:
        text = "\n".join(file.read_text(encoding="utf-8") for file in asked.text) if asked.text else docstrings()
        sizes = {"n_embd": 320, "n_layer": 8, "n_head": 8, "n_positions": asked.length}
    torch.manual_seed(0)
    network = Text(GPT2LMHeadModel(GPT2Config(vocab_size=256, **sizes, bos_token_id=0, eos_token_id=0)))
    pieces = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()
    pieces = pieces[: len(pieces) // asked.length * asked.length].reshape(-1, asked.length)
    pieces = pieces[torch.randperm(len(pieces))]
    tests = min(len(pieces) // 10, asked.tests)
    train, test = pieces[tests:], pieces[:tests]
    return network, TensorDataset(train, train), TensorDataset(test, test)


def trained(network: nn.Module, data: TensorDataset, steps: int, seed: int, rate: float) -> nn.Module:
    """Your own training: AdamW."""
    torch.manual_seed(seed)
    tokens = data.tensors[0]
    optimizer = torch.optim.AdamW(network.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=max(0.1, 1.5 / steps))
    network.train()
    for _ in range(steps):
        batch = tokens[torch.randint(len(tokens), (BATCH,))]
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def perplexity(network: nn.Module, data: TensorDataset) -> float:
    """Of the next byte."""
    network.eval()
    found = [
        nn.functional.cross_entropy(network(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten()) * len(batch)
        for batch in data.tensors[0].split(BATCH)
    ]
    return float((sum(found) / len(data)).exp())


def main() -> None:
    parser, parsed = options(
        __doc__,
        "gpt-text",
        macs=0.6,
        steps=1500,
        finetune_steps=300,
        rate=1e-3,
        length=64,
        tests=300,
        trials=60,
        calibration=64,
    )
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="files of text")
    asked = parsed()
    network, train, test = given(asked)
    keep, file = Results(asked.out), asked.out / "dense.pt"
    if file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
    else:
        torch.save(trained(network, train, asked.steps, 0, asked.rate).state_dict(), file)
    network.eval()

    def fitted(found: nn.Module, seed: int) -> dict[str, float]:
        before = perplexity(found, test)
        return {
            "before training": before,
            "perplexity": perplexity(trained(found, train, asked.finetune_steps, seed, asked.rate / 2), test),
        }

    def searched(seed: int, trials: int) -> dict[str, float]:
        figures: dict[str, float] = {}

        def finetune(found: nn.Module, _: Any) -> nn.Module:
            figures.update(fitted(found, seed))
            return found

        summary = freeprune.prune(
            network, (train, TensorDataset(*test[:32])), target={"macs": asked.macs}, task="language", finetune=finetune,
            trials=trials, seed=seed, depth=trials > 0 and not asked.no_depth, calibration_images=asked.calibration,
            out=asked.out / f"{trials}-{seed}", force=True, latency_batch=1, rehearsal=trials > 0,
        ).summary  # fmt: skip
        cost, ms = summary.cost["macs"], summary.onnx.latency_ms
        return {**figures, "macs": cost.pruned / cost.dense, "latency": ms.pruned / ms.dense}

    for seed in asked.seeds:
        keep("searched", seed, partial(searched, trials=asked.trials))
        keep("equal rates", seed, partial(searched, trials=0))
        keep("dense", seed, lambda seed: fitted(deepcopy(network), seed))
    keep.summed(("searched", "dense", "equal rates"), asked.seeds, "perplexity")


if __name__ == "__main__":
    main()
