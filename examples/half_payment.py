"""A payment recorded in a SQLite file, and the message about it: a store that has no outbox.

    python -m examples.half_payment pay 7 1250     record payment 7 of 12.50, and tell the others
    python -m examples.half_payment answer         answer for payments whose process has died, until SIGTERM

RELMSG_AMQP_URL names the broker, PAYMENTS the file. `relmsg topology declare examples.half_payment:topology` makes the
exchange and the queue, and a `relmsg relay` runs somewhere: it coordinates. This program needs no PostgreSQL.

`pay` may be killed at any moment. Before the commit in SQLite there is no payment, and there will be no message; after
it there is one, and the message comes, sent by `pay` itself or because `answer` was asked.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from pathlib import Path

from sqlalchemy import Column, Integer, MetaData, Table, Text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from relmsg import Binding, Exchange, HalfProducer, HalfState, Message, Queue, Topology
from relmsg.half.fence import fence_table

RECEIVED = "payment.received"
topology = Topology(
    exchanges=[Exchange("payments")], queues=[Queue("receipts", bindings=[Binding("payments", routing_key=RECEIVED)])]
)

metadata = MetaData()
payments = Table(
    "payment", metadata, Column("id", Integer, primary_key=True), Column("cents", Integer), Column("message", Text)
)
fence_table(metadata)  # beside the payments, so that one commit saves both

store = create_async_engine(f"sqlite+aiosqlite:///{Path(os.environ.get('PAYMENTS', 'payments.sqlite')).absolute()}")
sessions: async_sessionmaker[AsyncSession] = async_sessionmaker(store)


def producer() -> HalfProducer:
    """A member of the group: whichever of them is alive can be asked about a payment, for all share the file."""
    half = HalfProducer(os.environ["RELMSG_AMQP_URL"], group="payments", source="payments")
    half.checker(RECEIVED)(half.fenced_checker(sessions))
    return half


async def pay(half: HalfProducer, payment: int, cents: int) -> HalfState:
    """Record a payment and tell it; COMMITTED, or UNKNOWN if nobody has said so yet: then the check-back will.

    The message's id belongs to this attempt, not to the payment: an attempt that was rolled back can never be committed
    any more, and the next one needs an id of its own. That a payment is recorded once is for its primary key to see to.

    :raises IntegrityError: this payment is recorded already. Nobody says anything then: the check-back rolls back.
    """
    message = Message(type=RECEIVED, body={"id": payment, "cents": cents}, exchange="payments", routing_key=RECEIVED)
    # Recording takes milliseconds: whoever has said nothing after two seconds is asked. The session stands inside: its
    # commit comes first, and counts; then the message's.
    async with half.begin(message, check_after=2.0) as tx, sessions.begin() as session:
        await half.fence(session, tx)
        await session.execute(payments.insert().values(id=payment, cents=cents, message=str(tx.half_id)))
    return tx.state


async def answer() -> None:
    """Only answer, until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with producer():
        print("answering", flush=True)
        await stop.wait()


async def main(arguments: argparse.Namespace) -> int:
    """One run of the program; its exit code."""
    async with store.begin() as connection:
        await connection.run_sync(metadata.create_all)
    try:
        if arguments.verb == "answer":
            await answer()
            return 0
        async with producer() as half:
            state = await pay(half, arguments.payment, arguments.cents)
        print(f"payment {arguments.payment} is recorded, its message is {state}")
        return 0
    except IntegrityError:
        print(f"payment {arguments.payment} is recorded already", file=sys.stderr)
        return 1
    finally:
        await store.dispose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    paying = verbs.add_parser("pay")
    paying.add_argument("payment", type=int)
    paying.add_argument("cents", type=int)
    verbs.add_parser("answer")
    sys.exit(asyncio.run(main(parser.parse_args())))
