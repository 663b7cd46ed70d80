"""The loop teams write: ORM select 100, await each publish, mark it sent, commit."""

from __future__ import annotations

import asyncio
import os
import sys
import uuid

import aio_pika
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class OutboxRow(Base):
    __tablename__ = "naive_outbox"

    id: Mapped[int] = mapped_column(primary_key=True)
    message_id: Mapped[uuid.UUID]
    type: Mapped[str]
    routing_key: Mapped[str]
    headers: Mapped[dict[str, str]] = mapped_column(JSONB)
    body: Mapped[bytes]
    sent: Mapped[bool] = mapped_column(default=False, index=True)


async def prepare() -> None:
    """Make the table."""
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"])
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
    print("prepared", flush=True)


async def relay(batch: int) -> None:
    engine = create_async_engine(os.environ["RELMSG_DATABASE_URL"])
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    connection = await aio_pika.connect_robust(os.environ["RELMSG_AMQP_URL"])
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    while True:
        async with sessions() as session, session.begin():
            sent = await _relay(session, channel.default_exchange, batch)
        if not sent:
            await asyncio.sleep(0.1)


async def _relay(session: AsyncSession, exchange: aio_pika.abc.AbstractExchange, batch: int) -> int:
    waiting = select(OutboxRow).where(OutboxRow.sent.is_(False)).order_by(OutboxRow.id).limit(batch)
    rows = (await session.scalars(waiting.with_for_update(skip_locked=True))).all()
    for row in rows:
        message = aio_pika.Message(
            row.body,
            message_id=str(row.message_id),
            type=row.type,
            headers=dict(row.headers),
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        await exchange.publish(message, row.routing_key, mandatory=True)
        row.sent = True
    return len(rows)


if __name__ == "__main__":
    asyncio.run(prepare() if sys.argv[-1] == "prepare" else relay(int(sys.argv[1])))
