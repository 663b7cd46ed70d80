"""A place of the benchmark's own: a schema, an exchange, a queue and its error queue, removed in the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from sqlalchemy import BigInteger, Column, Identity, MetaData, Table, Text, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.pool import NullPool
from sqlalchemy.schema import CreateTable

from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.broker.publisher import Publisher
from relmsg.broker.receipt import Confirmed
from relmsg.broker.remove import delete_exchange, delete_queue, purge_queue
from relmsg.database import create_engine
from relmsg.db.failures import named, translated
from relmsg.errors import AccessRefused, ServiceAway
from relmsg.message import Message
from relmsg.migrate import upgrade
from relmsg.outbox.publish import Outbox
from relmsg.settings import Settings, redact
from relmsg.topology import Binding, Exchange, Queue, Topology, error_queue_name

TYPE, SOURCE, ROUTING_KEY = "relmsg.bench", "relmsg-bench", "bench"
CHUNK = 1000  # messages in one call of publish_many
REMOVE_SECONDS = 15.0
# After a SIGKILL nobody removes the queues: the broker does, once they were not consumed from for so long.
EXPIRES_MS = 3_600_000

_MAY_CREATE = "SELECT has_database_privilege(current_database(), 'CREATE'), current_database(), current_user"


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything is measured. ``settings`` are the user's own, but for the schema and the relay's name."""

    settings: Settings
    connection: Connection
    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    effect: Table
    name: str
    body: bytes

    @property
    def amqp_url(self) -> str:
        """The broker's URL, with all its hosts."""
        return self.settings.broker_url()

    @property
    def error_exchange(self) -> str:
        """What the consumers here use instead of the user's."""
        return f"{self.name}.errors"

    def message(self) -> Message:
        """A message as all rows use it, with an id of its own."""
        return Message(type=TYPE, body=self.body, exchange=self.name, routing_key=ROUTING_KEY)

    def chunks(self, count: int) -> Iterator[list[Message]]:
        """So many messages, 1,000 at a time."""
        for start in range(0, count, CHUNK):
            yield [self.message() for _ in range(min(CHUNK, count - start))]

    async def fill_outbox(self, count: int) -> None:
        """Have so many messages wait in the outbox."""
        outbox = Outbox(SOURCE, schema=self.settings.schema, max_body_bytes=self.settings.max_body_bytes)
        for messages in self.chunks(count):
            async with self.sessions.begin() as session:
                await outbox.publish_many(session, messages)

    async def fill_queue(self, count: int) -> None:
        """Have so many messages wait in the queue. :raises NotConfirmed: the broker did not take one of them."""
        async with Publisher(self.amqp_url, source=SOURCE, max_body_bytes=self.settings.max_body_bytes) as publisher:
            for messages in self.chunks(count):
                for receipt in await publisher.publish_many(messages, raises=False):
                    if not isinstance(receipt, Confirmed):
                        raise receipt

    async def empty_queue(self) -> None:
        """Remove what earlier rows have left in the queue."""
        await purge_queue(self.connection, self.name)


@asynccontextmanager
async def place(
    settings: Settings,
    connection: Connection,
    *,
    name: str,
    body: int,
    queue_type: str,
    complain: Callable[[str], None],
) -> AsyncIterator[Place]:
    """Make the place, and remove it, whatever happens. What could not be removed is told to ``complain``, in one line.

    :raises AccessRefused: the database's user may not create a schema, or the broker's user may not declare.
    :raises DatabaseAway, BrokerAway: a service does not answer.
    """
    settings = replace(settings, schema=name, relay_name=name)
    engine = create_engine(settings.database(), pool_size=settings.concurrency + 4)
    try:
        await _require_create(engine, settings.database())
    except BaseException:
        await engine.dispose()
        raise
    declared = False
    try:
        found = Place(
            settings=settings,
            connection=connection,
            engine=engine,
            sessions=async_sessionmaker(engine, expire_on_commit=False),
            effect=_effect(name),
            name=name,
            body=b"x" * body,
        )
        await upgrade(settings.database(), name)
        async with engine.begin() as session:
            await session.execute(CreateTable(found.effect))
        await declare(connection, _topology(name, found.error_exchange, queue_type))
        declared = True
        yield found
    finally:
        await engine.dispose()
        if left := await _removed(settings, connection, name, declared=declared):
            complain(f"could not remove {'; '.join(left)}")


def _effect(schema: str) -> Table:
    """The business table: what a transaction or a handler writes beside its message."""
    columns = Column("id", BigInteger, Identity(), primary_key=True), Column("message_id", Text)
    return Table("effect", MetaData(schema=schema), *columns)


def _topology(name: str, errors: str, queue_type: str) -> Topology:
    expires = {"x-expires": EXPIRES_MS}
    queue = Queue(
        name,
        type=queue_type,
        dead_letter_exchange=None,
        bindings=(Binding(name, routing_key=ROUTING_KEY),),
        arguments=expires,
    )
    failed = Queue(error_queue_name(name), dead_letter_exchange=None, arguments=expires)
    return Topology((Exchange(name), Exchange(errors, type="direct")), (queue, failed))


async def _require_create(engine: AsyncEngine, url: str) -> None:
    with translated(url):
        async with engine.connect() as connection:
            may, database, user = (await connection.execute(text(_MAY_CREATE))).one()
    if not may:
        raise AccessRefused(
            f"PostgreSQL: user {user} may not create a schema, and relmsg bench needs one of its own: "
            f'GRANT CREATE ON DATABASE "{database}" TO "{user}"'
        )


async def _removed(settings: Settings, connection: Connection, name: str, *, declared: bool) -> list[str]:
    """Remove everything; a phrase for each thing that is still there, or may be."""
    failed, errors = error_queue_name(name), f"{name}.errors"
    steps: Sequence[tuple[str, Callable[[], Awaitable[None]]]] = (
        (f"schema {name}", lambda: _drop(settings.database(), name)),
        (f"queue {name}", lambda: delete_queue(connection, name)),
        (f"queue {failed}", lambda: delete_queue(connection, failed)),
        (f"exchange {name}", lambda: delete_exchange(connection, name)),
        (f"exchange {errors}", lambda: delete_exchange(connection, errors)),
    )
    left: list[str] = []
    away: set[bool] = set()  # whether it is the database: a service that is away is waited for once
    for thing, step in steps:
        in_database = thing.startswith("schema")
        if in_database in away:
            left.append(thing)
            continue
        try:
            async with asyncio.timeout(REMOVE_SECONDS):
                await step()
        except AccessRefused as error:
            if declared or in_database:  # who may not delete it could not declare it either
                left.append(f"{thing}: {redact(str(error))}")
        except TimeoutError:
            away.add(in_database)
            left.append(f"{thing}: no answer for {REMOVE_SECONDS:.0f} s")
        except ServiceAway as error:
            away.add(in_database)
            left.append(f"{thing}: {redact(str(error))}")
        except Exception as error:  # noqa: BLE001 - whatever it is, the other things are still to be removed
            reason = named(error)
            left.append(f"{thing}: {redact(reason)}")
    return left


async def _drop(url: str, schema: str) -> None:
    engine = create_engine(url, poolclass=NullPool)
    try:
        with translated(url):
            async with engine.begin() as connection:
                await connection.execute(text(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE'))
    finally:
        await engine.dispose()
