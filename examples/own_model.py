"""Your own PyTorch model and data, pruned to 40% of its multiplications, saved, and loaded again.

python examples/own_model.py [--out runs/own]
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset, random_split

import freeprune


class Net(nn.Module):
    """Nothing about it is special: FreePrune reads the operators of an ordinary forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = torch.max_pool2d(x + self.body(x), 2)  # the shortcut ties stem and body together
        return self.head(x.flatten(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="runs/own")
    options = parser.parse_args()
    torch.manual_seed(0)

    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data = random_split(TensorDataset(images, torch.tensor(digits.target)), [0.8, 0.2])
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):  # your own training, whatever it is
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[data[0].indices]), data[0].dataset.tensors[1][data[0].indices]).backward()
        optimizer.step()

    result = freeprune.prune(model, data, target={"macs": 0.4}, trials=100, out=options.out, force=True)

    smaller = freeprune.load(options.out, Net())  # an ordinary module: code, plan and weights, no pickle
    before, after = (sum(p.numel() for p in network.parameters()) for network in (model, smaller))
    accuracy = result.summary.accuracy
    print(f"parameters: {before} -> {after}")  # noqa: T201
    print(f"accuracy: {accuracy.dense:.1%} -> {accuracy.finetuned:.1%}; report: {options.out}/report.html")  # noqa: T201


if __name__ == "__main__":
    main()
