"""SIGKILL of a producer at every failpoint of a half message: it is sent if, and only if, the local work is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from relmsg import HalfMessage, HalfProducer, HalfState, Message, Resolution
from relmsg.failpoint import FAILPOINTS
from tests.support.halves import becomes, coordinating, outbox_rows
from tests.support.processes import Processes

POINTS = [name for name in FAILPOINTS if name.startswith("half.")]
ID = Message.id_for("order-7-placed")

PRODUCER = """
import asyncio, os, pathlib, sys
from relmsg import HalfProducer, Message

async def main():
    async with HalfProducer(os.environ["RELMSG_AMQP_URL"], group="shop") as half:
        message = Message(type="order.placed", routing_key="orders", id=Message.id_for("order-7-placed"))
        async with half.begin(message):
            pathlib.Path(sys.argv[1]).write_text("paid")

asyncio.run(main())
"""


@pytest.mark.parametrize("point", POINTS)
async def test_it_is_sent_exactly_if_the_local_work_is_done(
    point: str, engine, database_url: str, amqp_url: str, processes: Processes, tmp_path: Path
) -> None:
    """After SIGKILL at this point the check-back, or the commit already sent, ends the half message as the work did."""
    work = tmp_path / "paid"
    async with coordinating(database_url, amqp_url, half_check_after=0.2, half_check_every=0.2):
        doomed = await processes.python_with_relmsg("-c", PRODUCER, str(work), RELMSG_FAILPOINTS=f"{point}=kill")
        assert await doomed.wait() == -9, doomed.stderr
        assert work.exists() == (point != "half.after_prepare")
        async with HalfProducer(amqp_url, group="shop") as half:

            @half.checker("order.placed")
            async def check(half_message: HalfMessage) -> Resolution:
                return Resolution.COMMIT if work.exists() else Resolution.ROLLBACK  # nobody writes it any more

            await becomes(engine, ID, HalfState.COMMITTED if work.exists() else HalfState.ROLLED_BACK)
    assert [row.message_id for row in await outbox_rows(engine)] == ([ID] if work.exists() else [])
