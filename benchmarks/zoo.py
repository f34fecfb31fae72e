"""Channel pruning of other people's networks: does it work, is the result right, how long does it take?

    python benchmarks/zoo.py [--only NAME ...] [--peer] [--out benchmarks/results/zoo.jsonl]

Every network of torchvision's classification zoo, 40 of timm, segmentation and video, on random weights with norms as training
leaves them. Each is pruned by 50% of every group, then by 20%, 80% and to one unit; at least that part of a group goes, and one
unit stays. Each pruned network is compared with the masked one, and its counted MACs with those of the cost model. Needs
torchvision and timm (`pip install --no-deps`), and torch-pruning for `--peer`. One JSON line per network; what is there already
is skipped, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import resource
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from freeprune.backends import BACKENDS, apply, importance, masked
from freeprune.backends.tracing.meta import on_meta
from freeprune.common import FreePruneError

register_fake = torch.library.register_fake


def _skip_torchvision(name: Any, *args: Any, **kwargs: Any) -> Any:
    """torchvision's wheel registers kernels that a torch without CUDA does not have."""
    skipped = isinstance(name, str) and name.startswith("torchvision::")
    return (lambda function: function) if skipped else register_fake(name, *args, **kwargs)


torch.library.register_fake = _skip_torchvision
import timm  # noqa: E402
from torchvision import models  # noqa: E402

torch.library.register_fake = register_fake

TIMM = """
    botnet26t_256 cait_xxs24_224 coatnet_nano_rw_224 convmixer_768_32 convnext_atto crossvit_9_240 cspdarknet53 davit_tiny
    deit_tiny_patch16_224 dla34 dpn68 eca_nfnet_l0 edgenext_xx_small efficientformer_l1 efficientnet_b0 ese_vovnet19b_slim
    fastvit_t8 focalnet_tiny_srf ghostnet_050 gmlp_ti16_224 hrnet_w18_small levit_128s maxvit_rmlp_pico_rw_256 mixer_s32_224
    mobilevit_xxs nest_tiny pit_ti_224 poolformer_s12 pvt_v2_b0 regnetx_002 repvit_m1 res2net50_26w_4s resmlp_12_224
    resnest14d resnetv2_50x1_bit rexnet_100 selecsls42 swinv2_tiny_window8_256 twins_pcpvt_small xcit_nano_12_p16_224
""".split()
SEGMENTATION = ["fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
VIDEO = ["r3d_18", "mc3_18", "r2plus1d_18"]
NAMES = [*models.list_models(module=models), *SEGMENTATION, *VIDEO, *(f"timm/{name}" for name in TIMM)]

# Image sides where 64 pixels are refused.
SIDES = {"inception_v3": 96, "maxvit_t": 224, **{name: 224 for name in NAMES if name.startswith("vit_")}}
FULL_SIDES = {"inception_v3": 299}
RATES = {"50%": 0.5, "20%": 0.2, "80%": 0.8, "one unit": 1.0}
LIMIT = 600  # seconds per network
PEER_LIMIT = 60  # it either ends in half a minute or not at all
MEMORY = 14 * 2**30  # bytes of address space; the peer asks for more than a machine has on some attention networks
RESULTS = Path(__file__).parent / "results" / "zoo.jsonl"


def build(name: str, full_size: bool = False) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network on random weights with non-trivial norms, and an example of its input: 224 pixels, or fewer where it may be."""
    torch.manual_seed(0)
    side = FULL_SIDES.get(name, 224) if full_size else SIDES.get(name, 64)
    if name.startswith("timm/"):
        network = timm.create_model(name[5:])
        config = network.pretrained_cfg
        side = config["input_size"][-1] if full_size or config.get("fixed_input_size") else 96
    elif name in SEGMENTATION:
        network = models.get_model(name, weights=None, weights_backbone=None)
    else:
        network = models.get_model(name, weights=None)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(getattr(module, "weight", None), Tensor) and "norm" in type(module).__name__.lower():
                nn.init.uniform_(module.weight, 0.5, 1.5)
                if isinstance(getattr(module, "bias", None), Tensor):
                    nn.init.normal_(module.bias, std=0.3)
            if isinstance(getattr(module, "running_mean", None), Tensor):
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.Linear) and not module.weight.any():
                nn.init.normal_(module.weight, std=0.02)  # classifiers that start as zeros would hide every difference
    shape = (1, 3, 8, 32, 32) if name in VIDEO else (1, 3, side, side)
    return network.eval(), (torch.randn(shape),)


def first_output(network: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        result: Tensor = tree_leaves(network(*inputs))[0]
    return result


def macs(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Half of what torch counts, without values and fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            on_meta(network).requires_grad_(False)(*(x.to("meta") for x in inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def ours(network: nn.Module, inputs: tuple[Tensor, ...], numbers: bool) -> dict[str, Any]:
    """The backend at all rates; its seconds are those of everything but the criterion up to the first pruned network."""
    result: dict[str, Any] = {}
    order = importance("l2", network)
    start = time.process_time()
    backend = BACKENDS["channel"](network, inputs, order, max_rate=1.0)
    units = np.array([group.units for group in backend.groups])
    for name, rate in RATES.items():
        kept = np.maximum(1, (units * (1 - rate) + 1e-9).astype(int))
        try:
            plan = backend.plan(kept)
        except FreePruneError as error:
            result[name] = {"refused": str(error)}
            continue
        compact = apply(network, plan)
        result.setdefault("seconds", time.process_time() - start)
        dense, model = (float(backend.costs(k)["macs"][0]) for k in (units, kept))
        here = result[name] = {"macs": model / dense, "counted": 2 * macs(compact, inputs) == 2 * model}
        if numbers:
            a, b = first_output(masked(network, plan), inputs), first_output(compact, inputs)
            here["error"] = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
    result["groups"] = len(units)
    result["repairs"] = len(backend._repairs)
    return result


def counted(network: nn.Module, inputs: tuple[Tensor, ...], plans: int) -> dict[str, Any]:
    """How many of so many random plans have exactly the MACs that torch counts on the network that they make.

    With them: whether the same holds of the dense network at `weight`, and the layers that stay dense there, with the reasons.
    """
    order = importance("l2", network)
    dense = macs(network, inputs)
    result: dict[str, Any] = {"exact": 0, "other": 0, "refused": 0}
    masks = BACKENDS["weight"](network, inputs, order)
    result["weight"] = bool(masks.costs(np.array([[group.units for group in masks.groups]]))["macs"][0] == dense)
    result["left dense"] = masks.dense
    backend = BACKENDS["channel"](network, inputs, order, max_rate=1.0)
    units = np.array([group.units for group in backend.groups])
    rng = np.random.default_rng(0)
    for kept in [units, *rng.integers(np.ones_like(units), units + 1, (plans, units.size))]:
        try:
            plan = backend.plan(kept)
        except FreePruneError:
            result["refused"] += 1
        else:
            exact = 2 * macs(apply(network, plan), inputs) == 2 * backend.costs(kept)["macs"][0]
            result["exact" if exact else "other"] += 1
    return result


def peer(network: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, Any]:
    """Torch-Pruning at 50%, its classifier left alone; its seconds are those of its graph and one step, criterion included."""
    import torch_pruning

    shape = first_output(network, inputs).shape
    before = macs(network, inputs)
    start = time.process_time()
    widths = ((m, getattr(m, "out_features", getattr(m, "out_channels", None))) for m in network.modules())
    last = [m for m, width in widths if width == shape[1]]
    order = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = torch_pruning.pruner.BasePruner(network, inputs[0], order, pruning_ratio=0.5, ignored_layers=last)
    pruner.step()
    seconds = time.process_time() - start
    right = first_output(network, inputs).shape == shape
    ratio = macs(network, inputs) / before
    return {"seconds": seconds, "macs": ratio, "ok": bool(right and ratio < 0.75)}


def attempt(function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
    try:
        return function(*args)
    except FreePruneError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:120]}", "at": traceback.format_exc().splitlines()[-3].strip()}


def measure(name: str, options: argparse.Namespace, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    network, inputs = build(name, full_size=options.peer)
    gc.collect()
    gc.freeze()  # else whoever is timed first pays for collecting what the imports have left
    pipe.send(("ours", attempt(ours, network, inputs, not options.no_numbers)))
    if options.peer:
        pipe.send(("peer", attempt(peer, network, inputs)))


def limited(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One network in a process of its own, stopped at the time limit."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=measure, args=(name, options, sender))
    process.start()
    sender.close()
    line: dict[str, Any] = {"name": name}
    for key in ["ours", "peer"] if options.peer else ["ours"]:
        try:
            limit = options.limit if key == "ours" else min(options.limit, PEER_LIMIT)
            line[key] = receiver.recv()[1] if receiver.poll(limit) else {"failed": f"no end in {limit} s"}
        except EOFError:
            line[key] = {"failed": "the process died"}
        if "no end" in line[key].get("failed", ""):
            break  # what comes next in the pipe would be taken for the other's
    process.terminate()
    process.join()
    return line


def works(line: dict[str, Any], rate: str) -> str:
    """`yes`, `refused`, or what is wrong."""
    found = line["ours"].get(rate, line["ours"])
    if "refused" in found:
        return "refused"
    if "failed" in found:
        return "failed"
    if rate == "50%" and found["macs"] > 0.75:
        return "little"
    if found.get("error", 0.0) > 1e-4 or found.get("error") != found.get("error"):
        return f"{found['error']:.0e}"
    return "yes" if found["counted"] else "miscounted"


def table(lines: list[dict[str, Any]]) -> str:
    """The results in Markdown, a row for each network, and what they come to."""
    rows = ["| network | groups | MACs | error | seconds | peer | otherwise |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        found, name = line["ours"], line["name"]
        notes = [f"{rate}: {how}" for rate in RATES if (how := works(line, rate)) != "yes"]
        if "50%" not in found:
            rows.append(f"| {name} | | | | | {_rival(line)} | {found.get('refused', found.get('failed'))} |")
            continue
        error = max((found[rate].get("error", 0.0) for rate in RATES if rate in found), default=0.0)
        ratio = found["50%"].get("macs", float("nan"))
        rows.append(
            f"| {name} | {found['groups']} | {ratio:.2f} | {error:.0e} | {found['seconds']:.2f} "
            f"| {_rival(line)} | {', '.join(notes)} |"
        )
    rows.append("")
    for rate in RATES:
        results = [works(line, rate) for line in lines]
        rows.append(f"- {rate}: {results.count('yes')} of {len(lines)} right, {results.count('refused')} refused")
    both = [line for line in lines if line.get("peer", {}).get("ok") and "seconds" in line["ours"]]
    if both:
        ratios = [line["ours"]["seconds"] / line["peer"]["seconds"] for line in both]
        spread = f"median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        rows.append(f"- CPU seconds relative to Torch-Pruning's on the {len(both)} that both manage: {spread}")
    slowest = max((line["ours"].get("seconds", 0.0), line["name"]) for line in lines)
    rows.append(f"- slowest: {slowest[1]}, {slowest[0]:.1f} s")
    return "\n".join(rows)


def _rival(line: dict[str, Any]) -> str:
    """The peer's seconds, or what became of it."""
    found = line.get("peer", {})
    if "ok" in found:
        return f"{found['seconds']:.2f}" if found["ok"] else "wrong"
    return "no end" if "no end" in found.get("failed", "") else "fails" if found else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds per network")
    parser.add_argument("--peer", action="store_true", help="run Torch-Pruning as well, in the same process; full-size images")
    parser.add_argument("--no-numbers", action="store_true", help="skip the comparison of outputs")
    parser.add_argument(
        "--plans", type=int, help="instead, hold the counted MACs of so many random plans against torch's count"
    )
    options = parser.parse_args()
    if options.plans:
        for name in options.only:
            print(json.dumps({"name": name, **attempt(counted, *build(name), options.plans)}), flush=True)  # noqa: T201
        return
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    done = {line["name"] for line in lines}
    for name in options.only:
        if name not in done:
            lines.append(limited(name, options))
            with options.out.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    lines.sort(key=lambda line: NAMES.index(line["name"]))
    print(table([line for line in lines if line["name"] in options.only]))  # noqa: T201


if __name__ == "__main__":
    main()
