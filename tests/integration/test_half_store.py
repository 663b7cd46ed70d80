"""The table of half messages on a real PostgreSQL: every statement, twice, out of order, and against each other."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg import migrate
from relmsg.broker.envelope import Envelope
from relmsg.database import create_engine
from relmsg.errors import DatabaseAway
from relmsg.half import statements
from relmsg.half.half import Half
from relmsg.half.protocol import Answer, Refusal
from relmsg.half.state import DECIDES, HalfState, Resolution
from relmsg.half.store import Decided, HalfStore
from relmsg.schema import tables
from tests.support.halves import HALF, counted, half_row, outbox_rows

COMMIT, ROLLBACK = Resolution.COMMIT, Resolution.ROLLBACK
PREPARED, COMMITTED, ROLLED_BACK, PARKED = list(HalfState)[:4]
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def store(engine: AsyncEngine) -> HalfStore:
    return HalfStore(engine)


def half(**given) -> Half:
    """A half message of the group ``shop``; what is given of its message, or of itself."""
    own = {name: given.pop(name) for name in ("user_id", "check_after", "check_every", "max_checks") if name in given}
    group = given.pop("group", "shop")
    said = {"message_id": str(uuid4()), "exchange": "", "routing_key": "q", "body": b"{}", "headers": {}, "type": "t"}
    return Half(Envelope(**said | given), group, **own)


def decide(store: HalfStore, half_id: UUID, resolution: Resolution, **given):
    said = {"group": "shop", "user_id": None, "by": "producer shop"}
    return store.decide(half_id, resolution, **said | given)


async def kept(store: HalfStore, **given) -> Half:
    """A half message that is prepared."""
    made = half(**given)
    assert await store.prepare(made) == Decided(PREPARED, changed=True)
    return made


async def alter(engine: AsyncEngine, half_id: UUID, **values) -> None:
    async with engine.begin() as connection:
        assert (await connection.execute(update(HALF).where(HALF.c.half_id == half_id).values(**values))).rowcount == 1


async def now(engine: AsyncEngine) -> datetime:
    async with engine.connect() as connection:
        return await connection.scalar(select(func.clock_timestamp()))


async def overdue(engine: AsyncEngine, half_id: UUID, seconds: float = 1.0, **values) -> None:
    """Its next check should have been sent so long ago."""
    await alter(engine, half_id, next_check_at=func.clock_timestamp() - timedelta(seconds=seconds), **values)


async def claimed(store: HalfStore, *halves: Half) -> dict[UUID, int]:
    """The numbers of the checks that could be claimed now."""
    got = await store.claim([each.half_id for each in halves], [1.0] * len(halves))
    return {each.half_id: number for each, number in got}


async def test_a_prepare_is_kept_whole_and_invisible(store, engine):
    """Every property stands in the row, its first check is due in six seconds, and the outbox has nothing."""
    made = await kept(
        store, exchange="shop", routing_key="a.b", ordering_key="7", headers={"n": [1, None, {"ü": True}]},
        source="orders", content_type="text/plain", content_encoding="identity", correlation_id="c", reply_to="r",
        body=b"\x00\xff", expiration_ms=90_000, timestamp=NOON, user_id="ada",
    )  # fmt: skip
    row = await half_row(engine, made.half_id)
    assert (row.producer_group, row.user_id, row.state) == ("shop", "ada", "PREPARED")
    assert (row.type, row.source, row.exchange, row.routing_key, row.ordering_key) == (
        "t",
        "orders",
        "shop",
        "a.b",
        "7",
    )
    assert (row.headers, row.body, row.occurred_at) == ({"n": [1, None, {"ü": True}]}, b"\x00\xff", NOON)
    assert (row.content_type, row.content_encoding) == ("text/plain", "identity")
    assert (row.correlation_id, row.reply_to, row.expires_in) == ("c", "r", 90 * SECOND)
    assert (row.check_every, row.max_checks, row.checks, row.check_sent) == (30 * SECOND, 15, 0, 0)
    assert abs(row.next_check_at - row.prepared_at - 6 * SECOND) < SECOND
    assert (row.decided_by, row.decided_at, row.last_answer) == (None, None, None)
    assert await outbox_rows(engine) == []


async def test_its_own_times_win_over_those_of_the_coordinator(engine):
    """What a half message says of its checks holds for it; what it leaves open is the coordinator's."""
    store = HalfStore(engine, check_after=2 * SECOND, check_every=3 * SECOND, max_checks=4)
    own = await kept(store, check_after=60 * SECOND, check_every=7 * SECOND, max_checks=2)
    other = await kept(store)
    row = await half_row(engine, own.half_id)
    assert (row.check_every, row.max_checks) == (7 * SECOND, 2)
    assert abs(row.next_check_at - row.prepared_at - 60 * SECOND) < SECOND
    row = await half_row(engine, other.half_id)
    assert (row.check_every, row.max_checks) == (3 * SECOND, 4)
    assert abs(row.next_check_at - row.prepared_at - 2 * SECOND) < SECOND


@pytest.mark.parametrize("state", [PREPARED, COMMITTED, ROLLED_BACK, PARKED])
async def test_a_prepare_that_comes_twice_changes_nothing(store, engine, state):
    """Whatever has become of the half message meanwhile."""
    made = await kept(store)
    if state.is_final:
        await decide(store, made.half_id, COMMIT if state is COMMITTED else ROLLBACK)
    await alter(engine, made.half_id, state=state)
    before, sent = await half_row(engine, made.half_id), await outbox_rows(engine)
    assert await store.prepare(made) == Decided(state)
    assert await half_row(engine, made.half_id) == before
    assert await outbox_rows(engine) == sent


async def test_a_commit_moves_the_message_into_the_outbox(store, engine):
    """Every property goes along, under the half id; the expiration is counted from the commit."""
    made = await kept(
        store, exchange="shop", routing_key="a.b", ordering_key="7", headers={"n": 1}, source="orders",
        content_type="text/plain", content_encoding="identity", correlation_id="c", reply_to="r", body=b"\x00\xff",
        expiration_ms=90_000, timestamp=NOON,
    )  # fmt: skip
    await alter(engine, made.half_id, created_at=NOON, prepared_at=NOON)
    assert await decide(store, made.half_id, COMMIT) == Decided(COMMITTED, changed=True)
    (sent,) = await outbox_rows(engine)
    row = await half_row(engine, made.half_id)
    assert sent.message_id == made.half_id
    for name in ("type", "source", "exchange", "routing_key", "ordering_key", "headers", "content_type",
                 "content_encoding", "correlation_id", "reply_to", "body", "occurred_at"):  # fmt: skip
        assert getattr(sent, name) == getattr(row, name), name
    assert abs(sent.expires_at - row.decided_at - 90 * SECOND) < SECOND
    assert (row.state, row.decided_by, row.next_check_at) == ("COMMITTED", "producer shop", None)
    assert sent.parked_at is None


@pytest.mark.parametrize("first", [COMMIT, ROLLBACK])
@pytest.mark.parametrize("second", [COMMIT, ROLLBACK])
async def test_the_first_decision_counts_and_all_later_ones_are_told(store, engine, first, second):
    """A second decision, alike or not, learns the state and changes neither it nor who decided."""
    made = await kept(store)
    await decide(store, made.half_id, first)
    before, sent = await half_row(engine, made.half_id), await outbox_rows(engine)
    assert await decide(store, made.half_id, second, by="checker shop", check=3) == Decided(DECIDES[first])
    assert await half_row(engine, made.half_id) == before
    assert await outbox_rows(engine) == sent
    assert len(sent) == (first is COMMIT)


async def test_a_parked_one_can_still_be_decided(store, engine):
    """The producer's word counts after the last check too."""
    made = await kept(store)
    await alter(engine, made.half_id, state=PARKED, next_check_at=None)
    assert await decide(store, made.half_id, COMMIT) == Decided(COMMITTED, changed=True)
    assert [row.message_id for row in await outbox_rows(engine)] == [made.half_id]


@pytest.mark.parametrize("resolution", [COMMIT, ROLLBACK])
async def test_a_decision_that_overtakes_its_prepare_waits_for_it(store, engine, resolution):
    """It takes effect with the prepare, once, however often either of them comes."""
    made = half(expiration_ms=90_000)
    state = DECIDES[resolution]
    assert await decide(store, made.half_id, resolution, is_prepared=True) == Decided(state, changed=True)
    assert await decide(store, made.half_id, resolution, is_prepared=True) == Decided(state)
    other = ROLLBACK if resolution is COMMIT else COMMIT
    assert await decide(store, made.half_id, other, is_prepared=True) == Decided(state)
    assert await outbox_rows(engine) == []
    decided_at = (await half_row(engine, made.half_id)).decided_at
    assert await store.prepare(made) == Decided(state, changed=True)
    assert await store.prepare(made) == Decided(state)
    assert await decide(store, made.half_id, resolution, is_prepared=True) == Decided(state)
    row = await half_row(engine, made.half_id)
    assert (row.state, row.decided_by, row.decided_at, row.next_check_at) == (state, "producer shop", decided_at, None)
    assert (row.type, row.body) == ("t", b"{}")
    sent = await outbox_rows(engine)
    assert [each.message_id for each in sent] == [made.half_id] * (resolution is COMMIT)
    assert all(each.expires_at - row.prepared_at > 80 * SECOND for each in sent)


async def test_a_decision_about_an_unknown_id_is_told_so(store, engine):
    """Whoever has not seen its prepare confirmed learns that there is none, and nothing is kept."""
    assert await decide(store, uuid4(), COMMIT) == Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)
    assert await counted(engine) == {}


@pytest.mark.parametrize(
    ("prepared", "decided"),
    [({"group": "shop"}, {"group": "bank"}), ({"user_id": "ada"}, {"user_id": "eve"}), ({"user_id": "ada"}, {})],
    ids=["another group", "another login", "no login"],
)
async def test_a_foreign_decision_that_came_first_is_dropped(store, engine, prepared, decided):
    """The prepare of the real group finds it and is stored as if nobody had decided."""
    made = half(**prepared)
    await decide(store, made.half_id, COMMIT, is_prepared=True, **decided)
    assert await store.prepare(made) == Decided(PREPARED, Refusal.ANOTHER_GROUP, changed=True)
    row = await half_row(engine, made.half_id)
    assert (row.state, row.producer_group, row.decided_by, row.decided_at) == ("PREPARED", "shop", None, None)
    assert row.next_check_at is not None
    assert await outbox_rows(engine) == []
    own = {"user_id": "ada"} if "user_id" in prepared else {}
    assert await decide(store, made.half_id, COMMIT, **own) == Decided(COMMITTED, changed=True)


@pytest.mark.parametrize(
    ("speaker", "refusal"),
    [
        ({"group": "bank", "user_id": "ada"}, Refusal.ANOTHER_GROUP),
        ({"group": "shop", "user_id": "eve"}, Refusal.ANOTHER_USER),
        ({"group": "shop", "user_id": None}, Refusal.ANOTHER_USER),
    ],
    ids=["another group", "another login", "no login"],
)
@pytest.mark.parametrize("state", [PREPARED, PARKED, COMMITTED])
async def test_nobody_else_may_speak_about_it(store, engine, speaker, refusal, state):
    """A decision, a receipt or an answer of another group or login is refused by name, and the row stays as it is."""
    made = await kept(store, user_id="ada")
    await overdue(engine, made.half_id)
    await claimed(store, made)
    await alter(engine, made.half_id, state=state)
    before = await half_row(engine, made.half_id)
    refused = Decided(state, refusal)
    for resolution in (COMMIT, ROLLBACK):
        assert await decide(store, made.half_id, resolution, is_prepared=True, **speaker) == refused
    assert await store.received(made.half_id, 1, **speaker) == refused
    for answer in Answer:
        assert await store.answered(made.half_id, 1, answer, **speaker) == refused
    assert await half_row(engine, made.half_id) == before
    assert await outbox_rows(engine) == []


async def test_a_prepare_under_an_id_of_another_group_is_refused(store, engine):
    """The id is the first one's; the second cannot decide about it either."""
    made = await kept(store)
    before = await half_row(engine, made.half_id)
    second = half(message_id=str(made.half_id), group="bank", body=b"other")
    assert await store.prepare(second) == Decided(PREPARED, Refusal.ANOTHER_GROUP)
    assert await half_row(engine, made.half_id) == before


async def test_without_a_login_the_group_is_enough(store):
    """Where the prepare carried no login, any login of the group may decide."""
    made = await kept(store)
    assert await decide(store, made.half_id, COMMIT, user_id="whoever") == Decided(COMMITTED, changed=True)


async def test_a_check_counts_once_when_it_was_received(store, engine):
    """However often, and in whatever order, receipt and answer come; a number that was never sent counts nothing."""
    made = await kept(store)
    me = {"group": "shop", "user_id": None}
    assert not (await store.received(made.half_id, 1, **me)).changed
    for number in (1, 2, 3):
        await overdue(engine, made.half_id)
        assert await claimed(store, made) == {made.half_id: number}
    assert (await store.received(made.half_id, 2, **me)).changed
    for _ in range(2):
        assert not (await store.received(made.half_id, 2, **me)).changed
        assert not (await store.received(made.half_id, 1, **me)).changed
        assert (await store.answered(made.half_id, 2, Answer.UNKNOWN, **me)).changed
    row = await half_row(engine, made.half_id)
    assert (row.checks, row.check_sent, row.check_received, row.last_answer) == (1, 3, 2, "unknown")
    for _ in range(2):  # its receipt was lost: the answer stands for it
        assert (await store.answered(made.half_id, 99, Answer.NO_CHECKER, **me)).changed
    row = await half_row(engine, made.half_id)
    assert (row.checks, row.check_sent, row.check_received, row.last_answer) == (2, 3, 3, "no_checker")
    assert row.last_answer_at is not None
    assert (await store.answered(made.half_id, 1, Answer.COMMIT, **me)) == Decided(COMMITTED, changed=True)
    row = await half_row(engine, made.half_id)
    assert (row.checks, row.last_answer, row.decided_by) == (2, "commit", "checker shop")
    assert not (await store.received(made.half_id, 3, **me)).changed


async def test_the_answer_to_the_last_check_parks_at_once(store, engine):
    """UNKNOWN to the last check is due now; UNKNOWN to an earlier one waits for the last one's time."""
    made = await kept(store, max_checks=2)
    me = {"group": "shop", "user_id": None}
    for _ in range(2):
        await overdue(engine, made.half_id)
        await claimed(store, made)
    await store.received(made.half_id, 1, **me)
    await store.received(made.half_id, 2, **me)
    await store.answered(made.half_id, 1, Answer.UNKNOWN, **me)
    assert await store.park() == []
    assert (await half_row(engine, made.half_id)).next_check_at > await now(engine) + 20 * SECOND
    await store.answered(made.half_id, 2, Answer.UNKNOWN, **me)
    (parked,) = await store.park()
    assert parked == (made.half_id, "shop", "t", 2, "unknown")
    row = await half_row(engine, made.half_id)
    assert (row.state, row.next_check_at, row.decided_at) == ("PARKED", None, None)
    assert await store.park() == []


async def test_a_check_that_nobody_answers_parks_when_its_time_is_over(store, engine):
    """Received and never answered: it counts, and the half message is parked at the next time, not before."""
    made = await kept(store, max_checks=1)
    await overdue(engine, made.half_id)
    await claimed(store, made)
    await store.received(made.half_id, 1, group="shop", user_id=None)
    assert await store.park() == []
    await overdue(engine, made.half_id)
    assert await store.due(10) == []
    assert [each.half_id for each in await store.park()] == [made.half_id]


async def test_a_hundred_checks_that_nobody_received_park_nothing(store, engine):
    """However many were sent."""
    made = await kept(store, max_checks=2)
    for _ in range(100):
        await overdue(engine, made.half_id)
        await claimed(store, made)
        assert await store.park() == []
    row = await half_row(engine, made.half_id)
    assert (row.state, row.checks, row.check_sent) == ("PREPARED", 0, 100)


async def test_the_longest_overdue_come_first(store, engine):
    """Due are those whose time has come, oldest first, as many as are asked for; a look changes nothing."""
    halves = [await kept(store, group=f"g{n}") for n in range(5)]
    assert await store.due(10) == []
    for seconds, each in zip((3, 5, 1, 4), halves, strict=False):
        await overdue(engine, each.half_id, seconds)
    await overdue(engine, halves[3].half_id, 4, check_sent=2, check_received=1)
    order = [(halves[1].half_id, "g1", False), (halves[3].half_id, "g3", True), (halves[0].half_id, "g0", False)]
    assert await store.due(3) == order
    assert await store.due(3) == order
    for each in halves[:2]:
        await decide(store, each.half_id, ROLLBACK, group=each.group)
    assert [each.half_id for each in await store.due(10)] == [halves[3].half_id, halves[2].half_id]


async def test_a_claim_carries_the_whole_message(store, engine):
    """What is claimed is what was prepared, with the next number; the next check is due after the interval."""
    made = await kept(
        store, headers={"n": [1, {"ü": None}]}, ordering_key="7", body=b"\xff", expiration_ms=1500, timestamp=NOON,
        source="s", content_type="c", correlation_id="i", reply_to="r", check_every=60 * SECOND, user_id="ada",
    )  # fmt: skip
    assert await store.claim([made.half_id], [1.0]) == []  # not due
    await overdue(engine, made.half_id)
    ((got, number),) = await store.claim([made.half_id, uuid4()], [0.5, 1.0])
    assert (got.envelope, got.group, number) == (made.envelope, "shop", 1)
    row = await half_row(engine, made.half_id)
    assert abs(row.next_check_at - await now(engine) - 30 * SECOND) < 2 * SECOND
    assert await store.claim([made.half_id], [1.0]) == []


async def test_coordinators_that_claim_at_once_share(store, engine, database_url):
    """Of eight that want the same hundred, each half message goes to exactly one."""
    halves = [await kept(store) for _ in range(100)]
    async with engine.begin() as connection:
        await connection.execute(update(HALF).values(next_check_at=func.clock_timestamp() - SECOND))
    other = create_engine(database_url, pool_size=8)
    try:
        stores = [HalfStore(other) for _ in range(8)]
        ids = [each.half_id for each in halves]
        got = await asyncio.gather(*(each.claim(ids, [1.0] * 100) for each in stores))
    finally:
        await other.dispose()
    assert Counter(each.half_id for part in got for each, _ in part) == Counter(ids)


async def test_postponing_counts_nothing(store, engine):
    """It only moves the time, by the interval or by what is given if that is less."""
    slow, quick = await kept(store, check_every=3600 * SECOND), await kept(store, check_every=10 * SECOND)
    young = await kept(store)
    for each in (slow, quick):
        await overdue(engine, each.half_id)
    before = (await half_row(engine, young.half_id)).next_check_at
    await store.postpone([each.half_id for each in (slow, quick, young)], [1.1, 1.1, 1.1], 30 * SECOND)
    at = await now(engine)
    for each, seconds in ((slow, 33), (quick, 11)):
        row = await half_row(engine, each.half_id)
        assert abs(row.next_check_at - at - seconds * SECOND) < 2 * SECOND
        assert (row.checks, row.check_sent, row.state) == (0, 0, "PREPARED")
    assert (await half_row(engine, young.half_id)).next_check_at == before


async def test_a_group_is_postponed_in_one_piece_and_spread(store, engine):
    """All that is due of it comes due again one after another, over a fifth of the time; other groups stay."""
    async with engine.begin() as connection:
        await connection.execute(
            text(
                "INSERT INTO relmsg.half_message (half_id, producer_group, state, prepared_at, next_check_at) SELECT "
                "gen_random_uuid(), CASE WHEN n <= 500 THEN 'away' ELSE 'here' END, 'PREPARED', now(), "
                "clock_timestamp() - interval '1 s' FROM generate_series(1, 510) AS n"
            )
        )
    await store.postpone_groups(["away"], 30 * SECOND)
    at = await now(engine)
    assert {each.group for each in await store.due(1000)} == {"here"}
    async with engine.connect() as connection:
        times = sorted(
            (await connection.execute(select(HALF.c.next_check_at).where(HALF.c.producer_group == "away"))).scalars()
        )
    offsets = [(each - at) / SECOND for each in times]
    assert 25 < offsets[0] < 28
    assert 32 < offsets[-1] < 34
    assert max(later - earlier for earlier, later in itertools.pairwise(offsets)) < 0.5
    await store.postpone_groups(["here"], 30 * SECOND, 4)
    assert len(await store.due(1000)) == 6


async def test_only_what_has_ended_is_pruned(store, engine):
    """Old ended rows go, in pieces; open ones stay for ever, and so does one that was resumed after a decision."""
    old = {"created_at": NOON, "prepared_at": NOON}
    ended = [await kept(store) for _ in range(5)]
    for number, each in enumerate(ended):
        await decide(store, each.half_id, COMMIT if number % 2 else ROLLBACK)
        await alter(engine, each.half_id, decided_at=NOON, **old)
    young, prepared, parked, resumed = [await kept(store) for _ in range(4)]
    await decide(store, young.half_id, COMMIT)
    await alter(engine, prepared.half_id, **old)
    await alter(engine, parked.half_id, state=PARKED, next_check_at=None, **old)
    await alter(engine, resumed.half_id, decided_at=NOON, decided_by="operator ada", **old)
    await decide(store, orphan := uuid4(), ROLLBACK, is_prepared=True)
    await alter(engine, orphan, decided_at=NOON)
    assert await store.prune(timedelta(days=3), 4) == 4
    assert await store.prune(timedelta(days=3), 4) == 2
    assert await store.prune(timedelta(days=3), 4) == 0
    async with engine.connect() as connection:
        left = set((await connection.execute(select(HALF.c.half_id))).scalars())
    assert left == {each.half_id for each in (young, prepared, parked, resumed)}


async def test_the_figures_are_those_of_the_table(store, engine):
    """How many wait, how long the oldest does, how many are parked."""
    assert await store.figures() == (0, 0.0, 0)
    halves = [await kept(store) for _ in range(4)]
    await alter(engine, halves[0].half_id, prepared_at=func.clock_timestamp() - timedelta(minutes=10))
    await alter(engine, halves[1].half_id, state=PARKED, prepared_at=NOON)
    await decide(store, halves[2].half_id, COMMIT)
    figures = await store.figures()
    assert (figures.open, figures.parked) == (2, 1)
    assert 600 <= figures.oldest_seconds < 660


async def test_a_look_reads_only_what_it_looks_for(store, engine):
    """However many are open or have ended, what is due and what is old is found by its index."""
    columns = "half_id, producer_group, prepared_at, state, next_check_at, decided_at"
    several = f"INSERT INTO relmsg.half_message ({columns}) SELECT gen_random_uuid(), 'shop', now(), "
    async with engine.begin() as connection:
        for fate in ("'PREPARED', now() + n * interval '1 s', NULL", "'COMMITTED', NULL, now()"):
            await connection.execute(text(f"{several} {fate} FROM generate_series(1, 10000) AS n"))
    async with engine.connect() as connection:
        await (await connection.execution_options(isolation_level="AUTOCOMMIT")).execute(
            text("VACUUM ANALYZE relmsg.half_message")
        )
        for statement, values in (
            (statements.DUE, (100, [])),
            (statements.PARK, (100, [])),
            (statements.POSTPONE_GROUPS, (["shop"], 100, [], SECOND)),
            (statements.PRUNE, (100, SECOND, [])),
        ):
            explain = f"EXPLAIN {statement.format(half='relmsg.half_message')}"
            plan = "\n".join((await connection.exec_driver_sql(explain, values)).scalars())
            assert "Index Cond: (next_check_at <=" in plan or "Index Cond: (decided_at <" in plan, plan


async def test_of_many_that_decide_at_once_one_decides(database_url, engine):
    """Commits and rollbacks of prepared, parked and unprepared half messages, and their prepares, all at the same time:
    each ends in one way that all are told, with one row in the outbox exactly if it was committed."""
    other = create_engine(database_url, pool_size=16)
    try:
        store = HalfStore(other)
        halves = [half() for _ in range(60)]
        for each in halves[:20]:
            await store.prepare(each)
        for each in halves[10:20]:
            await alter(engine, each.half_id, state=PARKED)
        chance = random.Random(4)
        work = [
            each
            for made in halves
            for each in (
                *(store.prepare(made) for _ in range(2)),
                *(decide(store, made.half_id, COMMIT, is_prepared=True) for _ in range(3)),
                *(decide(store, made.half_id, ROLLBACK, is_prepared=True) for _ in range(3)),
                store.answered(made.half_id, 1, Answer.COMMIT, group="shop", user_id=None),
            )
        ]
        chance.shuffle(work)
        told = await asyncio.gather(*work)
        assert {each.state for each in told} <= {PREPARED, PARKED, COMMITTED, ROLLED_BACK, HalfState.UNKNOWN}
        for made in halves:
            final = await decide(store, made.half_id, ROLLBACK)
            assert final.state.is_final
            assert not final.changed
    finally:
        await other.dispose()
    states = await counted(engine)
    assert sum(states.values()) == 60
    assert set(states) == {COMMITTED, ROLLED_BACK}
    sent = Counter(row.message_id for row in await outbox_rows(engine))
    async with engine.connect() as connection:
        committed = set((await connection.execute(select(HALF.c.half_id).where(HALF.c.state == COMMITTED))).scalars())
    assert sent == Counter(committed)


async def test_any_schema_will_do(database_url, engine):
    """The statements hold in a schema of any name."""
    name = 'a "b" :c {d} %s $1'
    await migrate.upgrade(database_url, name)
    store = HalfStore(engine, schema=name)
    made = await kept(store)
    await store.received(made.half_id, 1, group="shop", user_id=None)
    await store.answered(made.half_id, 1, Answer.UNKNOWN, group="shop", user_id=None)
    await store.due(1)
    await store.claim([made.half_id], [1.0])
    await store.postpone([made.half_id], [1.0], SECOND)
    await store.postpone_groups(["shop"], SECOND)
    await store.park()
    assert await decide(store, made.half_id, COMMIT) == Decided(COMMITTED, changed=True)
    assert await decide(store, uuid4(), COMMIT, is_prepared=True) == Decided(COMMITTED, changed=True)
    assert await store.prune(3600 * SECOND) == 0
    assert await store.figures() == (0, 0.0, 0)
    outbox = tables(name).outbox_message
    async with engine.connect() as connection:
        assert (await connection.execute(select(outbox.c.message_id))).scalars().all() == [made.half_id]


async def test_a_database_that_is_away_is_told_by_name():
    """Whatever the driver raised."""
    engine = create_engine("postgresql://nobody:secret@127.0.0.1:1/x")
    with pytest.raises(DatabaseAway) as told:
        await HalfStore(engine).due(1)
    assert "secret" not in str(told.value)
    await engine.dispose()


async def test_a_table_that_is_gone_is_the_databases_trouble(store, engine):
    """Nothing that is wrong with the database is a fault of the message it was met with."""
    async with engine.begin() as connection:
        await connection.execute(text("DROP TABLE relmsg.half_message"))
    with pytest.raises(DatabaseAway, match="half_message"):
        await store.prepare(half())
