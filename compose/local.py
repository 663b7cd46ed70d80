"""A private PostgreSQL and a private RabbitMQ on this machine, without Docker, for tests, demos and development.

    python compose/local.py run -- CMD...   start both, run CMD with their URLs in its environment, stop both
    python compose/local.py up              start both, print their URLs, stop both at Ctrl-C

They have data directories, ports, an Erlang node name, cookie and epmd of their own and listen on 127.0.0.1 only; the
machine's own servers are never touched. What was started is stopped, also after SIGINT, SIGTERM, SIGHUP, a start that
half failed, and even after SIGKILL of this process: a small guard process waits for that. If RELMSG_DATABASE_URL
and RELMSG_AMQP_URL are both set, nothing is started and those are used. A MariaDB is started beside them once a test
asks for it (Services.start_mariadb), unless RELMSG_MARIADB_URL is set.

    --rabbitmq 3|4, --postgres 15|17   that version (before the verb or after it); if this machine has another, it is
                                       run by chroot in a tree of Debian's, made once by debootstrap (root, a minute,
                                       0.6 GB) in $RELMSG_LOCAL_CACHE or ~/.cache/relmsg and shared by all checkouts

    --in-memory                        their data is in memory (/dev/shm), where 4 GiB are free: nothing waits for a
                                       disk. For tests; what a killed server has written is still there

Exit codes: that of CMD; 2 wrong use; 3 a service is missing or does not start.
Only the standard library is needed; with rich and on a terminal there is a spinner.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TypedDict
from urllib.parse import urlsplit

if not __package__:  # run as a script: Python looks beside it for modules, and not in the repository
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from compose.services.environment import AMQP_URL, DATABASE_URL
from compose.services.errors import Interrupted, ServicesError
from compose.services.programs import BY_POSTGRES, BY_RABBITMQ
from compose.services.progress import progress
from compose.services.services import Services
from compose.services.signals import handling

__all__ = ["Services", "ServicesError"]


class Wanted(TypedDict):
    """What Services are to be started with."""

    management: bool
    rabbitmq: str | None
    postgres: str | None
    in_memory: bool


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options()
    parser = argparse.ArgumentParser(
        prog="local.py", description="a private PostgreSQL and RabbitMQ on this machine", parents=[options]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser(
        "run", help="start both, run a command with their URLs in its environment, stop both", parents=[options]
    )
    verbs.add_parser("up", help="start both, print their URLs, stop both at Ctrl-C", parents=[options])
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
    defaults = Wanted(management=False, rabbitmq=None, postgres=None, in_memory=False)
    given = parser.parse_args(arguments, argparse.Namespace(**defaults))
    wanted = Wanted(
        management=given.management, rabbitmq=given.rabbitmq, postgres=given.postgres, in_memory=given.in_memory
    )
    try:
        if given.verb == "up":
            return _up(wanted)
        command = given.command[1:] if given.command[:1] == ["--"] else given.command
        if not command:
            run.error("give a command: local.py run -- CMD...")
        return _run(command, wanted)
    except ServicesError as error:
        print(f"local.py: {error}", file=sys.stderr)
        return 3
    except Interrupted as interrupted:
        return 128 + interrupted.signum


def _options() -> argparse.ArgumentParser:
    """Those that may stand before the verb and after it: hence no defaults, which would undo what stood before."""
    options = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    options.add_argument("--rabbitmq", choices=[*BY_RABBITMQ], help="its major version (default: as found)")
    options.add_argument("--postgres", choices=[*BY_POSTGRES], help="its major version (default: as found)")
    options.add_argument("--in-memory", action="store_true", help="with their data in memory, for tests")
    options.add_argument("--management", action="store_true", help="with RabbitMQ's management interface")
    return options


def _run(command: Sequence[str], wanted: Wanted) -> int:
    with _started(wanted) as services:
        child: subprocess.Popen[bytes] | None = None
        early: list[int] = []

        def forward(signum: int, _: FrameType | None) -> None:
            if child is None:
                early.append(signum)
            elif not (signum == signal.SIGINT and _has_terminal()):  # there the terminal has told the child already
                child.send_signal(signum)

        with handling(forward):
            try:
                child = subprocess.Popen(command, env=os.environ | services.environment)
            except OSError as error:
                raise ServicesError(f"cannot run {command[0]}: {error.strerror}") from None
            for signum in early:
                child.send_signal(signum)
            code = child.wait()
            return code if code >= 0 else 128 - code


def _up(wanted: Wanted) -> int:
    ended = threading.Event()
    with _started(wanted) as services, handling(lambda *_: ended.set()):
        for name, value in services.environment.items():
            if name == AMQP_URL and urlsplit(value).path == "/":
                value = value.removesuffix("/")  # most clients take a path of "/" for a vhost without a name
            print(f"export {name}={shlex.quote(value)}", flush=True)
        if services.owned:
            print("running until Ctrl-C", file=sys.stderr, flush=True)
            ended.wait()
    return 0


def _started(wanted: Wanted) -> Services:
    """Those of the environment, or started ones; a signal during the start ends it cleanly.

    :raises Interrupted: after such a signal, when nothing is left running.
    """
    services = Services.from_environment()
    if services is not None:
        if wanted["rabbitmq"] or wanted["postgres"]:
            raise ServicesError(f"{DATABASE_URL} and {AMQP_URL} are set: unset both, or leave the versions to them")
        return services
    with progress() as report:
        services = Services(report, **wanted)

        def end(signum: int, _: FrameType | None) -> None:
            services.cancellation.signum = signum

        with handling(end):
            services.start()
            try:
                services.cancellation.check()
            except Interrupted:
                services.stop()
                raise
    return services


def _has_terminal() -> bool:
    """Whether Ctrl-C at our terminal reaches our child as well, as it does all of the foreground group."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
