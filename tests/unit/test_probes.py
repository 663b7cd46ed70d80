"""/live, /ready and /metrics."""

from __future__ import annotations

import contextlib
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from relmsg.errors import SettingsError
from relmsg.probes import DEADLINE_SECONDS, MOST_SOCKETS, Probes
from relmsg.settings import DEFAULT_PROBES


def get(port: int | None, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_each_path_answers_for_itself() -> None:
    """A process can be alive and not ready; the answer says why."""
    registry = CollectorRegistry()
    Counter("things", "Things", registry=registry).inc()
    with Probes("127.0.0.1:0", registry, live=lambda: None, ready=lambda: "no route: ä") as probes:
        assert get(probes.port, "/live") == (200, "ok\n")
        assert get(probes.port, "/ready") == (503, "no route: ä\n")
        assert "things_total 1.0" in get(probes.port, "/metrics")[1]
        assert get(probes.port, "/")[0] == 404


@pytest.mark.parametrize("words", ["\x1b[2J", "\x9b31m", "a\nok", "\u202egpj", "\udc9b", "\x00"])
def test_an_answer_is_one_printable_line(words: str) -> None:
    """Why a process is not ready may quote a server or a sender; a person looks at it on a terminal."""
    with Probes("127.0.0.1:0", CollectorRegistry(), live=lambda: None, ready=lambda: f"exchange {words}") as probes:
        code, told = get(probes.port, "/ready")
    assert code == 503
    assert told.startswith("exchange ")
    assert told.removesuffix("\n").isprintable()


def test_an_empty_address_serves_nothing() -> None:
    """Probes can be turned off."""
    with Probes("", CollectorRegistry(), live=lambda: None, ready=lambda: None) as probes:
        assert probes.port is None


def test_an_address_of_the_callers_own_that_is_taken_is_an_error() -> None:
    """Whoever names a port looks for the probes there."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with (
            pytest.raises(SettingsError, match="cannot listen"),
            Probes(address, CollectorRegistry(), live=lambda: None, ready=lambda: None),
        ):
            pass


def test_two_processes_with_the_default_address_both_run() -> None:
    """A relay and a consumer started side by side, without a word about probes, do not stop each other."""
    host, port = DEFAULT_PROBES.split(":")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # taken by somebody else already: just as good
            stack.enter_context(socket.create_server((host, int(port))))
        probes = stack.enter_context(Probes(DEFAULT_PROBES, CollectorRegistry(), live=lambda: None, ready=lambda: None))
        assert probes.port != int(port)
        assert get(probes.port, "/live")[0] == 200


def test_silent_clients_keep_no_prober_out() -> None:
    """However many connections say nothing, few are held, each ends by itself, and a prober is answered."""
    with Probes("127.0.0.1:0", CollectorRegistry(), live=lambda: None, ready=lambda: None) as probes:
        before = open_files()
        silent = [socket.create_connection(("127.0.0.1", probes.port or 0)) for _ in range(100)]
        try:
            assert get(probes.port, "/live") == (200, "ok\n")
            assert open_files() - before - len(silent) <= MOST_SOCKETS
            silent[-1].settimeout(DEADLINE_SECONDS + 5)
            assert silent[-1].recv(100) == b""
        finally:
            for each in silent:
                each.close()


def test_a_client_that_sends_byte_by_byte_is_ended_at_the_deadline() -> None:
    """A connection ends after its deadline also while something still arrives on it."""
    with (
        Probes("127.0.0.1:0", CollectorRegistry(), live=lambda: None, ready=lambda: None) as probes,
        socket.create_connection(("127.0.0.1", probes.port or 0)) as slow,
    ):
        slow.settimeout(0.2)
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < DEADLINE_SECONDS + 10:
                slow.sendall(b"G")
                with contextlib.suppress(TimeoutError):
                    if slow.recv(1) == b"":
                        break
        assert time.monotonic() - begun < DEADLINE_SECONDS + 5


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
