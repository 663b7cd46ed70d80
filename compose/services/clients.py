"""AMQP clients of other languages, which a few tests run: Ruby's bunny and amqplib for node."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from compose.services import trees
from compose.services.errors import ServicesError
from compose.services.installing import install
from compose.services.progress import Report

AMQPLIB = "0.10.9"


@dataclass(frozen=True, slots=True)
class Client:
    """How to run a program that uses the client."""

    interpreter: str
    environment: dict[str, str] = field(default_factory=dict)


def find_bunny(report: Report) -> Client:
    """Ruby with bunny.

    :raises ServicesError: it is missing and cannot be had, which takes root and apt-get.
    """
    if not _has_bunny():
        _install(["ruby", "ruby-bunny"], report)
    ruby = shutil.which("ruby")
    if ruby is None or not _has_bunny():
        raise ServicesError("Ruby's bunny: installed, yet not found by Ruby")
    return Client(ruby)


def find_amqplib(report: Report) -> Client:
    """node with amqplib, which npm puts into the cache of local services, once.

    :raises ServicesError: it is missing and cannot be had.
    """
    if missing := [name for name, program in (("nodejs", "node"), ("npm", "npm")) if shutil.which(program) is None]:
        _install(missing, report)
    node = shutil.which("node")
    if node is None:
        raise ServicesError("node: installed, yet not found on PATH")
    directory = trees.cache() / f"amqplib-{AMQPLIB}"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "complete").exists():
            report(f"npm install amqplib@{AMQPLIB}")
            _run(["npm", "install", "--silent", "--no-save", "--prefix", str(directory), f"amqplib@{AMQPLIB}"])
            (directory / "complete").touch()
    return Client(node, {"NODE_PATH": str(directory / "node_modules")})


def _has_bunny() -> bool:
    if shutil.which("ruby") is None:
        return False
    return subprocess.run(["ruby", "-e", "require 'bunny'"], capture_output=True, check=False).returncode == 0  # noqa: S607


def _install(packages: Sequence[str], report: Report) -> None:
    names = " ".join(packages)
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise ServicesError(f"not installed: {names} (Debian: apt-get install --no-install-recommends {names})")
    install(packages, report)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise ServicesError(f"{' '.join(command[:2])} failed (exit {done.returncode}): {done.stderr[-1000:]}")
