"""Which options each command takes, as data; in the order in which `--help` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...granularity_options import LAYOUTS
from ...options import Kind, Option, declare, declared, named
from ...registry import plugins
from .declaration import Budgets, Comparison, Folder, Hardware, Placement, Settings, Source, Study, Terminal
from .recipe import Recipe

SOURCE, SETTINGS, RECIPE, FOLDER = map(declared, (Source, Settings, Recipe, Folder))
COMPARISON, BUDGETS, STUDY = map(declared, (Comparison, Budgets, Study))
LAYOUT = "layout"  # stands for the options of all granularities


@dataclass(frozen=True)
class Command:
    """The argument and the options of a command.

    Attributes:
        options: `LAYOUT` among them stands for the options of all granularities.
        argument: the name of the argument.
        metavar: how `--help` shows it, if not as its name.
        is_path: whether the argument is a path.
        required: whether it must be given.
    """

    options: tuple[Option | str, ...]
    argument: str = "model"
    metavar: str | None = None
    is_path: bool = False
    required: bool = True

    @property
    def shown(self) -> str:
        """The argument as `--help` and sentences name it."""
        return self.metavar or self.argument.upper()


def _some(table: Mapping[str, Option], *names: str) -> tuple[Option, ...]:
    return tuple(table[name] for name in names)


THREADS, JSON = declared(Terminal).values()
DATA = (*SOURCE.values(), SETTINGS["task"], SETTINGS["seed"], THREADS, JSON)
TARGET = SETTINGS["target"]
COUNTED = TARGET.but(help="Largest cost of the pruned networks: macs=50%, params=300k or nonzero=40%; repeatable.")
SPACE: tuple[Option | str, ...] = (
    *_some(SETTINGS, "granularity", "criterion", "max_rate"), LAYOUT,
    *_some(SETTINGS, "only", "ignore", "calibration_images", "recovery"),
)  # fmt: skip
SEARCH = _some(SETTINGS, "metric", "warm_starts", "proposals", "score_precision")
PLACEMENT = tuple(declared(Placement).values())
DEVICE, DEVICES, NODES, LOADERS = declared(Hardware).values()
TRAINING = (*_some(
    RECIPE, "learning_rate", "batch_size", "precision", "optimizer", "weight_decay", "label_smoothing", "clip", "average",
    "crop", "batch_norm",
), LOADERS)  # fmt: skip
HARDWARE = (DEVICE, DEVICES, NODES)
FINETUNING = (*_some(RECIPE, "epochs", "images", "distill"), *TRAINING)
FOLDERS = (FOLDER["out"], SETTINGS["rehearsal"], FOLDER["resume"], FOLDER["force"])
RESUMED = FOLDER["resume"].but(help="Go on with a training that was interrupted.")
OWN_FINETUNING = declare(
    None, "Your own training: package.module:callable from (network, data) to the trained network.", name="finetune"
)
EXPORT = _some(SETTINGS, "compaction", "compress", "quantize", "runtime", "opset", "latency_batch", "latency_threads")
PLAN = declare(None, "A plan.json, or the folder that holds it.", name="plan", kind=Kind.PATH, required=True)

COMMANDS: dict[str, Command] = {
    "prune": Command((
        *DATA, TARGET, *SPACE, *_some(SETTINGS, "strategy", "trials", "even", "time_limit"), *SEARCH, *PLACEMENT, *HARDWARE,
        *FINETUNING, OWN_FINETUNING, *EXPORT, *FOLDERS,
    )),
    "compare": Command((
        *DATA, COUNTED, *SPACE, COMPARISON["strategies"], COMPARISON["trials"],
        SETTINGS["time_limit"].but(help="End each search after this time, such as 60s or 5m."), COMPARISON["seeds"],
        *(one.but(shown="none") if one.name == "warm_starts" else one for one in SEARCH), *PLACEMENT, DEVICE,
        *(one.but(shown="nothing is trained") if one.name == "epochs" else one for one in FINETUNING), *FOLDERS,
    )),
    "sweep": Command((
        *DATA, *SPACE, BUDGETS["cost"], BUDGETS["budgets"],
        TARGET.but(default=(), required=False, help="A further target that holds at every budget; repeatable."),
        SETTINGS["strategy"], BUDGETS["trials"], *SEARCH, *PLACEMENT, DEVICE, *FOLDERS,
    )),
    "pick": Command(
        (TARGET, DEVICE, DEVICES, *FINETUNING, *_some(SETTINGS, "quantize", "runtime", "opset"), *FOLDERS, THREADS, JSON),
        "sweep_folder", "SWEEP", True,
    ),
    "correlate": Command((
        *DATA, COUNTED, *SPACE, STUDY["candidates"],
        RECIPE["images"].but(default=7680, implied=False, help="Number of images that each candidate is fine-tuned on."),
        RECIPE["distill"], *TRAINING, STUDY["seeds"], STUDY["repeat"], STUDY["metrics"], STUDY["rescore"], *PLACEMENT, DEVICE,
        *FOLDERS,
    )),
    "score": Command((
        *DATA, PLAN,
        declare(None, "Weights of the pruned network.", name="pruned", kind=Kind.PATH, shown="those that the plan keeps"),
        SETTINGS["metric"].but(help="Metric to score with; as for prune."), SETTINGS["calibration_images"],
    )),
    "train": Command((
        *DATA, *HARDWARE, *TRAINING, RECIPE["epochs"].but(
            default=10.0, implied=False, flag="--epochs", help="Passes over the training images."
        ),
        FOLDER["out"].but(help="The .safetensors file to write."), RESUMED, FOLDER["force"].but(help="Replace the file --out."),
    )),
    "inspect": Command((
        declare(
            (), "Input shape without the batch, such as 3x224x224; or by name with it, such as ids:1x128 for tokens and "
            "mask:1x128 for their mask; repeat it for a second input.", name="example", flag="--input", kind=Kind.EACH,
        ),
        SOURCE["data"].but(required=False, help="Data to take the input from instead; as for prune."), SOURCE["weights"],
        SOURCE["weights_key"],
        SETTINGS["granularity"], SETTINGS["max_rate"], LAYOUT, JSON,
        declare(None, "Draw the coupling of the layers into this .svg file.", name="graph", kind=Kind.PATH),
    )),
    "apply": Command((
        SOURCE["weights"].but(required=True, help="The dense network's weights; as for prune."), SOURCE["weights_key"], PLAN,
        declare(
            None, "Data as for prune, labels or not: make the weights good on some of their images.", name="recover",
        ),
        *_some(SOURCE, "mean", "std", "image_size", "bad_images"),
        SETTINGS["calibration_images"].but(help="Training images that the weights are made good on."), SETTINGS["seed"],
        FOLDER["out"].but(help="The folder to write the pruned network to."), FOLDER["force"],
    )),
    "dashboard": Command((
        declare("127.0.0.1", "Address to serve at.", name="host"), declare(8080, "Port to serve at.", name="port"),
    ), "folder", "RUN", True),
    "report": Command((), "folder", "RUN", True),
    "list": Command((), "what", "metrics|strategies|granularities|criteria|tasks", required=False),
}  # fmt: skip


def options_of(command: str) -> tuple[Option, ...]:
    """The options of a command, including those of every granularity if it takes any."""
    found: list[Option] = []
    for one in COMMANDS[command].options:
        found += layout_options().values() if isinstance(one, str) else [one]
    return tuple(found)


def layout_options() -> dict[str, Option]:
    """The options that granularities declare, plug-ins included; the help text names the granularity.

    An option with the name of a general setting is left out. If two granularities declare one name, the first is shown, and
    each granularity checks the value by its own declaration.
    """
    layouts = dict(LAYOUTS)
    for granularity, point in plugins("granularity").items():
        try:
            layouts.setdefault(granularity, named(getattr(point.load(), "options", {})))
        except Exception:  # a broken package is reported where it is asked for, and must not stop other runs
            continue
    found: dict[str, Option] = {}
    for granularity, layout in layouts.items():
        for name, one in layout.items():
            if name not in SETTINGS:
                found.setdefault(name, one.but(help=f"With {granularity}: {one.help}", implied=True))
    return found
