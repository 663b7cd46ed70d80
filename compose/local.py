"""A private PostgreSQL and a private RabbitMQ from this machine's own binaries, for tests, demos and development.

    python compose/local.py run -- CMD...   start both, run CMD with their URLs in its environment, stop both
    python compose/local.py up              start both, print their URLs, stop both at Ctrl-C

They have data directories, ports, an Erlang node name, cookie and epmd of their own and listen on 127.0.0.1 only; the
machine's own servers are never touched. What was started is stopped, also after SIGINT, SIGTERM, SIGHUP, a start that
half failed, and even after SIGKILL of this process: a small guard process waits for that. If RELMSG_DATABASE_URL
and RELMSG_AMQP_URL are both set, nothing is started and those are used.

Exit codes: that of CMD; 2 wrong use; 3 a service is missing or does not start.
Only the standard library is needed; with rich and on a terminal there is a spinner.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

DATABASE_URL = "RELMSG_DATABASE_URL"
AMQP_URL = "RELMSG_AMQP_URL"
MANAGEMENT_URL = "RELMSG_MANAGEMENT_URL"
STATE = "RELMSG_LOCAL_STATE"

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 90.0
START_ATTEMPTS = 3
STOP_SECONDS = 30.0
SOCKET_PATH_BYTES = 107  # sun_path, less its terminating NUL

Report = Callable[[str], None]


class ServicesError(Exception):
    """A service could not be found, started or reached. The text is one line, then perhaps the tail of a log."""


class Interrupted(BaseException):
    """A signal asked for the end while the services were starting."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Services:
    """PostgreSQL and RabbitMQ under one's own hand.

    ``start`` makes this object the owner; ``stop`` then ends both and removes their data. ``attach`` gives a process
    that runs under ``local.py run`` the same control over them; for it ``stop`` does nothing. ``given`` only knows
    URLs: what needs more raises ServicesError. All methods block; from a coroutine call them by ``asyncio.to_thread``.

    What is running is written in the state file, so that owner and attached processes agree after every restart.
    """

    def __init__(self, report: Report | None = None, *, management: bool = False) -> None:
        self.database_url = ""
        self.amqp_url = ""
        self.management_url: str | None = None
        self.state_file: Path | None = None
        self.asked_to_end: int | None = None  # set by a signal handler: a start that is under way gives up
        self._report = report or (lambda _: None)
        self._management = management
        self._guard: subprocess.Popen[bytes] | None = None
        self._children: dict[int, subprocess.Popen[bytes]] = {}

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
        services.state_file = Path(path)
        services._take_urls(services._state())
        return services

    @classmethod
    def given(cls, database_url: str, amqp_url: str) -> Services:
        """Services that someone else runs: their URLs are known and nothing else."""
        services = cls()
        services.database_url, services.amqp_url = database_url, amqp_url
        services.management_url = os.environ.get(MANAGEMENT_URL)
        return services

    @classmethod
    def obtain(cls, report: Report | None = None, *, management: bool = False) -> Services:
        """Those of the environment if it names both URLs, otherwise freshly started ones.

        :raises ServicesError: if only one URL is given, or a service is missing or does not start.
        """
        services = cls.from_environment()
        if services is None:
            services = cls(report, management=management)
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
            if (services.database_url, services.amqp_url) == (database_url, amqp_url):
                return services
        return cls.given(database_url, amqp_url)

    # -- the whole

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

    def start(self) -> None:
        """Start both, at the same time, and return when both answer. On any failure nothing is left running.

        :raises ServicesError: if a service is missing and cannot be installed, or does not answer within 90 s.
        """
        postgres_bin, sbin = _binaries(self._report)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start(postgres_bin, sbin)
                return
            except ServicesError as error:
                # Someone else took a port between our choosing it and its use.
                if attempt == START_ATTEMPTS or not re.search("address already in use|eaddrinuse", str(error), re.I):
                    raise
                self._report("a port was taken meanwhile, trying others")

    def _start(self, postgres_bin: Path, sbin: Path) -> None:
        begun = time.monotonic()
        user = _postgres_user()
        directory = _make_directory(user)
        self.state_file = directory / "state.json"
        self._write({"directory": str(directory), "postgres": {}, "rabbitmq": {}, "epmd": {}})
        guard = [sys.executable, "-S", str(Path(__file__).resolve()), "guard", str(self.state_file)]
        self._guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._report("starting RabbitMQ and PostgreSQL")
            self._prepare_rabbitmq(directory, sbin)
            self._launch_rabbitmq()
            self._prepare_postgres(directory, postgres_bin, user)
            self._launch_postgres()
            self._await_postgres()
            self._report(f"PostgreSQL answers after {time.monotonic() - begun:.1f} s")
            self._await_rabbitmq()
            self._report(f"RabbitMQ answers after {time.monotonic() - begun:.1f} s")
            self._take_urls(self._state())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End what this object started, whoever restarted it since, and remove its data. Twice is fine.

        Quick, not gentle: the data is thrown away. Does nothing for services that someone else started.
        """
        if self._guard is None:
            return
        with _signals_ignored():
            self._end_all()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait()
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
        return self._pid("rabbitmq", "pid")

    def rabbitmqctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """What ``rabbitmqctl ARGUMENTS`` prints on the private node; about 1 s each.

        :raises ServicesError: if it fails or does not end in time, with its own words.
        """
        rabbitmq = self._state()["rabbitmq"]
        try:
            done = subprocess.run(
                [str(Path(rabbitmq["sbin"]) / "rabbitmqctl"), "--quiet", *arguments],
                env=rabbitmq["environment"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServicesError(f"rabbitmqctl {arguments[0]}: no answer within {timeout:g} s") from None
        if done.returncode != 0:
            said = " ".join((done.stderr or done.stdout).split())
            raise ServicesError(f"rabbitmqctl {arguments[0]}: exit {done.returncode}: {said}")
        return done.stdout

    def restart_rabbitmq(self, graceful: bool = True) -> None:
        """Stop the broker and start it on the same port with the same data; return when it answers."""
        self.stop_rabbitmq(graceful)
        self.start_rabbitmq()

    def stop_rabbitmq(self, graceful: bool = True) -> None:
        """By SIGTERM, at most 30 s, or by SIGKILL at once; return when the broker is gone."""
        self._end_rabbitmq(graceful)

    def start_rabbitmq(self) -> None:
        """Start the broker again after ``stop_rabbitmq`` or after it was killed; return when it answers.

        :raises ServicesError: if it is still running, or does not answer within 90 s.
        """
        if _alive(self._state()["rabbitmq"].get("pid"), self._children):
            raise ServicesError("RabbitMQ is still running: stop it first")
        self._launch_rabbitmq()
        self._await_rabbitmq()

    # -- PostgreSQL

    @property
    def postgres_pid(self) -> int:
        """The postmaster's process id. :raises ServicesError: while PostgreSQL is down."""
        return self._pid("postgres", "pid")

    def stop_postgres(self, graceful: bool = True) -> None:
        """Cut all sessions and stop with a checkpoint, or as a crash ("immediate": recovery at the next start)."""
        self._end_postgres(graceful)

    def start_postgres(self) -> None:
        """Start PostgreSQL again on the same port with the same data; return when it answers.

        :raises ServicesError: if it is still running, or does not answer within 90 s.
        """
        if _alive(self._state()["postgres"].get("pid"), self._children):
            raise ServicesError("PostgreSQL is still running: stop it first")
        self._launch_postgres()
        self._await_postgres()

    # -- logs

    @property
    def postgres_log(self) -> Path:
        return Path(self._state()["postgres"]["log"])

    @property
    def rabbitmq_log(self) -> Path:
        return Path(self._state()["rabbitmq"]["log"])

    # -- the state file

    def _state(self) -> dict[str, Any]:
        if self.state_file is None:
            raise ServicesError("these services were given by URL: they cannot be controlled from here")
        try:
            state: dict[str, Any] = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            raise ServicesError(f"{self.state_file} is gone: the services were stopped") from None
        return state

    def _write(self, state: dict[str, Any]) -> None:
        assert self.state_file is not None
        beside = self.state_file.with_suffix(f".{os.getpid()}")
        beside.touch(mode=0o600)  # it holds passwords
        beside.write_text(json.dumps(state, indent=1))
        beside.rename(self.state_file)

    @contextlib.contextmanager
    def _changed(self) -> Iterator[dict[str, Any]]:
        assert self.state_file is not None
        with (self.state_file.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self._state()
            yield state
            self._write(state)

    def _take_urls(self, state: dict[str, Any]) -> None:
        self.database_url = state["postgres"]["url"]
        self.amqp_url = state["rabbitmq"]["url"]
        self.management_url = state["rabbitmq"].get("management_url")

    def _pid(self, service: str, key: str) -> int:
        process = self._state()[service].get(key)
        if not _alive(process, self._children):
            raise ServicesError(f"{service} is not running")
        return int(process["id"])

    def _spawn(self, command: Sequence[str], log: Path, **options: Any) -> dict[str, Any]:
        """Start a process that outlives Ctrl-C at our terminal; what tells it from a later one of the same id."""
        with log.open("ab") as sink:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
                **options,
            )  # fmt: skip
        self._children[child.pid] = child
        return {"id": child.pid, "born": _born(child.pid)}

    def _await(
        self, name: str, process: dict[str, Any], answers: Callable[[], bool], log: Path, seconds: float = START_SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        while not answers():
            if self.asked_to_end is not None:
                raise Interrupted(self.asked_to_end)
            if not _alive(process, self._children):
                raise ServicesError(f"{name} ended while starting; {_tail(log)}")
            if time.monotonic() > deadline:
                raise ServicesError(f"{name} does not answer after {seconds:g} s; {_tail(log)}")
            time.sleep(0.05)

    def _finish(self, name: str, process: dict[str, Any], log: Path) -> None:
        """Wait until a child has ended with 0."""
        child = self._children[process["id"]]
        deadline = time.monotonic() + START_SECONDS
        while child.poll() is None:
            if self.asked_to_end is not None:
                raise Interrupted(self.asked_to_end)
            if time.monotonic() > deadline:
                raise ServicesError(f"{name} is not done after {START_SECONDS:g} s; {_tail(log)}")
            time.sleep(0.02)
        if child.returncode != 0:
            raise ServicesError(f"{name} failed; {_tail(log)}")

    # -- PostgreSQL, inside

    def _prepare_postgres(self, directory: Path, binaries: Path, user: str | None) -> None:
        home = directory / "postgres"
        home.mkdir(mode=0o700)
        password = secrets.token_hex(16)
        secret = home / "password"
        secret.touch(mode=0o600)
        secret.write_text(password)
        if user:
            owner = pwd.getpwnam(user)
            for path in (home, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        log = directory / "postgres.log"
        port = _free_ports(1)[0]
        postgres = {
            "bin": str(binaries), "home": str(home), "data": str(home / "data"), "log": str(log), "port": port,
            "user": user, "url": f"postgresql+asyncpg://postgres:{password}@127.0.0.1:{port}/postgres",
        }  # fmt: skip
        # --no-sync: the empty cluster need not survive a power cut; what is committed later is synced as ever.
        initdb = [
            str(binaries / "initdb"), "-D", postgres["data"], "-U", "postgres", "--pwfile", str(secret),
            "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync",
        ]  # fmt: skip
        with self._changed() as state:
            state["postgres"] = postgres | {"initdb": self._spawn(initdb, log, **self._as_postgres(postgres))}
            initializing = state["postgres"]["initdb"]
        self._finish("initdb", initializing, log)
        # A cluster whose socket path would be too long has none: TCP on the loopback is all we use.
        sockets = str(home) if len(f"{home}/.s.PGSQL.{port}") <= SOCKET_PATH_BYTES else ""
        with (home / "data" / "postgresql.conf").open("a") as conf:
            conf.write(
                f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{sockets}'\n"
                "max_connections = 200\nmax_prepared_transactions = 10\nfsync = on\ncluster_name = 'relmsg-local'\n"
                "logging_collector = off\nlog_destination = 'stderr'\ntimezone = 'UTC'\nlog_timezone = 'UTC'\n"
            )

    def _as_postgres(self, postgres: dict[str, Any]) -> dict[str, Any]:
        """PostgreSQL refuses to run as root."""
        environment = _clean_environment() | {"HOME": postgres["home"]}
        options: dict[str, Any] = {"env": environment, "cwd": postgres["home"]}
        if postgres["user"]:
            owner = pwd.getpwnam(postgres["user"])
            options |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        return options

    def _launch_postgres(self) -> None:
        with self._changed() as state:
            postgres = state["postgres"]
            command = [str(Path(postgres["bin"]) / "postgres"), "-D", postgres["data"]]
            postgres["pid"] = self._spawn(command, Path(postgres["log"]), **self._as_postgres(postgres))

    def _await_postgres(self) -> None:
        postgres = self._state()["postgres"]
        is_ready = [str(Path(postgres["bin"]) / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(postgres["port"])]
        lockfile = Path(postgres["data"]) / "postmaster.pid"

        def answers() -> bool:
            # The last line of the lock file comes first: it costs no process.
            with contextlib.suppress(OSError):
                if lockfile.read_text().rstrip().endswith("ready"):
                    return not Path(is_ready[0]).exists() or subprocess.run(is_ready, check=False).returncode == 0
            return False

        self._await("PostgreSQL", postgres["pid"], answers, Path(postgres["log"]))

    def _end_postgres(self, graceful: bool) -> None:
        postgres = self._state()["postgres"]
        process = postgres.get("pid")
        if not _alive(process, self._children):
            return
        family = [process, *_descendants(process["id"])]
        for each in family:
            _send(each, signal.SIGCONT, self._children)
        steps = [(signal.SIGINT, STOP_SECONDS), (signal.SIGQUIT, 10.0)][0 if graceful else 1 :]
        for signum, seconds in steps:
            _send(process, signum, self._children)
            if _gone([process], seconds, self._children):
                break
        family += _descendants(process["id"])
        for each in family:
            _send(each, signal.SIGKILL, self._children)
        _gone(family, 5.0, self._children)

    # -- RabbitMQ, inside

    def _prepare_rabbitmq(self, directory: Path, sbin: Path) -> None:
        home = directory / "rabbitmq"
        home.mkdir(mode=0o700)
        cookie = home / ".erlang.cookie"
        cookie.touch(mode=0o600)
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)
        port, dist, epmd_port, management_port = _free_ports(4)
        password = secrets.token_hex(16)
        log = directory / "rabbitmq.log"
        plugins = ["rabbitmq_consistent_hash_exchange"]
        conf = [
            f"listeners.tcp.default = 127.0.0.1:{port}", "default_user = relmsg", f"default_pass = {password}",
            "log.console = true", "log.console.level = info", "log.file = false",
        ]  # fmt: skip
        if self._management:
            plugins.append("rabbitmq_management")
            conf += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {management_port}"]
        (home / "rabbitmq.conf").write_text("\n".join(conf) + "\n")
        (home / "rabbitmq.conf").chmod(0o600)
        (home / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (home / "rabbitmq-env.conf").touch()  # in the place of the machine's own
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        environment = _clean_environment() | {
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(epmd_port),
            "RABBITMQ_NODENAME": f"relmsg-{secrets.token_hex(4)}@localhost",
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_CONF_ENV_FILE": str(home / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(home / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(home / "generated"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_DIST_PORT_MIN": "10240",
            "RABBITMQ_CTL_DIST_PORT_MAX": "19999",
        }
        rabbitmq = {
            "sbin": str(sbin), "home": str(home), "log": str(log), "port": port, "password": password,
            "environment": environment, "url": f"amqp://relmsg:{password}@127.0.0.1:{port}/",
        }  # fmt: skip
        if self._management:
            rabbitmq["management_url"] = f"http://relmsg:{password}@127.0.0.1:{management_port}"
        # An epmd that the node starts would be a daemon nobody stops; so ours comes first, in the foreground.
        with self._changed() as state:
            state["rabbitmq"] = rabbitmq
            state["epmd"] = {"pid": self._spawn([_epmd(environment)], directory / "epmd.log", env=environment)}
            epmd = state["epmd"]["pid"]
        self._await("epmd", epmd, lambda: _accepts(epmd_port), directory / "epmd.log", seconds=10.0)

    def _launch_rabbitmq(self) -> None:
        with self._changed() as state:
            rabbitmq = state["rabbitmq"]
            Path(rabbitmq["home"], "pid").unlink(missing_ok=True)
            rabbitmq.pop("pid", None)
            command = [str(Path(rabbitmq["sbin"]) / "rabbitmq-server")]
            rabbitmq["script"] = self._spawn(
                command, Path(rabbitmq["log"]), env=rabbitmq["environment"], cwd=rabbitmq["home"]
            )

    def _await_rabbitmq(self) -> None:
        rabbitmq = self._state()["rabbitmq"]
        pid_file = Path(rabbitmq["home"], "pid")

        def answers() -> bool:
            return pid_file.exists() and _amqp_answers(rabbitmq["port"], "relmsg", rabbitmq["password"])

        self._await("RabbitMQ", rabbitmq["script"], answers, Path(rabbitmq["log"]))
        pid = int(pid_file.read_text())
        with self._changed() as state:
            state["rabbitmq"]["pid"] = {"id": pid, "born": _born(pid)}

    def _end_rabbitmq(self, graceful: bool) -> None:
        rabbitmq = self._state()["rabbitmq"]
        known = [each for each in (rabbitmq.get("script"), rabbitmq.get("pid")) if each]
        family = known + [child for each in known if _alive(each, self._children) for child in _descendants(each["id"])]
        for each in family:
            _send(each, signal.SIGCONT, self._children)
        if graceful:
            for each in reversed(known):  # the VM, or, before its pid is known, the script that hands the signal on
                if _alive(each, self._children):
                    _send(each, signal.SIGTERM, self._children)
                    break
            _gone(known, STOP_SECONDS, self._children)
        for each in family:
            _send(each, signal.SIGKILL, self._children)
        _gone(family, 5.0, self._children)

    def _end_all(self) -> None:
        if self.state_file is None or not self.state_file.exists():
            return
        state = self._state()
        self._end_postgres(graceful=False)
        initializing = state["postgres"].get("initdb")
        if _alive(initializing, self._children):
            for each in [*_descendants(initializing["id"]), initializing]:
                _send(each, signal.SIGKILL, self._children)
            _gone([initializing], 5.0, self._children)
        self._end_rabbitmq(graceful=False)
        epmd = state["epmd"].get("pid")
        if epmd:
            _send(epmd, signal.SIGKILL, self._children)
            _gone([epmd], 5.0, self._children)
        shutil.rmtree(state["directory"], ignore_errors=True)


# -- processes, told apart from later ones of the same id by the time of their birth


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, or None where there is no such process (or no /proc)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def _born(pid: int) -> str | None:
    fields = _stat(pid)
    return fields[19] if fields else None


def _alive(process: dict[str, Any] | None, children: dict[int, subprocess.Popen[bytes]]) -> bool:
    """Whether this very process runs. A zombie does not."""
    if not process:
        return False
    pid = process["id"]
    if pid in children:
        return children[pid].poll() is None
    fields = _stat(pid)
    if fields is None:
        if Path("/proc/self/stat").exists():
            return False
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True
    return fields[0] not in "ZX" and process.get("born") in (None, fields[19])


def _send(process: dict[str, Any], signum: int, children: dict[int, subprocess.Popen[bytes]]) -> None:
    if _alive(process, children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["id"], signum)


def _gone(processes: Sequence[dict[str, Any]], seconds: float, children: dict[int, subprocess.Popen[bytes]]) -> bool:
    """Wait until all have ended; False at the deadline."""
    deadline = time.monotonic() + seconds
    while any(_alive(each, children) for each in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _descendants(pid: int) -> list[dict[str, Any]]:
    """The processes started by a process and by those, as far as /proc tells."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found, front = [], [pid]
    while front:
        front = [child for parent in front for child in parents.get(parent, [])]
        found += front
    return [{"id": each, "born": _born(each)} for each in found]


@contextlib.contextmanager
def _signals_ignored() -> Iterator[None]:
    """A second Ctrl-C must not interrupt the cleaning up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# -- the network


def _free_ports(count: int) -> list[int]:
    """Free TCP ports of 127.0.0.1, from below the range the kernel takes outgoing connections from where possible.

    A port inside of that range can be lost while a service restarts: to anyone's outgoing connection, even to a client
    that tries to reach the very port and meets itself.
    """
    try:
        low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        low = 0
    candidates = random.SystemRandom().sample(range(20_000, low), 200) if low >= 21_000 else []
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        while len(ports) < count:
            trial = held.enter_context(socket.socket())
            try:
                trial.bind(("127.0.0.1", candidates.pop() if candidates else 0))
            except OSError:
                continue
            ports.append(int(trial.getsockname()[1]))
        return ports


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _amqp_answers(port: int, user: str, password: str) -> bool:
    """Whether a connection can be opened on virtual host /: the whole AMQP 0-9-1 handshake, with the password."""

    def method(arguments: bytes) -> bytes:
        return struct.pack(">BHI", 1, 0, len(arguments)) + arguments + b"\xce"

    def short(text: bytes) -> bytes:
        return struct.pack(">B", len(text)) + text

    def long(text: bytes) -> bytes:
        return struct.pack(">I", len(text)) + text

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5.0) as peer, peer.makefile("rb") as answers:

            def awaited(index: int) -> None:
                head = answers.read(7)
                if len(head) < 7:
                    raise ConnectionError("closed by the broker")
                kind, _, size = struct.unpack(">BHI", head)
                arguments = answers.read(size + 1)
                if kind != 1 or arguments[:4] != struct.pack(">HH", 10, index):
                    raise ConnectionError("not what the handshake asks for")

            peer.sendall(b"AMQP\x00\x00\x09\x01")
            awaited(10)  # Start
            login = long(b"\x00" + user.encode() + b"\x00" + password.encode())
            start_ok = struct.pack(">HH", 10, 11) + long(b"") + short(b"PLAIN") + login + short(b"en_US")
            peer.sendall(method(start_ok))
            awaited(30)  # Tune
            tune_ok = struct.pack(">HHHIH", 10, 31, 1, 131072, 0)  # one channel: "no limit" is refused
            open_ = struct.pack(">HH", 10, 40) + short(b"/") + short(b"") + b"\x00"
            peer.sendall(method(tune_ok) + method(open_))
            awaited(41)  # Open-Ok
            peer.sendall(method(struct.pack(">HHH", 10, 50, 200) + short(b"") + struct.pack(">HH", 0, 0)))
            awaited(51)  # Close-Ok
    except OSError:
        return False
    return True


# -- what the machine has


def _newest_first(pattern: str) -> list[Path]:
    """The directories below / that match, by the numbers in their names."""
    return sorted(
        Path("/").glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True
    )


def _postgres_bin() -> Path | None:
    """The directory of the newest PostgreSQL server programs."""
    patterns = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")
    versioned = [found for pattern in patterns for found in _newest_first(pattern)]
    on_path = [str(Path(found).resolve().parent) for name in ("initdb", "postgres") if (found := shutil.which(name))]
    for directory in map(Path, [*versioned, *on_path, "/usr/local/pgsql/bin", "/usr/lib/postgresql/bin"]):
        if all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
            return directory
    return None


def _rabbitmq_sbin() -> Path | None:
    """The directory of RabbitMQ's own scripts; Debian's wrappers in /usr/sbin change the user and are no use here."""
    found = _newest_first("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")
    on_path = shutil.which("rabbitmq-server")
    for directory in [*found, *([Path(on_path).parent] if on_path else [])]:
        if all(os.access(directory / script, os.X_OK) for script in ("rabbitmq-server", "rabbitmqctl")):
            return directory
    return None


def _epmd(environment: dict[str, str]) -> str:
    if found := shutil.which("epmd"):
        return found
    asked = subprocess.run(
        ["erl", "-noshell", "-eval", 'io:format("~s", [code:root_dir()]), halt().'],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for path in Path(asked.stdout or "/nonexistent").glob("erts-*/bin/epmd"):
        return str(path)
    raise ServicesError("Erlang's epmd was not found: put it on PATH")


def _binaries(report: Report) -> tuple[Path, Path]:
    missing = []
    if _postgres_bin() is None:
        missing.append("postgresql")
    if _rabbitmq_sbin() is None:
        missing.append("rabbitmq-server")
    if missing:
        names = " ".join(missing)
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise ServicesError(
                f"not installed: {names} (Debian: apt-get install --no-install-recommends {names}), "
                f"or set {DATABASE_URL} and {AMQP_URL}"
            )
        _install(missing, report)
    postgres, rabbitmq = _postgres_bin(), _rabbitmq_sbin()
    if postgres is None or rabbitmq is None:
        raise ServicesError(f"{' '.join(missing)}: installed, yet not found where Debian puts it")
    return postgres, rabbitmq


def _install(packages: Sequence[str], report: Report) -> None:
    """By apt-get, without letting the packages start services of their own."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with contextlib.ExitStack() as temporary:
        # 101 is policy-rc.d's "not allowed"; the second keeps Debian from making a cluster that would never be used.
        for path, text, mode in (
            (Path("/usr/sbin/policy-rc.d"), "#!/bin/sh\nexit 101\n", 0o755),
            (Path("/etc/postgresql-common/createcluster.d/relmsg.conf"), "create_main_cluster = false\n", 0o644),
        ):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                path.chmod(mode)
                temporary.callback(path.unlink, missing_ok=True)
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            report(f"apt-get {' '.join(arguments)}")
            done = subprocess.run(
                ["apt-get", "-qq", *arguments], env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if done.returncode != 0:
                tail = "\n  ".join(done.stdout.splitlines()[-15:])
                raise ServicesError(f"apt-get {arguments[0]} failed (exit {done.returncode}):\n  {tail}")


def _postgres_user() -> str | None:
    """Who PostgreSQL runs as if we are root, whom it refuses; None: as ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServicesError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


def _make_directory(user: str | None) -> Path:
    """A new directory the PostgreSQL user can pass through: in .local/ of the checkout, else among temporary files."""
    uid = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    for base in (ROOT / ".local", Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 (mkdtemp below)
        try:
            base.mkdir(exist_ok=True)
            passable = all(_passes(parent, uid) for parent in (base, *base.parents))
            if passable and os.access(base, os.W_OK):
                directory = Path(tempfile.mkdtemp(prefix="relmsg-", dir=base))
                directory.chmod(0o711)
                return directory
        except OSError:
            continue
    raise ServicesError(f"no directory for the services' data: neither {ROOT / '.local'} nor a temporary one will do")


def _passes(directory: Path, uid: int) -> bool:
    status = directory.stat()
    return bool(status.st_mode & (0o100 if status.st_uid == uid else 0o001))


def _clean_environment() -> dict[str, str]:
    """Ours, without what would steer PostgreSQL, RabbitMQ or Erlang elsewhere, and without relmsg's own."""
    steering = ("PG", "RABBITMQ_", "ERL_", "RELMSG_", "NOTIFY_SOCKET")
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}


def _tail(log: Path, lines: int = 15) -> str:
    try:
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))  # RabbitMQ colours its console log
        end = text.splitlines()[-lines:]
    except OSError:
        end = []
    return f"{log} ends with:\n  " + "\n  ".join(end) if end else f"{log} is empty"


# -- the command


@contextlib.contextmanager
def _progress() -> Iterator[Report]:
    """Steps on stderr: a spinner on a terminal that rich knows, otherwise a line each."""
    status = None
    if sys.stdout.isatty() and sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console

            status = Console(stderr=True).status("looking for PostgreSQL and RabbitMQ")
    if status is None:
        yield lambda step: print(f"local: {step}", file=sys.stderr, flush=True)
        return
    with status:
        yield lambda step: status.update(step)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, previous in before.items():
            signal.signal(each, previous)


def _started(management: bool) -> Services:
    """Those of the environment, or started ones; a signal during the start ends it cleanly.

    :raises Interrupted: after such a signal, when nothing is left running.
    """
    services = Services.from_environment()
    if services is not None:
        return services
    with _progress() as report:
        services = Services(report, management=management)

        def end(signum: int, _: FrameType | None) -> None:
            services.asked_to_end = signum

        with _handling(end):
            services.start()
            if services.asked_to_end is not None:
                services.stop()
                raise Interrupted(services.asked_to_end)
    return services


def _run(command: Sequence[str], management: bool) -> int:
    with _started(management) as services:
        child: subprocess.Popen[bytes] | None = None
        early: list[int] = []

        def forward(signum: int, _: FrameType | None) -> None:
            if child is None:
                early.append(signum)
            elif not (signum == signal.SIGINT and _has_terminal()):  # there the terminal has told the child already
                child.send_signal(signum)

        with _handling(forward):
            try:
                child = subprocess.Popen(command, env=os.environ | services.environment)
            except OSError as error:
                raise ServicesError(f"cannot run {command[0]}: {error.strerror}") from None
            for signum in early:
                child.send_signal(signum)
            code = child.wait()
            return code if code >= 0 else 128 - code


def _has_terminal() -> bool:
    """Whether Ctrl-C at our terminal reaches our child as well, as it does all of the foreground group."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _up(management: bool) -> int:
    ended = threading.Event()
    with _started(management) as services, _handling(lambda *_: ended.set()):
        for name, value in services.environment.items():
            print(f"{name}={value}", flush=True)
        if services.owned:
            print("running until Ctrl-C", file=sys.stderr, flush=True)
            ended.wait()
    return 0


def _guard(state_file: Path) -> int:
    """Wait for the owner's end; what it left running then, end."""
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.stdin.buffer.read()
    services = Services()
    services.state_file = state_file
    services._end_all()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="local.py", description="a private PostgreSQL and RabbitMQ on this machine")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="start both, run a command with their URLs in its environment, stop both")
    up = verbs.add_parser("up", help="start both, print their URLs, stop both at Ctrl-C")
    for verb in (run, up):
        verb.add_argument("--management", action="store_true", help="with RabbitMQ's management interface")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- CMD...")
    verbs.add_parser("guard").add_argument("state_file", type=Path)
    given = parser.parse_args(arguments)
    if given.verb == "guard":
        return _guard(given.state_file)
    try:
        if given.verb == "up":
            return _up(given.management)
        command = given.command[1:] if given.command[:1] == ["--"] else given.command
        if not command:
            run.error("give a command: local.py run -- CMD...")
        return _run(command, given.management)
    except ServicesError as error:
        print(f"local.py: {error}", file=sys.stderr)
        return 3
    except Interrupted as interrupted:
        return 128 + interrupted.signum


if __name__ == "__main__":
    sys.exit(main())
