"""How often a target on latency is met by the delivered file, and how much of it is used.

    OMP_NUM_THREADS=1 python benchmarks/latency_targets.py --data DIR --weights DIR [--trials 60] [--only PATTERN ...]

The folders are those of `recovery.py`. Nothing is fine-tuned; batch 32, one thread. `results/latency_targets.json` has an entry
for each run; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path

import torch
from peers import HERE, NETWORKS

import freeprune
from freeprune.disk import write_atomically
from freeprune.engine.inputs.data import load_data

RESULTS = HERE / "results" / "latency_targets.json"
RUNS = [("resnet20", share, seed) for seed in range(3) for share in (80, 65, 50)]
RUNS += [("vgg", share, seed) for seed in range(3) for share in (80, 65, 50)]
RUNS += [("resnet56", share, 0) for share in (65, 50)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True, type=Path)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=["*"], metavar="PATTERN", help="runs by name, as resnet20-65-0")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(f"imagefolder:{options.data}")
    for network, share, seed in RUNS:
        name = f"{network}-{share}-{seed}"
        document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if name in document or not any(fnmatch(name, pattern) for pattern in options.only):
            continue
        spec, file = NETWORKS[network]
        with tempfile.TemporaryDirectory() as folder:
            summary = freeprune.prune(
                spec, data, weights=options.weights / file, target=[f"latency={share}%"], trials=options.trials, seed=seed,
                finetune=None, out=Path(folder) / "run", progress=False,
            ).summary.to_json()  # fmt: skip
        latency = summary["latency"]
        used = latency["measured_ms"] / latency["target_ms"]
        document[name] = {"met": latency["met"], "used": used, **latency, "trials": options.trials, "seed": seed}
        document[name] |= {"versions": summary["versions"], "freeprune": version("freeprune")}
        write_atomically(RESULTS, (json.dumps(document, indent=2) + "\n").encode())
        print(f"{name}: {'met' if latency['met'] else 'missed'}, {used:.1%} used", flush=True)  # noqa: T201
    runs = document.values()
    met = [run for run in runs if run["met"]]
    enough = sum(run["used"] >= 0.95 for run in met)
    print(f"{len(met)} of {len(runs)} met; {enough} of these use at least 95% of the target")  # noqa: T201


if __name__ == "__main__":
    main()
