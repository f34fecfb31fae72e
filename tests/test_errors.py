import pytest

from freeprune.errors import amount, cause, first_line, nearest


def test_a_far_name_lists_all():
    assert nearest("zzz", ["channel", "weight"]) == "known: channel, weight"


def test_the_first_line_of_an_error_has_no_codes_for_a_terminal():
    assert first_line("\n\x1b[1mdo this\x1b[0m\x07 and that\r\nand more") == "do this and that"
    assert cause(ValueError("\x1b[31mred\x1b[0m")) == "ValueError: red"
    assert first_line("") == ""


@pytest.mark.parametrize(("value", "text"), [(17.94e6, "17.9M"), (1.26e9, "1.3G"), (5120, "5.1k"), (42, "42")])
def test_amounts_are_written_as_people_do(value, text):
    assert amount(value) == text
