r"""A folder of images and a network from a file, with the two commands that a user would type.

    python examples/image_folder.py [--out runs/folder]

Writes scikit-learn's digits as PNG files into OUT/images (`train/<class>/*.png`, `test/<class>/*.png`), then runs

    freeprune train examples/image_folder.py:small --data imagefolder:OUT/images --epochs 10 --out OUT/dense.safetensors
    freeprune prune examples/image_folder.py:small --data imagefolder:OUT/images --weights OUT/dense.safetensors \
        --target macs=40% --out OUT/run
"""

import argparse
import subprocess
from pathlib import Path

from torch import nn


def small() -> nn.Module:
    """The network: any callable without arguments that returns one."""
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 48)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48 * 4, 10))


def write_images(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        place = folder / ("test" if i % 5 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).convert("RGB").save(place / f"{i}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/folder"))
    out = parser.parse_args().out
    write_images(out / "images")
    network, data, weights = f"{__file__}:small", f"imagefolder:{out / 'images'}", str(out / "dense.safetensors")
    train = [
        "freeprune",
        "train",
        network,
        "--data",
        data,
        "--epochs",
        "10",
        "--learning-rate",
        "0.05",
        "--out",
        weights,
        "--force",
    ]
    prune = [
        "freeprune", "prune", network, "--data", data, "--weights", weights, "--target", "macs=40%", "--trials", "100",
        "--finetune-epochs", "5", "--out", str(out / "run"), "--force",
    ]  # fmt: skip
    for command in (train, prune):
        print("$", *command)  # noqa: T201
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
