"""The page on tasks does what it says: a task is added by one file and one line, and three functions make one."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import freeprune

ROOT = Path(freeprune.__file__).parent
PAGE = (ROOT / "docs" / "tasks.md").read_text()
GRAPHS, FUNCTIONS, FILE, LINE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

USE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset
import freeprune

generator = torch.Generator().manual_seed(0)
images = torch.rand(60, 1, 8, 8, generator=generator)
{data}
network = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), {last})
result = freeprune.prune(
    network, (data, data), target={{"macs": 0.6}}, trials=3, calibration_images=20, out="out", force=True, progress=False,
    finetune=freeprune.Recipe(images=32, batch_size=16, learning_rate=1e-3), {task},
)
print(result)
print(result.summary.task, result.summary.measure, result.summary.unit)
"""
GRAPHS = (
    """
import torch
from torch import nn
import freeprune

class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x, edge_index):
        hidden = torch.relu(self.first(x))
        return self.last(torch.zeros_like(hidden).index_add(0, edge_index[1], hidden[edge_index[0]]))

"""
    + GRAPHS
    + """
torch.manual_seed(0)
data = [(torch.randn(5, 6), torch.randint(5, (2, 9)), torch.randint(3, (5,))) for _ in range(40)]
network = AsOneGraph(Graph())
x, edges = (torch.stack([item[k] for item in data]) for k in (0, 1))
torch.testing.assert_close(network(x, edges), Each(network.network)(x, edges))
result = freeprune.prune(
    network, (data, data), target={"macs": 0.6}, trials=3, calibration_images=20, out="out", force=True, progress=False,
    finetune=None,
)
print(result.summary.task, result.summary.cost["macs"].pruned < result.summary.cost["macs"].dense)
"""
)
LIST = """
from freeprune.engine.command.cli import main
main(["list", "tasks"])
"""
COUNTS = USE.format(
    data="data = TensorDataset(images, (9 * images.mean((1, 2, 3))).long())", last="nn.Linear(256, 1)", task="task='counts'"
)
OWN = FUNCTIONS + USE.format(
    data="""
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 60
    def __getitem__(self, i):
        return images[i], {"kind": i % 3, "size": images[i].sum()}
class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.kind, self.size = nn.Linear(256, 3), nn.Linear(256, 1)
    def forward(self, x):
        return {"kind": self.kind(x), "size": self.size(x).flatten()}
data = Data()
""",
    last="Heads()",
    task="task=task",
)


def run(source, folder, home):
    path = folder / "use.py"
    path.write_text(source)
    environment = {**os.environ, "PYTHONPATH": str(home), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, path], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def home(tmp_path):
    """A copy of the package with the task of the page: one new file, one line and its import."""
    copy = tmp_path / "home" / "freeprune"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "tests", "docs", "runs", "build", "benchmarks"))
    (copy / "engine" / "tasks" / "counts.py").write_text(FILE)
    table = copy / "engine" / "tasks" / "__init__.py"
    text = table.read_text()
    before = "TASKS: dict[str, Task] = {\n"
    assert before in text
    table.write_text(text.replace(before, f"from .counts import Counts\n\n{before}{LINE}"))
    return copy.parent


def test_a_task_is_added_by_one_file_and_one_line(home, tmp_path):
    printed = run(COUNTS + LIST, tmp_path, home)
    assert re.search(r"^counts mean absolute error *$", printed, re.MULTILINE)
    assert "test mean absolute error (less is better)" in printed
    assert re.search(r"^counts +How many there are", printed, re.MULTILINE)


def test_a_network_of_graphs_is_pruned_in_its_wrapper(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("use.py").write_text(GRAPHS)
    runpy.run_path("use.py", run_name="__main__")
    assert capsys.readouterr().out.splitlines()[-1] == "tokens True"


def test_three_functions_are_a_task(tmp_path, monkeypatch, capsys):
    """In this process: one of its own would load PyTorch first."""
    monkeypatch.chdir(tmp_path)
    Path("use.py").write_text(OWN)
    runpy.run_path("use.py", run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1] == "own:OwnTask error of size px"
