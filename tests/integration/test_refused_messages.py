"""A trigger or a constraint of the user's refuses what the inbox remembers of a message."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from relmsg import Inbox, Message, Retry
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.consuming import QUEUE, counted, create_effect, effect, effects, left, place, running, settled

ERRORS = f"{QUEUE}.errors"
WAYS = ("one", "group", "list")
TRIGGER = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF {when} THEN RAISE EXCEPTION USING errcode = '{code}', message = 'not this one'; END IF; RETURN NEW;
END $$;;
CREATE TRIGGER refuse {time} INSERT ON relmsg.inbox_message FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""
VANISHING = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF {when} THEN RETURN NULL; END IF; RETURN NEW;
END $$;;
CREATE TRIGGER refuse BEFORE INSERT ON relmsg.inbox_message FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""
DROP = "DROP FUNCTION public.refuse() CASCADE"
KNOWN = """
CREATE TABLE public.known (source text PRIMARY KEY);;
INSERT INTO public.known VALUES ('');;
ALTER TABLE relmsg.inbox_message ADD CONSTRAINT known FOREIGN KEY (source) REFERENCES public.known
"""


def trigger(when: str = "NEW.message_id = 'bad'", code: str = "P0001", time: str = "BEFORE") -> str:
    return TRIGGER.format(when=when, code=code, time=time)


AGAINST_ONE = {
    "a trigger": trigger(),
    "a trigger with a code of its own": trigger(code="APP01"),
    "a trigger that speaks of a permission": trigger(code="42501", time="AFTER"),
    "a trigger that speaks of a state": trigger(code="55000"),
    "a constraint": "ALTER TABLE relmsg.inbox_message ADD CONSTRAINT refuse CHECK (message_id <> 'bad')",
    "a foreign key": KNOWN,
    "a trigger that lets the row vanish": VANISHING.format(when="NEW.message_id = 'bad'"),
}
AGAINST_ALL = {
    "a trigger": trigger("true"),
    "a trigger with a fault": trigger("true", "22012"),
    "a trigger with a code of its own": trigger("true", "APP01", "AFTER"),
    "a permission": trigger("true", "42501"),
    "a trigger that lets the row vanish": VANISHING.format(when="true"),
    "a constraint": "ALTER TABLE relmsg.inbox_message ADD CONSTRAINT refuse CHECK (consumer <> 'billing') NOT VALID",
}


@pytest.fixture
async def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    await create_effect(engine)
    return async_sessionmaker(engine, expire_on_commit=False)


async def run(engine: AsyncEngine, statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements.split(";;"):
            await connection.exec_driver_sql(statement)


def inbox_of(way: str, sessions: Any, **options: Any) -> Inbox:
    inbox = Inbox("billing", sessions, chance=lambda: 0.1, **options)
    if way == "list":

        @inbox.handler("order.placed", queue=QUEUE, retry=1)
        async def all_of_them(messages: list[Message], session: AsyncSession) -> None:
            for message in messages:
                await effect(session, message)
    else:

        @inbox.handler("order.placed", queue=QUEUE, retry=Retry(attempts=1), group=1 if way == "one" else None)
        async def handle(message: Message, session: AsyncSession) -> None:
            await effect(session, message)

    return inbox


def source_of_bad(rule: str) -> dict[str, Any]:
    return {"app_id": "stranger"} if rule == "a foreign key" else {}


async def goes_on(inbox: Inbox) -> None:
    def check() -> None:
        assert (inbox.live(), inbox.ready()) == (None, None)

    await eventually(check)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", AGAINST_ONE)
async def test_a_message_whose_row_is_refused_goes_to_the_error_queue_alone(
    rule: str, way: str, engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """It waits there with the database's words; its neighbours take effect, and the consumer is ready."""
    await run(engine, AGAINST_ONE[rule])
    await broker.queue(QUEUE)
    ids = [str(number) for number in range(8)]
    await place(broker, *ids[:4])
    await place(broker, "bad", **source_of_bad(rule))
    await place(broker, *ids[4:])
    inbox = inbox_of(way, sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, handled=8, failed=1)
        await goes_on(inbox)
    (copy,) = await broker.drain(ERRORS)
    assert (copy.message_id, copy.headers["relmsg-error-reason"]) == ("bad", "internal_error")
    assert sorted(await effects(sessions)) == ids
    assert await left(broker) == 0


@pytest.mark.parametrize("rule", ["a trigger", "a constraint"])
async def test_a_refused_message_needs_no_neighbour_to_be_told(
    rule: str, engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """A message alone in its queue goes to the error queue as well: the database takes a row that is like its own."""
    await run(engine, AGAINST_ONE[rule])
    await broker.queue(QUEUE)
    await place(broker, "bad")
    inbox = inbox_of("group", sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, failed=1)
        await goes_on(inbox)


async def test_a_message_of_a_refused_source_is_told_by_what_the_inbox_remembers(
    engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """No message of that source passes; where the inbox remembers one of another source, such a row does."""
    await run(engine, KNOWN)
    await run(engine, "INSERT INTO relmsg.inbox_message (consumer, source, message_id) VALUES ('billing', '', 'old')")
    await broker.queue(QUEUE)
    await place(broker, "bad", app_id="stranger")
    inbox = inbox_of("one", sessions)
    async with running(inbox, amqp_url):
        await settled(inbox, failed=1)
        await goes_on(inbox)


async def test_a_refused_message_is_told_by_the_next_that_passes(
    engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str, caplog: Any
) -> None:
    """Where the database refuses every row that could be compared, the message waits until another one has passed."""
    caplog.set_level(logging.INFO, "relmsg")
    allowed = uuid4()
    await run(engine, trigger(f"NEW.message_id <> '{allowed}'"))
    await broker.queue(QUEUE)
    await place(broker, "bad")
    inbox = inbox_of("one", sessions)
    async with running(inbox, amqp_url):
        await refused_again(caplog, 3)
        assert counted(inbox, "failed") == 0
        await place(broker, str(allowed))
        await settled(inbox, handled=1, failed=1)
        await goes_on(inbox)


async def refused_again(caplog: Any, times: int) -> None:
    """Wait for so many trials in vain."""

    def check() -> None:
        assert sum("still paused" in record.getMessage() for record in caplog.records) >= times

    await eventually(check, within=30)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rule", AGAINST_ALL)
async def test_a_database_that_refuses_all_rows_costs_no_message(
    rule: str, way: str, engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str, caplog: Any
) -> None:
    """The consumer waits, and once the rule is gone every message takes effect."""
    caplog.set_level(logging.INFO, "relmsg")
    await run(engine, AGAINST_ALL[rule])
    await broker.queue(QUEUE)
    ids = [str(number) for number in range(6)]
    await place(broker, *ids[:3], app_id="one")
    await place(broker, *ids[3:], app_id="two")
    inbox = inbox_of(way, sessions)
    async with running(inbox, amqp_url):
        await refused_again(caplog, 6)
        assert counted(inbox, "failed") == 0
        assert "database" in (inbox.ready() or "")
        await run(engine, "ALTER TABLE relmsg.inbox_message DROP CONSTRAINT IF EXISTS refuse")
        await run(engine, "DROP FUNCTION IF EXISTS public.refuse() CASCADE")
        await settled(inbox, handled=6)
        await goes_on(inbox)
        assert counted(inbox, "failed") == 0
    assert sorted(await effects(sessions)) == ids


class Fast:
    """The machine's clock, thirty times as fast."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() * 30

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 30)


@pytest.mark.parametrize("rule", ["the trial's row alone", "all rows"])
async def test_a_long_pause_ends_when_the_rows_of_messages_pass(
    rule: str, engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """A rule that allows the known sources only refuses the row by which relmsg tries whether the database writes."""
    allowed = "CREATE TABLE public.refused AS SELECT true AS is_refused"
    await run(engine, allowed)
    known = "NEW.source <> 'shop'" if rule == "the trial's row alone" else "false"
    await run(engine, trigger(f"{known} OR (SELECT is_refused FROM public.refused)"))
    await broker.queue(QUEUE)
    await place(broker, "1", "2", app_id="shop")
    inbox = inbox_of("one", sessions, clock=Fast())

    async def given_back() -> None:
        assert await broker.consumers(QUEUE) == 0
        assert await broker.count(QUEUE) == 2

    async with running(inbox, amqp_url):
        await eventually(given_back, within=30)
        await run(engine, "UPDATE public.refused SET is_refused = false")
        await settled(inbox, handled=2)
        await goes_on(inbox)
        assert counted(inbox, "failed") == 0


STARTS = """
CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF TG_OP = '{verb}' THEN RAISE EXCEPTION 'not this one'; END IF;
    IF TG_OP = 'DELETE' THEN RETURN OLD; END IF; RETURN NEW;
END $$;;
CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON relmsg.inbox_attempt
    FOR EACH ROW EXECUTE FUNCTION public.refuse()
"""


@pytest.mark.parametrize("verb", ["INSERT", "UPDATE", "DELETE"])
@pytest.mark.parametrize("body", [b"{}", b"fail"])
async def test_a_redelivered_message_whose_starts_are_refused_is_handled(
    body: bytes, verb: str, engine: AsyncEngine, sessions: Any, broker: Broker, amqp_url: str
) -> None:
    """The starts are kept for messages that kill their worker; a rule against them keeps no message from its end."""
    await broker.queue(QUEUE)
    await place(broker, "again", body=body)
    async with broker.channel() as channel:
        await channel.basic_get(QUEUE)
    statement = "INSERT INTO relmsg.inbox_attempt (consumer, source, message_id) VALUES ('billing', '', 'again')"
    if verb != "INSERT":
        await run(engine, statement)
    await run(engine, STARTS.format(verb=verb))
    inbox = Inbox("billing", sessions, chance=lambda: 0.1)

    @inbox.handler("order.placed", queue=QUEUE, retry=1)
    async def handle(message: Message, session: AsyncSession) -> None:
        await effect(session, message)
        if message.body == b"fail":
            raise ValueError("no")

    async with running(inbox, amqp_url):
        await settled(inbox, failed=int(body == b"fail"), handled=int(body != b"fail"))
        await goes_on(inbox)
    assert await effects(sessions) == ([] if body == b"fail" else ["again"])
    assert await left(broker) == 0
