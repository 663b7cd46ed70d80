"""Where and as whom a database is reached: by a URL, or by one that is asked for again at each new connection."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.errors import SettingsError
from relmsg.exceptions import text_of
from relmsg.settings import require_database_tls
from relmsg.tls import DATABASE_FILES, DATABASE_NAMES, check_names, database_tls, tls_required

log = logging.getLogger(__name__)

LOGIN = ("host", "port", "user", "password", "database")


def normalised(url: str | URL) -> URL:
    """The URL with asyncpg as its driver and with libpq's ``sslmode`` under the name asyncpg knows, ``ssl``.

    :raises SettingsError: for a URL of another kind; the password is not shown.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # SQLAlchemy's own text would show the URL
        raise SettingsError("database_url: give postgresql+asyncpg://user:password@host:5432/database") from None
    if parsed.drivername not in ("postgresql", "postgresql+asyncpg"):
        raise SettingsError(f"database_url: relmsg needs postgresql+asyncpg://, not {parsed.drivername}://")
    query = dict(parsed.query)
    if "sslmode" in query:
        query.setdefault("ssl", query.pop("sslmode"))
    return parsed.set(drivername="postgresql+asyncpg", query=query)


class Login:
    """Gives the connections of an engine their address, user, password and TLS.

    Where the URL is a function it is asked before each new connection, and the files of TLS are read anew each time.
    What cannot be read then is logged, and what held before holds.

    :raises SettingsError: for a URL of another kind, for files that are not there, and where TLS is required and not
        asked for.
    """

    def __init__(self, url: str | URL | Callable[[], str]) -> None:
        self._given = url
        self.url, self.ssl = self._read()
        """The URL without what concerns TLS, and what asyncpg takes for that."""
        self._changes = callable(url) or isinstance(self.ssl, ssl.SSLContext)

    def attach(self, engine: AsyncEngine) -> None:
        """Have the new connections of this engine ask."""
        if self._changes:
            event.listen(engine.sync_engine, "do_connect", self._connect)

    def _read(self) -> tuple[URL, str | ssl.SSLContext | None]:
        url = normalised(self._given() if callable(self._given) else self._given)
        require_database_tls(url.render_as_string(hide_password=False), required=tls_required())
        query = {name: value for name, value in url.query.items() if isinstance(value, str)}
        try:
            every = [(name, each) for name, told in url.normalized_query.items() for each in told]
            check_names(every, *DATABASE_NAMES)
            context = database_tls(query)
        except ValueError as error:
            raise SettingsError(f"database_url: {text_of(error)}") from None
        return url.difference_update_query(("ssl", *DATABASE_FILES)), context

    def _connect(self, dialect: Any, _record: object, _args: object, parameters: dict[str, Any]) -> None:
        try:
            self.url, self.ssl = self._read()
        except SettingsError as error:
            log.warning("the database's URL cannot be read anew, the one before holds: %s", error)
            return
        _, fresh = dialect.create_connect_args(self.url)
        for name in LOGIN:
            parameters.pop(name, None)
            if name in fresh:
                parameters[name] = fresh[name]
        if self.ssl is not None:
            parameters["ssl"] = self.ssl
