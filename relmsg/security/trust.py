"""Which senders a consumer believes, and by what proof."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from relmsg.arguments import instance, refused, several, text
from relmsg.errors import Untrusted, UsageError
from relmsg.exceptions import text_of
from relmsg.message import Message
from relmsg.security.encryption import ENCRYPTION
from relmsg.security.keys import KeyProvider, provider
from relmsg.security.signing import SIGNATURE, Claim, VerifyingKey, signed_bytes

LONGEST_ENCRYPTION: Final = 128  # characters of that header: version, algorithm and key id


@dataclass(frozen=True)
class Sender:
    """What proves that a message is of a source. Where both are given, both must hold.

    :param keys: its signature: one of these keys. A list, a key, or a ``KeyProvider``.
    :param users: its login: RabbitMQ refuses a message that names another ``user_id`` than the login it is published
        by, so one of these names proves it. The publisher must set the property; any login with the tag
        ``impersonator`` can set another's.
    """

    keys: VerifyingKey | Sequence[VerifyingKey] | KeyProvider[VerifyingKey] | None = None
    users: Collection[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.users, str):
            raise UsageError("Sender(users=…) is a collection of logins, not one string")
        for login in several("Sender(users=…)", self.users, str):
            text("Sender(users=…)", login, "holds logins, each")
        if self.keys is None and not self.users:
            raise UsageError(
                'Sender(…): give keys, users or both; a source without proof is trusted by others="accept"'
            )
        _provider(self)


class Trust:
    """What a consumer wants to see before it believes a message's ``source``: ``Inbox(…, trust=Trust({…}))``.

    Without it, whoever may publish to a queue can send in the name of any source; with a victim's source and an id that
    is easy to guess, the victim's own message is later taken for a duplicate. With it, each message is held against the
    proof of its source before the inbox remembers anything; what does not pass goes to the error exchange with the
    reason ``untrusted``.

    Does not hold: a message that was signed once can be sent again by anybody who has seen it; the inbox knows it by
    its id, as long as it keeps that. The exchange, the routing key and other headers are not signed.

    :param sources: by source (``app_id``), what proves it.
    :param others: what becomes of messages whose source is not listed or missing: "refuse" or "accept".
    """

    def __init__(self, sources: Mapping[str, Sender], *, others: Literal["refuse", "accept"] = "refuse") -> None:
        if others not in ("refuse", "accept"):
            raise UsageError('Trust(others=…) is "refuse" or "accept"')
        if not isinstance(sources, Mapping):
            raise refused("Trust(sources)", sources, "is a dict from the name of a source to its Sender(…)")
        for source, sender in sources.items():
            text("Trust(sources)", source, "is a dict whose keys are names of sources, each")
            instance(f"Trust(sources): what is told of {source!r}", sender, Sender)
        self._users = {source: frozenset(sender.users) for source, sender in sources.items()}
        self._keys = {source: _provider(sender) for source, sender in sources.items()}
        self._accepts_others = others == "accept"

    def check(self, message: Message, user_id: str | None) -> None:
        """Hold a message against the proof of its source.

        :param user_id: the login that the broker has checked, if the publisher named it.
        :raises Untrusted: it does not pass.
        """
        source = message.source
        if source is None or source not in self._users:
            if self._accepts_others:
                return
            raise Untrusted(f"nothing is known of the source {source!r}: list it in Trust, or accept others")
        users = self._users[source]
        if users and user_id not in users:
            raise Untrusted(
                f"the source {source!r} is to come from the login {' or '.join(sorted(users))}; "
                + ("the message names none" if user_id is None else f"this message comes from {user_id!r}")
            )
        keys = self._keys[source]
        if keys is not None:
            _verify(message, source, keys)


def _provider(sender: Sender) -> KeyProvider[VerifyingKey] | None:
    """Where a sender's keys come from; None where it has none.

    :raises UsageError: one of them is none that can verify.
    """
    if sender.keys is None:
        return None
    return provider(
        "Sender(keys=…)", sender.keys, "verify", "an HmacKey or an Ed25519PublicKey, such as Ed25519Key(…).public"
    )


class _AsSigned(NamedTuple):
    """A received message under the names that a signature goes by."""

    message_id: str
    type: str | None
    source: str | None
    ordering_key: str | None
    content_type: str | None
    content_encoding: str | None
    headers: Mapping[str, Any]
    body: bytes


def _verify(message: Message, source: str, keys: KeyProvider[VerifyingKey]) -> None:
    header = message.headers.get(SIGNATURE)
    if header is None:
        raise Untrusted(f"messages of the source {source!r} are to be signed, and this one is not")
    try:
        claim = Claim(header)
    except ValueError as error:
        raise Untrusted(f"the signature cannot be read: {text_of(error)}") from error
    key = keys.find(claim.key_id)
    if key is None:
        raise Untrusted(f"signed by the key {claim.key_id!r}, which the source {source!r} does not have here")
    encryption = message.headers.get(ENCRYPTION)
    if encryption is not None and not (isinstance(encryption, str) and len(encryption) <= LONGEST_ENCRYPTION):
        raise Untrusted(f"the signature is wrong: no signed message has such a header {ENCRYPTION}")
    assert isinstance(message.body, bytes)
    sealed = _AsSigned(
        str(message.id),
        message.type,
        message.source,
        message.ordering_key,
        message.content_type,
        message.content_encoding,
        message.headers,
        message.body,
    )
    # The algorithm is the key's, never the message's: else the sender could choose the weaker check.
    if claim.algorithm != key.algorithm or not key.verify(signed_bytes(key, sealed), claim.signature):
        raise Untrusted(f"the signature by the key {claim.key_id!r} is wrong: the message was changed, or is a forgery")
