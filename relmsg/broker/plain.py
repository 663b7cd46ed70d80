"""Publishing by aiormq's own ``basic_publish``: the way back to which bulk publishing falls."""

from __future__ import annotations

import asyncio
from typing import Any

from aiormq import Channel
from aiormq.exceptions import ChannelInvalidStateError, DeliveryError, PublishError
from pamqp.commands import Basic

from relmsg.broker.answer import close_quietly, really_cancelled, reply_code, translate, why_closed
from relmsg.broker.batch import Batch
from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.broker.wire import Publication
from relmsg.errors import BrokerAway

PROPERTIES_AT = 12  # in a content header, behind class, weight and body size


class _Encoded(Basic.Properties):
    """Properties that are encoded already: pamqp would put other types in their headers."""

    def __init__(self, publish: Publication) -> None:
        super().__init__(message_id=publish.message_id)
        self._bytes = publish.header[PROPERTIES_AT:]

    def marshal(self) -> bytes:
        """The bytes of the properties, flags first."""
        return self._bytes


class PlainLine:
    """Publishes on a channel of aiormq, one message at a time.

    The same receipts as ``BulkLine``, much slower.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._writing = asyncio.Lock()
        self._publishing: dict[asyncio.Task[None], Batch] = {}
        self._closing: asyncio.Future[Any] = channel.closing
        self._closing.add_done_callback(self._lost)

    @property
    def is_open(self) -> bool:
        """Whether a batch can be written."""
        return not self._channel.is_closed

    async def write(self, batch: Batch) -> None:
        """Hand all of a batch to aiormq, one after another; their confirms are not waited for."""
        count = len(batch.publications)
        async with self._writing:
            for position in range(count):
                if self._channel.connection.channels.get(self._channel.number) is not self._channel:
                    # The broker has closed it. What aiormq still wrote would close the connection (reliability P4).
                    await self._channel.closing
                    raise BrokerAway("the channel was closed")
                batch.written = position + 1
                task = asyncio.create_task(self._publish(batch, position))
                self._publishing[task] = batch
                task.add_done_callback(self._publishing.pop)
                await asyncio.sleep(0)  # it takes the channel's lock now, and gives it back when it has written
                async with self._channel.lock:
                    pass
                if position + 1 == count // 2:
                    batch.reach("publish.half_of_frames")
        batch.reach("publish.after_last_frame")

    async def close(self) -> None:
        """Close the channel. Batches under way are given up."""
        await close_quietly(self._channel)
        self._end(BrokerAway("the channel was closed before the broker answered"))

    async def _publish(self, batch: Batch, position: int) -> None:
        publish = batch.publications[position]
        receipt: Receipt = Confirmed(publish.message_id)
        try:
            await self._channel.basic_publish(
                publish.body,
                exchange=publish.exchange,
                routing_key=publish.routing_key,
                properties=_Encoded(publish),
                mandatory=True,
            )
        except asyncio.CancelledError as error:
            if really_cancelled():
                raise
            receipt = Unknown(publish.message_id, translate(error))
        except ChannelInvalidStateError:
            return  # the channel's end has a reason, and gives it to the whole batch
        except Exception as error:  # noqa: BLE001 - whatever broke the publish, its receipt says so
            receipt = _refusal(publish, error)
        batch.settle(position, receipt)

    def _lost(self, closing: asyncio.Future[Any]) -> None:
        self._end(why_closed(closing))

    def _end(self, reason: BaseException) -> None:
        self._closing.cancel()
        for task, batch in list(self._publishing.items()):
            batch.give_up(reason)
            task.cancel()


def _refusal(publish: Publication, error: Exception) -> Receipt:
    if isinstance(error, PublishError) and isinstance(error.frame, Basic.Return):
        code, text = error.frame.reply_code or 312, error.frame.reply_text or "NO_ROUTE"
        return Returned(publish.message_id, publish.exchange, publish.routing_key, code, text)
    if isinstance(error, DeliveryError):
        return Nacked(publish.message_id)
    return Unknown(publish.message_id, translate(error), reply_code(error))
