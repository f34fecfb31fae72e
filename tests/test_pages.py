"""The code of the pages runs, on small networks and few images, without the export, which takes most of the time elsewhere."""

import functools
import importlib
import inspect
import json
import math
import re
import shlex
import sys
import types
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from quick_export import present_export
from torch import nn
from torch.utils.data import TensorDataset

import freeprune
from freeprune.backends import CRITERIA, importance
from freeprune.backends.onnx.onnx_runtime import ONNX_RUNTIME
from freeprune.backends.onnx.quiet import quiet
from freeprune.engine.asked.settings import RunOptions
from freeprune.engine.asked.targets import LATENCY, parse_targets
from freeprune.engine.command.cli import main
from freeprune.engine.delivery import export as export_module
from freeprune.errors import FreePruneError

ROOT = Path(freeprune.__file__).parent
SHORT = {"trials": 3, "calibration_images": 20, "rehearsal": False, "progress": False}


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


class Net(nn.Module):
    """3x16x16 images in four classes; the names that the pages use."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, padding=1), nn.Linear(24, 4)

    def forward(self, x):
        x = torch.max_pool2d(torch.relu(self.conv1(x)), 2)
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


def images(count=80):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(count, 3, 16, 16, generator=generator), torch.arange(count) % 4)


@pytest.fixture
def given(tmp_path, monkeypatch):
    """What a page says its reader has, in a folder of its own, with short runs in place of the defaults."""
    whole = freeprune.prune

    @functools.wraps(whole)
    def prune(*args, **asked):
        return whole(*args, **{**SHORT, **asked, "trials": min(asked.get("trials", 3), 3)})

    def export(*args):
        raise FreePruneError("not in these tests")

    monkeypatch.setattr(freeprune, "prune", prune)
    monkeypatch.setattr(export_module, "export_onnx", export)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    networks = {"model": Net().eval(), "fresh_model": Net()}
    return {**networks, "train_set": images(), "test_set": images(40), "tune": lambda network, data: network}


def widths(network):
    return [layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def test_the_readme(given):
    """Its target on latency is one on MACs here: nothing is timed in tests."""
    (code,) = blocks("README.md")
    assert len([line for line in code.splitlines() if line]) == 4
    exec(code.replace('"latency": "60%"', '"macs": "60%"'), given)
    assert sum(p.numel() for p in given["smaller"].parameters()) < sum(p.numel() for p in Net().parameters())


def test_the_target_of_the_readme_is_a_target():
    (target,) = parse_targets({"latency": "60%"})
    assert (target.cost, target.value, target.relative) == (LATENCY, 0.6, True)


def section(page, heading):
    """The blocks of Python under a heading of the second level."""
    text = (ROOT / page).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_coming_from_torch_pruning_before(given):
    pytest.importorskip("torch_pruning")
    before, *_ = section("docs/migrate.md", "From Torch-Pruning")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(before, given)
    assert widths(given["model"]) == [8, 8]  # half of 16 and of 24, in steps of eight
    assert Path("pruned.pth").exists()


def test_coming_from_torch_pruning_after(given):
    _, after, score = section("docs/migrate.md", "From Torch-Pruning")
    exec(after, given)
    macs = given["result"].summary.cost["macs"]
    assert macs.pruned <= 0.25 * macs.dense
    assert widths(given["smaller"]) == widths(given["result"].network) != widths(given["model"])
    exec("import torch\n" + score, given)
    assert given["score"] < 0


def test_coming_from_nni(given):
    before, channels, weights = section("docs/migrate.md", "From NNI")
    compile(before, "nni", "exec")
    exec(channels, given)
    assert sum(widths(given["result"].network)) < sum(widths(given["model"]))
    exec(weights, given)
    nonzero = given["result"].summary.cost["nonzero"]
    assert nonzero.pruned <= 0.2 * nonzero.dense


def test_what_replaces_arguments_of_others_exists():
    """The right columns of the tables: criteria, and keywords of `prune`."""
    rows = [line.split(" | ") for line in (ROOT / "docs" / "migrate.md").read_text().splitlines() if line.startswith("| ")]
    right = [row[1] for row in rows]
    criteria = {name for cell in right if "criterion=" in cell for name in re.findall(r'"(\w+)"', cell)}
    assert len(criteria) == 8
    assert criteria <= set(CRITERIA)
    named = {name for cell in right for name in re.findall(r"`(\w+)=", cell)}
    assert {"target", "ignore", "only", "trials"} <= named
    assert named <= {*inspect.signature(freeprune.prune).parameters, *RunOptions.__annotations__}


@pytest.fixture
def classifier(given, monkeypatch):
    """The page's `my_model.py`, trained for a moment, and what its command for pruning writes."""
    page = "docs/my-classifier.md"
    Path("my_model.py").write_text(blocks(page)[0].replace("[:1440]", "[:320]"))
    monkeypatch.syspath_prepend(Path.cwd())
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    quoted = re.findall(r"^freeprune (.*)$", (ROOT / page).read_text().replace("\\\n", " "), re.MULTILINE)
    trained, inspected, pruned = map(shlex.split, quoted)
    short = ["--trials", "3", "--finetune-epochs", "0.05", "--calibration-images", "32", "--no-rehearsal"]
    for words in ([*trained, "--epochs", "0.5"], inspected, [*pruned, *short]):
        done = CliRunner().invoke(main, words, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    assert "left" in CliRunner().invoke(main, inspected).stdout
    yield blocks(page)
    sys.modules.pop("my_model", None)


def test_my_classifier(classifier, capsys):
    """Every block in turn, with one pass over fewer images in place of five."""
    _, onnx, load, tune, zeros = (block.replace("range(5)", "range(1)") for block in classifier)
    compile(onnx, "onnx", "exec")
    exec(load, {})
    assert int(re.search(r"Conv2d\(\d+, (\d+),", capsys.readouterr().out)[1]) < 48
    names = {}
    exec(tune, names)
    assert names["result"].summary.cost["macs"].pruned <= 0.4 * names["result"].summary.cost["macs"].dense
    exec(zeros, names)
    weights = json.loads(Path("runs/zeros/summary.json").read_text())["cost"]["nonzero"]
    assert weights["pruned"] <= 0.2 * weights["dense"]


def test_segmentation(given, monkeypatch):
    """The data of the page, on a network that gives a logit for each class and pixel."""
    code, any_size = section("docs/my-detector.md", "Segmentation")
    exec(code, given)
    made = types.ModuleType("my_unet")
    made.UNet = lambda: nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 2, 3, padding=1))
    monkeypatch.setitem(sys.modules, "my_unet", made)
    recipe = freeprune.Recipe(images=32, batch_size=16)
    result = freeprune.prune(made.UNet(), given["masks"](), target={"macs": 0.6}, finetune=recipe, out="runs/unet")
    assert (result.summary.task, result.summary.measure) == ("segmentation", "mean IoU")
    with present_export(), quiet():
        exec(any_size, given)
    images = torch.rand(3, 3, 24, 40)
    (found,) = ONNX_RUNTIME.outputs("any-size.onnx", (images,))
    assert torch.allclose(torch.from_numpy(found), given["smaller"](images), atol=1e-5)


def test_detection(given):
    code, *_ = section("docs/my-detector.md", "Detection")
    exec(code, given)

    class Grid(torch.utils.data.Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, i):
            there = (torch.arange(16).reshape(4, 4) == i % 16).float()
            return images(60)[i][0], {"there": there, "box": torch.rand(4, 4, 4) * there}

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.there, self.box = nn.Conv2d(3, 16, 4, 4), nn.Conv2d(16, 1, 1), nn.Conv2d(16, 4, 1)

        def forward(self, x):
            x = torch.relu(self.body(x))
            return {"there": self.there(x), "box": self.box(x)}

    recipe = freeprune.Recipe(images=32, batch_size=16)
    result = freeprune.prune(Heads(), (Grid(), Grid()), target={"macs": 0.6}, task=given["task"], finetune=recipe, out="grid")
    assert result.summary.measure == "found"
    assert 0 < result.summary.accuracy.finetuned <= 1


def test_a_detector_of_torchvision(given, monkeypatch):
    """On a detector in its manner: lists of images in, losses in training and boxes of any number in eval mode out."""

    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = type("Transform", (), {"normalize": staticmethod(lambda images: images - 0.5)})()
            self.backbone = Pyramid()
            self.head = RawHeads()

        def forward(self, images, targets=None):
            found = [self.head(list(self.backbone(self.transform.normalize(image)[None]).values())) for image in images]
            if self.training:
                return {"loss": sum(one["cls_logits"].square().mean() for one in found)}
            return [{"boxes": one["bbox_regression"][0][one["cls_logits"][0].amax(1) > 0]} for one in found]

    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 2, 1)

        def forward(self, x):
            one = torch.relu(self.one(x))
            return {"0": one, "1": torch.relu(self.two(one))}

    class RawHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.classes, self.boxes = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 4, 1)

        def forward(self, features):
            classes, boxes = ([head(x).flatten(2).mT for x in features] for head in (self.classes, self.boxes))
            return {"cls_logits": torch.cat(classes, 1), "bbox_regression": torch.cat(boxes, 1)}

    class Boxes(torch.utils.data.Dataset):
        def __len__(self):
            return 40

        def __getitem__(self, i):
            return images(40)[i][0], {"boxes": torch.zeros(i % 3, 4)}

    torchvision = types.ModuleType("torchvision.models.detection")
    torchvision.retinanet_resnet50_fpn = lambda num_classes: Detector()
    for name in ("torchvision", "torchvision.models", "torchvision.models.detection"):
        monkeypatch.setitem(sys.modules, name, torchvision)
    (code,) = section("docs/my-detector.md", "Detectors of torchvision")
    given |= {"train_set": Boxes(), "test_set": Boxes()}
    exec(code, given)
    assert sum(widths(given["smaller"])) < sum(widths(given["detector"]))
    with torch.no_grad():
        boxes = given["smaller"].eval()([torch.rand(3, 16, 20), torch.rand(3, 24, 16)])
    assert len(boxes) == 2


def test_no_labels_and_scores(given):
    """Images alone: a run, its plan applied again on others, and what metrics say of the result."""
    given |= {"images": images()[:][0], "other_images": images(60)[:][0]}
    exec(blocks("docs/no-labels.md")[0], given)
    assert 0 <= given["result"].summary.accuracy.final <= 1
    assert widths(given["smaller"]) == widths(given["result"].network)
    names = {"pruned": given["result"].network, "dense": given["model"], "labels": images()[:][1], "plan": given["result"].plan}
    calls = blocks("docs/score.md")[0].replace("freeprune.score(", "scored(")
    found = []
    exec(calls, {**names, "images": given["images"], "scored": lambda *a, **k: found.append(freeprune.score(*a, **k))})
    assert len(found) == calls.count("scored(") > 2
    assert all(math.isfinite(value) for value in found)


@pytest.fixture
def extension(tmp_path, monkeypatch):
    """The package of `docs/extend.md`, as if it had been installed."""
    for command in main.commands.values():
        monkeypatch.setattr(command, "_made", None)  # the options of a command are made once
    site = tmp_path / "site"
    info = site / "my_pruning-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "my_pruning.py").write_text("\n".join(blocks("docs/extend.md")))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-pruning\nVersion: 1.0\n")
    (toml,) = blocks("docs/extend.md", "toml")
    points = re.sub(r'\[project.entry-points."(.*?)"\]', r"[\1]", toml[toml.index("[project.entry") : toml.index("[tool")])
    (info / "entry_points.txt").write_text(points.replace('"', ""))
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("my_pruning", None)


@pytest.mark.usefixtures("extension")
def test_a_package_of_ones_own(given):
    """Metric, strategy, granularity, criterion and runtime of the page, all in one run."""
    for what, name in (("metrics", "sureness"), ("strategies", "nearby"), ("granularities", "rows"), ("criteria", "largest")):
        assert re.search(rf"^{name} ", CliRunner().invoke(main, ["list", what]).stdout, re.MULTILINE)
    result = freeprune.prune(
        given["model"], (given["train_set"], given["test_set"]), target={"nonzero": 0.5}, granularity="rows", metric="sureness",
        strategy="nearby", criterion="largest", runtime="reference", finetune=None, out="own", compaction=False,
    )  # fmt: skip
    config = json.loads(Path("own/config.json").read_text())
    assert [config[name] for name in ("granularity", "metric", "strategy", "criterion", "runtime")] == [
        "rows", "sureness", "nearby", "largest", "reference",
    ]  # fmt: skip
    kept = [p.detach().flatten(1).any(dim=1) for p in result.network.parameters() if p.dim() == 4]
    assert 0 < sum(int(rows.sum()) for rows in kept) < sum(map(len, kept))


@pytest.mark.usefixtures("extension")
def test_a_granularity_of_ones_own_with_an_option():
    my_pruning = importlib.import_module("my_pruning")
    network, example = Net().eval(), (torch.rand(2, 3, 16, 16),)
    plan = my_pruning.Bands(network, example, importance("l2", network), rows=4)
    assert {group.units for group in plan.groups} == {4, 6, 1}


@pytest.mark.usefixtures("extension")
def test_a_runtime_of_ones_own_runs_and_times_files(tmp_path):
    runtime = importlib.import_module("my_pruning").reference
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    model = helper.make_model(helper.make_graph(nodes, "one", [x], [y]), opset_imports=[helper.make_opsetid("", 18)])
    (tmp_path / "one.onnx").write_bytes(model.SerializeToString())
    given = torch.tensor([[-1.0, 0.0, 1.0]] * 3)  # three rows for a file that takes two
    (outputs,) = runtime.outputs(tmp_path / "one.onnx", (given,))
    assert outputs.tolist() == given.relu().tolist()
    assert runtime.latency_ms({"one": tmp_path / "one.onnx"}, (given,), threads=1, repeats=3)["one"] > 0
    assert runtime.kernel_ms(model.SerializeToString(), "Relu", 1, runs=(2, 3), seconds=1.0) > 0
    assert runtime.version == onnx.__version__


def test_no_page_with_code_is_left_out():
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("*.py"))
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    assert [page.name for page in pages if "```python" in page.read_text() and page.name not in tests] == []


def test_the_readme_shows_the_results(monkeypatch):
    """Its table is what `benchmarks/first_screen.py` makes of `benchmarks/results`, in ten lines."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    first_screen = importlib.import_module("first_screen")
    table = first_screen.table()
    assert first_screen.TABLE.search(first_screen.README.read_text())[0] == table
    assert len(table.splitlines()) <= 10
    assert "| **FreePrune** |" in table
