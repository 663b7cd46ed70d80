"""The state file: what is running, agreed on by the owner, the processes attached to it and the guard."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compose.services.errors import ServicesError


class State:
    """What is known of each server, as JSON. Of services that were given by URL there is no file: path is None."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    @classmethod
    def create(cls, directory: Path) -> State:
        """That of services which are going to have their data in this directory."""
        state = cls(directory / "state.json")
        state._write({"directory": str(directory), "postgres": {}, "rabbitmq": {}, "epmd": {}, "mariadb": {}})
        return state

    def read(self) -> dict[str, Any]:
        """:raises ServicesError: if there is no such file, or no longer."""
        if self.path is None:
            raise ServicesError("these services were given by URL: they cannot be controlled from here")
        try:
            state: dict[str, Any] = json.loads(self.path.read_text())
        except FileNotFoundError:
            raise ServicesError(f"{self.path} is gone: the services were stopped") from None
        return state

    @contextlib.contextmanager
    def changed(self) -> Iterator[dict[str, Any]]:
        """The state, written back after the block unless that raises; meanwhile nobody else changes it."""
        assert self.path is not None
        with (self.path.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            state = self.read()
            yield state
            self._write(state)

    def _write(self, state: dict[str, Any]) -> None:
        assert self.path is not None
        beside = self.path.with_suffix(f".{os.getpid()}")
        beside.touch(mode=0o600)  # it holds passwords
        beside.write_text(json.dumps(state, indent=1))
        beside.rename(self.path)
