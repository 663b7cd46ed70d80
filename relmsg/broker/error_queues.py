"""Which error queues there are in a virtual host, and how full they are."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from relmsg.broker import management
from relmsg.broker.connection import Connection
from relmsg.broker.declare import ready_in, virtual_host
from relmsg.errors import BrokerAway, BrokerRefused, UsageError
from relmsg.topology import ERROR_SUFFIX


@dataclass(frozen=True, slots=True)
class ErrorQueueCount:
    """An error queue, the queue whose messages it takes, and how many messages are ready in it."""

    queue: str
    error_queue: str
    messages: int


async def error_queues(connection: Connection, amqp_url: str, management_url: str | None) -> list[ErrorQueueCount]:
    """The error queues of the virtual host: the fullest first, then by name.

    AMQP tells no names of queues: the management API does, the one at ``management_url``, or else the one that stands
    by default beside the broker of ``amqp_url``. The counts are the broker's own of this moment. A message that
    another reader holds is not counted.

    :raises UsageError: no management API is named, and none answers at its usual place.
    :raises AccessRefused: the user may not use it, or may not see a queue.
    :raises BrokerAway: no answer.
    """
    vhost = await virtual_host(connection)
    url = management_url or management.beside(amqp_url)
    try:
        names = await management.queue_names(url, vhost, ending=ERROR_SUFFIX)
    except BrokerAway as error:
        if management_url is not None:
            raise
        raise UsageError(
            "which error queues there are only RabbitMQ's management API tells: name it in RELMSG_MANAGEMENT_URL, such "
            f"as http://user:password@host:15672, or name a queue by --queue ({error})"
        ) from error
    found = []
    for name in names:
        with suppress(UsageError, BrokerRefused):  # of a name that AMQP libraries refuse, or another connection's own
            if (messages := await ready_in(connection, name)) is not None:
                found.append(ErrorQueueCount(name.removesuffix(ERROR_SUFFIX), name, messages))
    return sorted(found, key=lambda each: (-each.messages, each.error_queue))
