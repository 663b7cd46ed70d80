"""A received message with its body opened."""

from __future__ import annotations

from dataclasses import replace

from relmsg.errors import Undecryptable
from relmsg.message import Message
from relmsg.security.encryption import ENCRYPTION, Encryption, is_encrypted


def opened(message: Message, encryption: Encryption | None) -> Message:
    """The message with the body that was published; the message itself where it is not encrypted.

    :raises Undecryptable: it is encrypted, and the key is not here, or it was changed under way.
    """
    if not is_encrypted(message.headers):
        return message
    if encryption is None:
        raise Undecryptable("the body is encrypted: give this consumer the key, as Inbox(…, encryption=…)")
    assert isinstance(message.body, bytes)
    bound = (
        str(message.id),
        message.type,
        message.source,
        message.ordering_key,
        message.content_type or None,
        message.content_encoding or None,
    )
    return replace(message, body=encryption.decrypt(message.body, message.headers[ENCRYPTION], *bound))
