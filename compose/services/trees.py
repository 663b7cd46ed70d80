"""Trees of Debian releases with their PostgreSQL and RabbitMQ, made once by debootstrap and kept in a cache."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from compose.services.environment import CACHE, PATH
from compose.services.installing import install
from compose.services.processes import descendants, gone, kill, spawn
from compose.services.progress import Report
from compose.services.waiting import Cancellation, until_done

BUILD_SECONDS = 1200.0  # about 50 s where the mirror is near; the rest is for a slow one
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
SPARE = ("var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*", "var/lib/postgresql/*", "etc/postgresql/*")

# Nothing that a package starts while it is installed outlives the first process of the id namespace, which dies with
# debootstrap, and debootstrap with us, even by SIGKILL.
CONTAINED = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child")


def obstacle() -> str | None:
    """Why no tree can be made or entered here, as half a sentence; None: nothing known."""
    if os.geteuid() != 0:
        return "only root can run one from another release of Debian"
    if not shutil.which("apt-get"):
        return "without apt-get none can be taken from another release of Debian"
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0:  # noqa: S607
        return "where mounting is not allowed none can be run from another release of Debian"
    return None


def obtain(suite: str, packages: tuple[str, ...], report: Report, cancellation: Cancellation) -> Path:
    """The tree of this release with these packages, from the cache or made now (about one minute, 0.6 GB).

    Many may ask at once: one makes it, the others wait. One that is cut short leaves nothing that is taken for whole.

    :raises ServicesError: if it cannot be made, with the end of debootstrap's log.
    """
    name = "-".join([suite, *packages])
    tree = cache() / name
    if tree.is_dir():  # renamed into its place when it was whole
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True)
    with _alone(tree.with_name(f"{name}.lock"), report, cancellation) as lock:
        if not tree.is_dir():
            for left_behind in tree.parent.glob(f"{name}.new-*"):
                shutil.rmtree(left_behind)
            _make(tree, suite, packages, lock, report, cancellation)
    return tree


def cache() -> Path:
    if chosen := os.environ.get(CACHE):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relmsg"


@contextlib.contextmanager
def _alone(path: Path, report: Report, cancellation: Cancellation) -> Iterator[int]:
    """Hold the lock, whose descriptor this is; it is free again when the last process that was given it has ended."""
    with path.open("w") as lock:
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    report(f"waiting for the one who makes {path.stem}")
                told = True
                cancellation.check()
                time.sleep(0.2)
        yield lock.fileno()


def _make(
    tree: Path, suite: str, packages: tuple[str, ...], lock: int, report: Report, cancellation: Cancellation
) -> None:
    missing = [] if shutil.which("debootstrap", path=PATH) else ["debootstrap"]
    missing += [] if KEYRING.exists() else ["debian-archive-keyring"]
    if missing:
        install(missing, report)
    log = tree.with_name(f"{tree.name}.log")
    log.unlink(missing_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f"{tree.name}.new-", dir=tree.parent))
    try:
        new.chmod(0o755)
        report(f"making Debian {suite} with {' and '.join(packages)} in {tree} (once, about a minute)")
        command = [
            *CONTAINED, "debootstrap", "--variant=minbase", "--force-check-gpg", f"--keyring={KEYRING}",
            f"--include={','.join(packages)}", suite, str(new), *_mirror(),
        ]  # fmt: skip
        environment = os.environ | proxies() | {"PATH": PATH, "DEBIAN_FRONTEND": "noninteractive"}
        process = spawn(command, log, env=environment, umask=0o022, pass_fds=[lock])
        try:
            until_done("debootstrap", process, log, cancellation, BUILD_SECONDS)
        except BaseException:
            family = [process, *descendants(process["id"])]
            kill([process])
            gone(family, 10.0)
            raise
        (new / "root").chmod(0o755)  # a checkout below /root of a machine where that is open to all, its data too
        for spare in (each for pattern in SPARE for each in new.glob(pattern)):
            shutil.rmtree(spare) if spare.is_dir() else spare.unlink()
        new.rename(tree)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _mirror() -> list[str]:
    """The one this machine's apt uses for Debian; none where it knows none: debootstrap has a default of its own."""
    said = _said("apt-get", "indextargets", "--format", "$(SITE) $(LABEL)", "Created-By: Packages")
    sites = [site for site, _, label in (line.partition(" ") for line in said.splitlines()) if label == "Debian"]
    return [site for site in sites if site.startswith(("http://", "https://", "file:/"))][:1]


def proxies() -> dict[str, str]:
    """Those of apt, for debootstrap's wget; those of the environment go before."""
    found = {}
    for scheme in ("http", "https"):
        name = f"{scheme}_proxy"
        said = _said("apt-config", "dump", "--format", "%f %v%n", f"Acquire::{scheme}::Proxy").splitlines()
        proxy = said[0].partition(" ")[2] if said else ""
        if proxy not in ("", "DIRECT") and name not in os.environ:
            found[name] = proxy
    return found


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
