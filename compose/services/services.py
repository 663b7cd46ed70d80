"""PostgreSQL and RabbitMQ as one thing: obtained, started, controlled and stopped together."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import TracebackType

from compose.services import postgres, programs
from compose.services.directory import is_in_memory, make_directory
from compose.services.environment import AMQP_URL, DATABASE_URL, MANAGEMENT_URL, MARIADB_URL, STATE
from compose.services.errors import ServicesError
from compose.services.guard import Guard, end_all
from compose.services.mariadb import MariaDB
from compose.services.ports import PORT_TAKEN
from compose.services.postgres import Postgres
from compose.services.programs import Programs
from compose.services.progress import Report
from compose.services.rabbitmq import RabbitMQ
from compose.services.signals import handling
from compose.services.state import State
from compose.services.waiting import Cancellation

START_ATTEMPTS = 3


class Services:
    """PostgreSQL and RabbitMQ under one's own hand.

    ``start`` makes this object the owner; ``stop`` then ends both and removes their data. ``attach`` gives a process
    that runs under ``local.py run`` the same control over them; for it ``stop`` does nothing. ``given`` only knows
    URLs: what needs more raises ServicesError. All methods block; from a coroutine call them by ``asyncio.to_thread``.

    What is running is written in the state file, so that owner and attached processes agree after every restart.
    """

    def __init__(
        self,
        report: Report | None = None,
        *,
        management: bool = False,
        rabbitmq: str | None = None,
        postgres: str | None = None,
        in_memory: bool = False,
    ) -> None:
        """``rabbitmq`` and ``postgres`` are major versions; None takes what this machine has, if need be installed.

        ``in_memory``: their data is in memory, where there is room for it, so that nothing waits for a disk.
        """
        self.database_url = ""
        self.amqp_url = ""
        self.management_url: str | None = None
        self.cancellation = Cancellation()  # for a signal handler: a start that is under way gives up
        self._report = report or (lambda _: None)
        self._management = management
        self._in_memory = in_memory
        self._versions = (rabbitmq, postgres)
        self._found: tuple[Programs, Programs] | None = None
        self._guard: Guard | None = None
        self._control(State(None))

    # -- three ways to come to services

    @classmethod
    def attach(cls, state_file: str | Path | None = None) -> Services:
        """The services that an outer process started and wrote into the state file (default: $RELMSG_LOCAL_STATE).

        :raises ServicesError: if the variable is not set or the services are gone.
        """
        path = state_file or os.environ.get(STATE)
        if not path:
            raise ServicesError(f"{STATE} is not set: run this under `python compose/local.py run -- CMD`")
        services = cls()
        services._control(State(Path(path)))
        services._take_urls()
        return services

    @classmethod
    def given(cls, database_url: str, amqp_url: str) -> Services:
        """Services that someone else runs: their URLs are known and nothing else."""
        services = cls()
        services.database_url, services.amqp_url = database_url, amqp_url
        services.management_url = os.environ.get(MANAGEMENT_URL)
        return services

    @classmethod
    def obtain(cls, report: Report | None = None, *, management: bool = False, in_memory: bool = False) -> Services:
        """Those of the environment if it names both URLs, otherwise freshly started ones.

        :raises ServicesError: if only one URL is given, or a service is missing or does not start.
        """
        services = cls.from_environment()
        if services is None:
            services = cls(report, management=management, in_memory=in_memory)
            services.start()
        return services

    @classmethod
    def from_environment(cls) -> Services | None:
        """Those of the environment, or None if it names none. :raises ServicesError: if only one URL is given."""
        database_url, amqp_url = os.environ.get(DATABASE_URL), os.environ.get(AMQP_URL)
        if not database_url and not amqp_url:
            return None
        if not database_url or not amqp_url:
            missing = AMQP_URL if database_url else DATABASE_URL
            raise ServicesError(f"{missing} is not set: give both URLs, or none to have both services started")
        if os.environ.get(STATE) and Path(os.environ[STATE]).exists():
            services = cls.attach()
            # `local.py up` prints the broker's without the slash at its end, which most clients misread.
            if (services.database_url, services.amqp_url.rstrip("/")) == (database_url, amqp_url.rstrip("/")):
                return services
        return cls.given(database_url, amqp_url)

    # -- the whole

    @property
    def state_file(self) -> Path | None:
        """By which another process can attach; None for services given by URL."""
        return self._state.path

    @property
    def controlled(self) -> bool:
        """Whether the services can be stopped, restarted and asked by rabbitmqctl from here."""
        return self.state_file is not None

    @property
    def owned(self) -> bool:
        """Whether this object started them and will stop them."""
        return self._guard is not None

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to use, and where possible to control, these services."""
        named = {DATABASE_URL: self.database_url, AMQP_URL: self.amqp_url}
        if self.management_url:
            named[MANAGEMENT_URL] = self.management_url
        if self.state_file:
            named[STATE] = str(self.state_file)
        return named

    def another(self) -> Services:
        """A second pair, of the same programs, not started yet: for whoever must not meet those who use this one.

        :raises ServicesError: if these were given by URL, or are gone.
        """
        state = self._state.read()
        in_memory = is_in_memory(Path(state["directory"]))
        services = Services(self._report, management=self._management, in_memory=in_memory)
        services._found = Programs.of(state["rabbitmq"]), Programs.of(state["postgres"])
        return services

    def start(self) -> None:
        """Start both, at the same time, and return when both answer. On any failure nothing is left running.

        :raises ServicesError: if a service is missing and cannot be had, or does not answer within 90 s.
        :raises Interrupted: if ``cancellation`` calls it off.
        """
        found = self._found or programs.find(self._report, self.cancellation, *self._versions)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start(*found)
                return
            except ServicesError as error:
                if attempt == START_ATTEMPTS or not PORT_TAKEN.search(str(error)):
                    raise
                self._report("a port was taken meanwhile, trying others")

    def stop(self) -> None:
        """End what this object started, whoever restarted it since, and remove its data. Twice is fine.

        Quick, not gentle: the data is thrown away. Does nothing for services that someone else started.
        """
        if self._guard is None:
            return
        with handling(signal.SIG_IGN):  # a second Ctrl-C must not interrupt the cleaning up
            end_all(self._state)
            self._guard.dismiss()
            self._guard = None

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    # -- RabbitMQ

    @property
    def broker_pid(self) -> int:
        """The Erlang VM's process id, for SIGSTOP and SIGKILL. :raises ServicesError: while the broker is down."""
        return self._rabbitmq.pid

    def rabbitmqctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl ARGUMENTS`` prints on the private node; about 1 s each.

        :raises ServicesError: if it fails or does not end within 60 s, with its own words.
        """
        return self._rabbitmq.ctl(*arguments)

    def evaluate(self, expression: str) -> str:
        """The value of an Erlang expression, which ends without a dot, in the private node; about 10 ms.

        :raises ServicesError: if it has none, or that takes more than 60 s, with the node's own words.
        """
        return self._rabbitmq.evaluate(expression)

    def restart_rabbitmq(self, graceful: bool = True) -> None:
        """Stop the broker and start it on the same port with the same data; return when it answers."""
        self.stop_rabbitmq(graceful)
        self.start_rabbitmq()

    def stop_rabbitmq(self, graceful: bool = True) -> None:
        """By SIGTERM, at most 30 s, or by SIGKILL at once; return when the broker is gone."""
        self._rabbitmq.end(graceful)

    def start_rabbitmq(self) -> None:
        """Start the broker again after ``stop_rabbitmq`` or after it was killed; return when it answers.

        :raises ServicesError: if it is still running, or does not answer within 90 s.
        """
        self._rabbitmq.start()

    # -- PostgreSQL

    @property
    def postgres_pid(self) -> int:
        """The postmaster's process id. :raises ServicesError: while PostgreSQL is down."""
        return self._postgres.pid

    def stop_postgres(self, graceful: bool = True) -> None:
        """Cut all sessions and stop with a checkpoint, or as a crash ("immediate": recovery at the next start)."""
        self._postgres.end(graceful)

    def start_postgres(self) -> None:
        """Start PostgreSQL again on the same port with the same data; return when it answers.

        :raises ServicesError: if it is still running, or does not answer within 90 s.
        """
        self._postgres.start()

    # -- MariaDB

    def start_mariadb(self) -> str:
        """The URL of a MariaDB in which one may make databases: RELMSG_MARIADB_URL, or that of one beside the other
        two, started by whoever asks first, and ended with them.

        :raises ServicesError: if it is missing and cannot be had, or does not answer within 90 s.
        """
        if given := os.environ.get(MARIADB_URL):
            return given
        if not self.controlled:
            raise ServicesError(f"these services were given by URL: set {MARIADB_URL} too")
        return MariaDB(self._state, self.cancellation).obtain(self._report)

    # -- inside

    def _control(self, state: State) -> None:
        self._state = state
        self._postgres = Postgres(state, self.cancellation)
        self._rabbitmq = RabbitMQ(state, self.cancellation)

    def _take_urls(self) -> None:
        state = self._state.read()
        self.database_url = state["postgres"]["url"]
        self.amqp_url = state["rabbitmq"]["url"]
        self.management_url = state["rabbitmq"].get("management_url")

    def _start(self, of_rabbitmq: Programs, of_postgres: Programs) -> None:
        begun = time.monotonic()
        owner = postgres.account(of_postgres.userland)
        directory = make_directory(owner[0] if owner else os.geteuid(), in_memory=self._in_memory)
        self._control(State.create(directory))
        self._guard = Guard(self._state)
        try:
            self._report("starting RabbitMQ and PostgreSQL")
            self._rabbitmq.prepare(directory, of_rabbitmq, management=self._management)
            self._rabbitmq.launch()
            self._postgres.prepare(directory, of_postgres, owner)
            self._postgres.launch()
            self._postgres.wait_until_ready()
            self._report(f"PostgreSQL answers after {time.monotonic() - begun:.1f} s")
            self._rabbitmq.wait_until_ready()
            self._report(f"RabbitMQ answers after {time.monotonic() - begun:.1f} s")
            self._take_urls()
        except BaseException:
            self.stop()
            raise
