"""Tables line up, whatever is in their cells."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantarray.tables import table

pytestmark = pytest.mark.backend_independent


def test_numbers_are_right_aligned_and_text_left():
    expected = """\
name   figure  bytes  note
-----  ------  -----  ----
a        1.50  1,024  b
other  -12.25      -  c d"""
    rows = [("a", "1.50", "1,024", "b"), ("other", "-12.25", "-", "c d")]
    assert table(rows, ("name", "figure", "bytes", "note")) == expected


def test_a_single_word_makes_a_column_text():
    assert table([("1",), ("none",)], ("n",)).splitlines() == ["n", "----", "1", "none"]


@pytest.mark.parametrize("number", ["0", "1e-5", "inf", "nan", "-inf", "", "-", "1,000.5"])
def test_what_counts_as_a_number(number):
    assert table([(number,)], ("a title",)).split("\n")[-1] == number.rjust(7).rstrip()


def test_no_rows():
    assert table([], ("a", "bc")) == "a  bc\n-  --"


def test_a_row_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        table([("1",)], ("a", "b"))


CELL = st.text(st.characters(categories=("L", "N", "P")), max_size=9)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(CELL, CELL, CELL), max_size=5))
def test_columns_start_where_their_rules_start(rows):
    lines = table(rows, ("first", "second", "third")).split("\n")
    assert len(lines) == len(rows) + 2
    assert all(line == line.rstrip() for line in lines)
    widths = [len(rule) for rule in lines[1].split("  ")]
    starts = [0, widths[0] + 2, widths[0] + widths[1] + 4]
    for row, line in zip(rows, lines[2:], strict=True):
        padded = line.ljust(sum(widths) + 4)
        for cell, start, width in zip(row, starts, widths, strict=True):
            assert padded[start : start + width].strip() == cell
