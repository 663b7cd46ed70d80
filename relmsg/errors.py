"""Every error relmsg raises, as one tree.

::

    RelmsgError
    ├── UsageError                     the program or the operator asked for something wrong; exit code 2
    │   ├── SettingsError              a setting is unknown, missing or malformed
    │   ├── TransactionRequired        publish() was called where no transaction protects it
    │   ├── HandlerRefused             a handler that can never be called, told when it is registered
    │   ├── UnsupportedProperty        a message property that the outbox cannot keep
    │   ├── UnsupportedOperation       what a wrapped exchange cannot do, as it has no broker behind it
    │   ├── GroupRefused               a producer group whose name cannot be one
    │   ├── CheckerRefused             a checker that could never be asked, or the second one for a type
    │   ├── ImportTargetError          `module:name` does not lead to what was asked for
    │   ├── AccessRefused              a service answered and said no: user, password, permission, vhost
    │   └── SchemaError                relmsg's tables are missing, older or newer than this code
    ├── InvalidMessage                 the message can never be sent as it is
    │   ├── HeaderRefused              a header value that AMQP would damage or drop
    │   ├── HeaderNameRefused          a header name that is reserved or too long
    │   ├── HeadersTooLarge            more than 16 KiB of headers
    │   ├── BodyTooLarge               a body over the cap
    │   ├── BodyNotEncodable           a body that cannot become bytes
    │   ├── ExpirationNotPositive      a message that would be dead on arrival
    │   ├── UnknownRoute               no queue of the declared topology would get it
    │   └── PropertyRefused            a name or key that does not fit AMQP's 255 bytes, or holds a NUL
    ├── NotConfirmed                   the broker did not confirm (relmsg.broker.receipt)
    │   ├── Returned · Nacked · Unknown
    ├── ServiceAway                    a service does not answer; exit code 3, a retry can help
    │   ├── BrokerAway
    │   └── DatabaseAway
    ├── HalfError                      a half message is not as it was taken for
    │   ├── HalfUnknown                no half message has this id
    │   ├── HalfRolledBack             committed locally, but somebody had rolled the half message back before
    │   └── HalfOfAnotherGroup         a decision from a group, or a login, that has not prepared it
    ├── InboxEnded                     an inbox inside an application ended, though nobody had asked it to
    ├── BrokerRefused                  the broker answered one request with an AMQP error code
    ├── UnreadableMessages             messages in an error queue that end the connection of whoever reads them
    ├── RowNotStored                   a trigger of the user's let a row vanish without an error
    ├── TopologyMismatch               what is declared in the broker differs from what was asked for
    └── Unhandleable                   a delivery that no retry can help
        ├── MissingMessageId · UnknownType · Undecodable · Undecryptable · Untrusted
        ├── KilledWorker · MalformedHalf

An error raised without a text says its own docstring. ``retryable`` tells whether the same call can succeed later.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class RelmsgError(Exception):
    """Something relmsg was asked to do did not happen."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or "").split("\n\n")[0])


class UsageError(RelmsgError):
    """The program or the operator asked for something that cannot be."""

    exit_code = 2


class SettingsError(UsageError):
    """A setting is unknown, missing or malformed."""


class TransactionRequired(UsageError):
    """Publishing needs an open transaction: begin one, and let the same commit save your work and the message."""


class HandlerRefused(UsageError):
    """This handler could never be called."""


class UnsupportedProperty(UsageError):
    """This message property cannot be kept in the outbox."""


class UnsupportedOperation(UsageError, NotImplementedError, AttributeError):
    """A wrapped exchange writes into the outbox and talks to no broker: it only publishes."""


class GroupRefused(UsageError):
    """A producer group is a name of 1 to 128 bytes that all instances of one service share."""


class CheckerRefused(UsageError):
    """One checker per message type, written as `async def` with one parameter, the half message."""


class ImportTargetError(UsageError):
    """Give `module:name`, where the module can be imported from here."""


class AccessRefused(UsageError):
    """The service answered and refused: check user, password, virtual host and permissions."""


class SchemaError(UsageError):
    """relmsg's tables do not fit this version: run `relmsg db upgrade`."""


class InvalidMessage(RelmsgError):
    """This message can never be sent as it is."""


class HeaderRefused(InvalidMessage):
    """Header values are str, int (64 bit), bool, None, and lists or dicts of these."""


class HeaderNameRefused(InvalidMessage):
    """Header names are 1 to 128 bytes and do not begin with x-, relmsg-, CC or BCC."""


class HeadersTooLarge(InvalidMessage):
    """All headers together may take 16 KiB: put data into the body."""


class BodyTooLarge(InvalidMessage):
    """The body is over the cap: store it elsewhere and send a reference, or raise max_body_bytes."""


class BodyNotEncodable(InvalidMessage):
    """Bodies are bytes, str, dict, list, dataclass, msgspec.Struct or a pydantic model."""


class ExpirationNotPositive(InvalidMessage):
    """An expiration is a positive time: at zero the broker would drop the message without a word."""


class UnknownRoute(InvalidMessage):
    """No queue of the declared topology would get this message."""


class PropertyRefused(InvalidMessage):
    """AMQP carries names and keys of at most 255 bytes, without NUL characters."""


class ServiceAway(RelmsgError):
    """A service does not answer."""

    retryable = True
    exit_code = 3


class BrokerAway(ServiceAway):
    """RabbitMQ does not answer."""


class DatabaseAway(ServiceAway):
    """PostgreSQL does not answer."""


class HalfError(RelmsgError):
    """A half message is not as it was taken for."""


class HalfUnknown(HalfError):
    """No half message has this id: it was never prepared, or was decided and pruned."""


class HalfRolledBack(HalfError):
    """The half message was rolled back before this commit came: it will not be sent, though the local work is done."""


class HalfOfAnotherGroup(HalfError):
    """Only the group that prepared a half message may decide about it."""


class InboxEnded(RelmsgError):
    """The inbox stopped consuming, though nobody had asked it to."""


class BrokerRefused(RelmsgError):
    """The broker refused a request; ``reply_code`` is the AMQP code, such as 404 or 406."""

    def __init__(self, reply_code: int, reply_text: str) -> None:
        super().__init__(f"the broker refused ({reply_code}): {reply_text}")
        self.reply_code = reply_code
        self.reply_text = reply_text


class UnreadableMessages(RelmsgError):
    """Some messages end the connection of whoever reads them; all others were read."""


class TopologyMismatch(RelmsgError):
    """What stands in the broker differs from what was asked for."""


class RowNotStored(RelmsgError):
    """PostgreSQL took a row without an error and did not store it: a trigger of the user's returned NULL."""


class Unhandleable(RelmsgError):
    """No retry can help this delivery."""


class MissingMessageId(Unhandleable):
    """The message has no id, so a duplicate could not be told from a new one."""


class UnknownType(Unhandleable):
    """No handler is registered for this message type."""


class Undecodable(Unhandleable):
    """The body is not what the handler expects."""


class Undecryptable(Unhandleable):
    """The body is encrypted and cannot be opened: the key is not here, or the body was changed."""


class Untrusted(Unhandleable):
    """Nothing proves that the message comes from the source it names."""


class KilledWorker(Unhandleable):
    """Handling this message has ended the worker process three times."""


class HalfNotAllowed(Unhandleable):
    """A rule of RELMSG_HALF_ALLOWED forbids this group to send this message."""


class MalformedHalf(Unhandleable):
    """This delivery is none of the half message protocol, or one of its headers is missing or out of range."""
