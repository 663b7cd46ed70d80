"""`relmsg outbox` and `relmsg half` on rows that somebody has written by plain SQL: none ends or stalls a command."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.terminal import STYLES, seen

Relmsg = Callable[..., Awaitable[tuple[int, str, str]]]

ODD, GOOD = UUID(int=1), UUID(int=2)
TABLES = {"outbox": "outbox_message", "half": "half_message"}
WITHIN = 60.0  # seconds, for the largest of them on a machine that is busy
BIG = 16_000_000
# All of C0 but NUL, which no text of PostgreSQL can hold, DEL, C1, line and paragraph separators, bidi controls.
CONTROLS = "".join(
    map(chr, [*range(1, 32), *range(127, 161), 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)])
)
WORDS = f"a\x1b]0;root\x07\n{CONTROLS}b"

COLUMNS = {
    "outbox": {
        "texts": ("type", "source", "exchange", "routing_key", "ordering_key", "content_type", "content_encoding",
                  "correlation_id", "reply_to", "last_error"),
        "times": ("created_at", "occurred_at", "expires_at", "parked_at"),
        "spans": (),
        "numbers": ("attempts",),
    },
    "half": {
        "texts": ("producer_group", "user_id", "type", "source", "exchange", "routing_key", "ordering_key",
                  "content_type", "content_encoding", "correlation_id", "reply_to", "last_answer", "decided_by"),
        "times": ("occurred_at", "created_at", "prepared_at", "next_check_at", "last_answer_at", "decided_at"),
        "spans": ("expires_in", "check_every"),
        "numbers": ("max_checks", "checks", "check_sent", "check_received"),
    },
}  # fmt: skip


def every(kind: str, value: str) -> Callable[[str], dict[str, str]]:
    """A value, as SQL, in all columns of a kind."""
    return lambda verb: dict.fromkeys(COLUMNS[verb][kind], value)


def nested(levels: int, opening: str, closing: str) -> str:
    return f"(repeat('{opening}', {levels}) || '1' || repeat('{closing}', {levels}))::jsonb"


def literal(words: str) -> str:
    return "U&'" + "".join(f"\\+{ord(each):06x}" for each in words) + "'"


ROWS: dict[str, Callable[[str], dict[str, str]]] = {
    "arrays 3000 deep": lambda _: {"headers": nested(3000, "[", "]")},
    "objects 3000 deep": lambda _: {"headers": nested(3000, '{"a":', "}")},
    "arrays 150 deep": lambda _: {"headers": nested(150, "[", "]")},
    "no object": lambda _: {"headers": "'[1]'::jsonb"},
    "16 MB of headers": lambda _: {"headers": f"jsonb_build_object('a', repeat('x', {BIG}))"},
    "4 MB of controls in headers": lambda _: {"headers": f"jsonb_build_object('a', repeat(chr(27), {BIG} / 4))"},
    "16 MB in one text": lambda verb: {COLUMNS[verb]["texts"][-1]: f"repeat('x', {BIG})"},
    "100 kB in every text": every("texts", f"repeat('{chr(0x301)}', 100000)"),
    "controls in every text": every("texts", literal(WORDS)),
    "controls in headers": lambda _: {"headers": f"jsonb_build_object({literal(WORDS)}, {literal(WORDS)})"},
    "huge numbers in headers": lambda _: {"headers": "'[1e400, -1e400, 1e6000, 1e-6000, 18446744073709551616]'::jsonb"},
    "the least numbers": every("numbers", "-2147483648"),
    "the greatest numbers": every("numbers", "2147483647"),
    "after all time": every("times", "'infinity'"),
    "before all time": every("times", "'-infinity'"),
    "BC": every("times", "'4713-01-01 00:00:00+00 BC'"),
    "after year 9999": every("times", "'294276-12-31 23:59:59+00'"),
    "the longest spans": every("spans", "'178000000 years'"),
    "the shortest spans": every("spans", "'-178000000 years'"),
    "a body that is not UTF-8": lambda _: {"body": r"'\xff001b9b8000'::bytea"},
    "a body of controls": lambda _: {"body": f"convert_to({literal(WORDS)}, 'UTF8')"},
    "4 MB of body": lambda _: {"body": rf"decode(repeat('1b', {BIG} / 4), 'hex')"},
}  # fmt: skip


async def placed(engine: AsyncEngine, verb: str, row_id: UUID, odd: dict[str, str]) -> None:
    """A row of the verb's table, as SQL has it."""
    row = {"exchange": "''", "routing_key": "'q'", "body": r"'\x31'"}
    if verb == "half":
        row |= {"half_id": f"'{row_id}'", "producer_group": "'g'", "state": "'PARKED'"}
    else:
        row |= {"message_id": f"'{row_id}'", "last_error": "'held'"}
    row |= odd
    async with engine.begin() as connection:
        await connection.exec_driver_sql(
            f"INSERT INTO relmsg.{TABLES[verb]} ({', '.join(row)}) VALUES ({', '.join(row.values())})"
        )


def is_printable(output: str) -> bool:
    return all(line.replace("\t", "").isprintable() for line in output.split("\n"))


@pytest.mark.parametrize("odd", ROWS.values(), ids=ROWS)
async def test_no_row_ends_or_stalls_a_command(
    odd: Callable[[str], dict[str, str]], engine: AsyncEngine, relmsg: Relmsg
) -> None:
    """Lists have the odd row and its neighbour, `show` has the odd one, and both are printable and JSON."""

    async def told(*arguments: str) -> str:
        async with asyncio.timeout(WITHIN):
            code, output, problems = await relmsg(*arguments)
        assert (code, problems) == (0, "")
        assert is_printable(output)
        return output

    async def read(*arguments: str) -> Any:
        return json.loads(await told(*arguments, "--json"))

    for verb in TABLES:
        await placed(engine, verb, ODD, odd(verb))
        await placed(engine, verb, GOOD, {})
        name = "half_id" if verb == "half" else "message_id"
        assert {each[name] for each in await read(verb, "list")} == {str(ODD), str(GOOD)}
        assert len((await told(verb, "list")).splitlines()) == 3
        (row,) = await read(verb, "show", str(ODD))
        assert row[name] == str(ODD)
        assert str(ODD) in await told(verb, "show", str(ODD))
    status = await read("outbox", "status")
    assert status["waiting"] + status["parked"] == 2
    assert "held" in await told("outbox", "status")


async def test_headers_that_are_nested_too_deep_are_shown_as_text(engine: AsyncEngine, relmsg: Relmsg) -> None:
    """Headers are JSON in JSON; those of more than 200 levels are its text, which any reader of JSON can take."""
    for levels in (150, 3000):
        await placed(engine, "outbox", UUID(int=levels), {"headers": nested(levels, "[", "]")})
        _, output, _ = await relmsg("outbox", "show", str(UUID(int=levels)), "--json")
        (row,) = json.loads(output)
        if levels == 150:
            assert json.dumps(row["headers"]) == "[" * levels + "1" + "]" * levels
        else:
            assert row["headers"] == "[" * levels + "1" + "]" * levels


async def test_a_terminal_gets_nothing_of_a_row_but_printable_lines(engine: AsyncEngine, database_url: str) -> None:
    """On a terminal a list has a line a row that fits it, whatever the row holds; so has a status."""
    for verb in TABLES:
        for number, odd in enumerate((ROWS["controls in every text"], ROWS["16 MB in one text"], ROWS["BC"])):
            await placed(engine, verb, UUID(int=number), odd(verb))
    for arguments in (("outbox", "list"), ("outbox", "status"), ("half", "list"), ("outbox", "list", "--json")):
        found = await seen(*arguments, RELMSG_DATABASE_URL=database_url)
        assert found.code == 0, found.written
        assert is_printable(STYLES.sub("", found.written).replace("\r\n", "\n"))
        if arguments[1] == "list" and len(arguments) == 2:
            assert len(found.lines) == 4
            assert all(len(line) <= 80 for line in found.lines)
