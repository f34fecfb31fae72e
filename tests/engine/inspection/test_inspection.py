import copy
import json
import xml.etree.ElementTree as ET
from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from networks import NETWORKS, build, images
from torch import nn

from freeprune.backends import BACKENDS
from freeprune.engine.command.cli import main
from freeprune.engine.inspection import drawing as graph
from freeprune.engine.inspection.findings import GroupInfo
from freeprune.engine.inspection.groups import inspect
from freeprune.errors import FreePruneError

SVG = "{http://www.w3.org/2000/svg}"


def looked_at(network, granularity="channel", **options):
    """An inspection, by default in single channels and without branches."""
    if granularity == "channel":
        options = {"round_to": 1, "depth": False, **options}
    return inspect(build(network) if isinstance(network, str) else network, images(1), granularity, **options)


def layer(inspection, name):
    return next(found for found in inspection.layers if found.name == name)


def call(*arguments):
    """Exit status, stdout, stderr."""
    result = CliRunner().invoke(main, ["inspect", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


class Net(nn.Module):
    """Layers by name, and a forward pass that is a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        self._function = forward
        for name, module in layers.items():
            self.add_module(name, module)

    def forward(self, *inputs):
        return self._function(self, *inputs)


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


# What is found


def test_groups_and_costs_by_hand():
    found = looked_at("vgg")
    assert [(g.name, g.width, g.least, g.step) for g in found.groups] == [("0", 8, 1, 1), ("3", 12, 2, 1), ("8", 20, 2, 1)]
    assert found.groups[0].tied == ("0.weight[0]", "0.bias[0]", "3.weight[1]")
    # 3x8 and 8x12 kernels of 9 on 16x16 and 8x8, then 192x20 and 20x5
    dense = 55296 + 55296 + 3840 + 100
    assert found.costs["macs"].dense == dense
    assert found.costs["macs"].smallest == 3 * 1 * 9 * 256 + 1 * 2 * 9 * 64 + 32 * 2 + 2 * 5
    assert found.costs["params"].smallest == (27 + 1) + (18 + 2 + 4) + (64 + 2) + (10 + 5)
    assert found.groups[0].saves["macs"] == pytest.approx((55296 + 55296) * 7 / 8 / dense)
    assert found.groups[2].saves["macs"] == pytest.approx((3840 + 100) * 18 / 20 / dense)


def test_what_makes_and_what_reads():
    found = looked_at("resnet_b")
    stream = found.groups[0]
    assert stream.layers == ("0", "3.body.3")
    assert layer(found, "3.body.0").reads == {stream.name: 8}
    assert layer(found, "4.shortcut.0").reads == {stream.name: 8}
    assert [found.name for found in found.layers][:4] == ["0", "3.body.0", "3.body.3", "4.body.0"]


def test_a_layer_that_reads_several_groups():
    found = looked_at("densenet")
    assert layer(found, "1.layers.2.2").reads == {"0": 8, "1.layers.0.2": 6, "1.layers.1.2": 6}


def test_only_the_last_layer_of_a_plain_network_is_locked():
    for name in ("vgg", "resnet_b", "mobilenet_v2", "densenet", "squeeze_excite"):
        found = looked_at(name)
        assert {found.name: found.locked for found in found.layers if found.locked} == {
            found.layers[-1].name: "the network's output"
        }


def test_a_reason_names_operator_module_and_line_and_reaches_what_is_tied():
    def forward(net, x):
        a = net.first(x) + net.second(x)
        return net.fc(net.last(a.cumsum(1)).relu().mean((2, 3)))

    network = Net(forward, first=conv(3, 8), second=conv(3, 8), last=conv(8, 8), fc=nn.Linear(8, 5))
    found = looked_at(network)
    line = forward.__code__.co_firstlineno + 2
    expected = f"operator cumsum in module 'at the top' (test_inspection.py:{line}): it needs all of them at once"
    assert layer(found, "first").locked == layer(found, "second").locked == expected
    assert layer(found, "last").locked is None
    assert layer(found, "fc").locked == "the network's output"


def test_of_several_reasons_the_first_is_given():
    def forward(net, x):
        x = net.first(x)
        y = net.last(x.cumsum(1) + x.cumprod(1))
        return net.fc(y.mean((2, 3)))

    found = looked_at(Net(forward, first=conv(3, 8), last=conv(8, 8), fc=nn.Linear(8, 5)))
    assert layer(found, "first").locked.startswith("operator cumsum ")


def test_a_layer_that_runs_twice_is_listed_once():
    def forward(net, x):
        x = net.again(net.again(net.first(x)))
        return net.fc(x.mean((2, 3)))

    found = looked_at(Net(forward, first=conv(3, 8), again=conv(8, 8), fc=nn.Linear(8, 5)))
    assert [row.name for row in found.layers] == ["first", "again", "fc"]
    assert layer(found, "again").makes == layer(found, "again").reads == {"first": 8}


def test_channels_added_to_the_input_stay_and_the_others_do_not():
    def forward(net, x):
        return net.fc((torch.cat([x, net.first(x)], 1) + net.second(x)).relu().mean((2, 3)))

    found = looked_at(Net(forward, first=conv(3, 8), second=conv(3, 11), fc=nn.Linear(11, 5)))
    assert layer(found, "second").makes == {"first": 8}
    assert layer(found, "second").outputs == 11
    assert "the network's input" in layer(found, "second").locked
    assert layer(found, "first").locked is None


def test_outputs_of_transposed_convolutions_and_of_weights_that_lie_transposed():
    class Times(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

        def forward(self, x):
            return x @ self.weight

    def forward(net, x):
        return net.fc(net.times(net.up(net.first(x)).mean((2, 3))).relu())

    network = Net(forward, first=conv(3, 8), up=nn.ConvTranspose2d(8, 6, 2, 2), times=Times(), fc=nn.Linear(4, 5))
    found = looked_at(network)
    assert layer(found, "up").reads == {"first": 8}
    assert layer(found, "up").makes == layer(found, "times").reads
    assert (layer(found, "up").outputs, layer(found, "times").outputs) == (6, 4)
    masked = looked_at(network, "nm")
    assert (layer(masked, "up").outputs, layer(masked, "up").locked) == (6, None)


def test_a_single_output_is_locked():
    network = nn.Sequential(conv(3, 8), conv(8, 1), conv(1, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    assert layer(looked_at(network), "1").locked == "it has a single output"


def test_what_a_granularity_leaves_dense():
    found = looked_at("resnet_b", "nm")
    assert layer(found, "0").locked == "3 inputs are no multiple of 4"
    assert layer(found, "0").makes == {}
    assert layer(found, "3.body.0").makes == {"3.body.0": 8}
    assert found.costs["nonzero"].smallest == found.costs["nonzero"].dense - sum(
        build("resnet_b").get_parameter(f"{g.name}.weight").numel() // 2 for g in found.groups
    )


def test_two_granularities_are_inspected_together():
    found = looked_at("mobilenet_v2", "channel+nm")
    channel = looked_at("mobilenet_v2", round_to=4)
    assert [group.name for group in found.groups[: len(channel.groups)]] == [group.name for group in channel.groups]
    assert [(g.width, g.step, g.least) for g in found.groups[:2]] == [(8, 4, 4), (24, 4, 4)]
    assert found.groups[-1].name == "11:nm"
    assert found.groups[-1].layers == ("11",)
    assert [row.makes for row in found.layers] == [row.makes for row in channel.layers]
    assert layer(found, "11").dense is None
    assert layer(found, "4.body.3").dense == "its channels come in groups of 1, no multiple of 4"
    assert "params" not in found.costs
    assert found.costs["macs"].dense == channel.costs["macs"].dense
    assert found.costs["macs"].smallest < channel.costs["macs"].smallest
    assert ET.fromstring(graph.draw(found)).tag == f"{SVG}svg"


def test_branches_may_go_or_stay():
    found, kept = (inspect(build("resnet_a"), images(2), depth=depth) for depth in (None, False))
    assert found.costs["macs"].smallest < kept.costs["macs"].smallest
    assert found.costs["macs"].with_branches == kept.costs["macs"].smallest
    assert kept.costs["macs"].with_branches is None
    assert "with all branches" in repr(found)
    assert "with all branches" not in repr(kept)


def test_a_shape_may_be_numbers():
    assert inspect("digits:cnn", (1, 8, 8)).to_json() == inspect("digits:cnn", "1x8x8").to_json()


def test_the_command_prints_two_granularities():
    status, output, _ = call("digits:cnn", "--input", "1x8x8", "--granularity", "channel+nm")
    assert status == 0
    for words in ("channels, units", "conv2:nm", "the network's output", "nm leaves it dense: its channels"):
        assert words in output


@pytest.mark.parametrize("granularity", sorted(BACKENDS))
@pytest.mark.parametrize("name", ["resnet_a", "mobilenet_v2", "grouped", "written_in"])
def test_every_granularity_is_inspected_and_nothing_changes(name, granularity):
    network = build(name)
    before, state = copy.deepcopy(network.state_dict()), torch.random.get_rng_state()
    found = inspect(network, images(2), granularity)
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert json.loads(json.dumps(found.to_json()))["groups"][0]["name"] == found.groups[0].name
    assert all(0 < span.smallest < span.dense for span in found.costs.values())
    assert {name for layer in found.layers for name in layer.makes} == {group.name for group in found.groups if group.least}
    for group in found.groups:
        assert set(group.saves) == set(found.costs)
        assert all(
            0 <= share <= 1 - found.costs[cost].smallest / found.costs[cost].dense for cost, share in group.saves.items()
        )
    for row in found.layers:
        assert (sum(row.makes.values()) < row.outputs) == (row.locked is not None)


def test_a_forward_pass_that_reads_values():
    def forward(net, x):
        return net.fc(net.first(x if x.sum() > 0 else -x).mean((2, 3)))

    found = looked_at(Net(forward, first=conv(3, 8), fc=nn.Linear(8, 5)))
    assert "meta" in found.needs_values
    assert looked_at("vgg").needs_values is None


def test_layers_that_read_two_inputs_are_tied_where_these_are_added():
    def forward(net, x, y):
        return net.fc((net.first(x) + net.second(y)).mean((2, 3)))

    network = Net(forward, first=conv(3, 8), second=conv(1, 8), fc=nn.Linear(8, 5))
    found = inspect(network, ["3x8x8", "1x8x8"])
    assert found.groups[0].layers == ("first", "second")


@pytest.mark.parametrize(
    ("width", "step", "least", "words"),
    [
        (64, 1, 7, "7..64"),
        (64, 8, 8, "8, 16, .. 64"),
        (20, 8, 8, "8, 16, 20"),
        (60, 8, 8, "8, 16, .. 60"),
        (6, 6, 6, "6 only"),
        (6, 1, 6, "6 only"),
    ],
)
def test_widths_in_words(width, step, least, words):
    assert GroupInfo("name", width, step, least, (), (), {}).widths == words


def test_rounding_sets_the_widths():
    found = looked_at("vgg", round_to=8)
    assert [g.widths for g in found.groups] == ["8 only", "8, 12", "8, 16, 20"]
    assert found.groups[0].saves["macs"] == 0
    assert found.to_json()["options"] == {"round_to": 8, "depth": False}


def test_by_default_widths_are_fast_ones_and_branches_may_go():
    found = looked_at("mobilenet_v2", round_to=None, depth=None)
    assert {group.name: group.widths for group in found.groups if group.least == 0} == {"4.body branch": "all or none"}
    branch = next(group for group in found.groups if group.least == 0)
    assert branch.layers == ("4.body.0", "4.body.3", "4.body.6")
    assert 0 < branch.saves["macs"] < 1
    assert {group.step for group in found.groups if group.width >= 16 and group.least} == {4}
    assert "4.body branch" in repr(found)
    assert ET.fromstring(found.to_svg()) is not None


@pytest.mark.parametrize(
    ("granularity", "options", "message"),
    [
        ("channels", {}, "did you mean 'channel'"),
        ("channel+nm", {"round_to": 6}, "widths that nm cannot divide by 4"),
        ("channel", {"block": "1x4"}, "`block='1x4'` does not apply to granularity channel"),
        ("weight", {"round_to": 8}, "`round_to=8` does not apply to granularity weight"),
        ("channel", {"max_rate": 1.0}, "`max_rate` is 1; give a fraction"),
    ],
)
def test_options_that_do_not_fit(granularity, options, message):
    with pytest.raises(FreePruneError, match=message):
        looked_at("vgg", granularity, **options)


@pytest.mark.parametrize("granularity", sorted(BACKENDS))
def test_a_network_without_parameters_is_a_sentence(granularity):
    with pytest.raises(FreePruneError, match="nothing to prune: no convolution or linear layer was found"):
        inspect(nn.Flatten(), images(1), granularity)


def test_a_network_by_its_name_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    assert inspect("digits:cnn", "1x8x8").groups[0].name == "conv1"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_parameters_without_a_size():
    with pytest.raises(FreePruneError, match=r"'0\.weight' has no size yet"):
        looked_at(nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten()))


def test_an_example_is_a_tensor_tensors_a_shape_shapes_or_data():
    found = [
        inspect("digits:cnn", example).to_json()
        for example in (torch.zeros(2, 1, 8, 8), (torch.zeros(2, 1, 8, 8),), "1x8x8", ["1x8x8"], "digits")
    ]
    assert all(one == found[0] for one in found)
    with pytest.raises(FreePruneError, match="`example='1,8,8'` is no shape"):
        inspect("digits:cnn", "1,8,8")


def test_an_inspection_prints_as_tables_and_renders_in_a_notebook(tmp_path):
    found = inspect("digits:cnn", "1x8x8", graph=tmp_path / "out.svg")
    for text in (str(found), repr(found), found._repr_html_()):
        for words in ("block1.conv2", "8, 16, 24, 32", "locked", "reachable", "parameters"):
            assert words in text
    assert found._repr_html_().startswith("<pre>")
    assert (tmp_path / "out.svg").read_text() == found.to_svg()


# The drawing


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_drawing_has_a_dot_for_each_coupling_and_says_why_something_is_locked(name):
    found = looked_at(name)
    root = ET.fromstring(graph.draw(found))
    dots = sum(len({**row.makes, **row.reads}) for row in found.layers)
    assert len(root.findall(f"{SVG}g/{SVG}circle")) == dots
    assert len(root.findall(f"{SVG}g/{SVG}path")) == len(found.groups)
    titles = [title.text for title in root.iter(f"{SVG}title")]
    for row in found.layers:
        assert row.locked is None or any(title.startswith(row.name) and title.endswith(row.locked) for title in titles)
    assert {text.text for text in root.iter(f"{SVG}text")} >= {row.name for row in found.layers}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_lines_do_not_cross_a_dot_of_another(name):
    for a, b in combinations(graph.lines_of(looked_at(name)), 2):
        assert a.lane != b.lane or a.rows[-1] < b.rows[0] or b.rows[-1] < a.rows[0]


def test_names_are_escaped():
    network = nn.Sequential()
    network.add_module("<a&b>", conv(3, 8))
    network.add_module("rest", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)))
    root = ET.fromstring(graph.draw(looked_at(network)))
    assert "<a&b>" in {text.text for text in root.iter(f"{SVG}text")}


def test_masks_are_drawn_without_coupling():
    root = ET.fromstring(graph.draw(looked_at("resnet_b", "nm")))
    assert any("no multiple of 4" in title.text for title in root.iter(f"{SVG}title"))


# The command


def test_the_command_prints_tables():
    status, output, errors = call("digits:cnn", "--input", "1x8x8")
    assert (status, errors) == (0, "")
    for words in ("block1.conv2", "8, 16, 24, 32", "the network's output", "reachable", "MACs", "parameters"):
        assert words in output
    assert "traced on the CPU" not in output


def test_the_command_prints_what_stays_dense():
    status, output, _ = call("digits:cnn", "--input", "1x8x8", "--granularity", "nm", "--nm", "2:4")
    assert status == 0
    assert "1 input is no multiple of 4" in output


def test_the_command_says_that_values_were_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reader.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def forward(self, x):\n"
        "        return super().forward(x if x.sum() > 0 else -x)\n\n\n"
        "def build():\n    return Net(nn.Linear(4, 8), nn.Linear(8, 2))\n"
    )
    status, output, _ = call("reader.py:build", "--input", "4")
    assert status == 0
    assert "traced on the CPU" in output


def test_the_command_writes_json_and_a_picture(tmp_path):
    picture = tmp_path / "new" / "out.svg"
    status, output, _ = call("digits:cnn", "--data", "digits", "--json", "--graph", picture, "--round-to", "8")
    assert status == 0
    document = json.loads(output)
    assert document["granularity"] == "channel"
    assert document["groups"][0]["step"] == 8
    assert ET.parse(picture).getroot().tag == f"{SVG}svg"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits:cnn"], "no input was given"),
        (["digits:cnn", "--input", "1x8x8", "--data", "digits"], "both --input and --data"),
        (["digits:cnn", "--input", "1,8,8"], "--input 1,8,8 is no shape"),
        (["digits:cnn", "--input", "1x0x8"], "is no shape"),
        (["digits:cnn", "--input", "1x99999999999x99999999999"], "does not fit into memory"),
        (["digits:cnn", "--input", "1x99999999999999999999"], "does not fit into memory"),
        (["digits:cnn", "--input", "3x8x8"], "the network rejects an input of shape 1x3x8x8"),
        (["digits:cnn", "--input", "1x8x8", "--input", "1x8x8"], "the network rejects an input of shape"),
        (["digits:cnn", "--input", "1x8x8", "--weights", "nowhere.pt"], "nowhere.pt"),
        (["digits:cnn", "--input", "1x8x8", "--graph", "out.png"], "--graph is 'out.png'; give a file that ends in .svg"),
        (["digits:cnn", "--input", "1x8x8", "--graph", "file/out.svg"], "--graph file/out.svg cannot be written"),
        (["digits:cnn", "--input", "1x8x8", "--round-to", "64", "--no-depth"], "--round-to 64"),
        (["digits", "--input", "1x8x8"], "there is no model 'digits'"),
    ],
)
def test_errors_are_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    status, output, errors = call(*arguments)
    assert (status, output) == (2, "")
    assert errors.startswith("freeprune: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Odd(nn.Module):
    """Returns what is made of its output."""

    def __init__(self, make):
        super().__init__()
        self.inner, self.make = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), make

    def forward(self, x):
        return self.make(self.inner(x))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda y: (part for part in y), "a generator"),
        (lambda y: None, "nothing"),
        (lambda y: SimpleNamespace(y=y), "a SimpleNamespace"),
        (lambda y: {"kind": "none"}, "a dict"),
    ],
)
def test_what_a_network_returns_is_told_where_it_holds_no_tensor(make, what):
    with pytest.raises(FreePruneError, match=f"the network returns {what}, in which there is no tensor; let its forward pass"):
        inspect(Odd(make), torch.zeros(1, 4))
