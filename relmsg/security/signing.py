"""Message signatures: who holds the key has written this id, type, source, ordering key and body.

The signature stands in the header ``message-signature`` as ``v1;<algorithm>;<key id>;<base64>``. What is signed are
these values one after the other, each as its length in bytes, a colon and the bytes in UTF-8, or ``-`` where the
message has none: ``relmsg-signature-v1``, algorithm, key id, type, source (``app_id``), content type, content encoding,
the header ``message-encryption``, message id, ordering key, body. The body is the one that travels: an encrypted one is
signed encrypted.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

from relmsg.errors import UsageError
from relmsg.security.encryption import ENCRYPTION
from relmsg.security.keys import KEY_ID, Key, KeyProvider, checked_id, provider, require_cryptography

SIGNATURE = "message-signature"
VERSION = "v1"
LEAST_SECRET_BYTES = 32  # RFC 2104: a secret shorter than the hash weakens it
BLOCK_BYTES = 64  # of SHA-256
INNER, OUTER = bytes(each ^ 0x36 for each in range(256)), bytes(each ^ 0x5C for each in range(256))
HMAC_SHA256 = "hmac-sha256"
ED25519 = "ed25519"


class SigningKey(Key, Protocol):
    """Makes signatures."""

    @property
    def algorithm(self) -> str: ...

    def sign(self, data: bytes) -> bytes:
        """The signature of these bytes."""
        ...


class VerifyingKey(Key, Protocol):
    """Tells whether a signature is right."""

    @property
    def algorithm(self) -> str: ...

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether the signature is that of these bytes."""
        ...


@dataclass(frozen=True, slots=True)
class HmacKey:
    """A secret that sender and receiver share (HMAC-SHA256). Every receiver could sign as the sender.

    :raises UsageError: the secret has less than 32 bytes; ``secrets.token_bytes(32)`` makes one.
    """

    id: str
    secret: bytes = field(repr=False)
    algorithm: str = field(default=HMAC_SHA256, init=False)

    def __post_init__(self) -> None:
        checked_id(self.id)
        if not isinstance(self.secret, bytes) or len(self.secret) < LEAST_SECRET_BYTES:
            raise UsageError(f"HmacKey(secret): at least {LEAST_SECRET_BYTES} bytes of chance: secrets.token_bytes(32)")

    def sign(self, data: bytes) -> bytes:
        """The HMAC of these bytes."""
        inner, outer = _begun(self.secret)
        inner, outer = inner.copy(), outer.copy()
        inner.update(data)
        outer.update(inner.digest())
        signature: bytes = outer.digest()
        return signature

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether the HMAC is that of these bytes; takes as long for a wrong one."""
        return hmac.compare_digest(self.sign(data), signature)


@lru_cache(maxsize=64)
def _begun(secret: bytes) -> tuple[Any, Any]:
    """The two hashes of an HMAC (RFC 2104), each with its half of the key in it: ``hmac.digest`` begins with the key
    for each message, which takes as long as a hash of a kilobyte (docs/decisions/0183)."""
    key = (hashlib.sha256(secret).digest() if len(secret) > BLOCK_BYTES else secret).ljust(BLOCK_BYTES, b"\0")
    return hashlib.sha256(key.translate(INNER)), hashlib.sha256(key.translate(OUTER))


class Ed25519Key:
    """A private key; only its holder can sign. ``private`` is PEM (PKCS 8, no password) or the 32 raw bytes.

    :raises UsageError: it is none, or the library ``cryptography`` is missing.
    """

    algorithm = ED25519

    def __init__(self, id: str, private: bytes | str) -> None:  # noqa: A002 - as HmacKey has it
        require_cryptography("Ed25519Key")
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        self.id = checked_id(id)
        key = _loaded(
            private,
            lambda pem: load_pem_private_key(pem, None),
            ed25519.Ed25519PrivateKey.from_private_bytes,
            ed25519.Ed25519PrivateKey,
            "Ed25519Key(private)",
        )
        self._sign = key.sign
        self.public = Ed25519PublicKey(id, key.public_key().public_bytes_raw())
        """The key for receivers."""

    def sign(self, data: bytes) -> bytes:
        """The signature of these bytes, 64 bytes."""
        signature: bytes = self._sign(data)
        return signature


class Ed25519PublicKey:
    """The public half of an ``Ed25519Key``: it can tell a signature, and not make one. PEM or the 32 raw bytes.

    :raises UsageError: it is none, or the library ``cryptography`` is missing.
    """

    algorithm = ED25519

    def __init__(self, id: str, public: bytes | str) -> None:  # noqa: A002 - as HmacKey has it
        require_cryptography("Ed25519PublicKey")
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self.id = checked_id(id)
        self._refusal = InvalidSignature
        self._key = _loaded(
            public,
            load_pem_public_key,
            ed25519.Ed25519PublicKey.from_public_bytes,
            ed25519.Ed25519PublicKey,
            "Ed25519PublicKey(public)",
        )

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Whether the private key has signed these bytes."""
        try:
            self._key.verify(signature, data)
        except self._refusal:
            return False
        return True


class Signing:
    """Signs what a service sends: ``Outbox(…, signing=Signing(key))``; ``Publisher`` and ``HalfProducer`` take it too.

    :param keys: a key, a list whose first key signs, or a ``KeyProvider``.
    """

    def __init__(self, keys: SigningKey | Sequence[SigningKey] | KeyProvider[SigningKey]) -> None:
        self._keys = provider("Signing(keys)", keys, "sign", "an HmacKey or an Ed25519Key")

    def header(self, sealed: Signed) -> str:
        """The value of the header ``message-signature`` for a message that is ready to be sent."""
        key = self._keys.current()
        signature = binascii.b2a_base64(key.sign(signed_bytes(key, sealed)), newline=False)
        return f"v1;{key.algorithm};{key.id};{signature.decode()}"


class Signed(Protocol):
    """What of a message is signed; ``Envelope`` has it."""

    @property
    def message_id(self) -> str: ...
    @property
    def type(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def ordering_key(self) -> str | None: ...
    @property
    def content_type(self) -> str | None: ...
    @property
    def content_encoding(self) -> str | None: ...
    @property
    def headers(self) -> Mapping[str, Any]: ...
    @property
    def body(self) -> bytes: ...


def signed_bytes(key: SigningKey | VerifyingKey, sealed: Signed) -> bytes:
    """What a signature is made of; the module's docstring tells it to those who write another client."""
    message_id, ordering_key, body = sealed.message_id.encode(), sealed.ordering_key, sealed.body
    front = _common(
        key.algorithm,
        key.id,
        sealed.type,
        sealed.source,
        sealed.content_type or None,
        sealed.content_encoding or None,
        sealed.headers.get(ENCRYPTION),
    )
    if ordering_key is None:
        return b"%b%d:%b-%d:%b" % (front, len(message_id), message_id, len(body), body)
    raw = ordering_key.encode()
    return b"%b%d:%b%d:%b%d:%b" % (front, len(message_id), message_id, len(raw), raw, len(body), body)


@lru_cache(maxsize=1024)
def _common(*texts: str | None) -> bytes:
    """What many messages have in common is written once."""
    texts = ("relmsg-signature-v1", *texts)
    return b"".join(b"-" if text is None else b"%d:%b" % (len(raw := text.encode()), raw) for text in texts)


class Claim:
    """What a ``message-signature`` says: the algorithm, the key's id and the signature. Nothing of it is proven.

    :raises ValueError: it is none.
    """

    __slots__ = ("algorithm", "key_id", "signature")

    def __init__(self, header: object) -> None:
        version, self.algorithm, self.key_id, encoded = str(header).split(";") if isinstance(header, str) else [""] * 4
        if version != VERSION:
            raise ValueError("it is of an unknown version")
        if KEY_ID.fullmatch(self.key_id) is None:  # a provider may make a path of it
            raise ValueError("what it names as its key can be none")
        try:
            self.signature = binascii.a2b_base64(encoded, strict_mode=True)
        except binascii.Error as error:
            raise ValueError("it is not base64") from error


def _loaded(given: bytes | str, from_pem: Any, from_raw: Any, kind: type, what: str) -> Any:
    if not isinstance(given, bytes | str):
        raise UsageError(f"{what}: give PEM or the 32 raw bytes, not a {type(given).__name__}")
    try:
        raw = given.encode() if isinstance(given, str) else given
        key = from_pem(raw) if raw.lstrip().startswith(b"-----BEGIN") else from_raw(raw)
    except Exception as error:  # of the library; their texts may show the key
        raise UsageError(f"{what}: give PEM or the 32 raw bytes") from error
    if not isinstance(key, kind):
        raise UsageError(f"{what}: this is a key of another kind")
    return key
