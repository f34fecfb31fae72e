"""The command line: options in, tables out, errors as one sentence."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...errors import FreePruneError
from . import options as options
from . import streams

if TYPE_CHECKING:
    from ..delivery.finish import Result

MISSED = 3  # exit status of a finished run that misses a target on latency


class OneSentence(click.Group):
    """Errors go to stderr as one line, with exit status 2 and no traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # Idle threads that spin make a search many times slower on a busy machine; OpenMP reads this as torch is loaded.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            with _ended_as_by_ctrl_c():
                return super().main(*args, **{**kwargs, "standalone_mode": False})
        except click.ClickException as error:
            _fail(" ".join(error.format_message().split()))
        except FreePruneError as error:  # raised while the options are read
            _fail(str(error))
        except (KeyboardInterrupt, click.Abort):
            streams.say("interrupted")
            sys.exit(options.INTERRUPTED)


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """SIGTERM, by which clusters end a job, ends workers, leaves no temporary files and says how to go on."""
    if threading.current_thread() is not threading.main_thread():  # others may not handle signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(sentence: str) -> None:
    streams.say(f"error: {sentence}")
    sys.exit(2)


@click.group(cls=OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="freeprune")
def main() -> None:
    """Make a trained PyTorch network smaller: rates searched without training, real surgery, verified ONNX."""


@main.command(cls=options.Declared)
def prune(model: str, **given: Any) -> None:
    """Prune MODEL: search rates, remove units, fine-tune the best network, export it and verify it.

    MODEL is cifar:resnet20|32|44|56|110, digits:cnn, torchvision:NAME, timm:NAME, hf:NAME, package.module:callable or
    path/to/file.py:callable. Exit status 3 means that a target on latency was missed.
    """
    from ..inputs.named import load_object
    from ..prune import prune

    options.set_threads(given["threads"])
    data = options.data_of(given)
    options.note_no_search(given)
    if given["finetune"] is None:
        finetune: Any = options.recipe_of(given)
    else:
        trained = f"--finetune {given['finetune']} trains instead of the built-in training"
        options.refuse_training(given, (), f"{trained}; leave one of them out")
        finetune = load_object(given["finetune"])
    result = prune(model, data, **{**options.passed_on(given), "finetune": finetune})
    options.note_no_weights(model, "pruned", given)
    _report(result, given["json"])


@main.command(cls=options.Declared)
def compare(model: str, **given: Any) -> None:
    """Compare search strategies on MODEL: same space, same warm starts, same number of trials or seconds.

    With --finetune-epochs or --finetune-images the best network of every search is fine-tuned, to compare test accuracies;
    otherwise nothing is trained.
    """
    from ..studies.comparison import compare
    from .printing import print_result

    options.set_threads(given["threads"])
    data = options.data_of(given)
    tuned = given["epochs"] is not None or given["images"] is not None
    if not tuned:
        options.refuse_training(given, (), "compare trains only with --finetune-epochs or --finetune-images; add one of them")
    finetune = options.recipe_of(given) if tuned else None
    found = compare(model, data, **{**options.passed_on(given), "finetune": finetune})
    options.note_no_weights(model, "pruned", given)
    print_result(found, found.to_json(), given["json"], f"everything is in {given['out']}")


@main.command(cls=options.Declared)
def sweep(model: str, **given: Any) -> None:
    """Search MODEL at several budgets and show the score of each; freeprune pick turns one into a finished run."""
    from ..studies.sweep import sweep
    from .printing import print_result

    options.set_threads(given["threads"])
    data = options.data_of(given)
    found = sweep(model, data, **options.passed_on(given))
    options.note_no_weights(model, "pruned", given)
    finish = f"finish one with freeprune pick {given['out']} --target {found.budgets[0].target} --out DIR"
    print_result(found, found.to_json(), given["json"], finish)


@main.command(cls=options.Declared)
def pick(sweep_folder: Path, **given: Any) -> None:
    """Finish a run at a point of SWEEP, the folder of a sweep: surgery, fine-tuning, export, checks."""
    from ..studies.pick import pick

    options.set_threads(given["threads"])
    result = pick(sweep_folder, finetune=options.recipe_of(given), **options.passed_on(given))
    _report(result, given["json"])


def _report(result: Result, as_json: bool) -> None:
    """Print a finished run, and exit with its status."""
    from .printing import print_result

    print_result(result, result.summary.to_json(), as_json)
    if not result.summary.met:
        sys.exit(MISSED)


@main.command(cls=options.Declared)
def dashboard(folder: Path, host: str, port: int) -> None:
    """Show the trials in RUN, the folder of a run, a comparison or a sweep, in optuna-dashboard."""
    from .dashboard import show

    show(folder, host, port)


@main.command(cls=options.Declared)
def report(folder: Path) -> None:
    """Write report.html again from the files in RUN, the folder of a run, comparison, sweep or study, finished or not."""
    from ..report.page import write_report

    click.echo(f"the report is {write_report(folder)}")


@main.command(cls=options.Declared)
def correlate(model: str, **given: Any) -> None:
    """Measure how well each metric ranks pruned versions of MODEL: fine-tune many of one cost, and correlate.

    Networks are fine-tuned on nine tenths of the training images and judged on the rest; the test images are not used. The
    heat map also shows the studies in the folders next to --out, such as one for each granularity.
    """
    from ..studies.correlation import correlate
    from .printing import print_result

    options.set_threads(given["threads"])
    data = options.data_of(given)
    study = correlate(model, data, **{**options.passed_on(given), "finetune": options.recipe_of(given)})
    options.note_no_weights(model, "pruned", given)
    print_result(study, study.to_json(), given["json"], f"everything is in {given['out']}")


@main.command(cls=options.Declared)
def score(model: str, plan: Path, pruned: Path | None, metric: str, calibration_images: int, **given: Any) -> None:
    """Score MODEL pruned by a plan, before fine-tuning or with the weights of --pruned."""
    from ..inputs.dense import GivenModel
    from ..score import score_of_plan

    options.set_threads(given["threads"])
    named, data = GivenModel(model, given["weights"], given["weights_key"]), options.data_of(given)
    found, images = score_of_plan(
        named, plan, data, metric, pruned=pruned, images=calibration_images, seed=given["seed"], task=given["task"]
    )
    if given["json"]:
        streams.as_json({"metric": metric, "score": found if math.isfinite(found) else None})
    else:
        click.echo(f"{metric} {found:.6g}, on {images} images; larger is better")
        options.note_no_weights(model, "scored", given)


@main.command(cls=options.Declared)
def train(model: str, **given: Any) -> None:
    """Train MODEL, or adapt it with --weights, and save its weights."""
    from ..asked.recipe import Recipe
    from ..train import train

    options.set_threads(given["threads"])
    data = options.data_of(given)
    recipe = options.recipe_of(given) or Recipe(epochs=0)
    trained = train(model, data, recipe=recipe, **options.passed_on(given))
    if given["json"]:
        streams.as_json({"accuracy": trained.accuracy, "measure": trained.task.measure, "weights": str(trained.weights)})
    else:
        measured = f"test {trained.task.measure} {trained.task.shown(trained.accuracy)}"
        click.echo(f"{measured}; weights are in {trained.weights}")


@main.command(cls=options.Declared)
def inspect(model: str, **given: Any) -> None:
    """Show what could be pruned from MODEL, what is tied together, and what is locked and why; nothing is pruned.

    For each cost, a group's percentage is what is saved when this group alone is pruned as far as allowed.
    """
    from rich.console import Console

    from ..inspection.groups import inspect
    from ..inspection.tables import WIDTH, shown

    shapes, data, as_json = given.pop("example"), given.pop("data"), given.pop("json")
    if data is not None and shapes:
        raise FreePruneError("both --input and --data were given; give one of them")
    if data is None and not shapes:
        raise FreePruneError(
            "no input was given; give its shape with --input 3x224x224, or --input ids:1x128 for tokens, or take an example "
            "from --data"
        )
    found = inspect(model, data or shapes, **{name: value for name, value in given.items() if value is not None})
    if as_json:
        streams.as_json(found.to_json())
    else:
        console = Console()
        (console if console.is_terminal else Console(width=WIDTH)).print(*shown(found))


@main.command(cls=options.Declared)
def apply(model: str, **given: Any) -> None:
    """Apply a plan to MODEL, without search or fine-tuning: plan and weights of the pruned network go to --out.

    With --recover the weights that stay do the work of those that went, as far as they can; no labels are read.
    """
    from ..apply import applied
    from ..asked.settings import SETTINGS
    from ..inputs.data import OPTIONS
    from ..inputs.dense import GivenModel
    from ..store.tables import of_recovery

    data = None if given["recover"] is None else options.data_of({**given, "data": given["recover"]})
    for name, option in {**OPTIONS, **{name: SETTINGS[name] for name in ("calibration_images", "seed")}}.items():
        if data is None and given[name] != option.default:
            raise FreePruneError(f"`{name}` was given without --recover, which it belongs to; leave it out, or give both")
    asked = options.passed_on(given)
    named = GivenModel(model, asked.pop("weights"), asked.pop("weights_key"))
    found = applied(named, **{**asked, "recover": data})
    before, after = (sum(p.numel() for p in n.parameters()) for n in (found.dense, found.network))
    if found.recovery is not None:
        click.echo(of_recovery(found.recovery))
    left = f"{found.plan.granularity}: {after:,} of {before:,} parameters in tensors"
    click.echo(f"{left}; the pruned network is in {given['out']}")


@main.command("list", cls=options.Declared)
def list_(what: str | None) -> None:
    """List metrics, strategies, granularities, criteria or tasks, or all of them: name and description, one per line."""
    from .listing import TABLES, listed

    for one in TABLES if what is None else (what,):
        if what is None:
            click.echo(f"{one}:")
        found = listed(one)
        width = max(map(len, found))
        for name, line in found.items():
            click.echo(f"{name:<{width}}  {line}")
