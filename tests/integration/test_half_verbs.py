"""`relmsg half`: a person sees what nobody has decided, and decides it; against everybody else, and only once."""

from __future__ import annotations

import asyncio
import getpass
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError

from relmsg.cli import main
from relmsg.errors import HalfUnknown, UsageError
from relmsg.half.desk import Desk
from relmsg.half.state import HalfState, Resolution
from relmsg.half.store import HalfStore
from relmsg.schema import tables
from relmsg.testing import eventually
from tests.support.relaying import emptied, waiting

HALF = tables().half_message
OUTBOX = tables().outbox_message
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


async def stored(engine, state=HalfState.PARKED, **given):
    """A half message as the coordinator keeps it; its id."""
    half_id = uuid4()
    row = {
        "half_id": half_id,
        "producer_group": "orders",
        "state": state,
        "type": "order.placed",
        "exchange": "",
        "routing_key": "q",
        "body": b'{"id":7}',
        "prepared_at": func.clock_timestamp(),
        "next_check_at": func.clock_timestamp() if state is HalfState.PREPARED else None,
        "checks": 15 if state is HalfState.PARKED else 0,
    }
    if state in (HalfState.COMMITTED, HalfState.ROLLED_BACK):
        row |= {"decided_by": "producer orders", "decided_at": NOON}
    async with engine.begin() as connection:
        await connection.execute(insert(HALF).values(row | given))
    return half_id


async def row_of(engine, half_id):
    async with engine.connect() as connection:
        return (await connection.execute(select(HALF).where(HALF.c.half_id == half_id))).one()


async def sent(engine, half_id):
    """The rows of a message in the outbox."""
    async with engine.connect() as connection:
        return (await connection.execute(select(OUTBOX).where(OUTBOX.c.message_id == half_id))).all()


async def blocked(engine):
    """One session of this database waits for another one's lock."""
    async with engine.connect() as connection:  # a new one each time: the view does not change in a transaction
        waits = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        assert await connection.scalar(waits) == 1


@pytest.fixture
def ran(database_url, monkeypatch, capsys):
    """The exit code, stdout and stderr of a `relmsg half` command, run in a thread of this process."""
    monkeypatch.setenv("RELMSG_DATABASE_URL", database_url)

    async def run(*arguments):
        code = await asyncio.to_thread(main.run, ["half", *map(str, arguments)])
        output, problems = capsys.readouterr()
        assert "Traceback" not in problems
        return code, output, problems

    return run


async def test_list_shows_the_oldest_that_wait_for_a_decision(engine, ran):
    """Open ones unless told otherwise, by state, group and type; for people on one line each, for programs as JSON."""
    parked = await stored(engine, created_at=NOON, last_answer="unknown\x1b[31m", max_checks=3)
    prepared = await stored(engine, HalfState.PREPARED, producer_group="pay\x1bments", type="payment.received")
    committed = await stored(engine, HalfState.COMMITTED)
    rolled_back = await stored(engine, HalfState.ROLLED_BACK)

    async def listed(*flags):
        code, output, problems = await ran("list", "--json", *flags)
        assert (code, problems) == (0, "")
        return [UUID(each["half_id"]) for each in json.loads(output)]

    assert await listed() == [parked, prepared]
    assert await listed("--state", "parked") == [parked]
    assert await listed("--state", "committed") == [committed]
    assert await listed("--state", "all") == [parked, prepared, committed, rolled_back]
    assert await listed("--state", "all", "--limit", 3) == [parked, prepared, committed]
    assert await listed("--group", "orders") == [parked]
    assert await listed("--type", "payment.received") == [prepared]
    code, output, _ = await ran("list")
    assert code == 0
    assert "\x1b" not in output
    heading, first, _ = output.splitlines()
    assert heading.split()[:4] == ["half_id", "producer_group", "type", "state"]
    assert first.split()[:6] == [str(parked), "orders", "order.placed", "PARKED", "15", "3"]


async def test_show_tells_everything(engine, ran):
    """The message with its body, where it stands, and who was asked; an unknown id is exit code 1, no id is 2."""
    half_id = await stored(
        engine, headers={"tenant": "a"}, check_every=timedelta(seconds=1.5), last_answer="no_checker", body=b"\xff"
    )
    code, output, _ = await ran("show", half_id, "--json")
    assert code == 0
    (shown,) = json.loads(output)
    assert (shown["state"], shown["last_answer"], shown["checks"]) == ("PARKED", "no_checker", 15)
    assert (shown["headers"], shown["check_every"], shown["body"]) == ({"tenant": "a"}, 1.5, "base64:/w==")
    assert 0 <= shown["age"] < 600
    code, output, _ = await ran("show", half_id)
    assert code == 0
    assert {"state            PARKED", 'headers          {"tenant":"a"}', "bytes            1"} <= set(
        output.splitlines()
    )
    code, _, problems = await ran("show", uuid4())
    assert code == 1
    assert "it was never prepared, or was decided and pruned" in problems
    code, _, problems = await ran("show", "seven")
    assert code == 2
    assert "'seven' is no id of a half message" in problems


async def test_an_operators_commit_sends_the_message_as_it_was_prepared(engine, ran, processes, broker):
    """Every property survives, its id is the half id. A second commit learns who did it and sends nothing."""
    await broker.queue("q")
    half_id = await stored(
        engine,
        source="shop",
        ordering_key="7",
        headers={"tenant": "a", "deep": [1, {"x": None}]},
        content_type="application/json",
        content_encoding="identity",
        correlation_id="c",
        reply_to="r",
        occurred_at=NOON,
        expires_in=timedelta(hours=1),
    )
    code, output, problems = await ran("commit", half_id, "--by", "ada")
    assert (code, output, problems) == (0, f"{half_id} is now COMMITTED\n", "")
    row = await row_of(engine, half_id)
    assert (row.state, row.decided_by, row.next_check_at) == ("COMMITTED", "operator ada", None)
    (in_outbox,) = await sent(engine, half_id)
    left = in_outbox.expires_at - row.decided_at
    assert timedelta(hours=1) <= left < timedelta(hours=1, minutes=1)

    code, output, _ = await ran("commit", half_id, "--by", "grace")
    assert code == 0
    assert output.startswith(f"{half_id} was already COMMITTED, by operator ada at 20")
    assert await row_of(engine, half_id) == row
    code, output, problems = await ran("rollback", half_id, "--by", "grace")
    assert code == 1
    assert f"{half_id} is COMMITTED" in problems

    relay = await processes.relmsg("relay", RELMSG_PROBES="")
    await emptied(engine)
    (received,) = await broker.drain("q")
    properties = received.properties
    assert (properties.message_id, properties.message_type, properties.app_id) == (str(half_id), "order.placed", "shop")
    assert (properties.content_type, properties.content_encoding) == ("application/json", "identity")
    assert (properties.correlation_id, properties.reply_to, properties.timestamp) == ("c", "r", NOON)
    assert {name: received.headers[name] for name in ("tenant", "deep", "relmsg-key")} == {
        "tenant": "a",
        "deep": [1, {"x": None}],
        "relmsg-key": "7",
    }
    assert 0 < int(properties.expiration) <= 3_600_000
    assert received.body == b'{"id":7}'
    assert await relay.terminate() == 0


async def test_an_operators_rollback_sends_nothing_ever(engine, ran):
    """Parked or still being checked: rolled back it stays, also against a later commit."""
    parked, prepared = await stored(engine), await stored(engine, HalfState.PREPARED)
    code, output, _ = await ran("rollback", parked, prepared, "--json")
    assert code == 0
    assert [(each["state"], each["changed"]) for each in json.loads(output)] == [("ROLLED_BACK", True)] * 2
    row = await row_of(engine, prepared)
    assert (row.decided_by, row.next_check_at) == (f"operator {getpass.getuser()}", None)
    code, output, problems = await ran("commit", parked)
    assert code == 1
    assert "was already ROLLED_BACK, by operator" in output
    assert f"{parked} is ROLLED_BACK" in problems
    code, output, _ = await ran("rollback", parked)
    assert code == 0
    assert await waiting(engine) == 0


async def test_one_unknown_id_stops_none_of_the_others(engine, ran):
    """What is not there is named, with exit code 1; what cannot be an id stops all before anything is done."""
    first, last, unknown = await stored(engine), await stored(engine), uuid4()
    code, output, problems = await ran("commit", first, unknown, "x", last)
    assert (code, output) == (2, "")
    assert (await row_of(engine, first)).state == "PARKED"
    code, output, problems = await ran("commit", first, unknown, last, first)
    assert code == 1
    assert output == f"{first} is now COMMITTED\n{last} is now COMMITTED\n"
    assert f"no half message {unknown}" in problems


async def test_what_was_decided_before_the_database_failed_is_told(engine, ran):
    """Stopped half way, a command says how far it came, and that it did not come to the end."""
    first, last = await stored(engine), await stored(engine, type="bad")
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE relmsg.outbox_message ADD CHECK (type <> 'bad')"))
    code, output, problems = await ran("commit", first, last, "--json")
    assert code == 1
    assert [each["half_id"] for each in json.loads(output)] == [str(first)]
    assert "IntegrityError" in problems
    assert (await row_of(engine, last)).state == "PARKED"
    code, output, _ = await ran("commit", last, "--json")
    assert (code, output) == (1, "")


async def test_resume_has_a_parked_one_checked_from_the_start(engine, ran):
    """The count begins anew and the next check is due; who did so is in the row; twice changes nothing more."""
    half_id = await stored(engine, check_sent=15, check_received=15)
    code, output, _ = await ran("resume", half_id, "--by", "ada")
    assert (code, output) == (0, f"{half_id} is now PREPARED\n")
    row = await row_of(engine, half_id)
    assert (row.state, row.checks, row.decided_by) == ("PREPARED", 0, "operator ada")
    assert row.next_check_at <= row.decided_at + timedelta(seconds=1)
    assert (row.check_sent, row.check_received) == (15, 15)  # numbers of checks go on: an old answer is not a new one
    code, output, _ = await ran("resume", half_id, "--by", "grace")
    assert code == 0
    assert "was already PREPARED" in output
    assert await row_of(engine, half_id) == row

    decided = await stored(engine, HalfState.ROLLED_BACK)
    code, output, problems = await ran("resume", decided)
    assert code == 1
    assert "was already ROLLED_BACK, by producer orders at 2026-01-31 12:00" in output
    assert f"{decided} is ROLLED_BACK" in problems


async def test_resume_all_takes_what_is_parked_and_matches(engine, ran):
    """By group and type; what is not parked stays; a dry run only counts."""
    mine = [await stored(engine) for _ in range(3)]
    other = await stored(engine, producer_group="payments")
    committed = await stored(engine, HalfState.COMMITTED)
    code, output, _ = await ran("resume", "--all", "--group", "orders", "--dry-run", "--json")
    assert (code, json.loads(output)) == (0, {"dry_run": True, "half_messages": 3})
    assert (await row_of(engine, mine[0])).state == "PARKED"
    assert (await ran("resume", "--all", "--type", "nothing"))[1] == "0 half messages are checked again\n"
    assert (await ran("resume", "--all", "--group", "orders"))[1] == "3 half messages are checked again\n"
    states = [(await row_of(engine, each)).state for each in (*mine, other, committed)]
    assert states == ["PREPARED"] * 3 + ["PARKED", "COMMITTED"]


@pytest.mark.parametrize(
    "arguments", [["resume"], ["resume", uuid4(), "--all"], ["resume", uuid4(), "--group", "x"], ["commit"]]
)
async def test_half_a_command_is_wrong_use(ran, arguments):
    """A verb that is not told what to decide does nothing, and says so with exit code 2."""
    code, output, problems = await ran(*arguments)
    assert (code, output) == (2, "")
    assert problems


@pytest.mark.parametrize("name", ["", " ", "a\nb", "ä" * 65])
async def test_who_decides_has_a_name(engine, name):
    """A decision under a name that nobody could read in the row is refused, and nothing changes."""
    half_id, desk = await stored(engine), Desk(engine)
    with pytest.raises(UsageError, match="who decides"):
        await desk.decide(half_id, Resolution.COMMIT, name)
    with pytest.raises(UsageError, match="who decides"):
        await desk.resume(half_id, name)
    assert (await row_of(engine, half_id)).state == "PARKED"


async def test_unknown_decides_nothing(engine):
    """An operator may not decide UNKNOWN, and a half message that is not there is not made by deciding it."""
    half_id, desk = await stored(engine), Desk(engine)
    with pytest.raises(UsageError, match="COMMIT or ROLLBACK"):
        await desk.decide(half_id, Resolution.UNKNOWN, "ada")
    for ask in (desk.decide(uuid4(), Resolution.COMMIT, "ada"), desk.resume(uuid4(), "ada"), desk.show(uuid4())):
        with pytest.raises(HalfUnknown):
            await ask
    assert (await row_of(engine, half_id)).state == "PARKED"


async def test_a_commit_that_cannot_be_sent_has_not_happened(engine):
    """If the outbox takes no row, the half message stays parked: one statement, both or neither."""
    half_id = await stored(engine)
    async with engine.begin() as connection:
        await connection.execute(text("ALTER TABLE relmsg.outbox_message ADD CHECK (type <> 'order.placed')"))
    with pytest.raises(IntegrityError):
        await Desk(engine).decide(half_id, Resolution.COMMIT, "ada")
    row = await row_of(engine, half_id)
    assert (row.state, row.decided_by, row.decided_at) == ("PARKED", None, None)


async def test_operators_and_producers_who_decide_at_once_agree(engine):
    """Commit against rollback, fifty times: all are told one end, and what is committed is in the outbox once."""
    desk, store = Desk(engine), HalfStore(engine)
    ids = [await stored(engine, state) for state in (HalfState.PARKED, HalfState.PREPARED) for _ in range(25)]

    def asked(half_id):
        for resolution in (Resolution.COMMIT, Resolution.ROLLBACK):
            yield desk.decide(half_id, resolution, "ada")
            yield store.decide(half_id, resolution, group="orders", user_id=None, by="producer orders")

    for half_id, told in [(half_id, asyncio.gather(*asked(half_id))) for half_id in ids]:
        ends = await told
        (state,) = {each.state for each in ends}
        assert [each.changed for each in ends].count(True) == 1
        assert len(await sent(engine, half_id)) == (1 if state is HalfState.COMMITTED else 0)


async def test_who_waits_for_a_row_is_told_what_the_other_committed(engine):
    """A decision that comes while another one is being committed waits, changes nothing, and names the other one."""
    half_id, desk = await stored(engine), Desk(engine)
    async with engine.begin() as connection:
        await connection.execute(
            HALF.update()
            .where(HALF.c.half_id == half_id)
            .values(state=HalfState.ROLLED_BACK, decided_by="checker orders", decided_at=NOON)
        )
        late = asyncio.create_task(desk.decide(half_id, Resolution.COMMIT, "ada"))
        await eventually(lambda: blocked(engine))
    standing = await late
    assert standing == (half_id, HalfState.ROLLED_BACK, False, "checker orders", NOON)
    assert await sent(engine, half_id) == []
