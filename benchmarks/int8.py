"""What an int8 version of the ONNX file brings beside pruning: latency, size, accuracy.

    python benchmarks/int8.py --data DIR --weights DIR [--images 7680] [--test 2000] [--only r20 r56 r50] [--runtime openvino]

Dense and pruned network, each in float32 and in int8, in one process, timed in turn. DIR of --data holds CIFAR-10 (JPEG) as an
image folder, DIR of --weights the pretrained networks. `r50` needs torchvision: random weights and images, for latency alone.
Results go to `results/int8.json`; a cell that is there is measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset, TensorDataset

import freeprune
from freeprune.disk import write_atomically
from freeprune.engine.inputs.data import load_data

RESULTS = Path(__file__).parent / "results" / "int8.json"
CELLS = {"r20": ("resnet20", {"macs": 0.5}), "r56": ("resnet56", {"macs": 0.5}), "r50": ("resnet50", {"macs": 0.5})}


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    network, target = CELLS[name]
    asked: dict[str, Any] = {"target": target, "quantize": "int8", "runtime": options.runtime, "seed": 0}
    if name == "r50":
        from zoo import models  # torchvision, as it imports beside a torch without CUDA

        torch.manual_seed(0)
        images = TensorDataset(torch.randn(16, 3, 224, 224), torch.arange(16) % 10)
        given, data = models.resnet50(weights=None), (images, images)
        asked |= {
            "round_to": 16,
            "trials": 0,
            "calibration_images": 8,
            "latency_batch": 8,
            "finetune": None,
            "rehearsal": False,
        }
    else:
        whole = load_data(f"imagefolder:{options.data}")
        order = torch.randperm(len(whole.test), generator=torch.Generator().manual_seed(0))[: options.test]
        given, data = f"cifar:{network}", replace(whole, test=Subset(whole.test, order.tolist()))
        asked |= {"round_to": 8, "trials": options.trials, "weights": options.weights / f"{network}-cifar10.safetensors"}
        asked["finetune"] = freeprune.Recipe(images=options.images, distill=0.0)
    with tempfile.TemporaryDirectory() as folder:
        summary = freeprune.prune(given, data, out=Path(folder) / "run", progress=False, **asked).summary
    onnx, eight = summary.onnx, summary.onnx.int8
    exact, rough = {"dense": summary.accuracy.dense, "pruned": summary.accuracy.final}, eight.accuracy.to_json()
    if name == "r50":  # random weights
        exact = rough = None
    return {
        "target": target,
        "macs": summary.cost["macs"].pruned / summary.cost["macs"].dense,
        "float32": {"accuracy": exact, "bytes": {"dense": onnx.dense_bytes, "pruned": onnx.bytes}},
        "int8": {"accuracy": rough, "bytes": {"dense": eight.dense_bytes, "pruned": eight.bytes}},
        "latency": {  # relative to the dense network in float32
            "pruned": onnx.latency_ms.pruned / onnx.latency_ms.dense,
            "dense int8": eight.latency_ms.dense / onnx.latency_ms.dense,
            "pruned int8": eight.latency_ms.pruned / onnx.latency_ms.dense,
        },
        "batch": onnx.latency_batch,
        "threads": onnx.latency_threads,
        "finetune_images": None if name == "r50" else options.images,
        "test_images": None if name == "r50" else options.test,
        options.runtime: summary.versions[options.runtime],
        "warnings": list(onnx.warnings),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--images", type=int, default=7680, help="of fine-tuning")
    parser.add_argument("--test", type=int, default=2000, help="test images")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--runtime", default="onnxruntime")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.only:
        found = measure(name, options)
        document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        document[name if options.runtime == "onnxruntime" else f"{name}-{options.runtime}"] = found
        write_atomically(RESULTS, (json.dumps(document, indent=2) + "\n").encode())
        print(name, json.dumps(found), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
