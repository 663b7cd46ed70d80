"""On what a run was taken: the page says it, and figures from two machines are never mixed."""

from __future__ import annotations

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import POSTGRES_SETTINGS, Bench

PACKAGES = (
    "relmsg",
    "aio-pika",
    "aiormq",
    "pamqp",
    "asyncpg",
    "SQLAlchemy",
    "txoutbox",
    "faststream",
    "faststream-outbox",
)


def setup(bench: Bench) -> dict[str, Any]:
    """What can be told of the machine, the services and the libraries."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "versions": bench.versions,
        "packages": {name: _version(name) for name in PACKAGES},
        "postgres_settings": POSTGRES_SETTINGS,
        "queue_type": bench.queue_type,
        "quick": bench.quick,
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
