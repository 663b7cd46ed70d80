"""Reliable messaging for Python services on RabbitMQ and PostgreSQL.

At least once to the broker, effects in your database once.
"""

from relmsg.broker.publisher import Publisher
from relmsg.broker.receipt import Confirmed, Nacked, Receipt, Returned, Unknown
from relmsg.errors import RelmsgError
from relmsg.half.checking import HalfMessage
from relmsg.half.producer import HalfProducer
from relmsg.half.state import HalfState, Resolution
from relmsg.inbox.inbox import Inbox
from relmsg.message import Message
from relmsg.outbox.hint import Hint
from relmsg.outbox.publish import Outbox
from relmsg.retry import Retry
from relmsg.topology import Binding, Exchange, Queue, Topology

__all__ = [
    "Binding",
    "Confirmed",
    "Exchange",
    "HalfMessage",
    "HalfProducer",
    "HalfState",
    "Hint",
    "Inbox",
    "Message",
    "Nacked",
    "Outbox",
    "Publisher",
    "Queue",
    "Receipt",
    "RelmsgError",
    "Resolution",
    "Retry",
    "Returned",
    "Topology",
    "Unknown",
]
