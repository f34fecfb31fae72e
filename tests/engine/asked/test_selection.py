import pytest

from freeprune.backends import Group
from freeprune.engine.asked.selection import fewest_units
from freeprune.errors import FreePruneError

GROUPS = (
    Group("conv1", 8, 1, ("conv1.weight[0]", "bn1.weight[0]", "layer1.conv2.weight[0]")),
    Group("layer1.conv1", 4, 1, ("layer1.conv1.weight[0]", "layer1.conv2.weight[1]")),
    Group("layer2.conv1", 6, 2, ("layer2.conv1.weight[0]",)),
)


def test_without_patterns_all_are_free():
    assert fewest_units(GROUPS, (), ()).tolist() == [1, 1, 2]


def test_only_goes_by_the_groups_name():
    assert fewest_units(GROUPS, ("layer1.*",), ()).tolist() == [8, 1, 6]


def test_ignore_goes_by_every_layer_touched():
    assert fewest_units(GROUPS, (), ("layer1.conv2",)).tolist() == [8, 4, 2]
    assert fewest_units(GROUPS, ("layer*",), ("layer2.*",)).tolist() == [8, 1, 6]


def test_patterns_that_match_nothing_are_sentences():
    with pytest.raises(FreePruneError, match=r"`only='layer1.conv3'` matches no layer .*did you mean 'layer1.conv1'"):
        fewest_units(GROUPS, ("layer1.conv3",), ())
    with pytest.raises(FreePruneError, match="`ignore='fc'` matches no layer"):
        fewest_units(GROUPS, (), ("fc",))
    with pytest.raises(FreePruneError, match=r"^`ignore` leaves nothing to prune"):
        fewest_units(GROUPS, (), ("*",))
