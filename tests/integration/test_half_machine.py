"""Half messages against a model, by Hypothesis on a real PostgreSQL: all that can be said of them, in any order and any
number of times, by the producer, its group, others, operators, and the clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from uuid import UUID, uuid4

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from sqlalchemy import select, text

from relmsg.broker.envelope import Envelope
from relmsg.database import create_engine
from relmsg.errors import HalfUnknown
from relmsg.half.desk import Desk
from relmsg.half.half import Half
from relmsg.half.protocol import Answer, Refusal
from relmsg.half.state import DECIDES, OPEN, HalfState, Resolution
from relmsg.half.store import Decided, HalfStore
from tests.support.halves import HALF, outbox_rows

HOUR = timedelta(hours=1)
MAX_CHECKS = 2
PREPARED, PARKED = HalfState.PREPARED, HalfState.PARKED

halves = st.integers(0, 2)
resolutions = st.sampled_from([Resolution.COMMIT, Resolution.ROLLBACK])
speakers = st.sampled_from([("shop", "ada")] * 6 + [("bank", "ada"), ("shop", "eve"), ("shop", None)])


@dataclass(frozen=True)
class Model:
    """What should be known of one half message."""

    state: HalfState
    group: str = "shop"
    user_id: str | None = "ada"
    is_prepared: bool = True
    checks: int = 0
    sent: int = 0
    received: int = 0
    is_due: bool = False

    def refuses(self, group: str, user_id: str | None) -> Refusal | None:
        if group != self.group:
            return Refusal.ANOTHER_GROUP
        return Refusal.ANOTHER_USER if self.user_id is not None and user_id != self.user_id else None

    def counting(self, check: int) -> Model:
        check = min(check, self.sent)
        return replace(self, checks=self.checks + (check > self.received), received=max(self.received, check))


class Machine(RuleBasedStateMachine):
    """Three half messages of the group ``shop`` under the login ``ada``. ``models`` is None where there is no row."""

    def __init__(self, run, engine) -> None:
        super().__init__()
        self.run, self.engine = run, engine
        self.store = HalfStore(engine, check_after=HOUR, check_every=HOUR, max_checks=MAX_CHECKS)
        self.desk = Desk(engine)
        self.ids = [uuid4() for _ in range(3)]
        self.models: list[Model | None] = [None] * 3
        self.ended: dict[UUID, HalfState] = {}

    @initialize()
    def nothing(self) -> None:
        self.run(self._sql("TRUNCATE relmsg.half_message, relmsg.outbox_message"))

    @rule(n=halves, speaker=st.sampled_from([("shop", "ada")] * 4 + [("bank", "ada"), ("shop", "eve")]))
    def prepare(self, n, speaker) -> None:
        """First, again, after a decision that overtook it, or by somebody else under the same id."""
        group, user_id = speaker
        if group != "shop" and self.models[n] is None:
            return  # the first of an id owns it; here that is always the shop
        if user_id != "ada" and self.models[n] is None:
            return
        half = Half(Envelope(str(self.ids[n]), "", "q", b"", {}), group, user_id)
        model = self.models[n]
        told = self.run(self.store.prepare(half))
        if model is not None and model.is_prepared:
            assert told == Decided(model.state, model.refuses(group, user_id))
        elif model is None:
            assert told == Decided(PREPARED, changed=True)
            self.models[n] = Model(PREPARED)
        elif (model.group, model.user_id) == (group, user_id):
            assert told == Decided(model.state, changed=True)
            self.models[n] = replace(model, is_prepared=True)
        else:
            assert told == Decided(PREPARED, Refusal.ANOTHER_GROUP, changed=True)
            self.models[n] = Model(PREPARED, group, user_id)

    @rule(n=halves, resolution=resolutions, speaker=speakers, is_prepared=st.booleans())
    def decide(self, n, resolution, speaker, is_prepared) -> None:
        """A commit or a rollback, of the producer or of somebody else, before or after the prepare."""
        group, user_id = speaker
        told = self.run(
            self.store.decide(
                self.ids[n], resolution, group=group, user_id=user_id, by="producer", is_prepared=is_prepared
            )
        )
        if self.models[n] is None and is_prepared:
            assert told == Decided(DECIDES[resolution], changed=True)
            self.models[n] = Model(DECIDES[resolution], group, user_id, is_prepared=False)
        else:
            assert told == self._decided(n, resolution, group, user_id)

    @rule(n=halves, check=st.integers(1, 6), speaker=speakers)
    def receive(self, n, check, speaker) -> None:
        """A member has some check: the last, an old one again, or one that was never sent."""
        told = self.run(self.store.received(self.ids[n], check, group=speaker[0], user_id=speaker[1]))
        model = self.models[n]
        if model is None:
            assert told == Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)
        elif (refusal := model.refuses(*speaker)) is not None:
            assert told == Decided(model.state, refusal)
        elif model.state is PREPARED:
            self.models[n] = model.counting(check)
            assert told == Decided(PREPARED, changed=self.models[n] != model)
        else:
            assert told == Decided(model.state)

    @rule(n=halves, check=st.integers(1, 6), answer=st.sampled_from(Answer), speaker=speakers)
    def answer(self, n, check, answer, speaker) -> None:
        """A checker answers some check."""
        told = self.run(self.store.answered(self.ids[n], check, answer, group=speaker[0], user_id=speaker[1]))
        model = self.models[n]
        if answer in (Answer.COMMIT, Answer.ROLLBACK):
            resolution = Resolution(answer.upper())
            expected = self._decided(n, resolution, *speaker)
            assert told == expected
            if expected.changed:
                self.models[n] = self.models[n].counting(check)
        elif model is None:
            assert told == Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)
        elif (refusal := model.refuses(*speaker)) is not None:
            assert told == Decided(model.state, refusal)
        elif model.state is PREPARED:
            assert told == Decided(PREPARED, changed=True)
            counted = model.counting(check)
            is_last = counted.checks >= MAX_CHECKS and check >= model.sent
            self.models[n] = replace(counted, is_due=model.is_due or is_last)
        else:
            assert told == Decided(model.state)

    @rule()
    def wait(self) -> None:
        """Time passes until all that are checked are due."""
        self.run(self._sql("UPDATE relmsg.half_message SET next_check_at = now() WHERE next_check_at IS NOT NULL"))
        self.models = [model and replace(model, is_due=model.state is PREPARED) for model in self.models]

    @rule()
    def scan(self) -> None:
        """Park what was checked often enough, and claim the checks of the rest."""
        due = {n for n, model in enumerate(self.models) if model is not None and model.is_due}
        over = {n for n in due if self.models[n].checks >= MAX_CHECKS}
        parked = self.run(self.store.park())
        assert {self.ids.index(each.half_id) for each in parked} == over
        found = self.run(self.store.due(10))
        assert {(self.ids.index(each.half_id), each.is_out) for each in found} == {
            (n, self.models[n].sent > self.models[n].received) for n in due - over
        }
        claimed = self.run(self.store.claim([each.half_id for each in found], [1.0] * len(found)))
        assert {(self.ids.index(half.half_id), number) for half, number in claimed} == {
            (n, self.models[n].sent + 1) for n in due - over
        }
        for n in due:
            model = replace(self.models[n], is_due=False)
            self.models[n] = replace(model, state=PARKED) if n in over else replace(model, sent=model.sent + 1)

    @rule(n=halves, resolution=resolutions)
    def operator_decides(self, n, resolution) -> None:
        """A person decides, in time or too late."""
        model = self.models[n]
        try:
            standing = self.run(self.desk.decide(self.ids[n], resolution, "ada"))
        except HalfUnknown:
            assert model is None
            return
        assert model is not None
        is_open = model.state in OPEN
        if is_open:
            self.models[n] = model = replace(model, state=DECIDES[resolution], is_due=False)
        assert (standing.state, standing.changed) == (model.state, is_open)

    @rule(n=halves)
    def operator_resumes(self, n) -> None:
        """A person has it checked again."""
        model = self.models[n]
        try:
            standing = self.run(self.desk.resume(self.ids[n], "ada"))
        except HalfUnknown:
            assert model is None
            return
        assert model is not None
        was_parked = model.state is PARKED
        if was_parked:
            self.models[n] = model = replace(model, state=PREPARED, checks=0, is_due=True)
        assert (standing.state, standing.changed) == (model.state, was_parked)

    @rule()
    def prune(self) -> None:
        """Nothing that is younger than the retention goes."""
        assert self.run(self.store.prune(HOUR)) == 0

    @invariant()
    def it_is_as_the_model_says(self) -> None:
        """Never ended both ways, never two rows in the outbox, never lost."""
        rows, sent = self.run(self._rows())
        for half_id, model in zip(self.ids, self.models, strict=True):
            row = rows.get(half_id)
            assert (row is None) == (model is None)
            if row is None or model is None:
                continue
            assert (row.state, row.prepared_at is not None) == (model.state, model.is_prepared)
            assert (row.producer_group, row.user_id) == (model.group, model.user_id)
            assert (row.checks, row.check_sent, row.check_received) == (model.checks, model.sent, model.received)
            assert (row.next_check_at is None) == (model.state is not PREPARED)
            if model.is_prepared and model.state.is_final:
                assert self.ended.setdefault(half_id, model.state) is model.state
            assert half_id not in self.ended or model.state is self.ended[half_id]
        assert sorted(sent) == sorted(
            half_id
            for half_id, model in zip(self.ids, self.models, strict=True)
            if model is not None and model.is_prepared and model.state is HalfState.COMMITTED
        )

    def _decided(self, n, resolution, group, user_id) -> Decided:
        """What a decision about a row, or about none, should be told; the model follows."""
        model = self.models[n]
        if model is None:
            return Decided(HalfState.UNKNOWN, Refusal.UNKNOWN_ID)
        if (refusal := model.refuses(group, user_id)) is not None:
            return Decided(model.state, refusal)
        if model.state not in OPEN:
            return Decided(model.state)
        self.models[n] = replace(model, state=DECIDES[resolution], is_due=False)
        return Decided(DECIDES[resolution], changed=True)

    async def _sql(self, statement) -> None:
        async with self.engine.begin() as connection:
            await connection.execute(text(statement))

    async def _rows(self):
        async with self.engine.connect() as connection:
            rows = {row.half_id: row for row in await connection.execute(select(HALF))}
        return rows, [row.message_id for row in await outbox_rows(self.engine)]


def test_half_messages_are_as_the_model_says(database_url):
    """Whatever is said about half messages, in whatever order and however often, they end once and in one way, with one
    row in the outbox exactly if committed, and none is lost."""
    with asyncio.Runner() as runner:
        engine = create_engine(database_url, pool_size=2)
        try:
            run_state_machine_as_test(
                lambda: Machine(runner.run, engine),
                settings=settings(
                    max_examples=80,
                    stateful_step_count=40,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
                ),
            )
        finally:
            runner.run(engine.dispose())
