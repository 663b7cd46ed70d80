"""What a handler gives to the database does not go into the error queue with its error."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, cast

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from relmsg.broker.delivery import Delivery
from relmsg.broker.diagnosis import error_headers
from relmsg.database import create_engine
from relmsg.db.failures import named
from relmsg.inbox.outcome import Failed
from tests.unit.test_attempt_diagnosis import Came

SECRET = "4111-1111"
AT = datetime(2026, 11, 29, tzinfo=UTC)


async def twice(connection: AsyncConnection, value: str) -> None:
    for _ in range(2):
        await connection.execute(text("INSERT INTO card VALUES (:n)"), {"n": value})


async def not_a_number(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS int)"), {"n": value})


async def wrong_type(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(:n AS int)"), {"n": value})


async def refused_by_a_check(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("INSERT INTO checked VALUES (:n, 0)"), {"n": value})


async def no_such_table(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("INSERT INTO nowhere VALUES (:n)"), {"n": value})


async def of_a_kind(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS mood)"), {"n": value})


async def many(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("INSERT INTO card VALUES (:n)"), [{"n": value}, {"n": value}])


async def no_array(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS int[])"), {"n": value})


async def no_record(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS checked)"), {"n": value})


async def no_range(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS int4range)"), {"n": value})


async def no_network(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS cidr)"), {"n": value})


async def no_json(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT CAST(CAST(:n AS text) AS jsonb)"), {"n": value})


async def no_time_zone(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT now() AT TIME ZONE CAST(:n AS text)"), {"n": value})


async def no_date(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT to_date(CAST(:n AS text), 'MONTH')"), {"n": value})


async def no_bits(connection: AsyncConnection, value: str) -> None:
    await connection.execute(text("SELECT decode(CAST(:n AS text), 'hex')"), {"n": value})


async def overlapping(connection: AsyncConnection, value: str) -> None:
    for _ in range(2):
        await connection.execute(text("INSERT INTO taken VALUES (:n)"), {"n": value})


async def of_the_orm(connection: AsyncConnection, value: str) -> None:
    async with AsyncSession(connection) as session:
        session.add(Card(number=value))
        await session.flush()
        session.add(Card(number=value))
        await session.flush()


async def through_the_driver(connection: AsyncConnection, value: str) -> None:
    raw = await connection.get_raw_connection()
    driver: Any = raw.driver_connection
    await driver.executemany("INSERT INTO card VALUES ($1)", [(value,), (value,)])


STATEMENTS = [
    twice,
    not_a_number,
    wrong_type,
    refused_by_a_check,
    no_such_table,
    of_a_kind,
    many,
    no_array,
    no_record,
    no_range,
    no_network,
    no_json,
    no_time_zone,
    no_date,
    no_bits,
    overlapping,
    of_the_orm,
    through_the_driver,
]


class Model(DeclarativeBase):
    pass


class Card(Model):
    __tablename__ = "card"
    number: Mapped[str] = mapped_column(primary_key=True)


def copied(error: BaseException) -> str:
    headers = error_headers(cast("Delivery", Came()), Failed(error, "handler_failed", attempts=1), "billing", AT)
    return json.dumps(headers)


async def failure(engine: AsyncEngine, statement: Callable[..., Any], value: str) -> Any:
    async with engine.connect() as connection:
        with pytest.raises((SQLAlchemyError, asyncpg.PostgresError)) as caught:
            await statement(connection, value)
    return caught.value


@pytest.fixture(autouse=True)
async def _tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE card (number text PRIMARY KEY)"))
        await connection.execute(text("CREATE TABLE checked (number text, n int CHECK (n > 0))"))
        await connection.execute(text("CREATE TYPE mood AS ENUM ('good')"))
        await connection.execute(text("CREATE TABLE taken (number text, EXCLUDE USING hash (number WITH =))"))


@pytest.mark.parametrize("value", [SECRET, f"a\nHINT: {SECRET}", f"a]\n(b: {SECRET}", f'"{SECRET}" is out of range'])
@pytest.mark.parametrize("statement", STATEMENTS)
async def test_no_value_of_a_statement_is_in_an_error_copy(
    engine: AsyncEngine, statement: Callable[..., Any], value: str
) -> None:
    """Neither parameters, nor PostgreSQL's DETAIL, nor an invalid value that is quoted; what was wrong is told."""
    error = await failure(engine, statement, value)
    headers = copied(error)
    assert SECRET not in headers
    assert type(error).__name__ in headers
    try:
        raise RuntimeError(f"the card was not stored: {error}") from error
    except RuntimeError as wrapped:
        headers = copied(wrapped)
    assert SECRET not in headers
    assert "the card was not stored" in headers


@pytest.mark.parametrize("value", [SECRET, f"a\nHINT: {SECRET}"])
@pytest.mark.parametrize("statement", STATEMENTS)
async def test_no_value_of_a_statement_is_in_a_log(
    engine: AsyncEngine, statement: Callable[..., Any], value: str
) -> None:
    """The line in which a process tells of a failed statement has no value of it either."""
    error = await failure(engine, statement, value)
    assert SECRET not in named(error)
    assert SECRET not in named(getattr(error, "orig", error))
    assert type(error).__name__ in named(error)


async def test_a_number_that_is_too_large_is_not_quoted(engine: AsyncEngine) -> None:
    """PostgreSQL quotes a number that no double holds."""

    async def too_large(connection: AsyncConnection, value: str) -> None:
        await connection.execute(text("SELECT CAST(CAST(:n AS text) AS float8)"), {"n": value})

    error = await failure(engine, too_large, "41111111e999")
    told = copied(error) + named(error)
    assert "41111111" not in told
    assert "out of range" in copied(error)


async def test_what_was_wrong_is_told(engine: AsyncEngine) -> None:
    """The rule that was broken, the statement and the place in the code stay."""
    headers = copied(await failure(engine, twice, SECRET))
    assert 'duplicate key value violates unique constraint \\"card_pkey\\"' in headers
    assert "INSERT INTO card VALUES" in headers
    assert "test_hidden_values.py" in headers


async def test_an_engine_of_relmsg_hides_parameters(database_url: str, engine: AsyncEngine) -> None:
    """An error of a statement of relmsg's does not quote what it had to write."""
    ours = create_engine(database_url)
    insert = text("INSERT INTO public.card VALUES (:n)")
    async with ours.connect() as connection:
        await connection.execute(insert, {"n": "not to be seen"})
        with pytest.raises(IntegrityError) as caught:
            await connection.execute(insert, {"n": "not to be seen"})
    assert "[SQL parameters hidden" in str(caught.value)
    await ours.dispose()
