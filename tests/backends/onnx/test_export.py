"""ONNX files: the same function, any batch size where possible, no trace of the source, and sentences when it fails."""

import logging
import math
import re
import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from freeprune.backends.difference import relative_difference
from freeprune.backends.onnx import ONNX_RUNTIME
from freeprune.backends.onnx.export import export_onnx, fix_sizes
from freeprune.backends.surgery.gone import Gone
from freeprune.common import Arrangement
from freeprune.errors import FreePruneError
from freeprune.reading import leaves


class Network(nn.Module):
    """Convolution and batch norm (with statistics of its own) under a residual addition; 3 x 8 x 8 images, 5 classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)

    def forward(self, images):
        maps = self.stem(images)
        maps = torch.relu(maps + self.norm(self.conv(maps)))
        return self.head(self.dropout(maps.mean((2, 3))))


class Changed(Network):
    """The network with something done to its output."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images))


class Two(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, left, right):
        return self.left(left) * self.right(right), self.left(left)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def images():
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def exported(network, images, tmp_path_factory):
    """One export for the tests that only read it: an export takes a second."""
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    return export_onnx(network, (images,), path, {"score": "0.5", "backend": "channel"})


def outputs(network, *inputs):
    with torch.no_grad():
        return network.eval()(*inputs)


def test_an_export_computes_the_same_at_any_batch_size(network, exported):
    assert exported.bytes == exported.path.stat().st_size
    assert exported.dynamic_batch
    assert exported.warnings == ()
    assert [file.name for file in exported.path.parent.iterdir()] == ["model.onnx"]  # no second file with the weights
    assert onnx.load(exported.path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for batch in (1, 2, 3, 8, 21):
        many = torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))
        (given,) = ONNX_RUNTIME.outputs(exported.path, (many,), threads=1)
        assert relative_difference(outputs(network, many), given) < 1e-5


def test_a_single_example_row_is_enough_for_a_dynamic_batch(network, images, tmp_path):
    assert export_onnx(network, (images[:1],), tmp_path / "model.onnx", {}).dynamic_batch


def test_the_version_of_the_operators(network, images, tmp_path):
    path = tmp_path / "model.onnx"
    for opset in (18, 21):
        export_onnx(network, (images,), path, {}, opset=opset)
        assert [one.version for one in onnx.load(path).opset_import if one.domain == ""] == [opset]
        assert relative_difference(outputs(network, images), ONNX_RUNTIME.outputs(path, (images,))) < 1e-5
    for opset in (1, 17, 999):
        with pytest.raises(FreePruneError, match=rf"`opset` is {opset}, .*give a number from 18 to \d+$"):
            export_onnx(network, (images,), path, {}, opset=opset)


def test_a_version_that_the_exporter_silently_leaves_out(network, images, tmp_path, monkeypatch):
    plain = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *given, opset_version, **more: plain(*given, opset_version=18, **more))
    with pytest.raises(FreePruneError, match=r"cannot be exported to ONNX: .*those of opset 21; leave out `opset`, or give 18"):
        export_onnx(network, (images,), tmp_path / "model.onnx", {}, opset=21)


def test_two_inputs_and_two_outputs(tmp_path):
    torch.manual_seed(0)
    network, inputs = Two(), (torch.randn(8, 4), torch.randn(8, 6))
    exported = export_onnx(network, inputs, tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert relative_difference(outputs(network, *inputs), ONNX_RUNTIME.outputs(exported.path, inputs)) < 1e-5
    with pytest.raises(FreePruneError, match="takes 2 inputs, but 1 were given"):
        ONNX_RUNTIME.outputs(exported.path, inputs[:1])
    with pytest.raises(FreePruneError, match=r"fails on inputs of shapes \[\(8, 6\), \(8, 4\)\]"):
        ONNX_RUNTIME.outputs(exported.path, inputs[::-1])
    with pytest.raises(FreePruneError, match=r"shapes \[\(8, 4\), \(7, 6\)\]; give tensors that share"):
        export_onnx(network, (inputs[0], inputs[1][:7]), tmp_path / "other.onnx", {})


def test_nothing_else_changes_and_nothing_is_said(images, tmp_path, capfd):
    network = Network().train()
    network.norm.eval()
    modes = [module.training for module in network.modules()]
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random, filters, logged = torch.get_rng_state(), list(warnings.filters), []
    handler = logging.Handler()
    handler.emit = logged.append
    logging.disable(logging.NOTSET)
    logging.getLogger("torch.onnx").addHandler(handler)
    try:
        export_onnx(network, (images,), tmp_path / "model.onnx", {})
    finally:
        logging.getLogger("torch.onnx").removeHandler(handler)
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert logging.root.manager.disable == logging.NOTSET
    assert filters == warnings.filters
    assert not logged
    assert capfd.readouterr() == ("", "")


def test_the_file_holds_the_users_metadata_sorted_and_no_trace_of_the_source(exported):
    content = exported.path.read_bytes()
    for trace in (b".py", b"site-packages", b"stack_trace", b"Network"):
        assert trace not in content
    model = onnx.load(exported.path)
    assert [(entry.key, entry.value) for entry in model.metadata_props] == [("backend", "channel"), ("score", "0.5")]
    onnx.checker.check_model(model, full_check=True)


def test_same_network_same_file(network, images, exported, tmp_path):
    again = export_onnx(network, (images,), tmp_path / "again.onnx", {"backend": "channel", "score": "0.5"})
    assert again.path.read_bytes() == exported.path.read_bytes()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits.view(8, -1), "is invalid for input of size 5"),
        (lambda logits: logits * 2 if len(logits) == 8 else logits, "inferred a static shape of 8"),
    ],
)
def test_a_fixed_batch_size_is_exported_so_with_a_warning(images, tmp_path, change, reason):
    torch.manual_seed(0)
    network = Changed(change)
    exported = export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert not exported.dynamic_batch
    (warning,) = exported.warnings
    assert warning.startswith("the ONNX file takes batches of 8 only: ")
    assert re.search(reason, warning)
    assert "\n" not in warning
    # 21 rows are two batches of 8 and a third one that is filled up.
    many = torch.randn(21, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    (given,) = ONNX_RUNTIME.outputs(exported.path, (many,))
    by_eights = [outputs(network, many[start : start + 8]) for start in (0, 8)]
    last = outputs(network, torch.cat([many[16:], many[-1:].expand(3, -1, -1, -1)]))[:5]
    assert given.shape == (21, 5)
    assert relative_difference(torch.cat([*by_eights, last]), given) < 1e-5
    assert ONNX_RUNTIME.latency_ms({"it": exported.path}, (many,), threads=1, repeats=3)["it"] > 0


class OwnKernels(nn.Module):
    """Each image under kernels of its own, in as many groups as there are images and channels, as trackers compare them."""

    def __init__(self):
        super().__init__()
        self.seen, self.wanted = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 5)

    def forward(self, images):
        seen, kernels = self.seen(images), self.wanted(images)
        count, channels = seen.shape[:2]
        seen, kernels = seen.view(1, count * channels, 6, 6), kernels.view(count * channels, 1, 4, 4)
        return F.conv2d(seen, kernels, groups=count * channels).view(count, channels, 3, 3)


def test_a_file_for_one_batch_size_is_for_the_one_that_is_asked_for(images, tmp_path):
    torch.manual_seed(0)
    network = OwnKernels()
    exported = export_onnx(network, (images,), tmp_path / "model.onnx", {}, batch=3)
    assert exported.batch == 3
    assert exported.warnings[0].startswith("the ONNX file takes batches of 3 only, the size that `latency_batch` says: ")
    assert onnx.load(exported.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3
    assert relative_difference(outputs(network, images), ONNX_RUNTIME.outputs(exported.path, (images,))[0]) < 1e-5
    assert export_onnx(network, (images[:2],), exported.path, {}, batch=3).batch == 3  # of fewer examples too
    assert export_onnx(network, (images,), exported.path, {}).batch == 8


def test_a_network_for_one_batch_size_is_exported_for_that(images, tmp_path):
    torch.manual_seed(0)
    exported = export_onnx(Changed(lambda logits: logits.view(8, -1)), (images,), tmp_path / "model.onnx", {}, batch=3)
    assert exported.batch == 8
    assert exported.warnings[0].startswith("the ONNX file takes batches of 8 only: ")


@pytest.mark.parametrize("change", [lambda logits: (logits, logits.T), lambda logits: (logits, logits.sum(0))])
def test_outputs_need_not_have_the_batch_first(images, tmp_path, change):
    network = Changed(change)
    exported = export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert relative_difference(network.eval()(images[:3]), ONNX_RUNTIME.outputs(exported.path, (images[:3],))) < 1e-5


def test_outputs_that_are_not_by_row_are_not_had_from_several_batches(images, tmp_path):
    torch.manual_seed(0)
    network = Changed(lambda logits: logits.view(8, -1).sum(0))
    exported = export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert not exported.dynamic_batch
    assert relative_difference(outputs(network, images), ONNX_RUNTIME.outputs(exported.path, (images,))[0]) < 1e-5
    with pytest.raises(FreePruneError, match="batches of 8 only, not of 3, and its outputs are not by row"):
        ONNX_RUNTIME.outputs(exported.path, (images[:3],))


def test_what_cannot_be_exported_is_one_sentence_and_leaves_no_file(images, tmp_path, capfd):
    torch.manual_seed(0)
    network = Changed(lambda logits: logits if logits.sum().item() > 0 else -logits)
    (tmp_path / "model.onnx").write_bytes(b"old")
    with pytest.raises(FreePruneError, match=r"^the network cannot be exported to ONNX: \S.*$") as caught:
        export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
    assert capfd.readouterr() == ("", "")


def test_an_export_that_computes_something_else_is_refused(images, tmp_path):
    """A network that counts its calls: the trace holds one answer for ever."""

    class Counting(Network):
        calls = 0

        def forward(self, images):
            Counting.calls += 1
            return super().forward(images) + Counting.calls

    with pytest.raises(FreePruneError, match=r"for a batch of 8 the export differs from the network by \d"):
        export_onnx(Counting(), (images,), tmp_path / "model.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inputs", [(), (torch.tensor(1.0),)])
def test_inputs_need_a_batch_dimension(network, tmp_path, inputs):
    with pytest.raises(FreePruneError, match="give tensors that share their first dimension"):
        export_onnx(network, inputs, tmp_path / "model.onnx", {})


def test_relative_difference_by_hand():
    a = torch.tensor([[1.0, -4.0], [2.0, 0.0]])
    assert relative_difference(a, a) == 0
    assert relative_difference(a, a + torch.tensor([[0.0, 0.5], [-1.0, 0.0]])) == 0.25  # 1 of 4
    assert relative_difference(a.numpy(), 2 * a) == 1
    # The worst of several outputs, each against its own size: 0.5 / 4 and 0.01 / 0.02.
    assert relative_difference((a, [0.02]), (a + 0.5, np.array([0.01]))) == pytest.approx(0.5)
    zeros = torch.zeros(2)
    assert relative_difference(zeros, zeros) == 0
    assert relative_difference(zeros, torch.tensor([0.0, 1e-30])) == math.inf
    assert relative_difference(torch.zeros(0), torch.zeros(0)) == 0
    assert relative_difference(a, a[:1]) == math.inf
    assert relative_difference((a, a), (a,)) == math.inf
    for odd in (math.nan, math.inf):
        broken = torch.tensor([odd, 1.0])
        assert relative_difference(broken, broken) == math.inf
        assert relative_difference(torch.ones(2), broken) == math.inf
        assert relative_difference(broken, torch.ones(2)) == math.inf


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.numpy()], ids=["torch", "numpy"])
def test_relative_difference_of_complex_outputs_counts_both_parts(form):
    a, b = torch.tensor([3 + 4j]), torch.tensor([3 - 1j])
    assert relative_difference(form(a), form(a)) == 0
    assert relative_difference(form(a), form(b)) == 1
    assert relative_difference(form(a), form(a.real)) == pytest.approx(0.8)  # 4 of 5
    assert relative_difference(a.conj(), a) == pytest.approx(1.6)
    assert relative_difference(form(a), form(torch.tensor([complex(3, math.nan)]))) == math.inf


class Tokens(nn.Module):
    """Reads sequences of any length, or of one, and gives what goes into no file beside its logits."""

    def __init__(self, fixed=False):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)
        self.fixed = nn.Linear(6, 6) if fixed else nn.Identity()

    def forward(self, ids, mask):
        hidden = self.fixed((self.table(ids) * mask[..., None]).transpose(1, 2))
        return {"logits": self.head(hidden.mean(2)), "cache": object(), "more": {"hidden": hidden, "mask": mask.float()}}


TOKENS = torch.randint(0, 20, (4, 6)), torch.ones(4, 6, dtype=torch.long)


def test_sequences_of_any_length(tmp_path):
    network = Tokens()
    exported = export_onnx(network, TOKENS, tmp_path / "model.onnx", {})
    assert exported.dynamic_length
    assert not exported.warnings
    model = onnx.load(exported.path)
    assert [[d.dim_param for d in x.type.tensor_type.shape.dim] for x in model.graph.input] == [["batch", "sequence"]] * 2
    assert [x.name for x in model.graph.output] == ["logits", "more.hidden", "more.mask"]
    other = torch.randint(0, 20, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    found = ONNX_RUNTIME.outputs(exported.path, other)
    with torch.no_grad():
        assert relative_difference(leaves(network(*other)), found) < 1e-5


def test_a_network_of_one_length_keeps_it(tmp_path):
    exported = export_onnx(Tokens(fixed=True), TOKENS, tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert not exported.dynamic_length
    assert not exported.warnings  # it takes no other itself


class Counting(nn.Module):
    """Asks for the number of images by `len`, which the exporter follows through plain tensors only."""

    def __init__(self, gone):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.branch, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        if gone:
            self.branch = Gone(self.branch)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)
        return self.head(x + self.branch(x))[:, 0]


@pytest.mark.parametrize("gone", [False, True])
def test_without_a_branch_the_file_takes_any_batch_all_the_same(gone, tmp_path):
    network, x = Counting(gone).eval(), torch.randn(8, 4, 6)
    exported = export_onnx(network, (x,), tmp_path / "model.onnx", {})
    assert (exported.dynamic_batch, exported.warnings) == (True, ())
    more = torch.randn(11, 4, 6)
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(ONNX_RUNTIME.outputs(exported.path, (more,))[0]), network(more), atol=1e-5)


def test_a_file_for_one_batch_size_says_so_in_its_inputs():
    """So that more rows are run in parts. The exporter may leave a name there, as if any size would do."""
    given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["s34", 4, 6])
    model = onnx.helper.make_model(onnx.helper.make_graph([], "one", [given], []))
    fix_sizes(model, (torch.zeros(8, 4, 6),))
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [8, 4, 6]


def test_a_single_number_beside_the_outputs_does_not_fix_the_batch(tmp_path):
    class Balanced(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            y = self.layer(x)
            return {"logits": y, "balance": y.square().mean()}

    exported = export_onnx(Balanced().eval(), (torch.randn(8, 4),), tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert exported.warnings == ()


class ByName(Two):
    """Arguments by name alone."""

    def forward(self, *, left, right):
        return super().forward(left, right)


class AnyNumber(Two):
    """Arguments of any number, as a decorator that is not `functools.wraps`'s leaves them."""

    def forward(self, *given, **named):
        return super().forward(*given, **named)


class AnyNumberBehind(Two):
    """One argument, and any number behind it."""

    def forward(self, left, *rest):
        return super().forward(left, *rest)


@pytest.mark.parametrize(
    ("kind", "names"), [(AnyNumber, ["given_0", "given_1"]), (AnyNumberBehind, ["left", "rest_0"]), (Two, ["left", "right"])]
)
def test_arguments_of_any_number_take_any_batch(tmp_path, kind, names):
    network, inputs = kind().eval(), (torch.randn(4, 4), torch.randn(4, 6))
    exported = export_onnx(network, inputs, tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert [given.name for given in onnx.load(exported.path).graph.input] == names
    assert "forward" not in vars(network)


def test_arguments_of_any_number_may_be_given_by_name(tmp_path):
    network, inputs = AnyNumber().eval(), (torch.randn(4, 4), torch.randn(4, 6))
    network.register_forward_pre_hook(Arrangement(("left", "right")), with_kwargs=True)
    exported = export_onnx(network, inputs, tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert [given.name for given in onnx.load(exported.path).graph.input] == ["left", "right"]


class AnyName(Two):
    """Arguments of any name."""

    def forward(self, **given):
        return super().forward(given["left"], given["right"])


@pytest.mark.parametrize("kind", [ByName, AnyName])
def test_arguments_by_name_alone_are_inputs_in_order(tmp_path, kind):
    network, inputs = kind().eval(), (torch.randn(4, 4), torch.randn(4, 6))
    network.register_forward_pre_hook(Arrangement(("left", "right")), with_kwargs=True)
    exported = export_onnx(network, inputs, tmp_path / "model.onnx", {})
    assert exported.dynamic_batch
    assert [given.name for given in onnx.load(exported.path).graph.input] == ["left", "right"]
    assert relative_difference(network(*inputs), ONNX_RUNTIME.outputs(exported.path, inputs)) < 1e-5


def test_what_the_runtime_says_of_a_form_that_fails_is_not_printed(images, tmp_path, capfd):
    network = Changed(lambda logits: torch.cat(logits.split(3)[:3]) if len(logits) > 3 else logits)
    export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("small", [1e-8, -1e-8, 1e-12])
@pytest.mark.parametrize("change", [lambda y, small: y / (y - y + small), lambda y, small: y / (y - y - small)])
def test_what_is_divided_by_a_small_constant_is_exported(images, tmp_path, change, small):
    """The exporter's optimiser takes it for 0."""
    network = Changed(lambda y: change(y, small)).eval()
    made = export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert relative_difference(outputs(network, images), ONNX_RUNTIME.outputs(made.path, (images,))[0]) < 1e-5


def test_what_is_clamped_twice_is_exported(images, tmp_path):
    """The exporter's optimiser puts the nodes out of order."""

    class Twice(Network):
        def forward(self, images):
            maps = self.stem(images)
            return self.head((maps.clamp(0, 1) * maps.clamp(0, 1)).mean((2, 3)))

    torch.manual_seed(0)
    network = Twice()
    made = export_onnx(network, (images,), tmp_path / "model.onnx", {})
    assert made.dynamic_batch
    assert relative_difference(outputs(network, images), ONNX_RUNTIME.outputs(made.path, (images,))[0]) < 1e-5


class Distances(nn.Module):
    """Distances to learnt points, and between the rows of each example."""

    def __init__(self, p):
        super().__init__()
        self.points, self.p = nn.Parameter(torch.randn(4, 8)), p

    def forward(self, x):
        return torch.cdist(x, self.points, self.p), torch.cdist(x[:, None], 2 * x[:, None], self.p)


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0, 3.0, math.inf])
def test_distances_are_exported(p, tmp_path):
    torch.manual_seed(0)
    made = export_onnx(Distances(p).eval(), (torch.randn(3, 5, 8),), tmp_path / "model.onnx", {})
    assert made.dynamic_batch


class Projected(nn.Module):
    """An LSTM that projects its states, which ONNX has no operator for; its first states may be given."""

    def __init__(self, begins, **options):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, proj_size=3, **options)
        self.begins = begins
        count = self.lstm.num_layers * (2 if self.lstm.bidirectional else 1)
        self.hidden, self.cell = nn.Parameter(torch.randn(count, 1, 3)), nn.Parameter(torch.randn(count, 1, 6))

    def forward(self, x):
        x = x if self.lstm.batch_first else x.transpose(0, 1)
        start = [part.repeat(1, len(x), 1) for part in (self.hidden, self.cell)] if self.begins else None
        y, (hidden, cell) = self.lstm(x, start) if self.begins else self.lstm(x)
        return y if self.lstm.batch_first else y.transpose(0, 1), hidden.transpose(0, 1), cell.transpose(0, 1)


@pytest.mark.parametrize(
    ("begins", "options"),
    [
        (False, {}),
        (False, {"num_layers": 2, "bidirectional": True, "batch_first": True}),
        (True, {"bias": False, "batch_first": True}),
    ],
)
def test_recurrent_layers_with_projections_are_exported(tmp_path, begins, options):
    torch.manual_seed(0)
    network = Projected(begins, **options).eval()
    made = export_onnx(network, (torch.randn(3, 5, 4),), tmp_path / "model.onnx", {})
    assert made.dynamic_batch
    assert "forward" not in vars(network.lstm)
