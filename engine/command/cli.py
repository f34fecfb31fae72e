"""The command line: options in, tables out, errors as one sentence."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...common import FreePruneError, entries, nearest
from . import options as options

if TYPE_CHECKING:
    from ..delivery.finish import Result

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


@main.command()
@click.argument("model")
@options.data_options
@options.target_option
@options.space_options
@click.option("--strategy", default="evolution", show_default=True, help="What proposes rates.")
@click.option("--trials", default=300, show_default=True, help="How many rate vectors are scored; 0: equal rates.")
@click.option("--time-limit", type=options.Seconds(), help="End the search after so long, such as 60s or 5m.")
@options.search_options
@options.placement_options
@options.finetune_options
@click.option("--finetune", "function", help="Your own package.module:callable from (network, data) to the trained network.")
@click.option("--compaction/--no-compaction", default=True, help="Drop channels that no longer matter after fine-tuning.")
@click.option("--compress", is_flag=True, help="Store zeros sparsely in the ONNX file where that makes it smaller.")
@options.latency_options
@options.folder_options
def prune(model: str, **given: Any) -> None:
    """Prune MODEL: search rates, remove, fine-tune the winner, export, verify.

    MODEL is cifar:resnet20|32|44|56|110, digits:cnn, torchvision:NAME, timm:NAME, package.module:callable or
    path/to/file.py:callable. Exit status 3 says that a target on latency was missed.
    """
    from .. import prune as run
    from ..inputs.models import resolve
    from . import tables as display

    options.set_threads(given["threads"])
    data = options.data_of(given)
    finetune: Any = options.recipe_of(given, given["finetune_epochs"], given["finetune_images"])
    if given["function"] is not None:
        finetune = resolve(given["function"])
    with display.bars(quiet=given["as_json"]) as progress:
        result = run.prune(
            model,
            data,
            target=given["targets"],
            progress=progress,
            **{**options.passed_on(run.prune, given), "finetune": finetune},
        )
    if given["weights"] is None and not given["as_json"]:
        click.echo(f"note: no --weights were given, so {model} was pruned as its code makes it")
    _report(result, given["as_json"])


@main.command()
@click.argument("model")
@options.data_options
@options.target_option
@options.space_options
@click.option("--strategies", default="random,evolution,tpe", show_default=True, help="What is compared.")
@click.option("--trials", type=int, help="Of each search.  [default: 300, or as many as --time-limit allows]")
@click.option("--time-limit", type=options.Seconds(), help="End each search after so long, such as 60s or 5m.")
@click.option("--seeds", default=5, show_default=True, help="How many seeds each strategy gets.")
@options.search_options
@options.placement_options
@options.finetune_options
@options.folder_options
def compare(model: str, **given: Any) -> None:
    """Compare search strategies on MODEL: same space, same warm starts, same number of trials or the same seconds.

    With --finetune-epochs or --finetune-images the best network of every search is fine-tuned, so that the comparison ends in
    test accuracy; without, nothing is trained.
    """
    from ..report import plots
    from ..studies import comparison
    from . import tables as display

    options.set_threads(given["threads"])
    data = options.data_of(given)
    tuned = given["finetune_epochs"] is not None or given["finetune_images"] is not None
    finetune = options.recipe_of(given, given["finetune_epochs"], given["finetune_images"]) if tuned else None
    asked = {**options.passed_on(comparison.compare, given), "strategies": options.names(given["strategies"])}
    with display.bars(quiet=given["as_json"]) as progress:
        found = comparison.compare(
            model, data, target=given["targets"], **{**asked, "finetune": finetune, "progress": progress}
        )
    if given["as_json"]:
        click.echo(json.dumps(found))
    else:
        display.print_comparison(found, given["out"])
    _plot(lambda: plots.save_comparison(found, given["out"]))


@main.command()
@click.argument("model")
@options.data_options
@options.space_options
@click.option("--cost", default="macs", show_default=True, help="What the budgets limit.")
@click.option("--budgets", default="80%,65%,50%,40%,30%,20%", show_default=True, help="What may remain of it.")
@click.option("--target", "targets", multiple=True, help="A further target that holds at every budget.")
@click.option("--strategy", default="evolution", show_default=True, help="What proposes rates.")
@click.option("--trials", default=100, show_default=True, help="Of each budget.")
@options.search_options
@options.placement_options
@options.folder_options
def sweep(model: str, **given: Any) -> None:
    """Search MODEL at several budgets and show which score each reaches; freeprune pick finishes one of them."""
    from ..report import plots
    from ..studies import sweep as sweeping
    from . import tables as display

    options.set_threads(given["threads"])
    data = options.data_of(given)
    asked = {**options.passed_on(sweeping.sweep, given), "budgets": options.names(given["budgets"])}
    with display.bars(quiet=given["as_json"]) as progress:
        found = sweeping.sweep(model, data, target=given["targets"], **{**asked, "progress": progress})
    if given["as_json"]:
        click.echo(json.dumps(found))
    else:
        display.print_sweep(found, given["out"])
    cloud = [(trial.costs[given["cost"]], trial.score) for trial in sweeping.trials_of(given["out"])]
    _plot(lambda: plots.save_sweep(found, cloud, given["out"]))


@main.command()
@click.argument("sweep_folder", metavar="SWEEP", type=options.PATH)
@options.target_option
@options.finetune_options
@options.folder_options
@click.option("--threads", type=int, help="Threads that torch computes with.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def pick(sweep_folder: Path, **given: Any) -> None:
    """Finish a run at a point of SWEEP, the folder of a sweep: surgery, fine-tuning, export, checks."""
    from ..studies import sweep
    from . import tables as display

    options.set_threads(given["threads"])
    finetune = options.recipe_of(given, given["finetune_epochs"], given["finetune_images"])
    folders = {name: given[name] for name in ("out", "resume", "force", "rehearsal")}
    with display.bars(quiet=given["as_json"]) as progress:
        result = sweep.pick(sweep_folder, target=given["targets"], finetune=finetune, progress=progress, **folders)
    _report(result, given["as_json"])


def _report(result: Result, as_json: bool) -> None:
    """A finished run, and the exit status that goes with it."""
    from . import tables as display

    if as_json:
        click.echo(json.dumps(result.summary))
    else:
        display.print_result(result)
    if not all(target["met"] for target in result.summary["targets"].values()):
        sys.exit(MISSED)


@main.command()
@click.argument("folder", metavar="RUN", type=options.PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to serve at.")
@click.option("--port", default=8080, show_default=True, help="The port to serve at.")
def dashboard(folder: Path, host: str, port: int) -> None:
    """Look at the trials in RUN, the folder of a run, a comparison or a sweep, in optuna-dashboard."""
    from .dashboard import show

    show(folder, host, port)


@main.command()
@click.argument("folder", metavar="RUN", type=options.PATH)
def report(folder: Path) -> None:
    """Write report.html again, from what is in RUN, the folder of a run, a comparison, a sweep or a study, finished or not."""
    from ..report.page import write_report

    click.echo(f"the report is {write_report(folder)}")


@main.command()
@click.argument("model")
@options.data_options
@options.target_option
@options.space_options
@click.option("--candidates", default=30, show_default=True, help="How many pruned networks are fine-tuned.")
@click.option("--finetune-images", default=7680, show_default=True, help="Images that each is fine-tuned on.")
@click.option("--distill", type=float, help="Weight of agreement with the dense network in fine-tuning, 0 to 1.")
@options.recipe_options
@click.option("--seeds", default=2, show_default=True, help="Seeds that a repeated candidate is fine-tuned with.")
@click.option("--repeat", default=3, show_default=True, help="Every so-manieth candidate is repeated.")
@click.option("--metrics", help="Which metrics, such as freeprune,snip,my.py:callable.  [default: all]")
@click.option("--rescore", is_flag=True, help="Compute the scores of --metrics again in the study in --out; fine-tune nothing.")
@options.placement_options
@options.folder_options
def correlate(model: str, **given: Any) -> None:
    """Check on MODEL how well each score ranks pruned networks: fine-tune many of one cost, and correlate.

    Networks are fine-tuned on nine tenths of the training images and judged on the rest; the test images are not used. The
    heat map shows the studies in the folders beside --out as well: one for each granularity, say.
    """
    from ..report import plots
    from ..store import run_folder as folder
    from ..studies import correlation
    from . import tables as display

    options.set_threads(given["threads"])
    data = options.data_of(given)
    asked = options.passed_on(correlation.correlate, given)
    asked["metrics"] = options.names(given["metrics"]) or None
    asked["finetune"] = options.recipe_of(given, None, given["finetune_images"])
    with display.bars(quiet=given["as_json"]) as progress:
        study = correlation.correlate(model, data, target=given["targets"], **{**asked, "progress": progress})
    if given["as_json"]:
        click.echo(json.dumps(study))
    else:
        display.print_study(study, given["out"])
    _plot(lambda: plots.save_scatter(study, given["out"]))
    _plot(lambda: plots.save_heat_map(folder.studies_beside(given["out"]), given["out"]))


def _plot(draw: Callable[[], Any]) -> None:
    """Pictures are worth a note where they cannot be drawn, not an error: the figures are there."""
    try:
        draw()
    except FreePruneError as error:
        click.echo(f"note: {error}", err=True)


@main.command()
@click.argument("model")
@options.data_options
@click.option("--plan", "plan_path", required=True, type=options.PATH, help="A plan.json, or its folder.")
@click.option("--pruned", type=options.PATH, help="Weights of the pruned network.  [default: the dense ones' part]")
@click.option("--metric", default="freeprune", show_default=True, help="What scores it; as for prune.")
@click.option("--calibration-images", default=256, show_default=True, help="Training images that the score is computed on.")
def score(model: str, plan_path: Path, pruned: Path | None, metric: str, calibration_images: int, **given: Any) -> None:
    """Score what a plan makes of MODEL, before any fine-tuning or with the weights of --pruned."""
    from ...backends import Plan
    from ...backends import apply as prune_by
    from ..inputs.batches import split
    from ..inputs.calibration import draw
    from ..inputs.models import load_weights
    from ..run import scoring
    from ..run.job import dense_network
    from ..store.run_folder import PLAN

    options.set_threads(given["threads"])
    plan = Plan.load(plan_path.parent if plan_path.name == PLAN else plan_path)
    network = dense_network(model, given["weights"], given["seed"])
    smaller = prune_by(network, plan)
    if pruned is not None:
        smaller = load_weights(smaller, pruned)
    data = options.data_of(given)
    training, _ = split(data, given["seed"])
    batch = draw(training, data, calibration_images, given["seed"])
    found = scoring.score(smaller, network, batch, metric, plan)
    if given["as_json"]:
        click.echo(json.dumps({"metric": metric, "score": found if math.isfinite(found) else None}))
    else:
        click.echo(f"{metric} {found:.6g}, on {len(batch.inputs[0])} images; larger is better")


@main.command()
@click.argument("model")
@options.data_options
@options.recipe_options
@click.option("--epochs", default=10.0, show_default=True, help="Passes over the training images.")
@click.option("--out", required=True, type=options.PATH, help="The .safetensors file to write.")
def train(model: str, **given: Any) -> None:
    """Train MODEL, or adapt it with --weights, and save its weights."""
    from ..inputs.adoption import in_float32, with_values
    from ..run.job import dense_network
    from ..store.run_folder import save_weights
    from ..training import trainer as training
    from . import tables as display

    out: Path = given["out"]
    if out.suffix != ".safetensors":
        raise FreePruneError(f"--out {out} must end in .safetensors")
    options.set_threads(given["threads"])
    network = dense_network(model, given["weights"], given["seed"])
    data = options.data_of(given)
    recipe = options.recipe_of(given, given["epochs"], None, augment=data.augment)
    with display.bars(quiet=given["as_json"]) as progress:
        trained = training.train(
            in_float32(network),
            data.train,
            recipe,
            seed=given["seed"],
            collate=data.collate,
            progress=lambda step, steps, loss: progress("train", step, steps, f"loss {loss:.3f}"),
        )
    trained = with_values(network, trained)
    accuracy = training.accuracy(in_float32(trained), data.test, collate=data.collate)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_weights(trained, out)
    summary = {"accuracy": accuracy, "weights": str(out)}
    click.echo(json.dumps(summary) if given["as_json"] else f"test accuracy {accuracy:.2%}; weights are in {out}")


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
    **layout: Any,
) -> None:
    """Say what could be pruned from MODEL, what goes together, and what is locked and why; prune nothing.

    The share of a group in a cost is what goes when this group alone shrinks to its least.
    """
    from ..inspection import groups as inspection
    from ..inspection.drawing import save
    from ..run.job import dense_network
    from . import inspection_tables

    if graph is not None and graph.suffix != ".svg":
        raise FreePruneError(f"--graph {graph} must end in .svg")
    inputs = inspection_tables.example(shapes, data)
    network = dense_network(model, weights, seed=0)
    given = {name: value for name, value in layout.items() if value is not None}
    found = inspection.inspect(network, inputs, granularity, **given)
    if graph is not None:
        save(found, graph)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    else:
        inspection_tables.print_inspection(found)


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
    from ...backends import Plan
    from ...backends import apply as prune_by
    from ..run.job import dense_network
    from ..store import run_folder as folder

    plan = Plan.load(plan_path.parent if plan_path.name == folder.PLAN else plan_path)
    network = dense_network(model, weights, seed=0)
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
    from ...backends import BACKENDS, CRITERIA
    from ...metrics import METRICS
    from ...search import STRATEGIES

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
