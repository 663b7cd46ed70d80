"""What somebody tries who has seen signed and encrypted messages, or who gives a key of the wrong kind."""

from __future__ import annotations

import hmac
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from relmsg.broker.envelope import seal
from relmsg.broker.headers import MAX_BYTES, encoded_size
from relmsg.errors import HeadersTooLarge, Undecryptable, Untrusted, UsageError
from relmsg.message import Message
from relmsg.security.encryption import ENCRYPTION, AesGcmKey, Encryption
from relmsg.security.received import opened
from relmsg.security.signing import SIGNATURE, Ed25519Key, HmacKey, Signing
from relmsg.security.trust import Sender, Trust
from tests.unit.test_signing import sent

HMAC = HmacKey("hmac", b"h" * 32)
PRIVATE = Ed25519Key("ed", bytes(range(32)))
AES = AesGcmKey("aes", b"a" * 32)
OTHER_AES = AesGcmKey("other", b"o" * 32)
PATHS = ["../../etc/passwd", "a/b", "", "x" * 65, "ключ", "key\n", "a b", "\x1b[2J"]


class Vault:
    """A provider that notes what it is asked for."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.asked: list[str] = []

    def current(self) -> Any:
        return self.key

    def find(self, key_id: str) -> Any:
        self.asked.append(key_id)
        return self.key


@pytest.mark.parametrize("key", [HMAC, PRIVATE], ids=["hmac", "ed25519"])
@pytest.mark.parametrize("told", [None, "v1;aes-256-gcm;other", "v1;aes-256-gcm;", 7, ["v1;aes-256-gcm;aes"]])
def test_a_signed_message_says_itself_how_its_body_is_encrypted(key: Any, told: Any) -> None:
    """A signed message whose body is encrypted cannot be passed off as one whose body is plain, or of another key."""
    message = sent(signing=Signing(key), encryption=Encryption(AES))
    headers = {name: value for name, value in message.headers.items() if name != ENCRYPTION}
    trust = Trust({"shop": Sender(keys=key.public if key is PRIVATE else key)})
    trust.check(message, None)
    with pytest.raises(Untrusted, match="wrong"):
        trust.check(replace(message, headers=headers if told is None else {**headers, ENCRYPTION: told}), None)


def test_a_plain_signed_message_cannot_be_made_to_look_encrypted() -> None:
    """A header that calls a signed plain body encrypted is refused by the signature."""
    message = sent(signing=Signing(HMAC))
    changed = replace(message, headers={**message.headers, ENCRYPTION: "v1;aes-256-gcm;aes"})
    with pytest.raises(Untrusted, match="wrong"):
        Trust({"shop": Sender(keys=HMAC)}).check(changed, None)


@pytest.mark.parametrize("key_id", PATHS)
def test_a_provider_is_asked_for_nothing_but_ids_of_keys(key_id: str) -> None:
    """A provider that reads files or a vault by the key's id never sees an id that no key can have."""
    signatures, secrets = Vault(HMAC), Vault(AES)
    message = replace(sent(), headers={SIGNATURE: f"v1;hmac-sha256;{key_id};eA=="})
    with pytest.raises(Untrusted):
        Trust({"shop": Sender(keys=signatures)}).check(message, None)
    with pytest.raises(Undecryptable):
        opened(replace(message, headers={ENCRYPTION: f"v1;aes-256-gcm;{key_id}"}), Encryption(secrets))
    assert signatures.asked == secrets.asked == []


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", None])
def test_an_encrypted_body_keeps_its_content_encoding(encoding: str | None) -> None:
    """The content encoding belongs to what an encrypted body is bound to: nobody can name another one."""
    told = {"gzip": None, None: "gzip"}.get(encoding, "gzip")
    order = Message(type="order.placed", body=b"packed", source="shop", content_encoding=encoding)
    message = sent(order, encryption=Encryption(AES))
    assert opened(message, Encryption(AES)).body == b"packed"
    with pytest.raises(Undecryptable):
        opened(replace(message, content_encoding=told), Encryption(AES))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 11, 12, 13, 27, 28])
def test_a_truncated_encrypted_body_is_refused(size: int) -> None:
    """Fewer bytes than a nonce and a tag take end as Undecryptable, and so does any other cut."""
    message = sent(encryption=Encryption(AES))
    assert isinstance(message.body, bytes)
    with pytest.raises(Undecryptable):
        opened(replace(message, body=message.body[:size]), Encryption(AES))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Signing(PRIVATE.public),  # type: ignore[arg-type]
        lambda: Signing(AES),  # type: ignore[arg-type]
        lambda: Signing([HMAC, AES]),  # type: ignore[list-item]
        lambda: Signing("secret" * 8),  # type: ignore[arg-type]
        lambda: Signing(b"s" * 32),  # type: ignore[arg-type]
        lambda: Signing(None),  # type: ignore[arg-type]
        lambda: Sender(keys=PRIVATE),  # type: ignore[arg-type]
        lambda: Sender(keys=AES),  # type: ignore[arg-type]
        lambda: Sender(keys=[HMAC, PRIVATE]),  # type: ignore[list-item]
        lambda: Sender(keys="secret" * 8),  # type: ignore[arg-type]
        lambda: Sender(keys=HmacKey),  # type: ignore[arg-type]
        lambda: Encryption(HMAC),  # type: ignore[arg-type]
        lambda: Encryption(b"s" * 32),  # type: ignore[arg-type]
        lambda: Encryption([AES, HMAC]),  # type: ignore[list-item]
        lambda: Encryption({"aes": AES}),  # type: ignore[arg-type]
    ],
)
def test_a_key_of_another_kind_is_refused_at_once(wrong: Any) -> None:
    """A key that cannot do what it is given for is told when it is given, not by each message."""
    with pytest.raises(UsageError) as raised:
        wrong()
    assert "secret" not in str(raised.value)
    assert "ssss" not in str(raised.value)


def test_a_private_key_for_receivers_says_what_to_give() -> None:
    """Whoever gives a receiver the private key is told of the public one."""
    with pytest.raises(UsageError, match=r"\.public"):
        Sender(keys=PRIVATE)  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [32, 63, 64, 65, 128, 1000])
@pytest.mark.parametrize("size", [0, 1, 55, 64, 4096])
def test_the_hmac_is_that_of_the_standard_library(length: int, size: int) -> None:
    """Secrets of any length and data of any size have the HMAC-SHA256 that everybody else computes."""
    secret, data = bytes(each % 251 for each in range(length)), bytes(each % 13 for each in range(size))
    key = HmacKey("any", secret)
    for _ in range(2):  # what was begun for the key is used again
        assert key.sign(data) == hmac.digest(secret, data, "sha256")
        assert key.verify(data, hmac.digest(secret, data, "sha256"))
        assert not key.verify(data + b"\0", hmac.digest(secret, data, "sha256"))


def test_signing_leaves_the_publishers_headers_alone() -> None:
    """A dict of headers that the publisher uses for many messages gets neither signature nor encryption."""
    headers = {"tenant": "7"}
    order = replace(sent(), headers=headers, id="1")
    for protection in ({"signing": Signing(HMAC)}, {"encryption": Encryption(AES)}):
        first = seal(order, **protection)  # type: ignore[arg-type]
        assert headers == {"tenant": "7"}
        assert len(first.headers) == len(headers) + 1
    assert seal(replace(order, id="2"), signing=Signing(HMAC)).headers[SIGNATURE] != first.headers.get(SIGNATURE)


@pytest.mark.parametrize("kind", [dict, MappingProxyType], ids=["dict", "mapping"])
def test_a_signature_does_not_take_the_headers_over_their_limit(kind: Any) -> None:
    """All headers of a signed and encrypted message keep to 16 KiB, or the message is refused when it is published."""
    protection = {"signing": Signing(Ed25519Key("k" * 64, bytes(32))), "encryption": Encryption(AES)}
    for size in range(MAX_BYTES - 500, MAX_BYTES, 20):
        order = Message(type="t", body=b"", headers=kind({"a": "x" * size}), ordering_key="k")
        try:
            sealed = seal(order, source="shop", **protection)  # type: ignore[arg-type]
        except HeadersTooLarge:
            continue
        assert encoded_size(sealed.headers) + len(b"k") <= MAX_BYTES
