"""`relmsg inbox`: what consumers remember is told, and what is old is forgotten, by the verb and by the consumer."""

from __future__ import annotations

import asyncio
import json

import pytest
from sqlalchemy import text

from relmsg.cli import main
from relmsg.inbox.inbox import Inbox
from relmsg.inbox.memory import Memory
from relmsg.inbox.pruner import Pruner
from relmsg.inbox.pruning import BATCH, DEFAULT_WINDOW, Pruning
from relmsg.testing import eventually
from tests.support.consuming import QUEUE, create_effect, effect, place, running


async def remember(engine, consumer, age, rows):
    """So many messages that the consumer handled so long ago."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.inbox_message (consumer, source, message_id, handled_at) "
                f"SELECT '{consumer}', 's', '{age} ' || i, now() - interval '{age}' FROM generate_series(1, {rows}) i"
            )
        )


async def remembered(engine):
    """How many messages each consumer remembers."""
    async with engine.connect() as connection:
        rows = await connection.execute(text("SELECT consumer, count(*) FROM relmsg.inbox_message GROUP BY 1"))
        return dict(map(tuple, rows))


async def window_of(engine, consumer):
    async with engine.connect() as connection:
        return await Pruning().window(connection, consumer)


@pytest.fixture
def ran(database_url, monkeypatch, capsys):
    """The exit code, stdout and stderr of a `relmsg inbox` command, run in a thread of this process."""
    monkeypatch.setenv("RELMSG_DATABASE_URL", database_url)

    async def run(*arguments):
        code = await asyncio.to_thread(main.run, ["inbox", *arguments])
        output, problems = capsys.readouterr()
        return code, output, problems

    return run


async def test_prune_forgets_what_is_older_than_each_dedup_window(engine, ran):
    """Thirty days unless a consumer has stored another window; what is younger stays; a consumer may keep all."""
    for consumer in ("billing", "mails", "audit"):
        await remember(engine, consumer, "400 days", 3)
        await remember(engine, consumer, "10 days", 2)
    async with engine.begin() as connection:
        await Pruning().set_window(connection, "mails", DEFAULT_WINDOW / 6)
        await Pruning().set_window(connection, "audit", None)
    code, output, _ = await ran("prune", "--dry-run", "--json")
    assert code == 0
    assert {row["consumer"]: row["due"] for row in json.loads(output)} == {"billing": 3, "mails": 5}
    assert await remembered(engine) == {"billing": 5, "mails": 5, "audit": 5}
    code, output, _ = await ran("prune")
    assert code == 0
    assert "billing: forgot 3 messages" in output
    assert await remembered(engine) == {"billing": 2, "audit": 5}


async def test_prune_by_an_age_asks_first_and_takes_one_consumer(engine, ran):
    """An age forgets more than the window allows, so somebody has to agree; a wrong name is told."""
    await remember(engine, "billing", "10 days", 2)
    await remember(engine, "mails", "10 days", 2)
    code, _, problems = await ran("prune", "--older-than", "7d")
    assert code == 2
    assert "--yes" in problems
    code, _, problems = await ran("prune", "--older-than", "7d", "--consumer", "biling", "--yes")
    assert code == 1
    assert "no consumer 'biling'" in problems
    code, _, problems = await ran("prune", "--older-than", "week")
    assert code == 2
    assert (await ran("prune", "--older-than", "7d", "--consumer", "billing", "--yes"))[0] == 0
    assert await remembered(engine) == {"mails": 2}


async def test_status_tells_what_is_remembered_and_what_is_forgotten(engine, ran):
    """One line a consumer: how many, since when, for how long, and the moment before which messages may be gone."""
    await remember(engine, "billing", "31 days", BATCH + 5)
    await remember(engine, "billing", "1 hour", 2)
    await ran("prune")
    code, output, _ = await ran("status", "--json")
    (row,) = json.loads(output)
    assert code == 0
    assert (row["consumer"], row["messages"], row["exact"], row["keeps_seconds"]) == ("billing", 2, True, 30 * 86_400)
    assert row["pruned_before"] < row["oldest"] <= row["newest"]
    code, output, _ = await ran("status")
    assert "30 days" in output


async def test_without_its_index_nothing_is_pruned(engine, ran):
    """Finding old rows would read the whole table: the verb says what to run instead."""
    await remember(engine, "billing", "31 days", 2)
    async with engine.begin() as connection:
        await connection.execute(text("DROP INDEX relmsg.inbox_message_handled_at"))
    code, _, problems = await ran("prune")
    assert code == 2
    assert "run `relmsg db upgrade`" in problems
    assert await remembered(engine) == {"billing": 2}


async def test_two_never_prune_one_consumer_at_a_time(engine):
    """While one transaction prunes, another finds the right taken and does nothing; other consumers are free."""
    await remember(engine, "billing", "31 days", 2)
    await remember(engine, "mails", "31 days", 2)
    pruning = Pruning()
    async with engine.connect() as first, engine.connect() as second:
        before = await pruning.before(first, DEFAULT_WINDOW)
        assert (await pruning.forget(first, "billing", before, None)).rows == 2
        assert await pruning.forget(second, "billing", before, None) is None
        assert (await pruning.forget(second, "mails", before, None)).rows == 2


async def test_starts_of_messages_that_never_ended_are_forgotten_too(engine):
    """What counts crashes grows for ever as well, where the broker drops a message that was begun."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.inbox_attempt (consumer, source, message_id, first_at) "
                "SELECT 'billing', 's', i::text, now() - i * interval '20 days' FROM generate_series(1, 3) i"
            )
        )
    memory = Memory(engine, "relmsg")
    async with engine.connect() as connection:
        before = await Pruning().before(connection, DEFAULT_WINDOW)
    assert await memory.prune("billing", before, lambda _: None) == 0
    async with engine.connect() as connection:
        assert (await connection.scalars(text("SELECT message_id FROM relmsg.inbox_attempt"))).all() == ["1"]


async def test_a_running_consumer_prunes_by_itself(engine, sessions, broker, amqp_url):
    """By default: it stores its window of thirty days, forgets what is older, and handles messages meanwhile."""
    await create_effect(engine)
    await remember(engine, "billing", "31 days", 2 * BATCH + 1)
    await remember(engine, "mails", "31 days", 1)
    await broker.queue(QUEUE)
    inbox = Inbox("billing", sessions, chance=lambda: 0.0)
    inbox.handler("order.placed", queue=QUEUE)(effect)
    async with running(inbox, amqp_url):
        await place(broker, "new")

        async def pruned():
            return await remembered(engine) == {"billing": 1, "mails": 1}

        await eventually(pruned, within=30)
    window = await window_of(engine, "billing")
    assert window.keeps == DEFAULT_WINDOW
    assert window.pruned_before is not None


class Rounds:
    """A clock that lets a pruner make one round, and ends it when it would wait for the next."""

    def __init__(self):
        self.waits = []

    def monotonic(self):
        return 0.0

    async def sleep(self, seconds):
        self.waits.append(seconds)
        if seconds > 100:
            raise asyncio.CancelledError


async def one_round(sessions, keeps=DEFAULT_WINDOW):
    clock = Rounds()
    with pytest.raises(asyncio.CancelledError):
        await Pruner(sessions, Pruning(), {"billing"}, keeps, clock, lambda: 0.0).run()
    return clock.waits


async def test_a_pruner_rests_between_batches_and_leaves_a_fresh_round_alone(engine, sessions):
    """Every batch but the last is followed by a rest; a second process finds that it was just done."""
    await remember(engine, "billing", "31 days", 2 * BATCH + 1)
    assert len(await one_round(sessions)) == 1 + 2 + 1
    await remember(engine, "billing", "32 days", 1)
    assert len(await one_round(sessions)) == 2
    assert await remembered(engine) == {"billing": 1}


async def test_an_inbox_without_a_window_forgets_nothing(engine, sessions):
    """dedup_window=None stores that the consumer remembers for ever, over what was stored before."""
    await remember(engine, "billing", "4000 days", 2)
    async with engine.begin() as connection:
        await Pruning().set_window(connection, "billing", DEFAULT_WINDOW)
    await one_round(sessions, keeps=None)
    assert await remembered(engine) == {"billing": 2}
    assert (await window_of(engine, "billing")).keeps is None


async def test_a_consumer_that_may_not_delete_goes_on_and_says_so_once(engine, sessions, caplog):
    """Rights that were granted before there was a pruner are no reason to stop."""
    await remember(engine, "billing", "31 days", 2)
    async with engine.begin() as connection:
        await connection.execute(text("REVOKE ALL ON SCHEMA relmsg FROM PUBLIC"))
    limited = sessions.kw["bind"].execution_options()
    role = f"limited_{id(limited)}"
    async with engine.begin() as connection:
        await connection.execute(text(f"CREATE ROLE {role}"))
        await connection.execute(text(f"GRANT USAGE ON SCHEMA relmsg TO {role}"))
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"SET ROLE {role}"))
            await connection.commit()

            class Sessions:
                def __call__(self):
                    return type(sessions())(bind=connection)

            await one_round(Sessions())
            await connection.execute(text("RESET ROLE"))
            await connection.commit()
        assert caplog.text.count("the inbox is not pruned") == 1
        assert "permission denied" in caplog.text
    finally:
        async with engine.begin() as connection:
            await connection.execute(text(f"DROP OWNED BY {role}"))
            await connection.execute(text(f"DROP ROLE {role}"))
    assert await remembered(engine) == {"billing": 2}


@pytest.mark.parametrize("wrong", [0, -1, "30", True, float("inf"), 10])
def test_a_dedup_window_that_cannot_be_is_refused(sessions, wrong):
    """A window is a number of seconds from a minute on, or a timedelta, or None."""
    with pytest.raises(Exception, match="dedup_window"):
        Inbox("billing", sessions, dedup_window=wrong)
