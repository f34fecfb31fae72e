"""PyTorch's earlier exporter in place of its present one, which takes seconds where the earlier one takes none.

For tests that look at runs and for examples, most of whose time it would take: files have a runtime, checks and latencies as
ever. What the earlier one cannot write comes from the present one, and so does what tests in `backends/onnx` and
`engine/tasks` look at.
"""

import inspect
import io
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import onnx
import pytest
import torch

PRESENT = torch.onnx.export


@contextmanager
def quick_export():
    """Within it `torch.onnx.export`, as `backends/onnx/export.py` calls it, is quick."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.onnx, "export", _exported)
        yield


@contextmanager
def present_export():
    """Within it `torch.onnx.export` is what users have, whatever is around it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.onnx, "export", PRESENT)
        yield


def _exported(network, inputs, **options):
    if options["optimize"]:  # large networks are written otherwise
        try:
            return SimpleNamespace(model_proto=_by_earlier(network, inputs, **options))
        except Exception:  # the present one says why, or can do it
            pass
    return PRESENT(network, inputs, **options)


def _by_earlier(network, inputs, *, input_names, output_names, dynamic_shapes, opset_version, **_):
    names = (input_names or list(inspect.signature(network.forward).parameters))[: len(inputs)]
    axes = None if dynamic_shapes is None else dict(zip(names, dynamic_shapes, strict=True))
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.compiler, "_is_exporting_flag", True)
        if masks := sys.modules.get("transformers.masking_utils"):  # packed sequences, which no test has, take what it lacks
            patched.setattr(masks, "find_packed_sequence_indices", lambda positions: None)
        PRESENT(
            network, inputs, file, dynamo=False, input_names=names, output_names=output_names, dynamic_axes=axes,
            opset_version=opset_version,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())
