import json

import networks
import numpy as np
import pytest
import torch

from freeprune.backends import BACKENDS, Plan, apply, importance, masked
from freeprune.errors import FreePruneError


def plan_of(granularity, name="resnet_a"):
    network = networks.build(name)
    backend = BACKENDS[granularity](network, (networks.images(2),), importance("l2", network))
    return network, backend.plan(np.array([max(g.minimum, g.units // 2) for g in backend.groups]))


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def planned(request):
    return plan_of(request.param)


def test_a_plan_survives_the_disk(planned, tmp_path):
    network, plan = planned
    plan.save(tmp_path)
    read = Plan.load(tmp_path)
    assert read.granularity == plan.granularity
    assert read.rates == plan.rates
    assert read.attributes == plan.attributes
    before, after = apply(network, plan), apply(network, read)
    assert all(torch.equal(a, b) for a, b in zip(before.state_dict().values(), after.state_dict().values(), strict=True))
    assert torch.equal(before(networks.images()), after(networks.images()))


def test_scales_that_follow_a_width_survive_the_disk(tmp_path):
    torch.manual_seed(0)
    network, x = networks.Scaled(), networks.images(2)
    plan = BACKENDS["channel"](network, (x,), importance("l2", network)).plan(np.array([4]))
    plan.save(tmp_path)
    read = Plan.load(tmp_path)
    assert [*read.scales.values()] == [4**-0.5]
    assert torch.allclose(masked(network, read)(x), apply(network, read)(x))


def test_the_same_plan_gives_the_same_bytes(planned, tmp_path):
    _, plan = planned
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plan.save(tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_masks_take_one_bit_a_weight(tmp_path):
    _, plan = plan_of("weight")
    plan.save(tmp_path)
    weights = sum(mask.numel() for mask in plan.masks.values())
    assert (tmp_path / "masks.safetensors").stat().st_size < weights / 8 + 3000


def test_another_network_is_refused_with_the_first_difference(planned):
    _, plan = planned
    with pytest.raises(FreePruneError, match=r"another network: this one has no '1\.weight'"):
        apply(networks.build("vgg"), plan)
    wider = networks.build("resnet_a")
    wider[0] = torch.nn.Conv2d(3, 9, 3, bias=False)
    with pytest.raises(FreePruneError, match=r"'0\.weight' has shape \(9, 3, 3, 3\), the plan expects \(8, 3, 3, 3\)"):
        apply(wider, plan)
    longer = torch.nn.Sequential(*networks.build("resnet_a"), torch.nn.Linear(5, 5))
    with pytest.raises(FreePruneError, match=r"it knows no '9\.weight'"):
        apply(longer, plan)


def mangle(folder, change):
    path = folder / "plan.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=99), "no plan of version 2 or before"),
        (lambda d: d.pop("rates"), "damaged"),
        (lambda d: d["structure"].pop("0.weight"), "does not have the hash it names"),
        (lambda d: d["kept"].update({"0.weight": {"0": [5, 3]}}), "not ascending within 0 to 7"),
        (lambda d: d["kept"].update({"0.weight": {"0": [5, 8]}}), "not ascending within 0 to 7"),
        (lambda d: d["kept"].update({"0.weight": {"0": []}}), "not ascending"),
        (lambda d: d.update(attributes=[["0", "out_channels", "__import__('os')"]]), "damaged"),
        (lambda d: d.update(kept=[1, 2]), "damaged"),
    ],
)
def test_a_damaged_plan_is_a_sentence(change, message, tmp_path):
    plan_of("channel")[1].save(tmp_path)
    mangle(tmp_path, change)
    with pytest.raises(FreePruneError, match=message):
        Plan.load(tmp_path)


def test_a_plan_that_is_no_json_is_a_sentence(tmp_path):
    with pytest.raises(FreePruneError, match=r"no plan\.json in"):
        Plan.load(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(FreePruneError, match="cannot be read as a plan"):
        Plan.load(tmp_path)


def test_masks_are_held_against_their_hash(tmp_path):
    plan_of("weight")[1].save(tmp_path)
    path = tmp_path / "masks.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(FreePruneError, match="not the file that the plan names by its hash"):
        Plan.load(tmp_path)
    path.unlink()
    with pytest.raises(FreePruneError, match=r"needs masks\.safetensors"):
        Plan.load(tmp_path)


def test_a_plan_cannot_point_elsewhere(tmp_path):
    plan_of("weight")[1].save(tmp_path)
    mangle(tmp_path, lambda d: d["masks"].update(file="../../elsewhere"))
    assert Plan.load(tmp_path).masks
