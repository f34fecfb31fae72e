"""Networks as people hold them: unwrapped, in float32, or refused in a sentence; what was given stays as it is."""

import copy
import math
import threading

import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import TensorDataset
from toys import network

import freeprune
from freeprune import FreePruneError
from freeprune.engine.command.cli import main
from freeprune.engine.inputs.adoption import WRAPPERS, adopted, bare, in_float32
from freeprune.engine.inputs.weights import load_weights
from freeprune.engine.inspection.groups import inspect

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")

IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def outputs(net, images=IMAGES):
    with torch.no_grad():
        return copy.deepcopy(net).eval()(images)


class Outer(nn.Module):
    """Uses what it is given, twice."""

    def __init__(self, inner):
        super().__init__()
        self.inner = self.again = inner
        self.others = nn.ModuleList([inner])

    def forward(self, x):
        return self.inner(x) + self.again(x) + self.others[0](x)


def with_compiled_call(net):
    net.compile()
    net[3].compile()
    return net


def with_compiled_forward(net):
    net.forward = torch.compile(net.forward)
    return net


def of_type(path):
    """A module of a class as another package has it."""
    module, _, name = path.rpartition(".")
    return type(name, (nn.Module,), {"__module__": module, "__qualname__": name})()


def wrapper(path):
    def wrapped(net):
        made = of_type(path)
        setattr(made, WRAPPERS[path], net)
        return made

    return wrapped


WRAPPED = {
    "DataParallel": nn.DataParallel,
    "compile": torch.compile,
    "AveragedModel": AveragedModel,
    "nested": lambda net: nn.DataParallel(torch.compile(AveragedModel(net))),
    "inside": lambda net: Outer(torch.compile(nn.DataParallel(net))),
    "deep inside": lambda net: Outer(nn.Sequential(AveragedModel(nn.Sequential(nn.DataParallel(net))))),
    "module.compile()": with_compiled_call,
    "compiled forward": with_compiled_forward,
    **{path: wrapper(path) for path in WRAPPERS if path.startswith(("torch.nn.parallel.dist", "light", "timm"))},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_network_is_taken_out_and_left_as_it_is(name):
    plain = network()
    given = WRAPPED[name](copy.deepcopy(plain))
    before = [(n, type(m), m._compiled_call_impl, vars(m).get("forward")) for n, m in given.named_modules()]
    found = adopted(given)
    expected = (
        {"inside": Outer, "deep inside": lambda net: Outer(nn.Sequential(nn.Sequential(net)))}.get(name, lambda net: net)
    )(plain)
    assert [(n, type(m)) for n, m in found.named_modules()] == [(n, type(m)) for n, m in expected.named_modules()]
    assert not any(m._compiled_call_impl or "forward" in vars(m) for m in found.modules())
    assert torch.equal(outputs(found), outputs(expected))
    assert before == [(n, type(m), m._compiled_call_impl, vars(m).get("forward")) for n, m in given.named_modules()]


def test_a_plain_network_is_taken_as_it_is():
    plain = network()
    assert adopted(plain) is plain


class Casts(nn.Module):
    """Layers of several types, with the casts between them that this takes."""

    def __init__(self):
        super().__init__()
        self.body = network()[:5].bfloat16()
        self.last, self.dtype = network()[5:], torch.bfloat16
        self.register_buffer("count", torch.tensor(3))
        self.scale = torch.ones(1, dtype=torch.bfloat16)

    def forward(self, x):
        return self.last((self.body(x.to(self.dtype).bfloat16()) * self.scale).bfloat16().float())


def half_but_norms():
    made = network().half()
    made[1].float()
    return made


TYPES = {
    "bfloat16": lambda: network().bfloat16(), "float16": lambda: network().half(), "float64": lambda: network().double(),
    "half but norms": half_but_norms, "casts": Casts,
}  # fmt: skip


def inputs_of(net):
    first = next(net.parameters()).dtype
    return IMAGES if isinstance(net, Casts) else IMAGES.to(first)


@pytest.mark.parametrize("name", TYPES)
def test_any_floating_types_become_float32_in_a_copy(name):
    given = TYPES[name]().eval()
    before = {n: (t.dtype, t.clone()) for n, t in given.state_dict().items()}
    expected = outputs(given, inputs_of(given))
    found = adopted(given)
    assert {t.dtype for t in found.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.allclose(outputs(found), expected.float(), atol=0.02)
    assert outputs(found, IMAGES.double().float()).dtype == torch.float32
    assert all((t.dtype, True) == (before[n][0], torch.equal(t, before[n][1])) for n, t in given.state_dict().items())
    assert not any(module._forward_pre_hooks for module in given.modules())
    assert torch.equal(outputs(given, inputs_of(given)), expected)


def images(dtype=torch.float32):
    labels = torch.arange(60) % 3
    return TensorDataset((IMAGES[labels] + 0.1 * torch.randn(60, 1, 8, 8)).to(dtype), labels)


def prune(net, out, data=None, **more):
    options = {"target": {"macs": 0.6}, "trials": 2, "strategy": "random", "calibration_images": 20, "finetune": None, **more}
    return freeprune.prune(net, data or (images(), images()), out=out, **options)


@pytest.mark.parametrize("name", ["float16", "casts"])
def test_the_result_has_the_given_types_and_is_that_of_the_files(name, tmp_path):
    """Training goes on in float32; what leaves it is rounded, so that every form of the result holds the same numbers."""
    result = prune(TYPES[name](), tmp_path / "out", finetune=freeprune.Recipe(images=40, batch_size=20))
    given = TYPES[name]()
    assert {n: t.dtype for n, t in result.network.state_dict().items()} == {n: t.dtype for n, t in given.state_dict().items()}
    loaded = freeprune.load(tmp_path / "out", TYPES[name]())
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in result.network.state_dict().items())
    again = prune(TYPES[name](), tmp_path / "out", finetune=freeprune.Recipe(images=40, batch_size=20), resume=True)
    assert all(torch.equal(t, loaded.state_dict()[n]) for n, t in again.network.state_dict().items())
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: IMAGES.numpy()})
    assert output.dtype == "float32"
    assert torch.allclose(torch.from_numpy(output), outputs(in_float32(loaded)), atol=1e-4)
    assert torch.isfinite(result.network(inputs_of(given))).all()


def test_the_users_own_fine_tuning_gets_the_network_in_its_own_types(tmp_path):
    seen = []

    def tune(smaller, data):
        seen.extend(parameter.dtype for parameter in smaller.parameters())
        with torch.no_grad():
            smaller[7].bias.add_(1.0)
        return torch.compile(nn.DataParallel(smaller))

    net = network().bfloat16()
    data = images(torch.bfloat16), images(torch.float64)
    result = prune(net, tmp_path / "out", data, finetune=tune, trials=0, recovery=False)
    assert set(seen) == {torch.bfloat16}
    assert torch.equal(result.network[7].bias, net[7].bias + 1)


def test_weights_of_a_file_go_into_a_copy_and_from_under_any_wrapper(tmp_path):
    path, filled, net = tmp_path / "weights.pt", network(), network()
    with torch.no_grad():
        filled[7].bias.fill_(5.0)
    for wrapped in (
        filled,
        nn.DataParallel(filled),
        torch.compile(filled),
        AveragedModel(nn.DataParallel(torch.compile(filled))),
    ):
        torch.save(wrapped.state_dict(), path)
        assert (load_weights(network(), path)[7].bias == 5).all()
    result = prune(torch.compile(net), tmp_path / "out", weights=path, trials=0, rehearsal=False, recovery=False)
    assert (result.network[7].bias == 5).all()
    assert not (net[7].bias == 5).any()


def test_every_other_entry_has_the_same_door(tmp_path):
    half, wrapped = network().bfloat16(), nn.DataParallel(torch.compile(network()))
    expected = freeprune.score(in_float32(half), network(), IMAGES)
    assert freeprune.score(nn.DataParallel(half), wrapped, IMAGES.double()) == expected
    groups = inspect(network(), IMAGES[:1]).groups
    assert inspect(wrapped, IMAGES[:1]).groups == groups == inspect(half, IMAGES[:1].bfloat16()).groups
    assert inspect(nn.DataParallel(half), IMAGES[:1]).groups == groups


MODELS = """
import torch
from torch import nn
from freeprune.engine.inputs.networks import NETWORKS

def half():
    return nn.DataParallel(NETWORKS["digits:cnn"]().bfloat16())
"""


def test_the_command_line_has_it_too(tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    spec, weights, out = f"{tmp_path / 'models.py'}:half", tmp_path / "w.safetensors", tmp_path / "out"

    def call(*arguments):
        done = CliRunner().invoke(main, [str(a) for a in arguments])
        assert done.exit_code == 0, done.stderr

    call("train", spec, "--data", "digits", "--epochs", "0.1", "--out", weights)
    call("inspect", spec, "--data", "digits", "--weights", weights)
    fast = ["--trials", 0, "--finetune-epochs", 0, "--calibration-images", 32, "--target", "macs=60%", "--no-rehearsal"]
    call("prune", spec, "--weights", weights, "--data", "digits", *fast, "--out", out)
    call("apply", spec, "--weights", weights, "--plan", out, "--out", tmp_path / "applied")
    call("score", spec, "--weights", weights, "--data", "digits", "--plan", out, "--calibration-images", 32)


# What is refused


class Adapter(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)

    def merge_and_unload(self):
        return self.inner


class TunerLayer(nn.Linear):
    def merge(self):
        pass

    def unmerge(self):
        pass


def changed(change):
    made = network()
    change(made)
    return made


def hooked(net):
    made = nn.DataParallel(net)
    made.register_forward_hook(lambda module, inputs, output: output + 1)
    return made


def replaced(net):
    inner = net.forward
    net.forward = lambda x: inner(x) + 1


def spoil(net):
    with torch.no_grad():
        net[3].weight[0, 0] = math.nan


class NoEnd(nn.Linear):
    """A `train` of its own that forgets what torch's gives back."""

    def __init__(self):
        super().__init__(2, 2)

    def train(self, mode=True):
        super().train(mode)


def made_in_inference_mode():
    with torch.inference_mode():
        return network()


REFUSED = {
    "no network": (lambda: {"a": 1}, "the model is a dict; give a torch.nn.Module"),
    "scripted": (lambda: torch.jit.script(network()), "'the network' is scripted"),
    "traced": (lambda: torch.jit.trace(network(), IMAGES), "'the network' is scripted"),
    "scripted part": (lambda: changed(lambda net: net.__setitem__(3, torch.jit.script(net[3]))), "'3' is scripted"),
    "scripted in a wrapper": (lambda: nn.DataParallel(torch.jit.script(network())), "'module' is scripted"),
    "quantised": (lambda: nn.Sequential(of_type("torch.ao.nn.quantized.Linear")), "'0' is quantised; prune the network"),
    "sharded": (lambda: of_type("torch.distributed.fsdp.Sharded"), r"sharded over processes \(FSDP\); load its full"),
    "adapter": (lambda: Adapter(network()), r"an adapter \(Adapter\) .* merge it first"),
    "adapter inside": (lambda: nn.DataParallel(Outer(Adapter(network()))), r"an adapter \(Adapter\) .* merge it first"),
    "adapter layer": (lambda: changed(lambda net: net.__setitem__(7, TunerLayer(12, 3))), r"'7' is an adapter"),
    "hook of a wrapper": (lambda: hooked(network()), "the wrapper DataParallel has a hook 'hooked.<locals>.<lambda>'"),
    "forward replaced": (lambda: changed(replaced), "was replaced by 'replaced.<locals>.<lambda>'"),
    "lock": (lambda: changed(lambda net: setattr(net, "lock", threading.Lock())), "cannot be copied .*lock"),
    "meta": (lambda: network().to("meta"), "'0.weight' has no values"),
    "not finite": (lambda: changed(spoil), "'3.weight' holds values that are not finite"),
    "train without an end": (NoEnd, r"NoEnd.train or eval returns nothing, where `return self` belongs"),
    "inference mode": (made_in_inference_mode, r"'0.weight' was made within torch.inference_mode\(\)"),
    "lazy norm": (lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False)), "'0.running_mean' has no size yet"),
    "lazy": (lambda: nn.DataParallel(nn.Sequential(nn.LazyLinear(3))), "'0.weight' has no size yet"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_is_one_sentence(name):
    make, sentence = REFUSED[name]
    with pytest.raises(FreePruneError, match=sentence) as found:
        bare(make())
    assert "\n" not in str(found.value)


class Strict(nn.Module):
    """Looks names up in a dictionary of its own, which raises another error than Python expects."""

    def __init__(self):
        super().__init__()
        self.options = {"scale": 2.0}
        self.inner = network()

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return vars(self)["options"][name]

    def forward(self, x):
        return self.inner(x) * self.scale


def test_a_module_may_look_up_names_in_its_own_way():
    taken = adopted(Strict()).eval()
    assert torch.equal(taken(IMAGES), 2 * outputs(network()))


class Spread(nn.Module):
    """A buffer of one number that looks like twelve."""

    def __init__(self):
        super().__init__()
        self.inner = network()
        self.register_buffer("scale", torch.ones(1).expand(3))

    def forward(self, x):
        return self.inner(x) * self.scale


def test_expanded_tensors_can_be_written_into():
    given = Spread()
    taken = bare(given)
    assert given.scale.stride() == (0,)
    taken.load_state_dict(given.state_dict())
    assert torch.equal(outputs(taken), outputs(given))


class Stateful(nn.Module):
    """Saves something beside its tensors that is none."""

    def __init__(self):
        super().__init__()
        self.inner = network()

    def get_extra_state(self):
        return {"words": ["a", "b"]}

    def set_extra_state(self, state):
        raise AssertionError("it was not saved")

    def forward(self, x):
        return self.inner(x)


def test_extra_state_that_is_no_tensor_is_left_to_the_network(tmp_path):
    data = TensorDataset(torch.randn(40, 1, 8, 8), torch.arange(40) % 3)
    fast = {"target": {"macs": 0.6}, "trials": 0, "finetune": None, "rehearsal": False, "calibration_images": 20}
    result = freeprune.prune(Stateful(), (data, data), out=tmp_path / "run", **fast)
    assert torch.equal(outputs(freeprune.load(tmp_path / "run", Stateful())), outputs(result.network))
