"""How a start, or a call to a service, can fail."""

from __future__ import annotations


class ServicesError(Exception):
    """A service could not be found, started or reached. The text is one line, then perhaps the tail of a log."""


class Interrupted(BaseException):
    """A signal asked for the end while the services were starting."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
