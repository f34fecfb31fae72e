import pytest

from freeprune.common import FreePruneError
from freeprune.engine.asked.settings import settings


@pytest.mark.parametrize("value", [5, None])
def test_a_misspelt_option_is_named_with_the_nearest_one(value):
    with pytest.raises(FreePruneError, match="there is no option 'trails'; did you mean 'trials'"):
        settings({"macs": 0.5}, {}, trails=value)


def test_what_no_setting_takes_belongs_to_the_granularity():
    asked = settings({"nonzero": 0.5}, {"granularity": "nm", "nm": "1:4", "block": None})
    assert asked.layout == {"nm": "1:4"}
