"""The options that several commands share, and what becomes of them."""

from __future__ import annotations

import inspect as signatures
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ...common import FreePruneError

Command = Callable[..., None]
Decorator = Callable[[Command], Command]

DURATION = re.compile(r"(\d+(?:\.\d*)?)([smh]?)")
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}


class Seconds(click.ParamType[float]):
    """A duration: 60s, 5m, 1h, or seconds without a unit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = DURATION.fullmatch(str(value))
        if found is None or float(found[1]) == 0:
            raise FreePruneError(f"{value!r} is no duration; write it as 60s, 5m or 1h")
        return float(found[1]) * SECONDS[found[2]]


def _all(*options: Decorator) -> Decorator:
    """Several options as one decorator, shown in this order by --help."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


PATH = click.Path(path_type=Path)

data_options = _all(
    click.option("--data", required=True, help="imagefolder:DIR, npz:FILE, digits, or package.module:callable."),
    click.option("--weights", type=PATH, help="A .safetensors, .pt or .pth file to start from."),
    click.option("--mean", help="Mean per channel, such as 0.485,0.456,0.406."),
    click.option("--std", help="Standard deviation per channel."),
    click.option("--image-size", type=int, help="Scale and crop the images of a folder to this many pixels."),
    click.option("--seed", default=0, show_default=True, help="Decides everything that is drawn."),
    click.option("--threads", type=int, help="Threads that torch computes with."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)

recipe_options = _all(
    click.option("--learning-rate", type=float, help="Of the training; has a sensible default."),
    click.option("--batch-size", type=int, help="Of the training; has a sensible default."),
    click.option("--precision", help="Of the training: 32-true, bf16-mixed or 16-mixed; has a sensible default."),
)

finetune_options = _all(
    click.option("--finetune-epochs", type=float, help="Passes over the training images; 0 skips fine-tuning.  [default: 1]"),
    click.option("--finetune-images", type=int, help="Fine-tune on so many images instead."),
    click.option("--distill", type=float, help="Weight of agreement with the dense network in fine-tuning, 0 to 1."),
    recipe_options,
)

target_option = click.option(
    "--target", "targets", multiple=True, required=True, help="What may remain, such as macs=50%, params=300k or latency=5ms."
)

folder_options = _all(
    click.option("--out", required=True, type=PATH, help="The folder for everything that is written."),
    click.option(
        "--rehearsal/--no-rehearsal",
        default=True,
        help="First try all steps with the dense network on a few images, and refuse what fails.  [default: yes]",
    ),
    click.option("--resume", is_flag=True, help="Go on with what is in --out."),
    click.option("--force", is_flag=True, help="Replace what is in --out."),
)

# What is removed as one unit, and from where.
space_options = _all(
    click.option("--granularity", default="channel", show_default=True, help="What is removed as one unit."),
    click.option("--criterion", default="l2", show_default=True, help="What orders units within a layer."),
    click.option("--max-rate", type=float, help="At most this fraction of a layer is removed."),
    click.option("--round-to", help="With channel: remove channels in steps of 8, or conv=8,linear=4.  [default: 1]"),
    click.option("--min-width", type=int, help="With channel: keep at least so many channels of a layer."),
    click.option(
        "--repair/--no-repair", default=None, help="With channel: let sizes in module attributes follow.  [default: yes]"
    ),
    click.option("--nm", help="With nm: 2:4, or 4 for any number of four.  [default: 2:4]"),
    click.option("--block", help="With block: 1x4 along inputs, 4x1 along outputs.  [default: 1x4]"),
    click.option("--only", multiple=True, help="Prune only groups named like this pattern, such as 'layer3.*'."),
    click.option("--ignore", multiple=True, help="Leave alone what touches layers named like this pattern."),
    click.option("--calibration-images", default=256, show_default=True, help="Training images that scores are computed on."),
)

search_options = _all(
    click.option(
        "--metric",
        default="freeprune",
        show_default=True,
        help="What scores rate vectors; or your own path/to/file.py:callable.",
    ),
    click.option(
        "--warm-starts",
        help="Scored first: some of uniform,inner,erk,global,magnitude,knapsack; or none.  "
        "[default: uniform,inner,magnitude with channel, else erk,global,magnitude]",
    ),
    click.option("--proposals", default=10, show_default=True, help="Rate vectors asked for before their scores are told."),
)

latency_options = _all(
    click.option("--latency-batch", default=32, show_default=True, help="Images at a time in the latency measurement."),
    click.option("--latency-threads", default=1, show_default=True, help="Threads of the latency measurement."),
)

placement_options = _all(
    click.option(
        "--workers", type=int, help="Processes, with one thread each; with --ray, actors.  [default: one process, all threads]"
    ),
    click.option("--ray", help="The address of a Ray cluster to work on: HOST:PORT, ray://HOST:PORT or auto."),
    click.option("--ray-gpus", default=0.0, help="GPUs for each actor; a fraction lets several share one.  [default: none]"),
)


def passed_on(function: Callable[..., Any], options: dict[str, Any]) -> dict[str, Any]:
    """The options that a function takes under their own names; lists written with commas are taken apart."""
    from ..asked.settings import Options

    taken = {*signatures.signature(function).parameters, *Options.__annotations__}
    given = {name: value for name, value in options.items() if name in taken and name != "data"}
    if "warm_starts" in given:
        text = given["warm_starts"]
        given["warm_starts"] = None if text is None else () if text == "none" else names(text)
    return given


def names(text: str | None) -> tuple[str, ...]:
    """The parts of a list that is written with commas."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def data_of(options: dict[str, Any]) -> Any:
    from ..inputs.data import load_data

    mean, std = (_numbers(options[name], name) for name in ("mean", "std"))
    return load_data(options["data"], mean=mean, std=std, image_size=options["image_size"])


def _numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FreePruneError(f"--{name} {text!r} is no list of numbers; write it as 0.5 or 0.485,0.456,0.406") from None


def recipe_of(options: dict[str, Any], epochs: float | None, images: int | None, **more: Any) -> Any:
    """The training recipe from the options that were given; None where nothing is to be trained."""
    from ..asked.recipe import Recipe

    if epochs is not None and images is not None:
        raise FreePruneError("both --finetune-epochs and --finetune-images were given; give one")
    if epochs == 0 or images == 0:
        return None
    given: dict[str, Any] = {"epochs": epochs, "images": images, "distill": options.get("distill")}
    given |= {name: options[name] for name in ("learning_rate", "batch_size", "precision")}
    return Recipe(**{name: value for name, value in given.items() if value is not None}, **more)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        if threads < 1:
            raise FreePruneError(f"--threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)
