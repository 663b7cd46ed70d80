"""Which servers are run: this machine's, or, for a version it has not, those of a Debian release."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from compose.services import trees
from compose.services.environment import AMQP_URL, DATABASE_URL, MARIADB_URL, PATH
from compose.services.errors import ServicesError
from compose.services.installing import MariaDBPrograms, install, mariadb_programs, postgres_bin, rabbitmq_sbin
from compose.services.progress import Report
from compose.services.userland import HERE, Userland
from compose.services.waiting import Cancellation


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of one server."""

    directory: Path  # as it is called where they run
    userland: Userland = HERE

    @classmethod
    def of(cls, known: dict[str, Any]) -> Self:
        """Those of a server in the state file."""
        return cls(Path(known["bin"]), Userland.of(known))

    def named(self) -> dict[str, str | None]:
        """For the state file."""
        return {"bin": str(self.directory), "root": str(self.userland.root) if self.userland.root else None}


@dataclass(frozen=True, slots=True)
class Release:
    """A release of Debian, and the major versions it has."""

    suite: str
    rabbitmq: str
    postgres: str

    @property
    def packages(self) -> tuple[str, str]:
        return "rabbitmq-server", f"postgresql-{self.postgres}"


RELEASES = (Release("bookworm", rabbitmq="3", postgres="15"), Release("trixie", rabbitmq="4", postgres="17"))
BY_RABBITMQ = {each.rabbitmq: each for each in RELEASES}
BY_POSTGRES = {each.postgres: each for each in RELEASES}


def find(
    report: Report, cancellation: Cancellation, rabbitmq: str | None = None, postgres: str | None = None
) -> tuple[Programs, Programs]:
    """RabbitMQ's and PostgreSQL's, of these major versions (None: whichever this machine has).

    :raises ServicesError: if one is missing and cannot be had, which takes root and apt-get.
    """
    _install_missing(report, rabbitmq, postgres)
    return (
        _find("RabbitMQ", rabbitmq, BY_RABBITMQ, rabbitmq_sbin, report, cancellation),
        _find("PostgreSQL", postgres, BY_POSTGRES, postgres_bin, report, cancellation),
    )


def _install_missing(report: Report, rabbitmq: str | None, postgres: str | None) -> None:
    missing = [] if postgres or postgres_bin() else ["postgresql"]
    missing += [] if rabbitmq or rabbitmq_sbin() else ["rabbitmq-server"]
    if missing:
        _install(missing, f"set {DATABASE_URL} and {AMQP_URL}", report)


def find_mariadb(report: Report) -> MariaDBPrograms:
    """MariaDB's, whichever version this machine has.

    :raises ServicesError: if it is missing and cannot be had, which takes root and apt-get.
    """
    if not mariadb_programs():
        _install(["mariadb-server-core", "mariadb-client-core"], f"set {MARIADB_URL}", report)
    if found := mariadb_programs():
        return found
    raise ServicesError("MariaDB: installed, yet not found where Debian puts it")


def find_pgbouncer(report: Report) -> Path:
    """PgBouncer, whichever version this machine has.

    :raises ServicesError: if it is missing and cannot be had, which takes root and apt-get.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), PATH])
    if not shutil.which("pgbouncer", path=path):
        _install(["pgbouncer"], "put it on PATH", report)
    if found := shutil.which("pgbouncer", path=path):
        return Path(found)
    raise ServicesError("PgBouncer: installed, yet not found on PATH")


def _install(missing: list[str], instead: str, report: Report) -> None:
    names = " ".join(missing)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ServicesError(
            f"not installed: {names} (Debian: apt-get install --no-install-recommends {names}), or {instead}"
        )
    install(missing, report)


def _find(
    name: str,
    version: str | None,
    releases: dict[str, Release],
    look: Callable[[str | None, Userland], Path | None],
    report: Report,
    cancellation: Cancellation,
) -> Programs:
    if directory := look(version, HERE):
        return Programs(directory)
    if version is None:
        raise ServicesError(f"{name}: installed, yet not found where Debian puts it")
    if version not in releases:
        raise ServicesError(f"{name} {version} is not installed: install it, or ask for {' or '.join(releases)}")
    if obstacle := trees.obstacle():
        raise ServicesError(
            f"{name} {version} is not installed, and {obstacle}: install it, or set {DATABASE_URL} and {AMQP_URL}"
        )
    release = releases[version]
    userland = Userland(trees.obtain(release.suite, release.packages, report, cancellation))
    if directory := look(version, userland):
        return Programs(directory, userland)
    raise ServicesError(f"{userland.root} has no {name} {version}: remove it to have it made anew")
