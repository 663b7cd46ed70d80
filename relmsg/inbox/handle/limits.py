"""How much of a received message is taken before its handler is called; what is larger goes to the error exchange."""

from __future__ import annotations

from typing import Final, NamedTuple

from relmsg.broker.headers import encoded_size
from relmsg.errors import Undecodable
from relmsg.inbox.handle.content_encoding import MAX_BODY_BYTES
from relmsg.inbox.handler import Handler
from relmsg.message import Message

MAX_HEADER_BYTES: Final = 128 * 1024  # RabbitMQ's frame_max, unless it is configured: headers stand in one frame


class Limits(NamedTuple):
    """The most bytes of a body once it is decompressed, of one that is decoded for a handler, and of all headers."""

    body_bytes: int = MAX_BODY_BYTES
    json_bytes: int = MAX_BODY_BYTES
    header_bytes: int = MAX_HEADER_BYTES

    def check_headers(self, message: Message) -> None:
        """:raises Undecodable: they are larger."""
        if self.header_bytes < MAX_HEADER_BYTES and message.headers:
            size = encoded_size(message.headers)
            if size > self.header_bytes:
                raise Undecodable(f"the headers take {size} bytes, at most {self.header_bytes} are taken")

    def check_decoded(self, handler: Handler, message: Message) -> None:
        """:raises Undecodable: the body is larger, and is to be more than bytes."""
        body = message.body
        if isinstance(body, bytes) and len(body) > self.json_bytes and handler.parameters.decode not in (None, bytes):
            raise Undecodable(f"the body takes {len(body)} bytes, at most {self.json_bytes} are decoded")
