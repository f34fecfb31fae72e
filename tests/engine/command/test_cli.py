import json
import os
import re
import signal
import subprocess
import sys
from inspect import signature

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file, save_file

import freeprune
from freeprune.backends import BACKENDS, CRITERIA
from freeprune.engine import prune as run_module
from freeprune.engine.asked.settings import HardwareOptions, Options, RunOptions, StudyOptions, TrainOptions, settings
from freeprune.engine.command.cli import main
from freeprune.engine.command.listing import TABLES, listed
from freeprune.engine.command.options import passed_on
from freeprune.engine.delivery import export as export_module
from freeprune.engine.inputs.data import load_data
from freeprune.engine.inputs.dense import GivenModel
from freeprune.engine.run.job import prepare
from freeprune.errors import FreePruneError
from freeprune.metrics import METRICS
from freeprune.search import STRATEGIES

FAST = [
    "--trials",
    "4",
    "--strategy",
    "random",
    "--calibration-images",
    "64",
    "--finetune-images",
    "64",
    "--target",
    "macs=60%",
]


def call(*arguments):
    """Exit status, stdout, stderr."""
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


TALKING = """
import os
from torch import nn
print("printed")
os.system("echo started")

def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 3))
"""


@pytest.mark.parametrize("processes", [False, True])
def test_what_the_users_code_prints_is_not_in_the_json(processes, tmp_path):
    (tmp_path / "talking.py").write_text(TALKING)
    arguments = ["inspect", f"{tmp_path / 'talking.py'}:net", "--input", "1x8x8", "--json"]
    if processes:
        done = subprocess.run([sys.executable, "-m", "freeprune", *arguments], capture_output=True, text=True, check=True)
        output, errors = done.stdout, done.stderr
        assert "started" in errors
    else:
        _, output, errors = call(*arguments)
    assert json.loads(output)["granularity"] == "channel"
    assert "printed" in errors


@pytest.mark.parametrize(
    ("arguments", "name"), [(("prune", "digits:cnn", "--data", "digits", "--out", ""), "--out"), (("report", ""), "RUN")]
)
def test_an_empty_path_is_refused(arguments, name):
    assert call(*arguments)[2] == f"freeprune: error: {name} is an empty text; give a path\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "digits.safetensors"
    status, output, _ = call("train", "digits:cnn", "--data", "digits", "--epochs", "1", "--out", path)
    assert status == 0
    assert "test accuracy" in output
    return path


def test_the_seed_decides_the_trained_weights(tmp_path):
    arguments = ["train", "digits:cnn", "--data", "digits", "--epochs", "0.1"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        status, _, _ = call(*arguments, "--seed", seed, "--out", tmp_path / f"{name}.safetensors")
        assert status == 0
    a, b, c = ((tmp_path / f"{name}.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_weights_that_are_there_are_replaced_only_if_that_is_asked_for(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_text("mine")
    arguments = ["train", "digits:cnn", "--data", "digits", "--epochs", "0", "--out", path]
    assert call(*arguments) == (
        2,
        "",
        f"freeprune: error: {path} exists already; give another --out, or replace it with --force\n",
    )
    assert path.read_text() == "mine"
    assert call(*arguments, "--force")[0] == 0
    assert path.read_bytes() != b"mine"


def test_options_of_a_search_that_is_not_made_are_named(weights, tmp_path):
    run = ["prune", "digits:cnn", "--weights", weights, "--data", "digits", "--target", "macs=60%", "--finetune-epochs", "0"]
    run += ["--calibration-images", "64", "--no-rehearsal", "--trials", "0", "--force", "--out", tmp_path / "out"]
    assert "nothing is searched" not in call(*run)[1]
    said = "note: nothing is searched, so --strategy, --proposals have no effect"
    assert said in call(*run, "--proposals", "3", "--strategy", "evolution")[1]


def test_a_run_prints_a_table_and_leaves_a_folder(weights, tmp_path):
    out = tmp_path / "out"
    status, output, errors = call("prune", "digits:cnn", "--weights", weights, "--data", "digits", *FAST, "--out", out)
    assert status == 0
    assert errors == ""
    for word in ("MACs", "target 60.0%", "after fine-tuning", "compact against ONNX"):
        assert word in output
    names = {"config.json", "trials.jsonl", "plan.json", "model.safetensors", "model.onnx", "summary.json", "report.html"}
    assert {path.name for path in out.iterdir()} == names
    assert json.loads((out / "config.json").read_text())["target"] == ["macs=60%"]


def test_a_network_that_cannot_be_exported_is_pruned_all_the_same(weights, tmp_path, monkeypatch):
    def refuse(*args):
        raise FreePruneError("the network cannot be exported to ONNX (an operator is missing); prune it without")

    monkeypatch.setattr(export_module, "export_onnx", refuse)
    out = tmp_path / "out"
    status, output, _ = call("prune", "digits:cnn", "--weights", weights, "--data", "digits", *FAST, "--out", out)
    assert status == 0
    assert "warning: the network cannot be exported" in output
    summary = json.loads((out / "summary.json").read_text())
    assert summary["onnx"]["bytes"] is None
    assert summary["agreement"]["compact_vs_onnx"] is None
    assert (out / "model.safetensors").exists()


def test_json_is_the_summary(weights, tmp_path):
    out = tmp_path / "out"
    arguments = ["prune", "digits:cnn", "--weights", weights, "--data", "digits", *FAST, "--out", out, "--json"]
    status, output, _ = call(*arguments)
    assert status == 0
    assert json.loads(output) == json.loads((out / "summary.json").read_text())
    assert call(*arguments, "--resume")[1] == output


def test_a_function_of_ones_own_fine_tunes(weights, tmp_path):
    (tmp_path / "mine.py").write_text("def leave(network, data):\n    return network\n")
    arguments = ["prune", "digits:cnn", "--weights", weights, "--data", "digits", *FAST[:-4], "--target", "macs=60%"]
    status, output, _ = call(*arguments, "--finetune", f"{tmp_path / 'mine.py'}:leave", "--out", tmp_path / "out", "--json")
    assert status == 0
    accuracy = json.loads(output)["accuracy"]
    assert accuracy["finetuned"] == accuracy["recovered"]


@pytest.mark.parametrize(("what", "table"), [("metrics", METRICS), ("strategies", STRATEGIES), ("granularities", BACKENDS)])
def test_lists_have_a_line_each_with_the_name_first(what, table):
    status, output, _ = call("list", what)
    assert status == 0
    assert [line.split()[0] for line in output.splitlines()] == list(table)
    assert all(len(line.split()) > 2 for line in output.splitlines())


def test_all_lists_at_once():
    status, output, _ = call("list")
    assert status == 0
    heads = [line.removesuffix(":") for line in output.splitlines() if line.endswith(":") and " " not in line]
    assert heads == list(TABLES)
    assert all(call("list", what)[1] in output for what in TABLES)


GIVEN = ["prune", "digits:cnn", "--data", "digits", "--target", "macs=50%", "--out", "OUT"]


def replaced(**changes):
    """The arguments of a run with some changed; None leaves one out."""
    arguments = list(GIVEN)
    for name, value in changes.items():
        option = "--" + name.replace("_", "-")
        if option in arguments:
            at = arguments.index(option)
            arguments[at : at + 2] = [option, value] if value is not None else []
        else:
            arguments += [option, value]
    return arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (replaced(target="macs=0"), "leaves nothing"),
        (replaced(target="fast"), "malformed"),
        (replaced(target=None), "Missing option '--target'"),
        (replaced(data="digit"), "there is no data 'digit'; did you mean 'digits'"),
        (replaced(data="imagefolder:nowhere"), "nowhere"),
        (replaced(weights="nowhere.pt"), "nowhere.pt"),
        (replaced(trials="many"), "'many' is not a valid integer"),
        (replaced(mean="a,b"), "--mean 'a,b' is no list of numbers"),
        (replaced(threads="0"), "--threads is 0"),
        (replaced(finetune="nowhere.py:f"), "nowhere.py"),
        ([*replaced(finetune_epochs="1"), "--finetune-images", "5"], "give one"),
        ([*replaced(finetune_epochs="0"), "--distill", "0.5"], "--distill was given, but --finetune-epochs 0 trains nothing"),
        ([*replaced(finetune_images="0"), "--clip", "1"], "--clip was given, but --finetune-images 0 trains nothing"),
        ([*replaced(finetune="a.py:f"), "--learning-rate", "1"], "--learning-rate was given, but --finetune a.py:f trains"),
        (["compare", *GIVEN[1:], "--distill", "0"], "compare trains only with --finetune-epochs"),
        (["prune", "resnet", *GIVEN[2:]], "resnet"),
        (["prnue"], "No such command 'prnue'"),
        (["list", "metric"], "did you mean 'metrics'"),
        (
            ["train", "digits:cnn", "--data", "digits", "--out", "weights.pt"],
            "--out is 'weights.pt'; give a file that ends in",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, output, errors = call(*arguments)
    assert status == 2
    assert output == ""
    assert errors.startswith("freeprune: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_stops_the_run_before_the_search(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(6):
                pixels = np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    bad = tmp_path / "data" / "train" / "dog" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    out = tmp_path / "out"
    arguments = ["prune", "cifar:resnet20", "--data", f"imagefolder:{tmp_path / 'data'}", "--target", "macs=50%", "--out", out]
    status, _, errors = call(*arguments)
    assert status == 2
    assert str(bad) in errors
    assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_go_on(number, weights, tmp_path, monkeypatch):
    def interrupted(*args):
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)

    monkeypatch.setattr(run_module, "finish", interrupted)
    arguments = ["prune", "digits:cnn", "--weights", weights, "--data", "digits", *FAST, "--out", tmp_path / "out"]
    status, _, errors = call(*arguments)
    assert status == 130
    assert "--resume" in errors
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == before
    assert len((tmp_path / "out" / "trials.jsonl").read_text().splitlines()) == 5
    assert call(*arguments, "--resume")[0] == 0


@pytest.mark.parametrize("words", [["train", "digits:cnn", "--data", "digits", "--out", "x.safetensors"], [*GIVEN[:-1], "out"]])
def test_an_interrupt_before_anything_is_kept_promises_nothing(words, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("freeprune.engine.command.options.data_of", interrupted)
    assert call(*words) == (130, "", "freeprune: interrupted\n")


def test_a_network_that_guesses_is_doubted_on_stderr(tmp_path):
    arguments = ["prune", "digits:cnn", "--data", "digits", "--target", "macs=60%", "--trials", "0", "--finetune-epochs", "0"]
    status, output, errors = call(*arguments, "--calibration-images", "64", "--json", "--out", tmp_path / "out")
    assert status == 0
    assert json.loads(output)
    assert errors.startswith("freeprune: warning: the dense network has ")
    assert (
        "give the --weights that it was trained to, and check that the classes and the preparation of the inputs (of images "
        in errors
    )
    assert "--image-size, --mean and --std) are its own" in errors
    assert errors.count("\n") == 1
    assert json.loads(output)["doubt"].startswith("the dense network has ")
    status, output, errors = call(*arguments, "--calibration-images", "64", "--resume", "--out", tmp_path / "out")
    assert status == 0
    assert "warning: the dense network has " in output
    assert "give the --weights that it was trained to" in output


@pytest.mark.parametrize("command", ["report", "dashboard"])
def test_a_damaged_folder_is_to_be_made_again_by_its_run(command, tmp_path):
    (tmp_path / "config.json").write_text("{")
    status, _, errors = call(command, tmp_path)
    assert status == 2
    assert "start the run again with --force" in errors


HEAVY = ("torch", "numpy", "scipy", "onnx", "optuna", "rich")


HELP = [["--help"], ["--version"], *([name, "--help"] for name in sorted(main.commands)), *(["list", what] for what in TABLES)]


def test_what_there_is_is_said_without_heavy_imports():
    code = f"""
import contextlib, io, sys
import freeprune.engine.command.cli as cli
for words in {HELP}:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        try:
            cli.main(words)
        except SystemExit as end:
            assert not end.code
    print(*words, bool(shown.getvalue()), [name for name in {HEAVY} if name in sys.modules], sep="|")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == ["|".join([*words, "True", "[]"]) for words in HELP]


@pytest.mark.parametrize(
    ("what", "table"),
    [("metrics", METRICS), ("strategies", STRATEGIES), ("granularities", BACKENDS), ("criteria", CRITERIA)],
)
def test_what_is_read_from_the_source_is_what_stands_in_the_tables(what, table):
    assert listed(what) == {name: entry.__doc__.strip().splitlines()[0] for name, entry in table.items()}


def test_a_plan_is_applied_again_byte_for_byte(weights, tmp_path):
    arguments = ["prune", "digits:cnn", "--weights", weights, "--data", "digits", "--target", "macs=60%", "--trials", "0"]
    call(*arguments, "--finetune-epochs", "0", "--calibration-images", "64", "--out", tmp_path / "run")
    again = ["apply", "digits:cnn", "--weights", weights, "--plan", tmp_path / "run" / "plan.json", "--out"]
    for name in ("a", "b"):
        status, output, _ = call(*again, tmp_path / name)
        assert status == 0
        assert "parameters" in output
    for file in ("plan.json", "model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert (tmp_path / "a" / "plan.json").read_bytes() == (tmp_path / "run" / "plan.json").read_bytes()
    assert "already holds a pruned network" in call(*again, tmp_path / "a")[2]
    assert call(*again, tmp_path / "a", "--force")[0] == 0
    assert "already holds a run" in call(*again, tmp_path / "run")[2]
    other = ["apply", "cifar:resnet20", "--weights", weights, "--plan", tmp_path / "run", "--out", tmp_path / "c"]
    assert call(*other)[0] == 2


@pytest.mark.parametrize(
    "given",
    [
        ("--mean", "0.5"),
        ("--std", "0.5"),
        ("--image-size", "8"),
        ("--bad-images", "skip"),
        ("--calibration-images", "8"),
        ("--seed", "1"),
    ],
    ids=lambda given: given[0],
)
def test_options_of_data_without_data_are_refused(given, tmp_path):
    status, _, told = call("apply", "digits:cnn", "--weights", "w.pt", "--plan", "plan.json", "--out", tmp_path / "out", *given)
    assert status == 2
    assert f"{given[0]} was given without --recover" in told


def test_without_labels_from_a_folder_to_a_recovered_network(weights, tmp_path):
    digits = load_data("digits").train.pixels[:64, 0]
    for i, pixels in enumerate((255 * digits).byte().numpy()):
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02d}.png")
    network = tmp_path / "grey.py"
    network.write_text(
        "from freeprune.engine.inputs.networks import NETWORKS\n"
        "from torch import nn\n"
        "class Grey(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.network = NETWORKS['digits:cnn']()\n"
        "    def forward(self, images): return self.network(images[:, :1])\n"
    )
    state = {f"network.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(state, tmp_path / "grey.safetensors")
    data, model = f"imagefolder:{tmp_path / 'images'}", [f"{network}:Grey", "--weights", tmp_path / "grey.safetensors"]
    scale = ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5", "--calibration-images", "32"]
    run = [*model, "--data", data, *scale, "--target", "macs=60%", "--trials", "0", "--finetune-epochs", "0", "--no-compaction"]
    status, output, _ = call("prune", *run, "--out", tmp_path / "run")
    assert status == 0
    assert "test agreement with the dense network" in output
    assert "accuracy" not in output
    again = ["apply", *model, "--plan", tmp_path / "run", "--out", tmp_path / "again"]
    status, output, _ = call(*again, "--recover", data, *scale)
    assert status == 0
    assert re.search(r"\d weights recovered: .* nats from the dense network before and .* after, on other images", output)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()
    scored = [
        "score",
        *model,
        "--data",
        data,
        *scale,
        "--plan",
        tmp_path / "run",
        "--pruned",
        tmp_path / "run/model.safetensors",
    ]
    status, output, _ = call(*scored)
    assert status == 0
    assert output.startswith("freeprune -")
    status, _, told = call("train", *model, "--data", data, *scale[:4], "--out", tmp_path / "trained.safetensors")
    assert status == 2
    assert "have no labels to train on" in told


def test_the_onnx_file_says_which_channels_are_left(weights, tmp_path):
    arguments = ["prune", "digits:cnn", "--weights", weights, "--data", "digits", *FAST, "--out", tmp_path / "out"]
    call(*arguments)
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert json.loads(metadata["channels"]) == plan["kept"]
    assert metadata["granularity"] == "channel"


KEYWORDS = {
    "prune": RunOptions,
    "compare": Options,
    "sweep": Options,
    "correlate": StudyOptions,
    "pick": HardwareOptions,
    "train": TrainOptions,
    "apply": {},
}


@pytest.mark.parametrize("command", sorted(KEYWORDS))
def test_no_option_is_taken_and_then_ignored(command):
    """What a command does not use up itself, its function takes under the same name."""
    offered = {parameter.name: None for parameter in main.commands[command].params[1:]}
    taken = {*signature(getattr(freeprune, command)).parameters, *getattr(KEYWORDS[command], "__annotations__", ())}
    assert passed_on(offered).keys() <= taken


@pytest.mark.parametrize(("given", "meant"), [(None, None), ("none", ()), ("erk, uniform", ("erk", "uniform"))])
def test_warm_starts_are_named_or_none_at_all(given, meant):
    words = GIVEN[1:] if given is None else [*GIVEN[1:], "--warm-starts", given]
    assert main.commands["prune"].make_context("prune", words).params["warm_starts"] == meant


@pytest.mark.parametrize(
    ("trials", "expected"), [(9, ()), (10, ("erk", "global", "magnitude")), (300, ("erk", "global", "magnitude"))]
)
def test_a_search_begins_with_allocations_that_cost_nothing_where_it_can_afford_them(trials, expected):
    def begins_with(granularity, **more):
        asked = settings(["macs=50%"], {"granularity": granularity, "calibration_images": 16, **more}, trials=trials)
        return prepare(GivenModel("digits:cnn"), "digits", asked, None).settings.warm_starts

    assert begins_with("weight") == expected
    assert begins_with("weight", warm_starts=()) == ()
    channels = ("uniform", "inner", "magnitude", "depth") if expected else ()
    for granularity in ("channel", "channel+nm"):
        assert begins_with(granularity) == channels


@pytest.mark.parametrize(("granularity", "geometric"), [("channel", False), ("channel+nm", False), ("weight", True)])
def test_what_stays_of_weights_is_searched_by_factors(granularity, geometric):
    job = prepare(GivenModel("digits:cnn"), "digits", settings(["nonzero=60%"], {"granularity": granularity}), None)
    assert job.space.geometric == job.within(job.settings.target).space.geometric == geometric


WATCHED = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch is loaded with", os.environ.get("OMP_WAIT_POLICY"))
            sys.exit(7)

sys.meta_path.insert(0, Watch())
from freeprune.engine.command.cli import main
main(["score", "digits:cnn", "--data", "digits", "--plan", "nowhere"])
"""


@pytest.mark.parametrize(("own", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_idle_threads_sleep_unless_told_otherwise(own, policy):
    """OpenMP reads the variable once, when torch is loaded."""
    around = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, check=False, env={**around, **own}
    )  # fmt: skip
    assert done.stdout == f"torch is loaded with {policy}\n"
    assert done.returncode == 7, done.stderr
