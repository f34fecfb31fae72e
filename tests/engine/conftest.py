"""Most runs here begin with the same few networks, whose export takes longer than all else in them."""

from types import SimpleNamespace

import onnx
import pytest
import torch

PLAIN = (bool, int, float, str, type(None))


@pytest.fixture(autouse=True, scope="package")
def _exported_once():
    """A network exported before, with the same code, attributes and weights, is not traced again; its file is checked again."""
    export, known = torch.onnx.export, {}

    def exported(network, inputs, **options):
        key = same(network, inputs, options) if options["optimize"] else None  # large networks are written otherwise
        if key is None:
            return export(network, inputs, **options)
        if key not in known:
            known[key] = export(network, inputs, **options).model_proto
        fresh = onnx.ModelProto()
        fresh.CopyFrom(known[key])
        return SimpleNamespace(model_proto=fresh)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.onnx, "export", exported)
        yield


def same(network, inputs, options):
    """What an export depends on; None where modules hold more than tensors, modules and plain values, such as hooks."""
    found, seen = [repr(options), *((x.shape, x.dtype) for x in inputs)], {}
    for name, module in network.named_modules(remove_duplicate=False):
        found += name, type(module), type(module).forward
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers"):
                for key, tensor in value.items():
                    found += key, seen.setdefault(id(tensor), len(seen)), None if tensor is None else content(tensor)
            elif attribute == "_modules":
                found += value
            elif isinstance(value, PLAIN) or (isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value)):
                found += attribute, value
            elif not isinstance(value, dict | set) or value:
                return None
    return tuple(found)


def content(tensor):
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.detach().numpy().tobytes()
