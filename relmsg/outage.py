"""A service that is away: said once when it goes, once when it is back, however often it is tried meanwhile."""

from __future__ import annotations

import logging

from relmsg.exceptions import text_of

log = logging.getLogger(__name__)


class Outage:
    """Whether a service is away, as those see it who use it; ``reason`` is None while it answers all of them."""

    def __init__(self, service: str) -> None:
        self._service = service
        self._without: set[object] = set()
        self.reason: str | None = None

    def began(self, user: object, error: Exception) -> None:
        """A user of the service got this error; the first one is logged."""
        if not self._without:
            log.warning("%s; trying until it is back", text_of(error))
        self._without.add(user)
        self.reason = text_of(error)

    def ended(self, user: object) -> None:
        """A user got through; when all have that had not, it is logged."""
        if user in self._without:
            self._without.discard(user)
            if not self._without:
                self.reason = None
                log.info("%s is back", self._service)
