"""Encrypted bodies: from the publisher's transaction to the handler nobody without the key can read them.

The header ``message-encryption`` says ``v1;aes-256-gcm;<key id>``; the body is 12 bytes of nonce, ciphertext and tag.
The associated data are ``relmsg-encryption-v1``, algorithm, key id, and the message's id, type, source, ordering key,
content type and content encoding, each written as in signatures (``relmsg.security.signing``): a body that is moved
into another message cannot be opened there. Type, keys, headers and routing key are not secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from relmsg.errors import Undecryptable, Untrusted, UsageError
from relmsg.security.keys import KEY_ID, KeyProvider, checked_id, provider, require_cryptography

ENCRYPTION: Final = "message-encryption"
VERSION: Final = "v1"
ALGORITHM: Final = "aes-256-gcm"
SECRET_BYTES: Final = 32
NONCE_BYTES: Final = 12  # NIST SP 800-38D: chosen by chance, one key may encrypt 2**32 messages


@dataclass(frozen=True, slots=True)
class AesGcmKey:
    """A secret for AES-256-GCM, 32 bytes. Change it before it has encrypted four billion messages.

    :raises UsageError: the secret has another length; ``secrets.token_bytes(32)`` makes one. Or the library
        ``cryptography`` is missing.
    """

    id: str
    secret: bytes = field(repr=False)
    cipher: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checked_id(self.id)
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            raise UsageError(f"AesGcmKey(secret): {SECRET_BYTES} bytes of chance: secrets.token_bytes({SECRET_BYTES})")
        require_cryptography("AesGcmKey")
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        object.__setattr__(self, "cipher", AESGCM(self.secret))

    def encrypt(self, nonce: bytes, body: bytes, bound: bytes) -> bytes:
        """The encrypted body; ``bound`` is what it belongs to."""
        encrypted: bytes = self.cipher.encrypt(nonce, body, bound)
        return encrypted


class Encryption:
    """Encrypts bodies where they are published and opens them for the handler. Give the same keys to both sides:
    ``Outbox(…, encryption=…)``, ``Publisher``, ``HalfProducer``, ``Inbox``.

    In the outbox, in queues, error queues, logs and in what the tools show the body stays encrypted. The text of an
    exception of its handler may hold parts of it, and is left out of logs and error copies: they tell its type and
    where it was raised.

    :param keys: a key, a list whose first key encrypts, or a ``KeyProvider``.
    """

    def __init__(self, keys: AesGcmKey | Sequence[AesGcmKey] | KeyProvider[AesGcmKey]) -> None:
        self._keys = provider("Encryption(keys)", keys, "encrypt", "an AesGcmKey")

    def encrypt(self, body: bytes, *bound: str | None) -> tuple[bytes, str]:
        """The encrypted body and the value of the header ``message-encryption``.

        ``bound``: id, type, source, ordering key, content type and content encoding of the message.
        """
        key = self._keys.current()
        nonce = os.urandom(NONCE_BYTES)
        return nonce + key.encrypt(nonce, body, _associated(key, bound)), f"{VERSION};{ALGORITHM};{key.id}"

    def decrypt(self, body: bytes, header: object, *bound: str | None) -> bytes:
        """The body as it was published.

        :raises Undecryptable: it is of another key, was changed, or belongs to another message.
        """
        told = str(header).split(";")
        if len(told) != 3 or told[:2] != [VERSION, ALGORITHM]:
            raise Undecryptable("the body is encrypted in a way this version does not know")
        key = self._keys.find(told[2]) if KEY_ID.fullmatch(told[2]) else None  # a provider may make a path of it
        if key is None:
            raise Undecryptable(f"the body is encrypted with the key {told[2]!r}, which is not here")
        from cryptography.exceptions import InvalidTag

        try:
            plain: bytes = key.cipher.decrypt(body[:NONCE_BYTES], body[NONCE_BYTES:], _associated(key, bound))
        except (InvalidTag, ValueError) as error:
            raise Undecryptable(f"the body cannot be decrypted with the key {told[2]!r}: it was changed") from error
        return plain


def is_encrypted(headers: Mapping[str, Any] | None) -> bool:
    """Whether a message with these headers has an encrypted body."""
    return headers is not None and ENCRYPTION in headers


def is_secret(headers: Mapping[str, Any] | None, error: BaseException) -> bool:
    """Whether the text of an exception may hold parts of an encrypted body: a validator quotes what it was given."""
    return is_encrypted(headers) and not isinstance(error, Undecryptable | Untrusted)


def _associated(key: AesGcmKey, bound: Sequence[str | None]) -> bytes:
    texts = ("relmsg-encryption-v1", ALGORITHM, key.id, *bound)
    return b"".join(b"-" if text is None else b"%d:%b" % (len(raw := text.encode()), raw) for text in texts)
