"""The AMQP 0-9-1 handshake in a few lines: the one proof, without any library, that a broker takes our login."""

from __future__ import annotations

import socket
import struct
from typing import BinaryIO

CONNECTION = 10  # the class of all methods used here


def amqp_answers(port: int, user: str, password: str) -> bool:
    """Whether a connection can be opened on virtual host / of 127.0.0.1, and closed."""
    login = b"\x00" + user.encode() + b"\x00" + password.encode()
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as peer, peer.makefile("rb") as answers:
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            _await(answers, 10)  # Start
            peer.sendall(_method(11, _long(b"") + _short(b"PLAIN") + _long(login) + _short(b"en_US")))  # Start-Ok
            _await(answers, 30)  # Tune
            tune_ok = _method(31, struct.pack(">HIH", 1, 131072, 0))  # one channel: "no limit" is refused
            peer.sendall(tune_ok + _method(40, _short(b"/") + _short(b"") + b"\x00"))  # Open
            _await(answers, 41)  # Open-Ok
            peer.sendall(_method(50, struct.pack(">H", 200) + _short(b"") + struct.pack(">HH", 0, 0)))  # Close
            _await(answers, 51)  # Close-Ok
    except OSError:
        return False
    return True


def _method(index: int, arguments: bytes) -> bytes:
    payload = struct.pack(">HH", CONNECTION, index) + arguments
    return struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


def _short(text: bytes) -> bytes:
    return struct.pack(">B", len(text)) + text


def _long(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _await(answers: BinaryIO, index: int) -> None:
    head = answers.read(7)
    if len(head) < 7:
        raise ConnectionError("closed by the broker")
    kind, _, size = struct.unpack(">BHI", head)
    payload = answers.read(size + 1)
    if kind != 1 or payload[:4] != struct.pack(">HH", CONNECTION, index):
        raise ConnectionError("not what the handshake asks for")
