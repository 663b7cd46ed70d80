"""Server programs looked for, on this machine or in a Debian tree, and packages installed on this machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compose.services.environment import PATH
from compose.services.errors import ServicesError
from compose.services.progress import Report
from compose.services.userland import HERE, Userland


def postgres_bin(version: str | None = None, userland: Userland = HERE) -> Path | None:
    """The directory of the newest PostgreSQL server programs, or of the newest of this major version."""
    patterns = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")
    found = [directory for pattern in patterns for directory in _newest_first(pattern, userland)]
    if userland.root is None:
        found += [Path(path).resolve().parent for name in ("initdb", "postgres") if (path := shutil.which(name))]
        found += [Path("/usr/local/pgsql/bin"), Path("/usr/lib/postgresql/bin")]
    for directory in found:
        if _has(userland, directory, "initdb", "postgres") and version in (None, _postgres_version(directory)):
            return directory
    return None


def rabbitmq_sbin(version: str | None = None, userland: Userland = HERE) -> Path | None:
    """The directory of RabbitMQ's own scripts; Debian's wrappers in /usr/sbin change the user and are no use here."""
    found = _newest_first("usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin", userland)
    if userland.root is None and (on_path := shutil.which("rabbitmq-server")):
        found.append(Path(on_path).parent)
    for directory in found:
        has = _has(userland, directory, "rabbitmq-server", "rabbitmqctl")
        if has and version in (None, _rabbitmq_version(directory, userland)):
            return directory
    return None


@dataclass(frozen=True, slots=True)
class MariaDBPrograms:
    """The server, and what makes its first data."""

    server: Path
    install: Path


def mariadb_programs() -> MariaDBPrograms | None:
    """Those of this machine; MySQL's, which have other options, are not taken for them."""
    path = os.pathsep.join([os.environ.get("PATH", ""), PATH])
    # The last is called by the second, and Debian has it in another package.
    needed = [shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db", "my_print_defaults")]
    return MariaDBPrograms(*(Path(each) for each in needed[:2] if each)) if all(needed) else None


def epmd(userland: Userland, environment: dict[str, str]) -> str:
    """Erlang's port mapper, which Erlang may keep to itself. :raises ServicesError: if there is none."""
    if userland.root:
        return "/usr/bin/epmd"
    if found := shutil.which("epmd"):
        return found
    asked = subprocess.run(
        ["erl", "-noshell", "-eval", 'io:format("~s", [code:root_dir()]), halt().'],  # noqa: S607
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    for path in Path(asked.stdout or "/nonexistent").glob("erts-*/bin/epmd"):
        return str(path)
    raise ServicesError("Erlang's epmd was not found: put it on PATH")


def erl_call(userland: Userland) -> str | None:
    """Erlang's program that asks a node for one value, which only some packages put where it is found."""
    if userland.root:
        path = "/usr/bin/erl_call"
        return path if userland.outside(path).exists() else None
    return shutil.which("erl_call")


def _newest_first(pattern: str, userland: Userland) -> list[Path]:
    """The directories there that match, by the numbers in their names."""
    root = userland.outside("/")
    return sorted(
        (Path("/") / path.relative_to(root) for path in root.glob(pattern)),
        key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))],
        reverse=True,
    )


def _has(userland: Userland, directory: Path, *programs: str) -> bool:
    return all(os.access(userland.outside(directory / program), os.X_OK) for program in programs)


def _postgres_version(directory: Path) -> str:
    if named := re.search(r"(?:postgresql[/@]|pgsql-)(\d+)", str(directory)):
        return named[1]
    said = subprocess.run([directory / "postgres", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
    return "".join(re.findall(r"PostgreSQL\) (\d+)", said))


def _rabbitmq_version(directory: Path, userland: Userland) -> str:
    """By the name of its core: asking the broker itself takes an Erlang VM."""
    home = (userland.outside(directory) / "rabbitmq-server").resolve().parent.parent
    return "".join(re.findall(r"rabbit-(\d+)", " ".join(path.name for path in home.glob("plugins/rabbit-[0-9]*"))))


def install(packages: Sequence[str], report: Report) -> None:
    """By apt-get, without letting the packages start services of their own, or put out what is installed.

    One at a time: apt-get itself gives up at once where another has its lists.
    """
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with contextlib.ExitStack() as temporary:
        only_one = os.open("/var/lib/dpkg", os.O_RDONLY)
        temporary.callback(os.close, only_one)
        fcntl.flock(only_one, fcntl.LOCK_EX)
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
        for arguments in (["update"], ["install", "-y", "--no-remove", "--no-install-recommends", *packages]):
            report(f"apt-get {' '.join(arguments)}")
            done = subprocess.run(  # noqa: S603
                ["apt-get", "-qq", *arguments],  # noqa: S607
                env=environment, stdin=subprocess.DEVNULL, text=True, check=False,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            if done.returncode != 0:
                tail = "\n  ".join(done.stdout.splitlines()[-15:])
                raise ServicesError(f"apt-get {arguments[0]} failed (exit {done.returncode}):\n  {tail}")
