"""Lays rows out for a terminal: one line a row, no wider than the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

GAP = 2
NARROWEST = 8  # cells: a column that would be narrower than this, or than its name, is left out
ID_WIDTH = 36  # cells: a UUID. A longer id takes room from the columns behind it, in its own line only


def fitted(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The line of the columns' names, and one line for each row, of at most ``width`` cells.

    Ids are whole, whatever the width: the columns named ``id`` or ``…_id``. What is too long in another column is cut
    and ends with ``…``. Where the width is not enough for all columns, the last ones are left out, and the line of
    names ends with ``…``. An id that is longer than a UUID covers what stands behind it in its line.
    """
    widths = _shares(columns, rows, width)
    header = _line(columns, widths, [True] * len(widths))
    if len(widths) < len(columns) and cell_len(header) + GAP < width:
        header += " " * GAP + "…"
    whole = [_is_id(column) for column in columns]
    return [header, *(_line(row, widths, whole) for row in rows)]


def cut(text: str, width: int) -> str:
    """The text, or as much of its beginning as fits into so many cells with a ``…`` behind it."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + "…" if width > 0 else ""


def _is_id(column: str) -> bool:
    return column == "id" or column.endswith("_id")


def _shares(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """How wide each column is; shorter than ``columns`` where the last ones find no room."""
    needs = []
    for place, column in enumerate(columns):
        cells = [cell_len(row[place]) for row in rows]
        if _is_id(column):
            cells = [each for each in cells if each <= ID_WIDTH]
        needs.append(max([cell_len(column), *cells]))
    least = [
        need if _is_id(column) else max(cell_len(column), min(need, NARROWEST))
        for column, need in zip(columns, needs, strict=True)
    ]
    shown = len(columns)
    while shown > 1 and sum(least[:shown]) + GAP * (shown - 1) > width:
        shown -= 1
    shares = least[:shown]
    spare = width - sum(shares) - GAP * (shown - 1)
    while spare > 0:
        # The narrowest of those that want more grows first, so that short columns are whole before long ones are.
        hungry = [place for place in range(shown) if shares[place] < needs[place]]
        if not hungry:
            break
        shares[min(hungry, key=lambda place: shares[place])] += 1
        spare -= 1
    return shares


def _line(cells: Sequence[str], widths: Sequence[int], whole: Sequence[bool]) -> str:
    line, reached, start = "", 0, 0
    for cell, width, is_whole in zip(cells, widths, whole, strict=False):
        begin = max(start, reached + GAP) if reached else start
        shown = cell if is_whole else cut(cell, start + width - begin)
        if shown:
            line += " " * (begin - cell_len(line)) + shown
            reached = begin + cell_len(shown)
        start += width + GAP
    return line
