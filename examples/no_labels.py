r"""A trained network and a folder of images that nobody has labelled: pruned without any training, by one command.

    python examples/no_labels.py [--out runs/no-labels]

Trains a small network on scikit-learn's digits and writes their images to OUT/images, without labels; then runs

    freeprune prune examples/no_labels.py:small --weights OUT/dense.safetensors --data imagefolder:OUT/images \
        --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --target macs=20% --metric calibratedkl --trials 100 --finetune-epochs 0 \
        --out OUT/run

and, since here the labels are known after all, says what the agreement in its table was worth.
"""

import argparse
import json
import subprocess
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor, nn

import freeprune


def small() -> nn.Module:
    """The network: any callable without arguments that returns one."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 48)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48 * 4, 10))


def images() -> tuple[Tensor, Tensor]:
    """Pixels `(N, 8, 8)`, uint8, and their labels."""
    digits = load_digits()
    return torch.tensor(digits.images * 15.9).byte(), torch.tensor(digits.target)


def normalised(pixels: Tensor) -> Tensor:
    """As the network takes them, and as `--mean` and `--std` below say."""
    return (pixels[:, None].expand(-1, 3, -1, -1) / 255 - 0.5) / 0.5


def trained() -> nn.Module:
    """Your own training, whatever it was, on the first 900 images."""
    pixels, labels = images()
    torch.manual_seed(0)
    network = small().train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(12):
        for part in torch.randperm(900).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(normalised(pixels[part])), labels[part]).backward()
            optimizer.step()
    return network.eval()


def accuracy(network: nn.Module) -> float:
    """On the last 400 images, which nothing else has seen."""
    pixels, labels = images()
    with torch.no_grad():
        return (network(normalised(pixels[-400:])).argmax(1) == labels[-400:]).double().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/no-labels"))
    out = parser.parse_args().out
    dense = trained()
    (out / "images").mkdir(parents=True, exist_ok=True)
    save_file(dense.state_dict(), out / "dense.safetensors")
    for i, pixels in enumerate(images()[0][900:-400].numpy()):
        Image.fromarray(pixels).save(out / "images" / f"{i}.png")
    command = [
        "freeprune", "prune", f"{__file__}:small", "--weights", str(out / "dense.safetensors"),
        "--data", f"imagefolder:{out / 'images'}", "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--target", "macs=20%",
        "--metric", "calibratedkl", "--trials", "100", "--finetune-epochs", "0", "--out", str(out / "run"), "--force",
    ]  # fmt: skip
    print("$", *command)  # noqa: T201
    subprocess.run(command, check=True)
    summary = json.loads((out / "run" / "summary.json").read_text())
    agreement = summary["accuracy"]["recovered"] or summary["accuracy"]["pruned"]
    pruned = freeprune.load(out / "run", small())
    before, after = accuracy(dense), accuracy(pruned)
    print(f"agreement: {agreement:.1%}; accuracy: {before:.1%} -> {after:.1%}")  # noqa: T201


if __name__ == "__main__":
    main()
