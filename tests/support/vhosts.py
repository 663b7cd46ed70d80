"""A virtual host of its own for each test, cheaply."""

from __future__ import annotations

import uuid
from urllib.parse import urlsplit

from compose.local import Services

POOL = 12


class VirtualHosts:
    """Virtual hosts made twelve at a time, by one call that also deletes the used ones.

    They are deleted as we go because each has its own message stores, which a restarting broker goes through.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self._user = urlsplit(services.amqp_url).username or "guest"
        self._fresh: list[str] = []
        self._used: list[str] = []

    def take(self) -> str:
        """The AMQP URL of a virtual host nobody has used; of services given by URL the one that was given."""
        if not self._services.controlled:
            return self._services.amqp_url
        if not self._fresh:
            self._renew(POOL)
        name = self._fresh.pop()
        self._used.append(name)
        return urlsplit(self._services.amqp_url)._replace(path=f"/{name}").geturl()

    def delete_all(self) -> None:
        """Delete every virtual host that was made here, unless the broker goes away with the session anyway."""
        if self._services.controlled and not self._services.owned:
            self._used += self._fresh
            self._fresh = []
            if self._used:
                self._renew(0)

    def _renew(self, count: int) -> None:
        made = [f"test-{uuid.uuid4().hex[:12]}" for _ in range(count)]
        expression = (
            f"[rabbit_vhost:delete(V, {_binary(self._user)}) || V <- {_list(self._used)}], "
            f"[begin ok = rabbit_vhost:add(V, {_binary(self._user)}), "
            f"ok = rabbit_auth_backend_internal:set_permissions({_binary(self._user)}, V, "
            f'<<".*">>, <<".*">>, <<".*">>, {_binary(self._user)}) end || V <- {_list(made)}], made'
        )
        answer = self._services.evaluate(expression)
        if answer != "made":
            raise RuntimeError(f"virtual hosts were not made: {answer}")
        self._fresh, self._used = made, []


def _binary(text: str) -> str:
    return f'<<"{text}">>'


def _list(names: list[str]) -> str:
    return "[" + ", ".join(map(_binary, names)) + "]"
