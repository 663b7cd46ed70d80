"""The private RabbitMQ: its node and epmd, its processes, how it is asked and how it ends."""

from __future__ import annotations

import secrets
import signal
import subprocess
from pathlib import Path
from typing import Any

from compose.services.errors import ServicesError
from compose.services.handshake import amqp_answers
from compose.services.installing import epmd, erl_call
from compose.services.ports import accepts, free_ports
from compose.services.processes import Process, alive, descendants, gone, kill, named, send, spawn
from compose.services.programs import Programs
from compose.services.state import State
from compose.services.userland import Userland
from compose.services.waiting import Cancellation, until_answering

USER = "relmsg"
CTL_SECONDS = 60.0
EPMD_SECONDS = 10.0
STOP_SECONDS = 30.0


class RabbitMQ:
    """The RabbitMQ of a state file: ``prepare`` makes it once, then it is launched and ended at will.

    Two processes are known of a running one: the script that was spawned, and the Erlang VM as soon as it answers.
    """

    def __init__(self, state: State, cancellation: Cancellation) -> None:
        self._state = state
        self._cancellation = cancellation

    @property
    def pid(self) -> int:
        """The Erlang VM's process id. :raises ServicesError: while the broker is down."""
        process = self._known.get("pid")
        if not alive(process):
            raise ServicesError("RabbitMQ is not running")
        return int(process["id"])

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl ARGUMENTS`` prints. :raises ServicesError: if it fails or takes more than 60 s."""
        return self._ask(
            f"rabbitmqctl {arguments[0]}", str(Path(self._known["bin"]) / "rabbitmqctl"), "--quiet", *arguments
        )

    def evaluate(self, expression: str) -> str:
        """The value of an Erlang expression in the broker. :raises ServicesError: as ``ctl`` does.

        ``rabbitmqctl eval`` starts an Erlang VM for it, which costs a second of CPU; ``erl_call`` is a small C program.
        """
        rabbitmq = self._known
        program = erl_call(Userland.of(rabbitmq))
        if program is None:
            return self.ctl("eval", f"{expression}.").strip()
        node = rabbitmq["environment"]["RABBITMQ_NODENAME"]
        told = self._ask("erl_call", program, "-n", node, "-e", said=f"{expression}.\n").strip()
        if not told.startswith("{ok, "):
            raise ServicesError(f"erl_call: {' '.join(told.split())}")
        return told.removeprefix("{ok, ").removesuffix("}")

    def _ask(self, name: str, *command: str, said: str = "") -> str:
        invocation, options = _invocation(self._known, *command)
        try:
            done = subprocess.run(  # noqa: S603
                invocation, **options, input=said, capture_output=True, text=True, timeout=CTL_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise ServicesError(f"{name}: no answer within {CTL_SECONDS:g} s") from None
        if done.returncode != 0:
            words = " ".join((done.stderr or done.stdout).split())
            raise ServicesError(f"{name}: exit {done.returncode}: {words}")
        return str(done.stdout)

    def prepare(self, directory: Path, programs: Programs, *, management: bool) -> None:
        """Make a node below the directory, with ports, cookie and password of its own, and start its epmd."""
        home = directory / "rabbitmq"
        home.mkdir(mode=0o700)
        cookie = home / ".erlang.cookie"
        cookie.touch(mode=0o600)
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)
        port, distribution_port, epmd_port, management_port = free_ports(4)
        password = secrets.token_hex(16)
        plugins = ["rabbitmq_consistent_hash_exchange"]
        conf = [
            f"listeners.tcp.default = 127.0.0.1:{port}", f"default_user = {USER}", f"default_pass = {password}",
            "log.console = true", "log.console.level = info", "log.file = false",
        ]  # fmt: skip
        if management:
            plugins.append("rabbitmq_management")
            conf += ["management.tcp.ip = 127.0.0.1", f"management.tcp.port = {management_port}"]
        (home / "rabbitmq.conf").write_text("\n".join(conf) + "\n")
        (home / "rabbitmq.conf").chmod(0o600)
        (home / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (home / "rabbitmq-env.conf").touch()  # in the place of the machine's own
        environment = programs.userland.environment() | _environment(home, distribution_port, epmd_port)
        rabbitmq = {
            **programs.named(), "home": str(home), "log": str(directory / "rabbitmq.log"), "port": port,
            "password": password, "environment": environment, "url": f"amqp://{USER}:{password}@127.0.0.1:{port}/",
        }  # fmt: skip
        if management:
            rabbitmq["management_url"] = f"http://{USER}:{password}@127.0.0.1:{management_port}"
        # An epmd that the node starts would be a daemon nobody stops; so ours comes first, in the foreground.
        log = directory / "epmd.log"
        with self._state.changed() as state:
            state["rabbitmq"] = rabbitmq
            state["epmd"]["pid"] = process = _spawn(rabbitmq, log, epmd(programs.userland, environment))
        until_answering("epmd", process, lambda: accepts(epmd_port), log, self._cancellation, EPMD_SECONDS)

    def start(self) -> None:
        """:raises ServicesError: if it is still running, or does not answer within 90 s."""
        if alive(self._known.get("pid")):
            raise ServicesError("RabbitMQ is still running: stop it first")
        self.launch()
        self.wait_until_ready()

    def launch(self) -> None:
        """Start it and do not wait."""
        with self._state.changed() as state:
            rabbitmq = state["rabbitmq"]
            Path(rabbitmq["home"], "pid").unlink(missing_ok=True)
            rabbitmq.pop("pid", None)
            server = str(Path(rabbitmq["bin"]) / "rabbitmq-server")
            rabbitmq["script"] = _spawn(rabbitmq, Path(rabbitmq["log"]), server)

    def wait_until_ready(self) -> None:
        """:raises ServicesError: if it ends, or does not answer within 90 s."""
        rabbitmq = self._known
        pid_file = Path(rabbitmq["home"], "pid")

        def answers() -> bool:
            return pid_file.exists() and amqp_answers(rabbitmq["port"], USER, rabbitmq["password"])

        until_answering("RabbitMQ", rabbitmq["script"], answers, Path(rabbitmq["log"]), self._cancellation)
        with self._state.changed() as state:
            state["rabbitmq"]["pid"] = named(int(pid_file.read_text()))

    def end(self, graceful: bool) -> None:
        """By SIGTERM, at most 30 s, or by SIGKILL at once."""
        rabbitmq = self._known
        known = [each for each in (rabbitmq.get("script"), rabbitmq.get("pid")) if each]
        family = known + [child for each in known if alive(each) for child in descendants(each["id"])]
        for each in family:
            send(each, signal.SIGCONT)
        if graceful:
            for each in reversed(known):  # the VM, or, before its pid is known, the script that hands the signal on
                if alive(each):
                    send(each, signal.SIGTERM)
                    break
            gone(known, STOP_SECONDS)
        kill(family)

    def discard(self) -> None:
        """End it at once, and its epmd: the data is thrown away."""
        self.end(graceful=False)
        if process := self._state.read()["epmd"].get("pid"):
            kill([process])

    @property
    def _known(self) -> dict[str, Any]:
        known: dict[str, Any] = self._state.read()["rabbitmq"]
        return known


def _spawn(rabbitmq: dict[str, Any], log: Path, *command: str) -> Process:
    invocation, options = _invocation(rabbitmq, *command)
    return spawn(invocation, log, **options)


def _invocation(rabbitmq: dict[str, Any], *command: str) -> tuple[list[str], dict[str, Any]]:
    invocation, options = Userland.of(rabbitmq).invocation(command, rabbitmq["home"])
    return invocation, options | {"env": rabbitmq["environment"]}


def _environment(home: Path, distribution_port: int, epmd_port: int) -> dict[str, str]:
    """What keeps the node and its rabbitmqctl at home, on the loopback and away from the machine's own node."""
    loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_NODENAME": f"relmsg-{secrets.token_hex(4)}@localhost",
        "RABBITMQ_DIST_PORT": str(distribution_port),
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
