"""Channel pruning of other people's networks: does it work, is the result right, how long does it take?

    python benchmarks/zoo.py [--only NAME ...] [--peer] [--page docs/zoo.md]

Every network of `zoo_networks.py`, on random weights with norms as training leaves them. Each is pruned by 50% of every group,
then by 20%, 80% and to one unit; at least that part of a group goes, and one unit stays, or two where a network runs
other operators on one. Each pruned network is compared with
the masked one, and its counted MACs with those of the cost model; and it is said which share of the MACs belongs to layers that
are locked, why, and how few MACs can be reached. Needs the libraries (`pip install --no-deps`), and torch-pruning for `--peer`.
One JSON line per network; what is there already is skipped, so a stopped run goes on. A name that ends with `/` stands for all
that begin with it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import re
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
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from zoo_networks import LIBRARIES, NAMES, build, load
from zoo_networks import models as models

from freeprune.backends import BACKENDS, apply, importance, masked
from freeprune.backends.coupling.classes import Coupling
from freeprune.backends.tracing.meta import on_meta
from freeprune.backends.tracing.reasons import Reasons
from freeprune.backends.tracing.record import OUT, OUTPUT
from freeprune.copies import copied
from freeprune.errors import FreePruneError
from freeprune.reading import rows

CLOSE = 1e-4  # relative difference of outputs that rounding may cause
RATES = {"50%": 0.5, "20%": 0.2, "80%": 0.8, "one unit": 1.0}
LIMIT = 600  # seconds per network
PEER_LIMIT = 60  # it either ends in half a minute or not at all
MEMORY = 14 * 2**30  # bytes of address space; the peer asks for more than a machine has on some attention networks
HEADING = "## All of them"
LEGEND = """`MACs`: what remains at 50%. `fewest`: the smallest share of the MACs that can be reached with at most 90% of
each group removed. `locked`: the share of the MACs that belongs to outputs of layers that stay, but for the
network's own; the reason that has the most is under `otherwise`. `error`: the largest difference of outputs
at any of the four rates, relative; in double precision where it is more than 1e-4 in single precision.
`seconds`, `peer`: CPU seconds; `fails`: it raises an error, `no end`: none within a minute. The first table
counts the networks that are right."""
RESULTS = Path(__file__).parent / "results" / "zoo.jsonl"


def outputs_of(network: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return rows(network(*inputs))


def grouped(rows: tuple[int, ...], matrices: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """The operations of a grouped product, which torch does not count: each row is multiplied with one of the matrices."""
    return 2 * rows[0] * matrices[1] * matrices[2]


MORE = {torch.ops.aten._grouped_mm: grouped}


def macs(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Half of what torch counts, without values and fused kernels."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        try:
            with FlopCounterMode(display=False, custom_mapping=MORE) as counter, torch.no_grad():
                on_meta(network).requires_grad_(False)(*(x.to("meta") for x in inputs))
        except Exception:  # it reads values
            plain = copied(network).requires_grad_(False)  # the counter cannot follow parameters that modules are given
            with FlopCounterMode(display=False, custom_mapping=MORE) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                plain(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def difference(one: nn.Module, other: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """The largest difference of the outputs of two networks, relative to the largest output."""
    pairs = zip(outputs_of(one, inputs), outputs_of(other, inputs), strict=True)
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-30)) for a, b in pairs)


def ours(network: nn.Module, inputs: tuple[Tensor, ...], numbers: bool) -> dict[str, Any]:
    """The backend at all rates; its seconds are those of everything but the criterion up to the first pruned network."""
    result: dict[str, Any] = {}
    order = importance("l2", network)
    start = time.process_time()
    backend = BACKENDS["channel"](network, inputs, order, max_rate=1.0)
    units, fewest = (np.array([getattr(group, name) for group in backend.groups]) for name in ("units", "minimum"))
    for name, rate in RATES.items():
        kept = np.maximum(fewest, (units * (1 - rate) + 1e-9).astype(int))
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
            here["error"] = difference(masked(network, plan), compact, inputs)
            if not here["error"] < CLOSE:  # rounding may choose another of two equal codes or queries
                here["float32"] = here["error"]
                wide = tuple(x.double() if x.is_floating_point() else x for x in inputs)
                here["error"] = difference(masked(network, plan).double(), compact.double(), wide)
    result["groups"] = len(units)
    result["repairs"] = len(backend._repairs)
    least = BACKENDS["channel"](network, inputs, order, max_rate=0.9)
    result["least"] = share_left(least, np.array([group.minimum for group in least.groups]))
    result["locked"] = locked(backend.channel.coupling)
    return result


def share_left(backend: Any, kept: np.ndarray) -> float:
    """The share of the dense MACs that so many units of each group have."""
    left, dense = backend.costs(np.stack([kept, [group.units for group in backend.groups]]))["macs"]
    return float(left / dense)


def locked(coupling: Coupling) -> dict[str, float]:
    """By reason, the share of the MACs that belongs to outputs of layers that stay, but for the network's own outputs."""
    trace, reasons = coupling.trace, Reasons(coupling.trace)
    leaves = {(leaf.name, leaf.dim): leaf for leaf in trace.leaves}
    total = sum(product.size for product in trace.products)
    found: dict[str, float] = {}
    for product in trace.products:
        weight = product.weight
        dims = () if weight is None else (0,) if weight.roles is None else weight.roles.get(OUT, ())
        leaf = leaves.get((weight.name, dims[-1])) if weight is not None and dims else None
        if leaf is not None:
            stays = float((coupling.position[leaf.start : leaf.start + leaf.size] == coupling.classes).mean())
            if stays and (why := reasons.of(leaf)) != OUTPUT:
                found[why] = found.get(why, 0.0) + stays * product.size / total
    return found


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

    shape = outputs_of(network, inputs)[0].shape
    before = macs(network, inputs)
    start = time.process_time()
    widths = ((m, getattr(m, "out_features", getattr(m, "out_channels", None))) for m in network.modules())
    last = [m for m, width in widths if width == shape[1]]
    order = torch_pruning.importance.MagnitudeImportance(p=2)
    example = inputs if len(inputs) > 1 else inputs[0]
    pruner = torch_pruning.pruner.BasePruner(network, example, order, pruning_ratio=0.5, ignored_layers=last)
    pruner.step()
    seconds = time.process_time() - start
    right = outputs_of(network, inputs)[0].shape == shape
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
    load(name)
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
    if found.get("error", 0.0) > CLOSE or found.get("error") != found.get("error"):
        return f"{found['error']:.0e}"
    return "yes" if found["counted"] else "miscounted"


def table(lines: list[dict[str, Any]]) -> str:
    """The results in Markdown: what they come to, and for each library a table with a row for each network."""
    lines = sorted(lines, key=lambda line: NAMES.index(line["name"]))
    rows = ["| | " + " | ".join(RATES) + " |", "|---" * (len(RATES) + 1) + "|"]
    for library, names in LIBRARIES.items():
        here = [line for line in lines if line["name"] in names]
        if here:
            rows.append(f"| {library} | " + " | ".join(_how_many(here, rate) for rate in RATES) + " |")
    rows.append("")
    both = [line for line in lines if line.get("peer", {}).get("ok") and "seconds" in line["ours"]]
    if both:
        ratios = [line["ours"]["seconds"] / line["peer"]["seconds"] for line in both]
        spread = f"median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        rows += [f"CPU seconds relative to Torch-Pruning's on the {len(both)} that both manage: {spread}.", ""]
    for library, names in LIBRARIES.items():
        here = [line for line in lines if line["name"] in names]
        if here:
            rows += [f"### {library}", "", *_rows(here), ""]
    return "\n".join(rows)


def _how_many(lines: list[dict[str, Any]], rate: str) -> str:
    results = [works(line, rate) for line in lines]
    return f"{results.count('yes')} of {len(lines)}"


def _rows(lines: list[dict[str, Any]]) -> list[str]:
    rows = [
        "| network | groups | MACs | fewest | locked | error | seconds | peer | otherwise |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        found, name = line["ours"], line["name"]
        notes = [f"{rate}: {how}" for rate in RATES if (how := works(line, rate)) != "yes"]
        if "50%" not in found:
            rows.append(f"| {name} | | | | | | | {_rival(line)} | {found.get('refused', found.get('failed'))} |")
            continue
        error = max((found[rate].get("error", 0.0) for rate in RATES if rate in found), default=0.0)
        fewest = f"{found['least']:.3f}" if "least" in found else ""
        stays = found.get("locked", {})
        if stays:
            notes.append(_why(max(stays, key=lambda why: stays[why])))
        locked = f"{sum(stays.values()):.3f}" if "locked" in found else ""
        rows.append(
            f"| {name} | {found['groups']} | {found['50%'].get('macs', float('nan')):.2f} | {fewest} | {locked} "
            f"| {error:.0e} | {found['seconds']:.2f} | {_rival(line)} | {'; '.join(notes)} |"
        )
    return rows


def _why(reason: str) -> str:
    """A reason, short: the operator, its line and what is said of it."""
    found = re.match(r"operator (\S+) in module .* \((\S+:\d+)\)(?:: )?(.*)", reason)
    text = reason if found is None else f"`{found[1]}` at {found[2]}" + (f": {found[3]}" if found[3] else "")
    return text.replace("|", "/")


def page(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write the results into a page, behind its heading `## All of them`."""
    above = path.read_text().partition(HEADING)[0]
    path.write_text(f"{above}{HEADING}\n\n{LEGEND}\n\n{table(lines).strip()}\n")


def _rival(line: dict[str, Any]) -> str:
    """The peer's seconds, or what became of it."""
    found = line.get("peer", {})
    if "ok" in found:
        return f"{found['seconds']:.2f}" if found["ok"] else "wrong"
    return "no end" if "no end" in found.get("failed", "") else "fails" if found else ""


def _stands_for(given: str, name: str) -> bool:
    return name == given or (given.endswith("/") and name.startswith(given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=NAMES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds per network")
    parser.add_argument("--peer", action="store_true", help="run Torch-Pruning as well, in the same process; full-size images")
    parser.add_argument("--page", type=Path, help="write the results into this page, behind its heading")
    parser.add_argument("--no-numbers", action="store_true", help="skip the comparison of outputs")
    parser.add_argument(
        "--plans", type=int, help="instead, hold the counted MACs of so many random plans against torch's count"
    )
    options = parser.parse_args()
    options.only = [name for name in NAMES if any(_stands_for(one, name) for one in options.only)]
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
    if options.page:
        page(options.page, lines)
    print(table([line for line in lines if line["name"] in options.only]))  # noqa: T201


if __name__ == "__main__":
    main()
