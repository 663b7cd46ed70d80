"""A UUID that other clients spell in other ways names one message, and goes on as it came."""

from __future__ import annotations

import pytest

from relmsg.broker.connection import Connection
from relmsg.broker.declare import declare
from relmsg.broker.error_entry import ErrorFilter
from relmsg.broker.error_queue import ErrorQueue
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.topology import Queue, Topology
from tests.support.consuming import QUEUE, create_effect, effect, effects, place, running, settled

USUAL = "6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11"
SPELLINGS = [USUAL.upper(), f"{{{USUAL}}}", f"urn:uuid:{USUAL}", USUAL.replace("-", ""), USUAL]


@pytest.mark.parametrize("group", [1, 50])
async def test_every_spelling_of_a_uuid_is_the_same_message(engine, sessions, broker, amqp_url, group):
    """Five spellings of one id take effect once, in one transaction and in one each; another id is another message."""
    await create_effect(engine)
    await broker.queue(QUEUE)
    inbox = Inbox("billing", sessions)
    inbox.handler("order.placed", queue=QUEUE, group=group)(effect)
    await place(broker, *SPELLINGS, USUAL.replace("6f", "7f"))
    async with running(inbox, amqp_url):
        await settled(inbox, handled=2, duplicate=4)
    assert sorted(await effects(sessions)) == sorted([SPELLINGS[0], USUAL.replace("6f", "7f")])


async def test_a_failed_message_keeps_the_spelling_of_its_id(sessions, broker, amqp_url):
    """The error copy and the requeued message have the id as it was sent; it is found under any spelling."""
    inbox = Inbox("billing", sessions)

    async def refuse(message: Message) -> None:
        raise ValueError(message.id)

    inbox.handler("order.placed", queue=QUEUE, retry=1)(refuse)
    async with Connection([amqp_url]) as connection:
        await declare(connection, Topology(queues=(Queue(QUEUE),)))
        await place(broker, SPELLINGS[0])
        async with running(inbox, amqp_url):
            await settled(inbox, failed=1)
        errors = await ErrorQueue.of(connection, QUEUE)
        for spelling in SPELLINGS:
            (entry,) = await errors.browse(ErrorFilter(message_id=spelling))
            assert entry.message_id == SPELLINGS[0]
        assert await errors.requeue(ErrorFilter(message_id=USUAL)) == []
        (again,) = await broker.drain(QUEUE)
        assert again.message_id == SPELLINGS[0]
