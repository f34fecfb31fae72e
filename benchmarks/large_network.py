"""What each step costs in time and memory as a network grows: Llamas of 10 million to a billion weights in bfloat16.

    python benchmarks/large_network.py --folder DIR [--sizes 10M 100M 1B] [--trials 20] [--sequences 16] [--out FILE]

The weights are random. Each size is inspected in one process and pruned in another; with what is in FILE already a stopped
ladder goes on. Memory is what is resident, sampled every 20 ms: that of the process (`peak_mb`), and the part of it that does
not lie in files (`private_mb`, with its own peak). `weights_mb` is the size of the network in bfloat16, `base_mb` what the
process held before it was built. `cpu_seconds` is what the processor worked, which other programs disturb less.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

SIZES: dict[str, dict[str, int]] = {
    "10M": {"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1024},
    "100M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2560},
    "1B": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "intermediate_size": 8192},
}
VOCABULARY = {"10M": 8000, "100M": 16000, "1B": 32000}
TOKENS = 64  # of each sequence
TARGET = "params=60%"
EVERY = 0.02  # seconds between samples


def network(size: str) -> Any:
    """A Llama with random weights in bfloat16, made without a float32 copy."""
    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = SIZES[size]
    config = LlamaConfig(
        **sizes, vocab_size=VOCABULARY[size], num_key_value_heads=sizes["num_attention_heads"] // 4, tie_word_embeddings=True,
        max_position_embeddings=128, attn_implementation="sdpa",
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with ExitStack() as unset:  # values are drawn once, below
            for kind, name in ((nn.Linear, "reset_parameters"), (nn.Embedding, "reset_parameters")):
                unset.enter_context(patch.object(kind, name))
            unset.enter_context(patch.object(LlamaForCausalLM, "_init_weights"))
            made = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            nn.init.uniform_(parameter, -0.035, 0.035, generator)
        else:
            nn.init.ones_(parameter)
    return made


def sequences(count: int, vocabulary: int, seed: int) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocabulary, (count, TOKENS), generator=generator)
    return [{"input_ids": one, "labels": one} for one in tokens]


class Memory:
    """Samples what this process holds, by the step that it is at."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, float]] = {}
        self._step, self._begun, self._used = "start", time.perf_counter(), time.process_time()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def enter(self, step: str) -> None:
        """Count what comes to this step; one that comes again goes on."""
        if step != self._step:
            self._note()
            self._pass()
            self._step = step

    def close(self) -> dict[str, dict[str, float]]:
        self._ends.set()
        self._thread.join()
        self._note()
        self._pass()
        return {
            name: {k: round(v, 2 if k.endswith("seconds") else 1) for k, v in one.items()} for name, one in self.steps.items()
        }

    def _pass(self) -> None:
        now, used = time.perf_counter(), time.process_time()
        self.steps[self._step]["seconds"] += now - self._begun
        self.steps[self._step]["cpu_seconds"] += used - self._used
        self._begun, self._used = now, used

    def _watch(self) -> None:
        while not self._ends.wait(EVERY):
            self._note()

    def _note(self) -> None:
        here = self.steps.setdefault(self._step, {"seconds": 0.0, "cpu_seconds": 0.0, "peak_mb": 0.0, "private_mb": 0.0})
        held, private = resident()
        here["peak_mb"], here["private_mb"] = max(here["peak_mb"], held), max(here["private_mb"], private)


def resident() -> tuple[float, float]:
    """Megabytes that this process holds in memory, and those of them that do not lie in files."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    held, private = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "RssAnon"))
    return held, private


def measured(size: str, step: str, folder: Path, trials: int, scored: int) -> dict[str, Any]:
    """The figures of one process that inspects or prunes."""
    import onnxruntime  # noqa: F401  what the process holds anyway
    import torch

    import freeprune

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    tokens = sequences(max(4 * scored, 16) + 8, VOCABULARY[size], 1)
    torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    import transformers.models.llama.modeling_llama  # noqa: F401

    base = resident()[0]
    model = network(size)
    weights = sum(p.numel() for p in model.parameters())
    memory = Memory()
    found: dict[str, Any] = {}
    if step == "inspect":
        memory.enter("inspect")
        freeprune.inspect(model, (f"ids:1x{TOKENS}",))
    else:
        memory.enter("prepare")
        run = folder / size
        result = freeprune.prune(
            model, (tokens[:-8], tokens[-8:]), target=[TARGET], trials=trials, calibration_images=scored, finetune=None,
            out=run, force=True, progress=lambda name, *rest: memory.enter(name),
        )  # fmt: skip
        memory.enter("end")
        summary = json.loads((run / "summary.json").read_text())
        found = {
            "weights_left": sum(p.numel() for p in result.network.parameters()),
            "summary": {k: summary[k] for k in ("seconds", "agreement", "accuracy", "recovery", "onnx")},
            "files_mb": {p.name: round(p.stat().st_size / 1e6, 1) for p in sorted(run.iterdir())},
        }
        if "memory" in summary:
            found["summary"]["memory"] = summary["memory"]
    steps = memory.close()
    peak = max(one["peak_mb"] for one in steps.values())
    mb = weights * 2 / 1e6
    return {
        "weights": weights, "trials": trials, "sequences": scored,
        "weights_mb": round(mb, 1), "base_mb": round(base, 1), "peak_mb": peak,
        "peak_of_weights": round(peak / mb, 3), "above_base_of_weights": round((peak - base) / mb, 3), "steps": steps, **found,
    }  # fmt: skip


def _send(pipe: Any, *asked: Any) -> None:
    pipe.send(measured(*asked))


def apart(*asked: Any) -> dict[str, Any]:
    """`measured` in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(there, *asked))
    process.start()
    there.close()
    try:
        found: dict[str, Any] = here.recv()
    except EOFError:
        raise SystemExit(f"{asked[0]}, {asked[1]}: the process ended without a result") from None
    finally:
        process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where runs are written, and removed again")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--sequences", type=int, default=16, help="that are scored")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "large_network.json")
    parser.add_argument("--steps", nargs="+", choices=["inspect", "prune"], default=["inspect", "prune"])
    parser.add_argument("--keep", action="store_true", help="leave the runs where they are")
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {"machine": platform.machine(), "sizes": {}}
    for size in asked.sizes:
        rung = found["sizes"].setdefault(size, {})
        for step in asked.steps:
            if step in rung:
                continue
            rung[step] = apart(size, step, asked.folder, asked.trials, asked.sequences)
            asked.out.write_text(json.dumps(found, indent=2) + "\n")
            print(  # noqa: T201
                size, step, json.dumps(rung[step]["steps"], indent=1), rung[step]["peak_of_weights"], flush=True
            )
        if not asked.keep:
            shutil.rmtree(asked.folder / size, ignore_errors=True)


if __name__ == "__main__":
    main()
