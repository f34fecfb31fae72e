"""The command line: options in, tables out, errors as one sentence."""

from __future__ import annotations

import inspect as signatures
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..common import FreePruneError, entries, nearest

MISSED = 3  # exit status of a run that ended well, but above a target that is measured


class OneSentence(click.Group):
    """Errors go to stderr as one line, with exit status 2 and no traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.exceptions.Exit as request:
            sys.exit(request.exit_code)
        except click.ClickException as error:
            _fail(" ".join(error.format_message().split()))
        except FreePruneError as error:
            _fail(str(error))
        except (KeyboardInterrupt, click.Abort):
            print("freeprune: interrupted; every finished trial is kept, go on with --resume", file=sys.stderr)  # noqa: T201
            sys.exit(130)


def _fail(sentence: str) -> None:
    print(f"freeprune: error: {sentence}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="freeprune")
def main() -> None:
    """Make a trained PyTorch network smaller: rates searched without training, real surgery, verified ONNX."""


def _data_options(command: Callable[..., None]) -> Callable[..., None]:
    """The network's weights, its images, and what every job is told."""
    for option in reversed(
        [
            click.option("--data", required=True, help="imagefolder:DIR, npz:FILE, digits, or package.module:callable."),
            click.option("--weights", type=click.Path(path_type=Path), help="A .safetensors, .pt or .pth file to start from."),
            click.option("--mean", help="Mean per channel, such as 0.485,0.456,0.406."),
            click.option("--std", help="Standard deviation per channel."),
            click.option("--image-size", type=int, help="Scale and crop the images of a folder to this many pixels."),
            click.option("--seed", default=0, show_default=True, help="Decides everything that is drawn."),
            click.option("--threads", type=int, help="Threads that torch computes with."),
            click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
        ]
    ):
        command = option(command)
    return command


def _training_options(command: Callable[..., None]) -> Callable[..., None]:
    """What is trained, on what and how."""
    command = click.option("--precision", help="Of the training: 32-true, bf16-mixed or 16-mixed; has a sensible default.")(
        command
    )
    command = click.option("--batch-size", type=int, help="Of the training; has a sensible default.")(command)
    command = click.option("--learning-rate", type=float, help="Of the training; has a sensible default.")(command)
    return _data_options(command)


def _pruning_options(command: Callable[..., None]) -> Callable[..., None]:
    """What is removed, how much of it and where the result goes."""
    for option in reversed(
        [
            click.option(
                "--target", "targets", multiple=True, required=True, help="What may remain, such as macs=50% or latency=5ms."
            ),
            click.option("--granularity", default="channel", show_default=True, help="What is removed as one unit."),
            click.option("--criterion", default="l2", show_default=True, help="What orders units within a layer."),
            click.option("--max-rate", type=float, help="At most this fraction of a layer is removed."),
            click.option("--round-to", help="With channel: remove channels in steps of 8, or conv=8,linear=4.  [default: 1]"),
            click.option("--min-width", type=int, help="With channel: keep at least so many channels of a layer."),
            click.option(
                "--repair/--no-repair",
                default=None,
                help="With channel: let sizes in module attributes follow.  [default: yes]",
            ),
            click.option("--nm", help="With nm: 2:4, or 4 for any number of four.  [default: 2:4]"),
            click.option("--block", help="With block: 1x4 along inputs, 4x1 along outputs.  [default: 1x4]"),
            click.option("--only", multiple=True, help="Prune only groups named like this pattern, such as 'layer3.*'."),
            click.option("--ignore", multiple=True, help="Leave alone what touches layers named like this pattern."),
            click.option(
                "--calibration-images", default=256, show_default=True, help="Training images that scores are computed on."
            ),
            click.option("--distill", type=float, help="Weight of agreement with the dense network in fine-tuning, 0 to 1."),
            click.option(
                "--out", required=True, type=click.Path(path_type=Path), help="The folder for everything that is written."
            ),
            click.option("--resume", is_flag=True, help="Go on with what is in --out."),
            click.option("--force", is_flag=True, help="Replace what is in --out."),
        ]
    ):
        command = option(command)
    return command


@main.command()
@click.argument("model")
@_training_options
@_pruning_options
@click.option("--strategy", default="evolution", show_default=True, help="What proposes rates.")
@click.option("--metric", default="freeprune", show_default=True, help="What scores them.")
@click.option("--trials", default=300, show_default=True, help="How many rate vectors are scored; 0: equal rates.")
@click.option("--finetune-epochs", type=float, help="Passes over the training images; 0 skips fine-tuning.  [default: 1]")
@click.option("--finetune-images", type=int, help="Fine-tune on so many images instead.")
@click.option("--finetune", "function", help="Your own package.module:callable from (network, data) to the trained network.")
@click.option("--compaction/--no-compaction", default=True, help="Drop channels that no longer matter after fine-tuning.")
@click.option("--latency-batch", default=32, show_default=True, help="Images at a time in the latency measurement.")
@click.option("--latency-threads", default=1, show_default=True, help="Threads of the latency measurement.")
def prune(model: str, **options: Any) -> None:
    """Prune MODEL: search rates, remove, fine-tune the winner, export, verify.

    MODEL is cifar:resnet20|32|44|56|110, digits:cnn, torchvision:NAME, timm:NAME, package.module:callable or
    path/to/file.py:callable. Exit status 3 says that a target on latency was missed.
    """
    from . import display, run
    from .models import resolve

    _set_threads(options["threads"])
    data = _load_data(options)
    finetune: Any = _recipe(options, options["finetune_epochs"], options["finetune_images"])
    if options["function"] is not None:
        finetune = resolve(options["function"])
    same = set(signatures.signature(run.prune).parameters) - {"data"}  # options that go on as they are
    with display.bars(quiet=options["as_json"]) as progress:
        result = run.prune(
            model,
            data,
            target=options["targets"],
            finetune=finetune,
            progress=progress,
            **{name: value for name, value in options.items() if name in same},
        )
    if options["as_json"]:
        click.echo(json.dumps(result.summary))
    else:
        display.print_result(result)
        if options["weights"] is None:
            click.echo(f"note: no --weights were given, so {model} was pruned as its code makes it")
    if not all(target["met"] for target in result.summary["targets"].values()):
        sys.exit(MISSED)


@main.command()
@click.argument("model")
@_training_options
@_pruning_options
@click.option("--candidates", default=30, show_default=True, help="How many pruned networks are fine-tuned.")
@click.option("--finetune-images", default=7680, show_default=True, help="Images that each is fine-tuned on.")
@click.option("--seeds", default=2, show_default=True, help="Seeds that a repeated candidate is fine-tuned with.")
@click.option("--repeat", default=3, show_default=True, help="Every so-manieth candidate is repeated.")
@click.option("--metrics", help="Which metrics, such as freeprune,snip.  [default: all]")
@click.option("--workers", default=1, show_default=True, help="Processes to fine-tune on, with one thread each.")
@click.option("--rescore", is_flag=True, help="Compute the scores of --metrics again in the study in --out; fine-tune nothing.")
def correlate(model: str, **options: Any) -> None:
    """Check on MODEL how well each score ranks pruned networks: fine-tune many of one cost, and correlate.

    Networks are fine-tuned on nine tenths of the training images and judged on the rest; the test images are not used. The
    heat map shows the studies in the folders beside --out as well: one for each granularity, say.
    """
    from . import correlation, display, folder, plots

    _set_threads(options["threads"])
    data = _load_data(options)
    names = options["metrics"]
    options |= {"target": options["targets"], "metrics": None if names is None else names.split(",")}
    options["finetune"] = _recipe(options, None, options["finetune_images"])
    same = set(signatures.signature(correlation.correlate).parameters) - {"data"}
    with display.bars(quiet=options["as_json"]) as progress:
        study = correlation.correlate(
            model, data, progress=progress, **{name: value for name, value in options.items() if name in same}
        )
    if options["as_json"]:
        click.echo(json.dumps(study))
    else:
        display.print_study(study, options["out"])
    try:
        plots.save_scatter(study, options["out"])
        plots.save_heat_map(folder.studies_beside(options["out"]), options["out"])
    except FreePruneError as error:
        click.echo(f"note: {error}", err=True)


@main.command()
@click.argument("model")
@_data_options
@click.option("--plan", "plan_path", required=True, type=click.Path(path_type=Path), help="A plan.json, or its folder.")
@click.option(
    "--pruned", type=click.Path(path_type=Path), help="Weights of the pruned network.  [default: the dense ones' part]"
)
@click.option("--metric", default="freeprune", show_default=True, help="What scores it.")
@click.option("--calibration-images", default=256, show_default=True, help="Training images that the score is computed on.")
def score(model: str, plan_path: Path, pruned: Path | None, metric: str, calibration_images: int, **options: Any) -> None:
    """Score what a plan makes of MODEL, before any fine-tuning or with the weights of --pruned."""
    from ..backends import Plan
    from ..backends import apply as prune_by
    from . import scoring
    from .calibration import draw
    from .data import split
    from .folder import PLAN
    from .job import built
    from .models import load_weights

    _set_threads(options["threads"])
    plan = Plan.load(plan_path.parent if plan_path.name == PLAN else plan_path)
    network = built(model, options["seed"])
    if options["weights"] is not None:
        network = load_weights(network, options["weights"])
    smaller = prune_by(network, plan)
    if pruned is not None:
        smaller = load_weights(smaller, pruned)
    data = _load_data(options)
    training, _ = split(data, options["seed"])
    batch = draw(training, data, calibration_images, options["seed"])
    found = scoring.score(smaller, network, batch, metric, plan)
    if options["as_json"]:
        click.echo(json.dumps({"metric": metric, "score": found if math.isfinite(found) else None}))
    else:
        click.echo(f"{metric} {found:.6g}, on {len(batch.inputs[0])} images; larger is better")


@main.command()
@click.argument("model")
@_training_options
@click.option("--epochs", default=10.0, show_default=True, help="Passes over the training images.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .safetensors file to write.")
def train(model: str, **options: Any) -> None:
    """Train MODEL, or adapt it with --weights, and save its weights."""
    from . import display, training
    from .folder import save_weights
    from .job import built
    from .models import load_weights

    out: Path = options["out"]
    if out.suffix != ".safetensors":
        raise FreePruneError(f"--out {out} must end in .safetensors")
    _set_threads(options["threads"])
    network = built(model, options["seed"])
    if options["weights"] is not None:
        network = load_weights(network, options["weights"])
    data = _load_data(options)
    recipe = _recipe(options, options["epochs"], None, augment=data.augment)
    with display.bars(quiet=options["as_json"]) as progress:
        trained = training.train(
            network,
            data.train,
            recipe,
            seed=options["seed"],
            collate=data.collate,
            progress=lambda step, steps, loss: progress("train", step, steps, f"loss {loss:.3f}"),
        )
    accuracy = training.accuracy(trained, data.test, collate=data.collate)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(trained, out)
    summary = {"accuracy": accuracy, "weights": str(out)}
    click.echo(json.dumps(summary) if options["as_json"] else f"test accuracy {accuracy:.2%}; weights are in {out}")


@main.command()
@click.argument("model")
@click.option(
    "--input", "shapes", multiple=True, help="Shape of an input without the batch, 3x224x224; again for a second one."
)
@click.option("--data", help="Take an example from the data instead; as for prune.")
@click.option("--weights", type=click.Path(path_type=Path), help="A .safetensors, .pt or .pth file to start from.")
@click.option("--granularity", default="channel", show_default=True, help="What is removed as one unit.")
@click.option("--max-rate", type=float, help="At most this fraction of a layer is removed.")
@click.option("--round-to", help="With channel: remove channels in steps of 8, or conv=8,linear=4.  [default: 1]")
@click.option("--min-width", type=int, help="With channel: keep at least so many channels of a layer.")
@click.option("--nm", help="With nm: 2:4, or 4 for any number of four.  [default: 2:4]")
@click.option("--block", help="With block: 1x4 along inputs, 4x1 along outputs.  [default: 1x4]")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--graph", type=click.Path(path_type=Path), help="An .svg file to draw the coupling into.")
def inspect(
    model: str,
    shapes: tuple[str, ...],
    data: str | None,
    weights: Path | None,
    granularity: str,
    as_json: bool,
    graph: Path | None,
    **options: Any,
) -> None:
    """Say what could be pruned from MODEL, what goes together, and what is locked and why; prune nothing.

    The share of a group in a cost is what goes when this group alone shrinks to its least.
    """
    from . import inspection
    from .graph import save
    from .models import load_model, load_weights

    if graph is not None and graph.suffix != ".svg":
        raise FreePruneError(f"--graph {graph} must end in .svg")
    inputs = inspection.example(shapes, data)
    network = model if weights is None else load_weights(load_model(model), weights)
    given = {name: value for name, value in options.items() if value is not None}
    found = inspection.inspect(network, inputs, granularity, **given)
    if graph is not None:
        save(found, graph)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        inspection.print_inspection(found)


@main.command()
@click.argument("model")
@click.option("--weights", required=True, type=click.Path(path_type=Path), help="The dense network's weights.")
@click.option(
    "--plan", "plan_path", required=True, type=click.Path(path_type=Path), help="A plan.json, or the folder it is in."
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to write the pruned network to.")
@click.option("--force", is_flag=True, help="Replace what is in --out.")
def apply(model: str, weights: Path, plan_path: Path, out: Path, force: bool) -> None:
    """Apply a plan to MODEL, without search or fine-tuning: plan and weights of the pruned network go to --out."""
    from ..backends import Plan
    from ..backends import apply as prune_by
    from . import folder
    from .models import load_model, load_weights

    plan = Plan.load(plan_path.parent if plan_path.name == folder.PLAN else plan_path)
    network = load_weights(load_model(model), weights)
    smaller = prune_by(network, plan)
    folder.check_folder(out, resume=False, force=force)
    if (out / folder.WEIGHTS).exists() and not force:
        raise FreePruneError(f"{out} already holds a pruned network; give another --out, or replace it with --force")
    out.mkdir(parents=True, exist_ok=True)
    plan.save(out)
    folder.save_weights(smaller, out / folder.WEIGHTS)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (network, smaller))
    click.echo(f"{plan.granularity}: {after:,} of {before:,} parameters in tensors; the pruned network is in {out}")


@main.command("list")
@click.argument("what", metavar="metrics|strategies|granularities|criteria")
def list_(what: str) -> None:
    """Say what there is, one line each, the name first."""
    from ..backends import BACKENDS, CRITERIA
    from ..metrics import METRICS
    from ..search import STRATEGIES

    tables: dict[str, tuple[dict[str, Any], str]] = {
        "metrics": (METRICS, "metric"),
        "strategies": (dict(STRATEGIES), "strategy"),
        "granularities": (BACKENDS, "granularity"),
        "criteria": (CRITERIA, "criterion"),
    }
    if what not in tables:
        raise FreePruneError(f"there is no list of {what!r}; {nearest(what, sorted(tables))}")
    found = entries(*tables[what])
    width = max(map(len, found))
    for name, entry in found.items():
        click.echo(f"{name:<{width}}  {(entry.__doc__ or '').strip().splitlines()[0]}")


def _load_data(options: dict[str, Any]) -> Any:
    from .data import load_data

    mean, std = (_numbers(options[name], name) for name in ("mean", "std"))
    return load_data(options["data"], mean=mean, std=std, image_size=options["image_size"])


def _numbers(text: str | None, name: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FreePruneError(f"--{name} {text!r} is no list of numbers; write it as 0.5 or 0.485,0.456,0.406") from None


def _recipe(options: dict[str, Any], epochs: float | None, images: int | None, **more: Any) -> Any:
    """The training recipe from the options that were given; None where nothing is to be trained."""
    from .training import Recipe

    if epochs is not None and images is not None:
        raise FreePruneError("both --finetune-epochs and --finetune-images were given; give one")
    if epochs == 0 or images == 0:
        return None
    given: dict[str, Any] = {"epochs": epochs, "images": images, "distill": options.get("distill")}
    given |= {name: options[name] for name in ("learning_rate", "batch_size", "precision")}
    return Recipe(**{name: value for name, value in given.items() if value is not None}, **more)


def _set_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        if threads < 1:
            raise FreePruneError(f"--threads is {threads}; give 1 or more")
        torch.set_num_threads(threads)
