"""The server programs this machine has, installed first if they are missing and we may."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from compose.services.environment import AMQP_URL, DATABASE_URL
from compose.services.errors import ServicesError
from compose.services.progress import Report


def binaries(report: Report) -> tuple[Path, Path]:
    """The directories of PostgreSQL's and of RabbitMQ's programs.

    :raises ServicesError: if one is missing and cannot be installed, which takes root and apt-get.
    """
    missing = []
    if postgres_bin() is None:
        missing.append("postgresql")
    if rabbitmq_sbin() is None:
        missing.append("rabbitmq-server")
    if missing:
        names = " ".join(missing)
        if os.geteuid() != 0 or not shutil.which("apt-get"):
            raise ServicesError(
                f"not installed: {names} (Debian: apt-get install --no-install-recommends {names}), "
                f"or set {DATABASE_URL} and {AMQP_URL}"
            )
        _install(missing, report)
    postgres, rabbitmq = postgres_bin(), rabbitmq_sbin()
    if postgres is None or rabbitmq is None:
        raise ServicesError(f"{' '.join(missing)}: installed, yet not found where Debian puts it")
    return postgres, rabbitmq


def postgres_bin() -> Path | None:
    """The directory of the newest PostgreSQL server programs."""
    patterns = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")
    versioned = [found for pattern in patterns for found in _newest_first(pattern)]
    on_path = [Path(found).resolve().parent for name in ("initdb", "postgres") if (found := shutil.which(name))]
    for directory in [*versioned, *on_path, Path("/usr/local/pgsql/bin"), Path("/usr/lib/postgresql/bin")]:
        if all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
            return directory
    return None


def rabbitmq_sbin() -> Path | None:
    """The directory of RabbitMQ's own scripts; Debian's wrappers in /usr/sbin change the user and are no use here."""
    found = _newest_first("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin")
    on_path = shutil.which("rabbitmq-server")
    for directory in [*found, *([Path(on_path).parent] if on_path else [])]:
        if all(os.access(directory / script, os.X_OK) for script in ("rabbitmq-server", "rabbitmqctl")):
            return directory
    return None


def epmd(environment: dict[str, str]) -> str:
    """Erlang's port mapper, which Erlang may keep to itself. :raises ServicesError: if there is none."""
    if found := shutil.which("epmd"):
        return found
    asked = subprocess.run(
        ["erl", "-noshell", "-eval", 'io:format("~s", [code:root_dir()]), halt().'],  # noqa: S607
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for path in Path(asked.stdout or "/nonexistent").glob("erts-*/bin/epmd"):
        return str(path)
    raise ServicesError("Erlang's epmd was not found: put it on PATH")


def _newest_first(pattern: str) -> list[Path]:
    """The directories below / that match, by the numbers in their names."""
    return sorted(
        Path("/").glob(pattern), key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))], reverse=True
    )


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
            done = subprocess.run(  # noqa: S603
                ["apt-get", "-qq", *arguments],  # noqa: S607
                env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if done.returncode != 0:
                tail = "\n  ".join(done.stdout.splitlines()[-15:])
                raise ServicesError(f"apt-get {arguments[0]} failed (exit {done.returncode}):\n  {tail}")
