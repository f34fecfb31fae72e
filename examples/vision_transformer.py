"""A vision transformer loses attention heads, the widths of its perceptrons, and whole branches where they matter least.

    python examples/vision_transformer.py [--out runs/vit] [--epochs 30] [--seed 0] [--trials 100] [--macs 0.5] [--no-depth]

The network is in `small_vit.py`; nothing in it was written with pruning in mind. `--trials 0` prunes at equal rates.
"""

import argparse

import torch
from digits_data import datasets, train
from small_vit import SmallViT
from torch import nn

import freeprune


def there(module: nn.Module) -> bool:
    """Whether a branch was not removed as a whole: one that is gone has no parameters."""
    return any(True for _ in module.parameters())


def shape(network: SmallViT) -> str:
    heads = [block.attention.heads if there(block.attention) else 0 for block in network.blocks]
    widths = [block.mlp[0].out_features if there(block.mlp) else 0 for block in network.blocks]
    return f"heads {heads}, perceptrons {widths}, {sum(p.numel() for p in network.parameters())} parameters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/vit")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the search and the training after it")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--macs", type=float, default=0.5, help="of the dense network's")
    parser.add_argument("--no-depth", action="store_true", help="widths and heads alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    dense = train(SmallViT(), options.epochs)

    def finetune(network: nn.Module, _: object) -> nn.Module:  # your own training instead of the built-in one
        torch.manual_seed(options.seed)
        return train(network, options.epochs)

    result = freeprune.prune(
        dense, datasets(), target={"macs": options.macs}, trials=options.trials, seed=options.seed, finetune=finetune,
        depth=options.trials > 0 and not options.no_depth, out=options.out, force=True,
    )  # fmt: skip

    accuracy, latency = result.summary.accuracy, result.summary.onnx.latency_ms
    print(f"dense:  {shape(dense)}, accuracy {accuracy.dense:.1%}")  # noqa: T201
    print(f"pruned: {shape(result.network)}, accuracy {accuracy.finetuned:.1%}")  # noqa: T201
    print(f"latency: {latency.pruned / latency.dense:.2f} of the dense network's in ONNX Runtime")  # noqa: T201


if __name__ == "__main__":
    main()
