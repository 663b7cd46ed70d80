"""A list on a terminal has one line an entry, whatever stands in the entry."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from relmsg.cli.table import cut, fitted

COLUMNS = ("message_id", "age", "problem", "type")
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]))


def row(message_id: str | None = None, problem: str = "x" * 300, age: str = "3h", type_: str = "order.placed"):
    return (message_id or str(uuid4()), age, problem, type_)


def test_each_entry_takes_one_line_of_the_width_and_its_id_is_whole():
    """At 80 cells, and at any width that an id leaves room for, no line is longer than the screen."""
    rows = [row(), row(problem="short"), row(problem="\u5927" * 80)]
    for width in (40, 60, 79, 80, 81, 200):
        lines = fitted(COLUMNS, rows, width)
        assert len(lines) == 1 + len(rows)
        assert max(map(cell_len, lines)) <= width
        for entry, line in zip(rows, lines[1:], strict=True):
            assert line.startswith(entry[0])


def test_what_is_too_long_is_cut_with_an_ellipsis_and_what_is_short_is_not():
    """The long column gives its room to the short ones."""
    (line,) = fitted(COLUMNS, [row()], 80)[1:]
    assert line.endswith("…  order.placed")
    assert "  3h " in line
    (line,) = fitted(COLUMNS, [row(problem="no funds")], 80)[1:]
    assert "…" not in line
    assert line.split() == [line.split()[0], "3h", "no", "funds", "order.placed"]


def test_columns_without_room_are_left_out_and_the_header_says_so():
    """The last columns go first."""
    header, line = fitted(COLUMNS, [row()], 53)
    assert header.split() == ["message_id", "age", "problem", "…"]
    assert "order" not in line


def test_an_id_longer_than_a_uuid_stays_whole_and_costs_the_others_nothing():
    """Its own line loses the cells behind it; the other lines are laid out as if it were not there."""
    others = [row(), row()]
    long = row("x" * 70)
    lines = fitted(COLUMNS, [*others, long], 80)
    assert lines[1:3] == fitted(COLUMNS, others, 80)[1:]
    assert lines[3].startswith("x" * 70)
    assert cell_len(lines[3]) <= 80
    assert fitted(COLUMNS, [row("x" * 200)], 80)[1] == "x" * 200


@pytest.mark.parametrize(("text", "width", "shown"), [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("ab cd", 4, "ab…")])
def test_a_cut_text_fits(text, width, shown):
    """The ellipsis is part of the width, and no blank stands before it."""
    assert cut(text, width) == shown


@given(
    st.lists(
        st.tuples(st.uuids().map(str), *[st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z", "M"]))] * 3)
    ),
    st.integers(40, 200),
)
def test_no_text_breaks_the_lines(rows, width):
    """Wide characters, empty cells and any number of rows: one line each, within the width."""
    lines = fitted(COLUMNS, rows, width)
    assert len(lines) == 1 + len(rows)
    assert all(cell_len(line) <= width for line in lines)
    assert all(line.startswith(entry[0]) for entry, line in zip(rows, lines[1:], strict=True))
