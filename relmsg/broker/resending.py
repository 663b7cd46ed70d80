"""Publishing with a second chance for what the broker has refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relmsg.broker.confirm import ConfirmChannel
from relmsg.broker.receipt import Nacked, Receipt
from relmsg.broker.wire import Publication
from relmsg.clock import Clock
from relmsg.retry import Retry


async def publish_again_if_nacked(
    channel: ConfirmChannel,
    publishes: Sequence[Publication],
    *,
    retry: Retry,
    clock: Clock,
    chance: Callable[[], float],
) -> list[Receipt]:
    """The receipts of these, in their order. A nacked one is sent again as ``retry`` has it; a returned or unknown one
    is not: only the caller knows whether that is worth it.

    :raises BrokerAway: there is no connection.
    """
    receipts = list(await channel.publish(publishes))
    attempt, began = 1, clock.monotonic()
    while refused := [position for position, receipt in enumerate(receipts) if isinstance(receipt, Nacked)]:
        nacked = receipts[refused[0]]
        assert isinstance(nacked, Nacked)
        wait = retry.delay(attempt, nacked, clock.monotonic() - began, chance)
        if wait is None:
            break
        await clock.sleep(wait)
        again = await channel.publish([publishes[position] for position in refused])
        for position, receipt in zip(refused, again, strict=True):
            receipts[position] = receipt
        attempt += 1
    return receipts
