"""The connection: made, lost, noticed, made again, closed; by TLS as well."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pamqp.commands import Basic

from compose.local import Services
from relmsg.broker.connection import Connection
from relmsg.errors import AccessRefused, BrokerAway
from relmsg.settings import amqp_urls
from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.proxy import Proxy

SECRET = "s3cret-canary"


@pytest.fixture
async def proxy(amqp_url: str) -> AsyncIterator[Proxy]:
    async with Proxy.before(amqp_url) as proxy:
        yield proxy


@contextlib.contextmanager
def frozen(services: Services) -> Iterator[None]:
    """The broker is stopped, as a virtual machine is when it is moved."""
    pid = services.broker_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def dead_url(url: str) -> str:
    """The same URL, where nobody listens."""
    return urlsplit(url)._replace(netloc=f"guest:{SECRET}@127.0.0.1:1").geturl()


def with_login(url: str, login: str) -> str:
    return urlsplit(url)._replace(netloc=f"{login}@{urlsplit(url).netloc.rpartition('@')[2]}").geturl()


async def refusal(*urls: str) -> Exception:
    """What entering raises, at once."""
    began = time.monotonic()
    with pytest.raises((BrokerAway, AccessRefused)) as told:
        async with Connection(urls):
            pass
    assert time.monotonic() - began < 5
    return told.value


def told(error: BaseException | None) -> str:
    """Everything that the error and its causes say."""
    texts = []
    while error is not None:
        texts.append(f"{error!s} {error!r}")
        error = error.__cause__ or error.__context__
    return " ".join(texts)


async def test_a_closed_port_is_told_at_once(amqp_url):
    """Where nobody listens entering raises BrokerAway with host and port, and no password."""
    error = await refusal(dead_url(amqp_url))
    assert type(error) is BrokerAway
    assert "127.0.0.1:1 " in str(error)
    assert SECRET not in told(error)


async def test_a_wrong_password_is_refused(amqp_url):
    """A wrong password raises AccessRefused, which says what to check and not what was given."""
    login = urlsplit(amqp_url).username
    error = await refusal(with_login(amqp_url, f"{login}:{SECRET}"))
    assert type(error) is AccessRefused
    assert "user and password in RELMSG_AMQP_URL" in str(error)
    assert SECRET not in told(error)


async def test_a_wrong_virtual_host_is_refused(amqp_url):
    """A virtual host that does not exist raises AccessRefused."""
    error = await refusal(urlsplit(amqp_url)._replace(path="/no-such-host").geturl())
    assert type(error) is AccessRefused
    assert "virtual host" in str(error)
    assert (urlsplit(amqp_url).password or "-") not in told(error)


async def test_a_broker_that_says_nothing_is_given_up(amqp_url, proxy):
    """A host that accepts and never speaks is BrokerAway when the time to connect is over."""
    proxy.blackhole()
    with pytest.raises(BrokerAway, match=r"did not answer within 0\.3 s"):
        async with Connection([proxy.through(amqp_url)], connect_timeout=0.3):
            pass


async def test_the_next_host_is_taken_when_the_first_is_dead(amqp_url, broker: Broker):
    """Of several hosts the first that answers is taken."""
    async with Connection([dead_url(amqp_url), amqp_url]) as connection:
        assert connection.is_up
        assert connection.generation == 1
        channel = await connection.channel()
        assert (await channel.queue_declare("q")).queue == "q"


async def test_of_several_errors_the_refusal_is_told(amqp_url):
    """Where one host is dead and another refuses the login, the refusal is what the operator must hear."""
    bad = with_login(amqp_url, f"nobody:{SECRET}")
    assert type(await refusal(bad, dead_url(amqp_url))) is AccessRefused
    assert type(await refusal(dead_url(amqp_url), bad)) is AccessRefused


async def test_after_a_cut_there_is_a_new_generation(amqp_url, proxy):
    """A connection that was reset is made again, as the next generation, and old channels are closed."""
    async with Connection([proxy.through(amqp_url)]) as connection:
        for generation in (1, 2, 3):
            await eventually(lambda wanted=generation: _is((connection.generation, connection.is_up), (wanted, True)))
            channel = await connection.channel()
            proxy.reset()
            await eventually(lambda cut=channel: _is(cut.is_closed, True))
        await eventually(lambda: _is((connection.generation, connection.reconnects), (4, 3)))


async def test_a_channel_is_waited_for_while_there_is_no_connection(amqp_url, proxy):
    """During an outage channel() waits as long as it is told, and has one as soon as the broker is back."""
    async with Connection([proxy.through(amqp_url)], chance=lambda: 0.1) as connection:
        await proxy.refuse()
        proxy.reset()
        await eventually(lambda: _is(connection.is_up, False))

        async def waits():
            with pytest.raises(BrokerAway, match=r"no connection to RabbitMQ for 0\.3 s"):
                await connection.channel(within=0.3)

        await waits()
        waiting = asyncio.create_task(connection.channel(within=20))
        await proxy.accept()
        assert not (await waiting).is_closed


async def test_attempts_are_spread_with_a_doubling_bound(amqp_url, proxy):
    """Between attempts stands exponential backoff with full jitter: up to 0.1 s first, then doubling, at most 10 s."""

    class Recorded:
        def __init__(self) -> None:
            self.slept: list[float] = []

        def monotonic(self) -> float:
            return time.monotonic()

        async def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)
            await asyncio.sleep(0.001)

    clock = Recorded()
    async with Connection([proxy.through(amqp_url)], clock=clock, chance=lambda: 1.0) as connection:
        await proxy.refuse()
        proxy.reset()
        await eventually(lambda: _is(len(clock.slept) >= 10, True))
        assert clock.slept[:10] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10])
        await proxy.accept()
        await eventually(lambda: _is(connection.is_up, True))
        tries = len(clock.slept)
        proxy.reset()
        await eventually(lambda: _is((connection.generation, connection.is_up), (3, True)))
        assert clock.slept[tries] == pytest.approx(0.1), "a success starts the backoff anew"


async def test_a_silent_peer_is_noticed_by_its_heartbeats(amqp_url, proxy):
    """P3, P11: with heartbeat 1 a black hole is noticed within 3 x (1 + 1) s and a margin, then mended."""
    async with Connection([proxy.through(amqp_url)], heartbeat=1) as connection:
        channel = await connection.channel()
        asking = asyncio.create_task(channel.queue_declare("q"))
        await asking
        proxy.blackhole()
        began = time.monotonic()
        with pytest.raises(BrokerAway):
            await _declare(connection, within=30)
        assert time.monotonic() - began < 12
        proxy.reset()
        proxy.heal()
        await eventually(lambda: _is((connection.generation, connection.is_up), (2, True)), within=20)
        await _declare(connection, within=10)


async def test_a_frozen_broker_is_survived(amqp_url, services: Services):
    """P3: after the broker stood still for longer than the heartbeats allow, the connection is up again by itself."""
    async with Connection([amqp_url], heartbeat=1, connect_timeout=2) as connection:
        with frozen(services):
            await eventually(lambda: _is(connection.is_up, False), within=15)
        await eventually(lambda: _is(connection.is_up, True), within=20)
        assert connection.generation >= 2
        await _declare(connection, within=10)


async def test_close_ends_the_connection_for_good(amqp_url, services: Services):
    """After close() the broker has no such connection and none is made again."""
    connection = Connection([amqp_url], name="closed for good")
    await connection.__aenter__()
    list_names = ("list_connections", "client_properties")
    assert "closed for good" in await asyncio.to_thread(services.rabbitmqctl, *list_names)
    await connection.close()
    await connection.close()
    assert not connection.is_up
    assert "closed for good" not in await asyncio.to_thread(services.rabbitmqctl, *list_names)


async def test_close_does_not_wait_for_a_frozen_broker(amqp_url, services: Services):
    """close() returns within 3 s, whatever the broker does."""
    connection = Connection([amqp_url])
    await connection.__aenter__()
    await connection.channel()
    with frozen(services):
        began = time.monotonic()
        await connection.close()
        assert time.monotonic() - began < 3


async def test_close_does_not_wait_for_a_black_hole_full_of_bytes(amqp_url, proxy):
    """close() returns within 3 s also where unsent bytes fill the socket."""
    connection = Connection([proxy.through(amqp_url)])
    await connection.__aenter__()
    channel = await connection.channel()
    proxy.blackhole()
    publishing = asyncio.create_task(channel.basic_publish(b"x" * 30_000_000, routing_key="q"))
    done, _ = await asyncio.wait({publishing}, timeout=0.3)
    assert not done
    began = time.monotonic()
    await connection.close()
    assert time.monotonic() - began < 3
    publishing.cancel()
    await asyncio.gather(publishing, return_exceptions=True)


async def test_close_during_an_outage_ends_the_attempts(amqp_url, proxy):
    """close() while the connection is being made again returns at once, and nobody connects any more."""
    connection = Connection([proxy.through(amqp_url)], chance=lambda: 0.1)
    await connection.__aenter__()
    await proxy.refuse()
    proxy.reset()
    await eventually(lambda: _is(connection.is_up, False))
    async with asyncio.timeout(3):
        await connection.close()
    accepted = proxy.accepted
    await proxy.accept()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not any("keep the connection up" in name for name in names)
    assert proxy.accepted == accepted


async def test_an_alarm_is_noticed_and_its_end_too(amqp_url, services: Services):
    """P10: while RabbitMQ blocks us, ``blocked`` is true, channels are refused and the time is counted."""
    async with Connection([amqp_url]) as connection:
        assert not connection.blocked
        channel = await connection.channel()
        await channel.queue_declare("q")
        await asyncio.to_thread(services.rabbitmqctl, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            publishing: list[asyncio.Task[object]] = []

            def blocked() -> None:
                """The broker blocks who publishes during the alarm, and the alarm may begin a moment later."""
                properties = Basic.Properties(message_id=str(len(publishing)))
                publishing.append(
                    asyncio.create_task(channel.basic_publish(b"x", routing_key="q", properties=properties))
                )
                assert connection.blocked

            await eventually(blocked, within=20, every=0.2)
            with pytest.raises(BrokerAway, match="blocked publishing"):
                await connection.channel()
            await eventually(lambda: _is(connection.blocked_seconds >= 0.5, True))
        finally:
            await asyncio.to_thread(services.rabbitmqctl, "set_vm_memory_high_watermark", "0.4")
        await asyncio.wait_for(asyncio.gather(*publishing), timeout=20)
        await eventually(lambda: _is(connection.blocked, False))
        assert not (await connection.channel()).is_closed


# -- TLS


@dataclass(frozen=True)
class Authority:
    """A certificate authority of our own, by the openssl program."""

    directory: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.directory / f"{self.name}.crt"

    def found(self) -> Authority:
        _openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={self.name}", "-keyout", self.directory / f"{self.name}.key", "-out", self.certificate,
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        )  # fmt: skip
        return self

    def server(self, host: str) -> ssl.SSLContext:
        """The context of a server that has a certificate for ``host``."""
        base = self.directory / f"{self.name}-{host}"
        key, request, certificate, extensions = (base.with_suffix(end) for end in (".key", ".csr", ".crt", ".ext"))
        extensions.write_text(f"subjectAltName=DNS:{host}\nkeyUsage=digitalSignature\nextendedKeyUsage=serverAuth\n")
        _openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={host}",
            "-keyout", key, "-out", request,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self.directory / f"{self.name}.key",
            "-CAcreateserial", "-days", "2", "-extfile", extensions, "-out", certificate,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "known-ca").found()


@contextlib.asynccontextmanager
async def tls_before(url: str, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS and hands on to the broker in plain; the port."""
    parts = urlsplit(url)
    running: set[asyncio.Task[None]] = set()

    async def pump(source: asyncio.StreamReader, onward: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                onward.write(data)
                await onward.drain()
        onward.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        running.add(asyncio.current_task())
        onward, back = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(pump(reader, back), pump(onward, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def by_tls(url: str, port: int, query: str = "", host: str = "localhost") -> list[str]:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return amqp_urls(parts._replace(scheme="amqps", netloc=f"{login}@{host}:{port}", query=query).geturl())


async def test_tls_with_the_right_authority_works(amqp_url, authority):
    """amqps with ?cafile= checks the certificate against that authority, and messages flow."""
    async with (
        tls_before(amqp_url, authority.server("localhost")) as port,
        Connection(by_tls(amqp_url, port, f"cafile={authority.certificate}")) as connection,
    ):
        await _declare(connection, within=10)


@pytest.mark.parametrize("query", ["", "cafile={other}"], ids=["the system's authorities", "another authority"])
async def test_tls_refuses_an_unknown_authority(amqp_url, authority, tmp_path, query):
    """S1: a certificate of an authority that was not named is refused, and no login is sent."""
    other = Authority(tmp_path, "other-ca").found()
    async with tls_before(amqp_url, authority.server("localhost")) as port:
        error = await refusal(*by_tls(amqp_url, port, query.format(other=other.certificate)))
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)
    assert (urlsplit(amqp_url).password or "-") not in told(error)


async def test_tls_refuses_a_certificate_for_another_host(amqp_url, authority):
    """S1: a certificate of the right authority for another host name is refused."""
    async with tls_before(amqp_url, authority.server("elsewhere.example")) as port:
        error = await refusal(*by_tls(amqp_url, port, f"cafile={authority.certificate}"))
    assert "Hostname mismatch" in str(error)


async def test_a_plain_port_is_not_taken_for_tls(amqp_url, authority):
    """amqps to a port that speaks plain AMQP is BrokerAway, not a silent fallback."""
    port = urlsplit(amqp_url).port or 5672
    assert type(await refusal(*by_tls(amqp_url, port, f"cafile={authority.certificate}"))) is BrokerAway


async def test_a_tls_connection_that_is_cut_comes_back(amqp_url, authority):
    """abort() ends a TLS connection at once, and a new one follows."""
    async with (
        tls_before(amqp_url, authority.server("localhost")) as port,
        Connection(by_tls(amqp_url, port, f"cafile={authority.certificate}")) as connection,
    ):
        connection.abort()
        await eventually(lambda: _is((connection.generation, connection.is_up), (2, True)))


async def _declare(connection: Connection, *, within: float) -> None:
    """One question that the broker must answer.

    :raises BrokerAway: it does not.
    """
    from relmsg.broker.answer import answer

    channel = await connection.channel(within=within)
    await answer(channel.queue_declare("q"), within=within)


def _is(value: object, wanted: object) -> None:
    assert value == wanted
