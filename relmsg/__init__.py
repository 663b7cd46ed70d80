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
from relmsg.outbox.wrap import AbstractExchange
from relmsg.retry import Retry
from relmsg.security.encryption import AesGcmKey, Encryption
from relmsg.security.keys import KeyProvider, Keys
from relmsg.security.signing import Ed25519Key, Ed25519PublicKey, HmacKey, Signing
from relmsg.security.trust import Sender, Trust
from relmsg.topology import Binding, Exchange, Queue, Topology

__all__ = [
    "AbstractExchange",
    "AesGcmKey",
    "Binding",
    "Confirmed",
    "Ed25519Key",
    "Ed25519PublicKey",
    "Encryption",
    "Exchange",
    "HalfMessage",
    "HalfProducer",
    "HalfState",
    "Hint",
    "HmacKey",
    "Inbox",
    "KeyProvider",
    "Keys",
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
    "Sender",
    "Signing",
    "Topology",
    "Trust",
    "Unknown",
]
