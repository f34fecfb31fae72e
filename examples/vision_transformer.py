"""A vision transformer loses attention heads and the widths of its perceptrons.

    python examples/vision_transformer.py [--out runs/vit] [--epochs 30]

The network is in `small_vit.py`; nothing in it was written with pruning in mind.
"""

import argparse

import torch
from digits_data import datasets, train
from small_vit import SmallViT

import freeprune


def shape(network: SmallViT) -> str:
    heads = [block.attention.heads for block in network.blocks]
    widths = [block.mlp[0].out_features for block in network.blocks]
    return f"heads {heads}, perceptrons {widths}, {sum(p.numel() for p in network.parameters())} parameters"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/vit")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    torch.manual_seed(0)
    dense = train(SmallViT(), options.epochs)

    result = freeprune.prune(
        dense, datasets(), target={"macs": 0.5}, trials=100, out=options.out, force=True,
        finetune=lambda network, data: train(network, options.epochs),  # your own training instead of the built-in one
    )  # fmt: skip

    accuracy = result.summary.accuracy
    print(f"dense:  {shape(dense)}, accuracy {accuracy.dense:.1%}")  # noqa: T201
    print(f"pruned: {shape(result.network)}, accuracy {accuracy.finetuned:.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
