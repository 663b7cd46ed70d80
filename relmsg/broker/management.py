"""RabbitMQ's management API, for what AMQP cannot tell: which bindings and which queues there are. Never on the way of
a message.
"""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPException
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from relmsg.errors import AccessRefused, BrokerAway, SettingsError
from relmsg.topology import Binding


async def has_binding(url: str, vhost: str, binding: Binding, *, within: float = 10.0) -> bool:
    """Whether the broker has this very binding: the same two ends, routing key and arguments.

    :raises SettingsError: the URL is not one of HTTP.
    :raises AccessRefused: user or password are refused, or the user lacks the tag ``management``.
    :raises BrokerAway: no answer, or not the answer of a management API.
    """
    ends = (quote(part, safe="") for part in (vhost, binding.exchange, binding.queue))
    path = "/api/bindings/{}/e/{}/q/{}".format(*ends)
    found = await asyncio.to_thread(_get, url, path, within)
    if found is None:
        return False
    try:
        return any(
            each["routing_key"] == binding.routing_key and each["arguments"] == dict(binding.arguments)
            for each in found
        )
    except (TypeError, KeyError) as error:
        raise BrokerAway(f"{_where(url)} did not answer as a management API does") from error


async def queue_names(url: str, vhost: str, *, ending: str, within: float = 10.0) -> list[str]:
    """The names of the queues of a virtual host that end like this, in order.

    :raises SettingsError, AccessRefused, BrokerAway: as for ``has_binding``.
    """
    query = urlencode({"columns": "name", "disable_stats": "true"})
    found = await asyncio.to_thread(_get, url, f"/api/queues/{quote(vhost, safe='')}?{query}", within)
    try:
        return sorted(str(each["name"]) for each in found or [] if str(each["name"]).endswith(ending))
    except (TypeError, KeyError) as error:
        raise BrokerAway(f"{_where(url)} did not answer as a management API does") from error


def beside(amqp_url: str) -> str:
    """Where the management API of a broker is by default: on the same host, with the same login."""
    parts = urlsplit(amqp_url)
    scheme, port = ("https", 15671) if parts.scheme == "amqps" else ("http", 15672)
    login, at, _ = parts.netloc.rpartition("@")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{scheme}://{login}{at}{host}:{port}"


def _get(url: str, path: str, within: float) -> Any:
    """The JSON at a path; None where there is nothing (404)."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError("the management URL is not http://user:password@host:15672")
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(f"{parts.scheme}://{host}{parts.path.rstrip('/')}{path}")  # noqa: S310 (checked)
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + b64encode(login.encode()).decode())
    # No proxy from the environment and no redirect: the password is for the broker alone.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect())
    try:
        with opener.open(request, timeout=within) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        if error.code in (401, 403):
            raise AccessRefused(
                f"{_where(url)} refused the login: check user and password in RELMSG_MANAGEMENT_URL; "
                "the user needs the tag management"
            ) from None
        raise BrokerAway(f"{_where(url)} answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise BrokerAway(f"{_where(url)} is away: {reason}") from error


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


def _where(url: str) -> str:
    return f"the management API at {urlsplit(url).netloc.rpartition('@')[2]}"
