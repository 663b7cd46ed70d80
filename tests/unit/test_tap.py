"""The tap cuts out whole frames of the channels that asked, and gives everything else to aiormq as it came."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relmsg.broker.frame import HEAD
from relmsg.broker.tap import HEARTBEAT_FRAME, Tap

OURS, FOREIGN = 3, 4


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    return HEAD.pack(kind, channel, len(payload)) + payload + b"\xce"


class Sink:
    """Takes what begins with an "o"."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, bytes]] = []

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        if data[start : start + 1] != b"o":
            return False
        self.taken.append((kind, data[start:stop]))
        return True


class Time:
    """Of the loop, as far as the tap asks for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.now = 100.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> object:
        return getattr(self._loop, name)


PAYLOADS = st.sampled_from([b"", b"o", b"ours", b"theirs", b"o" * 300, b"t" * 5000, b"o\xce\x01\x00\x03"])
FRAMES = st.lists(st.tuples(st.sampled_from([1, 2, 3, 8]), st.sampled_from([0, OURS, FOREIGN]), PAYLOADS), max_size=30)


async def tapped() -> tuple[Tap, asyncio.StreamReader, Sink, Time]:
    loop = asyncio.get_running_loop()
    time = Time(loop)
    reader = asyncio.StreamReader(limit=2**24, loop=loop)
    tap, sink = Tap(reader, time), Sink()  # type: ignore[arg-type]
    tap.attach(OURS, sink)
    return tap, reader, sink, time


@given(FRAMES, st.lists(st.integers(1, 400), max_size=40))
def test_every_frame_reaches_the_one_it_is_meant_for(frames, cuts):
    """However the socket cuts the stream into pieces: each frame goes to one reader, whole, and in its order."""

    async def run() -> None:
        tap, reader, sink, _ = await tapped()
        stream = b"".join(frame(*each) for each in frames)
        position = 0
        for size in [*cuts, len(stream)]:
            if stream[position : position + size]:
                tap.data_received(stream[position : position + size])
            position += size
        reader.feed_eof()
        ours = [(kind, payload) for kind, channel, payload in frames if channel == OURS and payload.startswith(b"o")]
        theirs = [each for each in frames if each[1] != OURS or not each[2].startswith(b"o")]
        assert sink.taken == ours
        assert await reader.read() == b"".join(frame(*each) for each in theirs)

    asyncio.run(run())


@pytest.mark.parametrize(
    "nonsense", [b"AMQP\x00\x00\x09\x01", frame(1, 0, b"x")[:-1] + b"\x00", b"\x01\x00\x03" + b"\xff" * 5]
)
async def test_what_is_no_frame_goes_to_aiormq(nonsense):
    """Bytes that are no AMQP frame, and all after them, are aiormq's to complain of."""
    tap, reader, sink, _ = await tapped()
    tap.data_received(frame(1, OURS, b"ours") + nonsense)
    tap.data_received(frame(1, OURS, b"ours"))
    reader.feed_eof()
    assert await reader.read() == nonsense + frame(1, OURS, b"ours")
    assert len(sink.taken) == 1


async def test_a_frame_broken_off_by_the_end_goes_to_aiormq():
    """What the broker could not finish is seen by aiormq, so that it can say that the connection was cut."""
    tap, reader, _, _ = await tapped()
    tap.data_received(frame(1, OURS, b"ours")[:-3])
    tap.eof_received()
    assert await reader.read() == frame(1, OURS, b"ours")[:-3]


async def test_a_busy_channel_does_not_starve_the_heartbeat():
    """While all that comes is ours, aiormq is given a heartbeat a second: RabbitMQ sends none beside other frames."""
    tap, reader, _, time = await tapped()
    for _ in range(10):
        time.now += 0.5
        tap.data_received(frame(1, OURS, b"ours"))
    reader.feed_eof()
    assert await reader.read() == HEARTBEAT_FRAME * 5


async def test_a_number_with_a_new_owner_is_left_to_it():
    """A sink that goes late does not take the frames of the channel that has its number by then."""
    tap, _, old, _ = await tapped()
    new = Sink()
    tap.attach(OURS, new)
    tap.detach(OURS, old)
    tap.data_received(frame(1, OURS, b"ours"))
    assert (len(new.taken), len(old.taken)) == (1, 0)
