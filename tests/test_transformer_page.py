"""The page on Transformers does what it says: its blocks run, one after the other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import freeprune

ROOT = Path(freeprune.__file__).parent
PAGE = (ROOT / "docs" / "my-transformer.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

pytest.importorskip("transformers")

CHECKS = """
import json
with torch.no_grad():
    tokens = torch.stack([item["input_ids"] for item in items(5)])
    wanted, loaded, found = (one.eval()(tokens).logits for one in (result.network, smaller, again))
assert torch.equal(loaded, wanted), "loaded"
assert torch.allclose(found, wanted, atol=1e-6), "from_pretrained"
onnx = json.load(open("runs/bert/summary.json"))["onnx"]
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


def test_the_blocks_run_in_order(tmp_path):
    assert len(BLOCKS) == 5
    path = tmp_path / "page.py"
    path.write_text("\n".join([*BLOCKS, CHECKS]))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\d+ \d+ \d+", done.stdout.strip().splitlines()[-1])
