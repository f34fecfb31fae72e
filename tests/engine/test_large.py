"""Runs on a large network in half precision: nothing is copied that can be shared, and the scores are those of float32."""

import json

import pytest
import torch
from torch import nn

import freeprune
from freeprune import copies
from freeprune.backends import Plan, apply, masked
from freeprune.backends.onnx import export, files
from freeprune.backends.plan import structure_of
from freeprune.engine.delivery import export as export_module
from freeprune.engine.delivery import finish as finish_module
from freeprune.engine.inputs import sharded
from freeprune.engine.inputs.adoption import in_float32


class Texts(nn.Module):
    """Tokens, a gated block with a norm, and the tied table as the last layer."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 16)
        self.norm = nn.RMSNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 32, False), nn.Linear(16, 32, False), nn.Linear(32, 16, False)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        y = self.norm(x)
        return self.head(x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))).mean(1)


def network():
    torch.manual_seed(0)
    made = Texts().bfloat16().eval()
    with torch.no_grad():
        made.table.weight.mul_(3)
    return made


def items(count):
    tokens = torch.randint(0, 20, (count, 6), generator=torch.Generator().manual_seed(count))
    return [(one, int(one[0]) % 20) for one in tokens]


def run(out, **options):
    asked = {"target": ["params=70%"], "trials": 4, "calibration_images": 16, "finetune": None, "rehearsal": False}
    return freeprune.prune(network(), (items(60), items(20)), out=out, **{**asked, **options})


def scores(folder):
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    return [line["score"] for line in lines if "score" in line]


@pytest.fixture
def no_onnx(monkeypatch):
    def refused(*_, **__):
        raise freeprune.FreePruneError("not tried")

    monkeypatch.setattr(export_module, "export_onnx", refused)


@pytest.mark.usefixtures("no_onnx")
def test_scores_and_weights_are_those_of_float32(tmp_path, monkeypatch):
    run(tmp_path / "copied", recovery=False)
    monkeypatch.setattr(copies, "LARGE", 0)
    result = run(tmp_path / "shared", recovery=False)
    assert scores(tmp_path / "copied") == scores(tmp_path / "shared")
    both = [freeprune.load(tmp_path / name, network()) for name in ("copied", "shared")]
    for one, other, own in zip(*(each.parameters() for each in (*both, result.network)), strict=True):
        assert one.dtype is other.dtype is own.dtype is torch.bfloat16
        assert torch.equal(one, other)
        assert torch.equal(one, own)
    assert not result.network._forward_pre_hooks


@pytest.mark.usefixtures("no_onnx")
def test_recovery_helps_a_large_network_too(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "LARGE", 0)
    given = run(tmp_path / "run").summary.recovery
    assert given.kept
    assert given.layers >= 3
    assert given.after > given.before


def test_the_masked_network_is_never_held(monkeypatch):
    monkeypatch.setattr(copies, "LARGE", 0)
    given = in_float32(network())
    tokens = torch.stack([tokens for tokens, _ in items(8)])
    kept = {"gate.weight": 0, "up.weight": 0, "down.weight": 1}
    ids = torch.arange(0, 32, 2).numpy()
    kept = {name: {dim: ids} for name, dim in kept.items()}
    plan = Plan(granularity="channel", structure=structure_of(given, kept), rates={}, kept=kept)
    hidden = masked(given, plan)
    assert {p.data_ptr() for p in hidden.parameters()} == {p.data_ptr() for p in given.parameters()}
    with torch.no_grad():
        assert torch.allclose(hidden(tokens), apply(given, plan)(tokens), atol=1e-5)


def test_a_run_writes_large_files_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(copies, "LARGE", 0)
    monkeypatch.setattr(export, "LARGEST_FILE", 0)
    monkeypatch.setattr(files, "SMALLEST", 100)
    monkeypatch.setattr(sharded.save_weights, "__defaults__", (700,))
    result = run(tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.onnx", "model.onnx.data", "model.safetensors.index.json"} <= names
    assert any(name.startswith("model-00001-of-") for name in names)
    assert "model.safetensors" not in names
    assert result.summary.agreement.compact_vs_onnx < 1e-4
    assert result.summary.onnx.bytes > (tmp_path / "run" / "model.onnx.data").stat().st_size
    tokens = torch.stack([tokens for tokens, _ in items(4)])
    assert torch.equal(freeprune.load(tmp_path / "run", network())(tokens), result.network(tokens))
    assert "down.weight" in (tmp_path / "run" / "report.html").read_text()
    memory = result.summary.memory
    assert memory.weights == 2 * (20 * 16 + 16 + 3 * 16 * 32)
    assert memory.resident > 10**7
    assert f"at most {memory.resident / 1e9:.2f} GB of memory" in str(result)
    assert f"at most {memory.resident / 1e9:.2f} GB of memory" in (tmp_path / "run" / "report.html").read_text()
    run(tmp_path / "run", force=True, trials=1, target=["params=90%"], finetune=None)
    monkeypatch.undo()
    run(tmp_path / "run", force=True)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert "model.safetensors" in names
    assert not any(name.startswith("model-0") or name.endswith((".data", ".index.json")) for name in names)


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (MemoryError("Unable to allocate 8 GiB"), "this machine"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "this machine"),
        (torch.OutOfMemoryError("CUDA out of memory"), "the device"),
    ],
)
def test_no_memory_left_is_a_sentence(tmp_path, monkeypatch, error, where):
    def full(*_):
        raise error

    monkeypatch.setattr(finish_module, "made_good", full)
    with pytest.raises(freeprune.FreePruneError, match=f"{where} is out of memory .* lower `calibration_images` or the"):
        run(tmp_path / "run")


def test_what_can_be_pruned_is_the_same(monkeypatch):
    given = network().float()
    expected = str(freeprune.inspect(given, ("ids:1x6",)))
    assert "branch" in expected
    monkeypatch.setattr(copies, "LARGE", 0)
    assert str(freeprune.inspect(network(), ("ids:1x6",))) == expected
