"""The page on Transformers does what it says: its blocks run, one after the other."""

import re
import runpy
from pathlib import Path

import pytest

import freeprune

ROOT = Path(freeprune.__file__).parent
PAGE = (ROOT / "docs" / "my-transformer.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

pytest.importorskip("transformers")

CHECKS = """
import json
from pathlib import Path
with torch.no_grad():
    tokens = torch.stack([item["input_ids"] for item in items(5)])
    wanted, loaded, found = (one.eval()(tokens).logits for one in (result.network, smaller, again))
assert torch.equal(loaded, wanted), "loaded"
assert torch.allclose(found, wanted, atol=1e-6), "from_pretrained"
onnx = json.loads(Path("runs/bert/summary.json").read_text())["onnx"]
assert onnx["dynamic_length"] and not onnx["warnings"], onnx
import onnxruntime
session = onnxruntime.InferenceSession("runs/bert/model.onnx")
assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask"]
assert [one.name for one in session.get_outputs()] == ["logits"]
short = tokens[:, :7]
(scores,) = session.run(None, {"input_ids": short.numpy(), "attention_mask": torch.ones_like(short).numpy()})
with torch.no_grad():
    assert torch.allclose(torch.from_numpy(scores), result.network(short).logits, atol=1e-5), "ONNX"
"""


def test_the_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    assert len(BLOCKS) == 5
    monkeypatch.chdir(tmp_path)
    Path("page.py").write_text("\n".join([*BLOCKS, CHECKS]))
    runpy.run_path("page.py", run_name="__main__")
    assert re.fullmatch(r"\d+ \d+ \d+", capsys.readouterr().out.strip().splitlines()[-1])
