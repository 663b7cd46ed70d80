"""What the hint and the relay's listener share: a channel's name, and a connection apart from the engine's pool."""

from __future__ import annotations

import hashlib

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from relmsg.settings import IDENTIFIER_BYTES

PREFIX = "relmsg_outbox_"


def channel(schema: str) -> str:
    """The channel of PostgreSQL's NOTIFY for the outbox of this schema: ``relmsg_outbox_<schema>``; where that is
    longer than an identifier may be, a digest stands for the schema. Channels belong to one database, as schemas do.
    """
    name = PREFIX + schema
    if len(name.encode()) > IDENTIFIER_BYTES:
        name = PREFIX + "#" + hashlib.blake2s(schema.encode(), digest_size=16).hexdigest()
    return name


def notification(schema: str) -> str:
    """The statement that hints: there is something in the outbox of this schema."""
    return 'NOTIFY "{}"'.format(channel(schema).replace('"', '""'))


def apart(engine: AsyncEngine) -> AsyncEngine:
    """An engine on the same database, made the same way (URL, connect arguments, creator, events of its pool), with a
    pool of its own: what it holds is never missing in the other one. It has to be disposed of by the caller.
    """
    return create_async_engine(engine.url, pool=engine.sync_engine.pool.recreate())
