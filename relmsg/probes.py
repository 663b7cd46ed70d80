"""/live, /ready and /metrics on one port, answered by a thread: a process whose event loop hangs still tells so."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from socketserver import ThreadingMixIn
from types import TracebackType
from typing import Any, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from relmsg.errors import SettingsError
from relmsg.settings import DEFAULT_PROBES

DEADLINE_SECONDS = 5.0  # from the connection to the end of the answer
MOST_SOCKETS = 32

Verdict = Callable[[], str | None]
"""Returns None when all is well, otherwise what is not."""


class Probes:
    """Serves the three paths while entered. The address is ``host:port``; an empty one serves nothing, port 0 takes
    any that is free. If the *default* address is taken, as by another relmsg process on this machine, any free port
    is: two processes started without a word about probes must both run. An address of the caller's own is not bent.

    A connection ends after five seconds, answered or not; there are 32 at most, the oldest makes room for a new one.

    /live answers 503 when the process should be restarted, /ready when it gets no work done; both say why.

    :raises SettingsError: on entering, when the address cannot be used.
    """

    def __init__(self, address: str, registry: CollectorRegistry, *, live: Verdict, ready: Verdict) -> None:
        self._address = address
        self._metrics = make_wsgi_app(registry)
        self._verdicts = {"/live": live, "/ready": ready}
        self._server: WSGIServer | None = None

    @property
    def port(self) -> int | None:
        """The port that is served."""
        return self._server.server_port if self._server is not None else None

    def __enter__(self) -> Self:
        if not self._address:
            return self
        host, _, port = self._address.rpartition(":")
        try:
            self._server = self._listen(host.strip("[]"), int(port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or self._address != DEFAULT_PROBES:
                raise SettingsError(f"probes: cannot listen on {self._address}: {error.strerror or error}") from error
            self._server = self._listen(host, 0)
        threading.Thread(target=self._server.serve_forever, name="probes", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def _listen(self, host: str, port: int) -> WSGIServer:
        return make_server(host, port, self._answer, _Server, _Quiet)

    def _answer(self, request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = request.get("PATH_INFO", "")
        if path == "/metrics":
            return self._metrics(request, start)  # type: ignore[no-any-return]
        if path not in self._verdicts:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"/live, /ready, /metrics\n"]
        trouble = self._verdicts[path]()
        start("503 Service Unavailable" if trouble else "200 OK", [("Content-Type", "text/plain; charset=utf-8")])
        return [_printable(f"{trouble or 'ok'}") + b"\n"]


def _printable(text: str) -> bytes:
    """The text on one line: it may hold the words of a server or a sender, and people look at it on a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text).encode()


class _Server(ThreadingMixIn, WSGIServer):
    """A thread for each connection, of which there are few and none is old: else whoever opens connections and says
    nothing would take the process's file descriptors, and keep the prober out.
    """

    daemon_threads = True
    request_queue_size = MOST_SOCKETS

    def __init__(self, *given: Any) -> None:
        self._begun: dict[socket.socket, float] = {}  # the oldest first
        self._lock = threading.Lock()
        super().__init__(*given)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._begun) >= MOST_SOCKETS:
                self._cut(next(iter(self._begun)))
            self._begun[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._begun.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called twice a second."""
        super().service_actions()
        with self._lock:
            latest = time.monotonic() - DEADLINE_SECONDS
            for request in [each for each, begun in self._begun.items() if begun < latest]:
                self._cut(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is no news."""

    def _cut(self, request: socket.socket) -> None:
        """End a connection; its thread finds it ended, and closes it."""
        del self._begun[request]
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is wsgiref's
        """Say nothing: probes come every few seconds."""
