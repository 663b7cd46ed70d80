"""Signatures, trusted senders and encrypted bodies, without services."""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import async_sessionmaker

from relmsg import Inbox, Outbox, Publisher
from relmsg.broker.envelope import Envelope, seal
from relmsg.errors import BodyTooLarge, HeaderRefused, Undecryptable, Untrusted, UsageError
from relmsg.message import Message
from relmsg.security.encryption import ENCRYPTION, AesGcmKey, Encryption, is_secret
from relmsg.security.keys import Keys
from relmsg.security.received import opened
from relmsg.security.signing import SIGNATURE, Ed25519Key, Ed25519PublicKey, HmacKey, Signing
from relmsg.security.trust import Sender, Trust

OLD, NEW, STRANGE = (HmacKey(name, bytes([number]) * 32) for number, name in enumerate(("old", "new", "strange")))
PRIVATE = Ed25519Key("ed", bytes(range(32)))
SECRET = AesGcmKey("aes", b"k" * 32)
ORDER = Message(type="order.placed", body={"id": 7}, routing_key="q", ordering_key="order-7", source="shop")


def received(envelope: Envelope) -> Message:
    """The message as a consumer gets it."""
    return Message(
        id=envelope.message_id,
        type=envelope.type,
        source=envelope.source,
        ordering_key=envelope.ordering_key,
        content_type=envelope.content_type,
        content_encoding=envelope.content_encoding,
        headers=envelope.headers,
        body=envelope.body,
    )


def sent(message: Message = ORDER, **protection: Any) -> Message:
    return received(seal(message, **protection))


@pytest.mark.parametrize(
    ("signs", "verifies"), [(OLD, OLD), (OLD, [NEW, OLD]), (PRIVATE, PRIVATE.public), (Keys([NEW, OLD]), [OLD, NEW])]
)
def test_what_the_key_has_signed_is_believed(signs: Any, verifies: Any) -> None:
    """A signed message passes with its key, also while keys are being changed, and also with an encrypted body."""
    trust = Trust({"shop": Sender(keys=verifies)})
    trust.check(sent(signing=Signing(signs)), None)
    trust.check(sent(signing=Signing(signs), encryption=Encryption(SECRET)), None)


@pytest.mark.parametrize(
    "change",
    [
        {"body": b'{"id":8}'},
        {"id": "another"},
        {"type": "order.paid"},
        {"type": None},
        {"ordering_key": "order-8"},
        {"ordering_key": None},
        {"content_type": "text/plain"},
        {"content_encoding": "gzip"},
    ],
    ids=repr,
)
@pytest.mark.parametrize("key", [OLD, PRIVATE], ids=["hmac", "ed25519"])
def test_what_was_changed_is_not_believed(key: Any, change: dict[str, Any]) -> None:
    """Another body, id, type, key or content type under the same signature is refused."""
    trust = Trust({"shop": Sender(keys=key.public if key is PRIVATE else key)})
    with pytest.raises(Untrusted, match="wrong"):
        trust.check(replace(sent(signing=Signing(key)), **change), None)


def test_values_cannot_be_shifted_into_one_another() -> None:
    """A type and a source that read the same when joined have different signatures."""
    trust = Trust({"ab": Sender(keys=OLD), "b": Sender(keys=OLD)})
    message = sent(replace(ORDER, type="xa", source="b"), signing=Signing(OLD))
    trust.check(message, None)
    with pytest.raises(Untrusted):
        trust.check(replace(message, type="x", source="ab"), None)


@pytest.mark.parametrize(
    "header", [None, "", "v1", "v2;hmac-sha256;old;eA==", "v1;hmac-sha256;old;!", 7, ["v1"], b"v1"]
)
def test_a_missing_or_broken_signature_is_refused(header: Any) -> None:
    """What is no signature is none: text, number, list or bytes."""
    headers = {} if header is None else {SIGNATURE: header}
    with pytest.raises(Untrusted):
        Trust({"shop": Sender(keys=OLD)}).check(replace(sent(), headers=headers), None)


@given(st.text())
def test_any_text_as_a_signature_is_refused_and_nothing_else_is_raised(text: str) -> None:
    """A header of anybody's making ends as Untrusted."""
    with pytest.raises(Untrusted):
        Trust({"shop": Sender(keys=OLD)}).check(replace(sent(), headers={SIGNATURE: text}), None)


def test_a_public_key_is_no_secret_for_the_other_algorithm() -> None:
    """A signature that names HMAC and was made with the public key's bytes does not pass for Ed25519."""
    public = PRIVATE.public
    forged = sent(signing=Signing(HmacKey("ed", b"p" * 32)))
    with pytest.raises(Untrusted, match="wrong"):
        Trust({"shop": Sender(keys=public)}).check(forged, None)


def test_a_key_speaks_for_its_source_only() -> None:
    """The key of one source cannot sign in the name of another."""
    trust = Trust({"shop": Sender(keys=OLD), "stock": Sender(keys=STRANGE)})
    with pytest.raises(Untrusted, match="does not have here"):
        trust.check(sent(signing=Signing(STRANGE)), None)


def test_a_login_is_a_proof_where_it_is_asked_for() -> None:
    """With ``users`` the message must name one of them, which the broker has checked; with both, both must hold."""
    trust = Trust({"shop": Sender(users=["shop-login"])})
    trust.check(sent(), "shop-login")
    for user_id in (None, "another"):
        with pytest.raises(Untrusted):
            trust.check(sent(), user_id)
    both = Trust({"shop": Sender(keys=OLD, users=["shop-login"])})
    both.check(sent(signing=Signing(OLD)), "shop-login")
    with pytest.raises(Untrusted):
        both.check(sent(signing=Signing(OLD)), None)
    with pytest.raises(Untrusted):
        both.check(sent(), "shop-login")


def test_unlisted_sources_are_refused_unless_told_otherwise() -> None:
    """A source that is not listed, or none, is refused; ``others="accept"`` lets it pass."""
    for source in (None, "unknown"):
        with pytest.raises(Untrusted):
            Trust({"shop": Sender(keys=OLD)}).check(replace(sent(), source=source), None)
        Trust({"shop": Sender(keys=OLD)}, others="accept").check(replace(sent(), source=source), None)


def test_the_signature_is_what_the_documentation_says() -> None:
    """Another client can make the signature from the description alone."""
    parts = ("relmsg-signature-v1", "hmac-sha256", "old", "order.placed", "shop", "application/json", None, None,
             str(ORDER.id), "order-7", '{"id":7}')  # fmt: skip
    data = "".join("-" if part is None else f"{len(part)}:{part}" for part in parts).encode()
    expected = b64encode(hmac.new(OLD.secret, data, hashlib.sha256).digest()).decode()
    assert sent(signing=Signing(OLD)).headers[SIGNATURE] == f"v1;hmac-sha256;old;{expected}"


def test_an_encrypted_body_is_opened_with_its_key() -> None:
    """The body is not readable on the way, and the handler gets what was published; so does an empty one."""
    for body in ({"id": 7}, b"", "text", b"\0" * 1000):
        message = replace(ORDER, body=body)
        plain, hidden = sent(message), sent(message, encryption=Encryption(SECRET))
        assert len(hidden.body) == len(plain.body) + 28
        assert opened(hidden, Encryption([AesGcmKey("next", b"n" * 32), SECRET])).body == plain.body
    assert b"id" not in sent(ORDER, encryption=Encryption(SECRET)).body


@pytest.mark.parametrize(
    "change", [{"body": b""}, {"body": b"x" * 40}, {"type": "t"}, {"source": "s"}, {"id": "i"}, {"ordering_key": None}]
)
def test_a_body_cannot_be_changed_or_moved_into_another_message(change: dict[str, Any]) -> None:
    """An encrypted body is refused under another id, type, source or key, and after any change."""
    with pytest.raises(Undecryptable):
        opened(replace(sent(encryption=Encryption(SECRET)), **change), Encryption(SECRET))


UNKNOWN = ["", "v1;aes-256-gcm", "v2;aes-256-gcm;aes", "v1;none;aes", "v1;aes-256-gcm;no", 7, None]


@pytest.mark.parametrize("header", UNKNOWN)
def test_an_unknown_encryption_is_told_as_such(header: Any) -> None:
    """A header of another version, algorithm or key, or none at all, ends as Undecryptable."""
    hidden = sent(encryption=Encryption(SECRET))
    with pytest.raises(Undecryptable):
        opened(replace(hidden, headers={ENCRYPTION: header}), Encryption(SECRET))
    with pytest.raises(Undecryptable, match="give this consumer the key"):
        opened(hidden, None)


def test_errors_of_encrypted_messages_are_secret() -> None:
    """The text of a handler's exception is secret where the body is, that of our own refusals is not."""
    headers = sent(encryption=Encryption(SECRET)).headers
    assert is_secret(headers, ValueError("card 4711"))
    assert not is_secret(headers, Undecryptable())
    assert not is_secret({}, ValueError())


def test_a_message_is_checked_before_it_is_protected() -> None:
    """What could not be sent is told by its own rule, and the limit holds for the body that travels."""
    with pytest.raises(HeaderRefused):
        seal(replace(ORDER, headers={"a": 1.5}), signing=Signing(OLD), encryption=Encryption(SECRET))
    with pytest.raises(BodyTooLarge):
        seal(replace(ORDER, body=b"x" * 100), max_body_bytes=100, encryption=Encryption(SECRET))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: HmacKey("a b", b"s" * 32),
        lambda: HmacKey("", b"s" * 32),
        lambda: HmacKey("short", b"s" * 31),
        lambda: HmacKey("text", "s" * 32),  # type: ignore[arg-type]
        lambda: AesGcmKey("long", b"s" * 33),
        lambda: Ed25519Key("bad", b"s" * 31),
        lambda: Ed25519PublicKey("bad", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"),
        lambda: Keys([]),
        lambda: Keys([OLD, HmacKey("old", b"o" * 32)]),
        lambda: Sender(),
        lambda: Sender(users="shop"),
        lambda: Trust({"shop": OLD}),  # type: ignore[dict-item]
        lambda: Outbox("shop", signing=OLD),  # type: ignore[arg-type]
        lambda: Publisher("amqp://localhost", encryption=SECRET),  # type: ignore[arg-type]
        lambda: Inbox("billing", async_sessionmaker(), trust={"shop": OLD}),  # type: ignore[arg-type]
        lambda: Trust({}, others="yes"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_a_key_is_refused_at_once(wrong: Any) -> None:
    """A key id, a secret, a key or a sender that cannot be meant is told at once, without the secret."""
    with pytest.raises(UsageError) as raised:
        wrong()
    assert "ssss" not in str(raised.value)


def test_a_secret_is_not_shown() -> None:
    """The repr of a key has its id and not its secret."""
    assert "secret" not in repr(OLD)
    assert "kkkk" not in repr(SECRET)


def test_pem_is_read() -> None:
    """Keys may be given as PEM, as openssl writes them."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    made = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    private = made.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = made.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signature = Ed25519Key("ed", private).sign(b"data")
    assert Ed25519PublicKey("ed", public).verify(b"data", signature)
