"""What we believe of PostgreSQL: who sees what when, and which plans our statements survive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg.outbox.driver import Driver
from relmsg.outbox.store import OutboxStore
from relmsg.testing import eventually

Connect = Callable[[], Awaitable[asyncpg.Connection]]


@pytest.fixture
async def connect(database_url: str) -> AsyncIterator[Connect]:
    made: list[asyncpg.Connection] = []

    async def connect() -> asyncpg.Connection:
        made.append(await asyncpg.connect(database_url.replace("+asyncpg", "")))
        return made[-1]

    yield connect
    for connection in made:
        await connection.close()


INBOX = """
INSERT INTO relmsg.inbox_message (consumer, source, message_id) VALUES ('c', 's', 'm') ON CONFLICT DO NOTHING
"""


OUTBOX = "INSERT INTO relmsg.outbox_message (exchange, routing_key, body) VALUES ('', 'q', '')"


async def waits_for_a_lock(witness: asyncpg.Connection, pid: int) -> None:
    async def waiting() -> None:
        query = "SELECT wait_event_type FROM pg_stat_activity WHERE pid = $1"
        assert await witness.fetchval(query, pid) == "Lock"

    await eventually(waiting)


@pytest.mark.parametrize(("commits", "written"), [(True, "INSERT 0 0"), (False, "INSERT 0 1")])
async def test_a_twin_waits_for_the_first_insert(connect: Connect, commits, written):
    """C4: a second insert of one id waits: it writes nothing if the first commits, and goes on if that rolls back."""
    first, second, witness = await connect(), await connect(), await connect()
    one, two = first.transaction(), second.transaction()
    await one.start()
    await two.start()
    assert await first.execute(INBOX) == "INSERT 0 1"
    twin = asyncio.create_task(second.execute(INBOX))
    await waits_for_a_lock(witness, second.get_server_pid())
    await (one.commit() if commits else one.rollback())
    assert await twin == written
    await two.commit()


async def test_a_twin_fails_at_repeatable_read(connect: Connect):
    """C4: at REPEATABLE READ the second insert of an id that has been committed is a serialization error."""
    first, second, witness = await connect(), await connect(), await connect()
    one, two = first.transaction(), second.transaction(isolation="repeatable_read")
    await one.start()
    await two.start()
    await first.execute(INBOX)
    twin = asyncio.create_task(second.execute(INBOX))
    await waits_for_a_lock(witness, second.get_server_pid())
    await one.commit()
    with pytest.raises(asyncpg.SerializationError):
        await twin
    await two.rollback()


async def test_a_cursor_over_ids_loses_what_commits_late(connect: Connect):
    """D1: a reader that remembers the largest id it saw never sees a smaller one that commits later."""
    early, late, reader = await connect(), await connect(), await connect()
    await reader.execute("CREATE TABLE public.log (id bigint GENERATED ALWAYS AS IDENTITY, name text)")
    insert, read = "INSERT INTO public.log (name) VALUES ($1) RETURNING id", "SELECT id FROM public.log WHERE id > $1"
    slow = early.transaction()
    await slow.start()
    small = await early.fetchval(insert, "began first")
    large = await late.fetchval(insert, "began second")
    assert small < large
    cursor = max(record["id"] for record in await reader.fetch(read, 0))
    await slow.commit()
    assert await reader.fetch(read, cursor) == []
    assert {record["id"] for record in await reader.fetch(read, 0)} == {small, large}


LIMITED = "SELECT id FROM public.jobs ORDER BY id LIMIT 3 FOR UPDATE SKIP LOCKED"


@pytest.mark.parametrize(
    ("condition", "deleted"),
    [(f"id IN ({LIMITED})", 20), (f"id = ANY (ARRAY({LIMITED}))", 3)],
    ids=["IN", "ANY(ARRAY)"],
)
async def test_a_limit_inside_of_in_may_run_for_every_row(connect: Connect, condition, deleted):
    """D7: under a nested loop ``IN (SELECT … LIMIT 3 …)`` deletes everything; ``= ANY (ARRAY(…))`` deletes three."""
    connection = await connect()
    await connection.execute("CREATE TABLE public.jobs (id int PRIMARY KEY)")
    await connection.execute("INSERT INTO public.jobs SELECT generate_series(1, 20)")
    for switch in ("hashjoin", "mergejoin", "hashagg", "material", "sort"):
        await connection.execute(f"SET enable_{switch} = off")
    assert await connection.execute(f"DELETE FROM public.jobs WHERE {condition}") == f"DELETE {deleted}"


async def test_a_limit_may_come_from_outside_of_a_lateral(connect: Connect):
    """The reader's statement relies on it: LIMIT of a lateral subquery may name a column of the row it is joined to."""
    connection = await connect()
    rows = await connection.fetch(
        """
        SELECT s.slot, m.n FROM unnest($1::int[], $2::int[]) AS s(slot, room)
         CROSS JOIN LATERAL (SELECT n FROM generate_series(1, 10) AS g(n) ORDER BY n LIMIT s.room) AS m
        """,
        [7, 8, 9],
        [1, 0, 3],
    )
    assert [tuple(row) for row in rows] == [(7, 1), (9, 1), (9, 2), (9, 3)]


async def test_the_slot_is_the_same_for_every_row_of_a_key(connect: Connect):
    """The generated slot is 0 to 63 also where the hash is negative, follows the key, and without one the id."""
    connection = await connect()
    keys = [f"key-{number}" for number in range(500)]
    insert = """
        INSERT INTO relmsg.outbox_message (exchange, routing_key, body, ordering_key, message_id)
        SELECT '', 'q', '', k, i FROM unnest($1::text[], $2::uuid[]) AS t(k, i)
        RETURNING ordering_key, message_id, slot
    """
    rows = await connection.fetch(insert, keys * 2 + [None] * 500, [uuid4() for _ in range(1500)])
    slots: dict[str, set[int]] = {}
    for row in rows:
        slots.setdefault(row["ordering_key"] or str(row["message_id"]), set()).add(row["slot"])
    assert all(len(found) == 1 for found in slots.values())
    assert set.union(*slots.values()) == set(range(64))
    assert await connection.fetchval("SELECT count(*) FROM unnest($1::text[]) AS t(k) WHERE hashtext(k) < 0", keys) > 0
    names = list(slots)
    hashed = await connection.fetch("SELECT (hashtext(k) & 63) AS slot FROM unnest($1::text[]) AS t(k)", names)
    assert [{row["slot"]} for row in hashed] == [slots[name] for name in names]


async def test_ids_of_one_session_grow_in_the_order_of_its_inserts(connect: Connect):
    """The identity has no cache: ids follow the order of inserts, also of the rows of one statement."""
    connection, other = await connect(), await connect()
    ids = []
    for each in (connection, other, connection, other):
        rows = await each.fetch(
            "INSERT INTO relmsg.outbox_message (exchange, routing_key, body) "
            "SELECT '', 'q', '' FROM generate_series(1, 5) RETURNING id"
        )
        ids += [row["id"] for row in rows]
    assert ids == sorted(ids)


async def test_a_savepoint_takes_its_rows_along(sessions: async_sessionmaker[AsyncSession]):
    """D22: what was written since a savepoint is gone when that is rolled back, and only that."""
    insert = text("INSERT INTO relmsg.outbox_message (exchange, routing_key, body) VALUES ('', :key, '')")
    async with sessions() as session, session.begin():
        await session.execute(insert, {"key": "before"})
        savepoint = await session.begin_nested()
        await session.execute(insert, {"key": "inside"})
        await savepoint.rollback()
        await session.execute(insert, {"key": "after"})
    async with sessions() as session:
        rows = await session.scalars(text("SELECT routing_key FROM relmsg.outbox_message ORDER BY id"))
        assert list(rows) == ["before", "after"]


async def test_autocommit_can_be_seen_on_the_driver(engine: AsyncEngine):
    """D22: SQLAlchemy's driver connection says by itself whether it is in AUTOCOMMIT, without asking the server."""
    async with engine.connect() as connection:
        driver = (await connection.get_raw_connection()).dbapi_connection
        assert driver.autocommit is False
    async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        assert connection.in_transaction() is False
        await connection.execute(text("SELECT 1"))
        assert connection.in_transaction() is True, "SQLAlchemy speaks of a transaction where there is none"
        driver = (await connection.get_raw_connection()).dbapi_connection
        assert driver.autocommit is True


async def test_an_index_takes_no_value_over_a_third_of_a_page(connect: Connect):
    """An ordering key over 2.7 kB that does not compress fails the INSERT: hence the limit of 1,024 bytes."""
    connection = await connect()
    insert = "INSERT INTO relmsg.outbox_message (exchange, routing_key, body, ordering_key) VALUES ('', 'q', '', $1)"
    key = "".join(uuid4().hex for _ in range(200))
    await connection.execute(insert, key[:1024])
    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await connection.execute(insert, key)


async def test_who_has_drawn_an_id_is_a_writer_until_the_row_is_visible(connect: Connect, engine: AsyncEngine):
    """An INSERT locks its table before it draws an id, and holds the lock, past a slow trigger too, until its rows are
    visible; a reader of the table, and a writer elsewhere, hold no such lock."""
    slow, gate, elsewhere = await connect(), await connect(), await connect()
    await gate.execute(
        "CREATE FUNCTION relmsg.wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM pg_advisory_lock(4711); PERFORM pg_advisory_unlock(4711); RETURN NEW; END$$;"
        "CREATE TRIGGER gate BEFORE INSERT ON relmsg.outbox_message FOR EACH ROW EXECUTE FUNCTION relmsg.wait_at_gate()"
    )
    driver = Driver(engine)
    store = OutboxStore(driver, driver, driver, schema="relmsg")
    try:
        assert await store.writers() == []
        await gate.execute("SELECT pg_advisory_lock(4711)")
        transaction = slow.transaction()
        await transaction.start()
        insert = asyncio.create_task(slow.execute(OUTBOX))
        await waits_for_a_lock(gate, slow.get_server_pid())
        async with elsewhere.transaction():
            await elsewhere.execute(INBOX)
            await elsewhere.fetch("SELECT FROM relmsg.outbox_message")
            (writer,) = await store.writers()
        await gate.execute("SELECT pg_advisory_unlock(4711)")
        await insert
        assert await store.writers() == [writer]
        await transaction.commit()
        assert await store.writers() == []
        assert await gate.fetchval("SELECT count(*) FROM relmsg.outbox_message") == 1
    finally:
        await driver.close()
        await gate.execute("DROP FUNCTION relmsg.wait_at_gate CASCADE")
