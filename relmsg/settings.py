"""Settings: a TOML file, over it the environment, over that the flags. All mistakes are told at once."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import secrets
import socket
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

from relmsg.arguments import shown
from relmsg.errors import SettingsError
from relmsg.exceptions import text_of
from relmsg.half_rules import half_rules
from relmsg.readers import address, http_url, line_break, number, one_of, printable, single, switch
from relmsg.tls import AMQP_NAMES, DATABASE_NAMES, ENCRYPTED, check_amqp_tls, check_names, database_tls, tell_plain

PREFIX = "RELMSG_"
DEFAULT_PROBES = "127.0.0.1:9808"
# Variables that belong to relmsg without being a setting of a program.
OTHER_VARIABLES = frozenset({"RELMSG_BULK", "RELMSG_CONFIG", "RELMSG_FAILPOINTS", "RELMSG_LOCAL_STATE"})
# What Kubernetes puts into every pod of a namespace for a Service called relmsg or relmsg-anything ("service links").
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("text", "json")
SERVICE_LINK = re.compile(r"RELMSG_(\w+_)?(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_(TCP|UDP|SCTP)\w*)")
DEFAULT_SCHEMA = "relmsg"
# Editors on Windows put these at the start of a file, and no editor shows them; TOML is UTF-8 without one.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "begins with a byte order mark (BOM): save it as UTF-8 without BOM",
    codecs.BOM_UTF16_LE: "is UTF-16: save it as UTF-8 without BOM",
    codecs.BOM_UTF16_BE: "is UTF-16: save it as UTF-8 without BOM",
}
MOST_SECRET_BYTES = 64 * 1024
IDENTIFIER_BYTES = 63  # NAMEDATALEN - 1: PostgreSQL would cut a longer name without an error


def redact(text: str) -> str:
    """The text with every password in a URL replaced by ``***``, also in a query string and in a malformed URL.

    In doubt it hides too much: everything from the first colon behind the scheme, if there is one, to the last @.
    """
    hidden = re.sub(r"(?<![\w+.-])([A-Za-z][\w+.-]*://)?([^\s:@]*):(?!//)\S*@", r"\1\2:***@", text)
    return re.sub(r"(?i)(password=|passwd=)[^&\s]*", r"\1***", hidden)


def _shown(url: str) -> str:
    """A URL as an error may show it: a blank in a password would end what ``redact`` takes for the URL."""
    return redact("".join(url.split()))


def schema_name(text: str) -> str:
    """The name of a database schema, if PostgreSQL can have one of that name. Any printable text of 1 to 63 bytes is
    fine, it is quoted wherever it is used; names that begin with ``pg_`` belong to PostgreSQL.

    :raises SettingsError: for any other name.
    """
    if not isinstance(text, str):
        raise SettingsError(f"schema {shown(text)}: a schema name is 1 to {IDENTIFIER_BYTES} bytes of printable text")
    # isprintable() is False for control characters (NUL among them) and for surrogates, which UTF-8 does not know.
    if not text or not text.isprintable() or len(text.encode()) > IDENTIFIER_BYTES:
        raise SettingsError(f"schema {text[:80]!r}: a schema name is 1 to {IDENTIFIER_BYTES} bytes of printable text")
    if text.startswith("pg_") or text == "information_schema":
        raise SettingsError(f"schema {text!r}: this name belongs to PostgreSQL")
    return text


def schema_in_force(given: str | None, environ: Mapping[str, str] | None = None) -> str:
    """The schema that was given, or that of the environment: ``RELMSG_SCHEMA``, then the settings file that
    ``RELMSG_CONFIG`` names, then ``relmsg``. So a service writes where its relay reads. The environment is read here,
    once, and not again.

    :raises SettingsError: PostgreSQL can have no schema of this name, or the file cannot be read.
    """
    if given is not None:
        return schema_name(given)
    environ = os.environ if environ is None else environ
    if (named := environ.get(PREFIX + "SCHEMA")) is not None:
        return schema_name(named)
    mistakes: list[str] = []
    found = _read_file(environ.get("RELMSG_CONFIG") or None, mistakes).get("schema", DEFAULT_SCHEMA)
    if mistakes:
        raise SettingsError("; ".join(mistakes))
    return schema_name(found)


def amqp_urls(text: str) -> list[str]:
    """One URL for each host of ``amqp://user:password@h1:5672,h2:5673/vhost``, in that order, alike in all the rest.

    :raises SettingsError: with the rule that was broken; passwords are not shown.
    """
    shown = _shown(text)
    if broken := line_break(text):
        raise SettingsError(f"amqp_url {shown!r} {broken}")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in ("amqp", "amqps"):
        raise SettingsError(f"amqp_url {shown!r}: give amqp://user:password@host:5672/vhost, or amqps:// for TLS")
    try:
        query = parse_qsl(urlsplit(text).query, keep_blank_values=True)
        check_names(query, *AMQP_NAMES)
        check_amqp_tls(scheme, dict(query))
    except ValueError as error:
        raise SettingsError(f"amqp_url {shown!r}: {text_of(error)}") from None
    ends = re.search(r"[/?#]", rest)
    authority, tail = (rest[: ends.start()], rest[ends.start() :]) if ends else (rest, "")
    user, at, hosts = authority.rpartition("@")
    if re.search(r"\s", user + tail):
        raise SettingsError(f"amqp_url {shown!r}: holds a blank (write it as %20)")
    urls = []
    for host in hosts.split(","):
        try:
            parts = urlsplit(f"{scheme}://{host.strip()}")
            name, port = parts.hostname, parts.port
        except ValueError:
            name, port = None, None
        if not name or port == 0 or parts.path or host.strip().endswith(":"):
            raise SettingsError(
                f"amqp_url {shown!r}: the hosts are not host:port,host:port "
                "(in a user or password write @ as %40, / as %2F, : as %3A)"
            )
        urls.append(f"{scheme}://{user}{at}{host.strip()}{tail}")
    return urls


def _database_url(text: str) -> str:
    scheme, _, rest = text.partition("://")
    if scheme not in ("postgresql", "postgresql+asyncpg") or not rest:
        raise ValueError("is not postgresql+asyncpg://user:password@host:5432/database")
    if re.search(r"\s", text):
        raise ValueError("holds a blank (write it as %20)")
    try:
        _ = urlsplit(text).port
        if re.split(r"[/?#]", rest, maxsplit=1)[0].count("@") > 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            "has no valid host and port (in a user or password write @ as %40, / as %2F, : as %3A)"
        ) from None
    return _require_files(text)


def _require_files(text: str) -> str:
    query = parse_qsl(urlsplit(text).query, keep_blank_values=True)
    check_names(query, *DATABASE_NAMES)
    database_tls(dict(query))
    return text


def secret(name: str, file: str, read: Callable[[Any], Any]) -> str:
    """What a file holds, without the line end behind it, checked as the setting of that name is.

    :raises SettingsError: the file cannot be read, is empty, or holds something else; its content is not shown.
    """
    try:
        with Path(file).open("rb") as source:
            content = source.read(MOST_SECRET_BYTES + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise SettingsError(f"{name}_file: cannot read {file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{name}_file: {file} is not UTF-8") from None
    if not text or len(content) > MOST_SECRET_BYTES:
        raise SettingsError(f"{name}_file: {file} is {'empty' if not text else 'too large for a URL'}")
    try:
        return str(single(text, read))
    except SettingsError as error:
        raise SettingsError(f"{name}_file {file}: {error}") from None
    except ValueError as error:
        raise SettingsError(f"{name}_file: what {file} holds {text_of(error)}") from None


def _amqp_url(text: str) -> str:
    amqp_urls(text)
    return text


def require_database_tls(url: str, *, required: bool) -> None:
    """Warn once where nothing has the connections to a database encrypted. :raises SettingsError: not allowed."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    mode = query.get("sslmode", query.get("ssl"))
    encrypted = mode in ENCRYPTED if mode is not None else bool({"sslrootcert", "sslcert"} & query.keys())
    if not encrypted:
        hosts = [host for name, host in parse_qsl(parts.query) if name == "host"]
        named = [each.rpartition(":")[0] or each for host in hosts for each in host.split(",")]
        if not parts.hostname and not named:  # then asyncpg looks elsewhere
            named = ((urlsplit(query["dsn"]).hostname if "dsn" in query else os.environ.get("PGHOST")) or "").split(",")
        tell_plain("PostgreSQL", [parts.hostname, *named], required=required)


def require_broker_tls(urls: Iterable[str], *, required: bool) -> None:
    """Warn once where a connection to the broker is plain. :raises SettingsError: that is not allowed."""
    for url in urls:
        tell_plain("RabbitMQ", _plain(url), required=required)


def _plain(url: str) -> list[str | None]:
    parts = urlsplit(url)
    return [] if parts.scheme in ("amqps", "https") else [parts.hostname]


def _half_rules(text: str) -> str:
    half_rules(text)
    return text


_HOUR = 3600.0
_DAY = 24 * _HOUR


def _setting(default: Any, read: Callable[[Any], Any], *, secret: bool = False) -> Any:
    return field(default=default, metadata={"read": read, "secret": secret})


def relay_name() -> str:
    """A name no other relay has: host, process id, and chance, for containers in which both are always the same."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a relmsg process is told from outside. Times are seconds.

    ``load`` reads ``RELMSG_<FIELD IN CAPITALS>``; a value given directly is taken as it is. The schema is that of
    ``RELMSG_SCHEMA`` also where nothing else is loaded, as it is for ``Outbox`` and ``Inbox``.
    """

    KNOWN: ClassVar[tuple[str, ...]]

    database_url: str | None = _setting(None, _database_url, secret=True)
    amqp_url: str | None = _setting(None, _amqp_url, secret=True)
    management_url: str | None = _setting(None, http_url, secret=True)
    database_url_file: str | None = _setting(None, printable)
    amqp_url_file: str | None = _setting(None, printable)
    require_tls: bool = _setting(False, switch)
    schema: str = field(default_factory=lambda: schema_in_force(None), metadata={"read": schema_name, "secret": False})
    config: str | None = _setting(None, printable)
    log_level: str = _setting("info", one_of(LOG_LEVELS))
    log_format: str = _setting("text", one_of(LOG_FORMATS))

    relay_name: str = field(default_factory=relay_name, metadata={"read": printable, "secret": False})
    batch: int = _setting(500, number(int, 1, 10_000, "rows"))
    window: int = _setting(2000, number(int, 1, 65_535, "unconfirmed messages"))
    confirm_deadline: float = _setting(30.0, number(float, 0.1, _HOUR, "seconds"))
    poll_min: float = _setting(0.005, number(float, 0.001, 60, "seconds"))
    poll_max: float = _setting(0.25, number(float, 0.001, 60, "seconds"))
    listen: bool = _setting(True, switch)
    listen_url: str | None = _setting(None, _database_url, secret=True)
    lease: float = _setting(15.0, number(float, 1, _HOUR, "seconds"))
    renew: float = _setting(5.0, number(float, 0.1, _HOUR, "seconds"))
    drain: float = _setting(10.0, number(float, 0, _HOUR, "seconds"))
    max_body_bytes: int = _setting(1024 * 1024, number(int, 1, 128 * 1024 * 1024, "bytes"))
    probes: str = _setting(DEFAULT_PROBES, address)

    coordinator: bool = _setting(True, switch)
    half_check_after: float = _setting(6.0, number(float, 0.1, 30 * _DAY, "seconds"))
    half_check_every: float = _setting(30.0, number(float, 0.1, 30 * _DAY, "seconds"))
    half_max_checks: int = _setting(15, number(int, 1, 1_000_000, "checks"))
    half_check_rate: int = _setting(100, number(int, 1, 10_000, "checks a second"))
    half_allowed: str = _setting("", _half_rules)
    half_retention: float = _setting(3 * _DAY, number(float, 60, 3650 * _DAY, "seconds"))

    prefetch: int | None = _setting(None, number(int, 1, 65_535, "messages"))
    concurrency: int = _setting(8, number(int, 1, 10_000, "handlers"))
    consumer_max_body_bytes: int = _setting(16 * 1024 * 1024, number(int, 1, 128 * 1024 * 1024, "bytes"))
    consumer_max_json_bytes: int = _setting(16 * 1024 * 1024, number(int, 1, 128 * 1024 * 1024, "bytes"))
    consumer_max_header_bytes: int = _setting(128 * 1024, number(int, 1, 128 * 1024, "bytes"))
    consumer_drain: float = _setting(25.0, number(float, 0, _HOUR, "seconds"))
    heartbeat: int = _setting(10, number(int, 1, 65_535, "seconds"))

    def __repr__(self) -> str:
        pairs = ((each.name, getattr(self, each.name)) for each in fields(self))
        shown = (
            f"{name}={redact(value)!r}" if isinstance(value, str) else f"{name}={value!r}" for name, value in pairs
        )
        return f"Settings({', '.join(shown)})"

    @classmethod
    def load(cls, flags: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from the TOML file, the environment and the flags; the later ones win. A flag that is None was not
        given. The file is named by the flag ``config`` or by ``RELMSG_CONFIG``; its keys are the field names.

        :raises SettingsError: that names every mistake in all three, and shows no password.
        """
        environ = os.environ if environ is None else environ
        given = {name: value for name, value in (flags or {}).items() if value is not None}
        config = given.get("config") or environ.get("RELMSG_CONFIG") or None
        mistakes: list[str] = []
        values: dict[str, tuple[str, Any]] = {}

        for key, value in _read_file(config, mistakes).items():
            if key == "config" or key not in cls.KNOWN:
                mistakes.append(f"{config}: there is no setting {key!r}{_meant(key, cls.KNOWN)}")
            else:
                values[key] = (f"{config}: {key}", value)
        variables = {PREFIX + name.upper(): name for name in cls.KNOWN}
        for variable, text in sorted(environ.items()):
            if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or SERVICE_LINK.fullmatch(variable):
                continue
            if variable not in variables:
                mistakes.append(f"there is no setting {variable}{_meant(variable, variables)}")
            else:
                values[variables[variable]] = (variable, text)
        for name, value in given.items():
            if name not in cls.KNOWN:
                mistakes.append(f"there is no setting {name!r}{_meant(name, cls.KNOWN)}")
            else:
                values[name] = ("--" + name.replace("_", "-"), value)
        if config:
            values["config"] = ("--config", config)

        result: dict[str, Any] = {"schema": DEFAULT_SCHEMA}
        for each in fields(cls):
            if each.name in values:
                origin, value = values[each.name]
                try:
                    result[each.name] = single(value, each.metadata["read"])
                except (ValueError, SettingsError) as error:
                    mistakes.append(_said(origin, value, error, secret=each.metadata["secret"]))
        for url in ("database_url", "amqp_url"):
            file = f"{url}_file"
            if result.get(url) is None or result.get(file) is None:
                continue
            if values[url][0].startswith("--") and not values[file][0].startswith("--"):
                result[file] = None  # the flag wins
            else:
                mistakes.append(f"{values[url][0]} and {values[file][0]} are both given: leave one out")
        if not mistakes:
            settings = cls(**result)
            mistakes = settings._contradictions()
            if not mistakes:
                return settings
        raise SettingsError("; ".join(mistakes))

    def database(self) -> str:
        """The database's URL; where it stands in a file, what that holds now: it is read at each call.

        :raises SettingsError: if none was given, the file holds none, or it would be a plain connection and TLS is
            required.
        """
        if self.database_url_file is not None:
            return self._checked_database(secret("database_url", self.database_url_file, _database_url))
        if self.database_url is None:
            raise SettingsError(
                "no database is named: set RELMSG_DATABASE_URL=postgresql+asyncpg://user:password@host/database"
            )
        return self._checked_database(self.database_url)

    def broker(self) -> list[str]:
        """The broker's URLs, one a host. :raises SettingsError: as ``database``."""
        return amqp_urls(self.broker_url())

    def broker_url(self) -> str:
        """The broker's URL with all its hosts, as ``database``."""
        if self.amqp_url_file is not None:
            return self._checked_broker(secret("amqp_url", self.amqp_url_file, _amqp_url))
        if self.amqp_url is None:
            raise SettingsError("no broker is named: set RELMSG_AMQP_URL=amqp://user:password@host:5672/vhost")
        return self._checked_broker(self.amqp_url)

    def _checked_database(self, url: str) -> str:
        if self.require_tls:
            require_database_tls(url, required=True)
        return url

    def _checked_broker(self, url: str) -> str:
        if self.require_tls:
            require_broker_tls(amqp_urls(url), required=True)
        return url

    def _contradictions(self) -> list[str]:
        found = []
        for url, file, ask in (
            (self.database_url, self.database_url_file, self.database),
            (self.amqp_url, self.amqp_url_file, self.broker_url),
        ):
            if file is not None or (url is not None and self.require_tls):
                try:
                    ask()
                except SettingsError as error:
                    found.append(str(error))
        if self.require_tls and self.management_url is not None:
            try:
                tell_plain("RabbitMQ's management", _plain(self.management_url), required=True)
            except SettingsError as error:
                found.append(str(error))
        if self.poll_min > self.poll_max:
            found.append(f"poll_min ({self.poll_min:g}) is more than poll_max ({self.poll_max:g})")
        if self.renew * 2 > self.lease:
            found.append(
                f"renew ({self.renew:g}) is more than half of lease ({self.lease:g}): one late renewal loses it"
            )
        return found


Settings.KNOWN = tuple(each.name for each in fields(Settings))


def _read_file(config: str | None, mistakes: list[str]) -> dict[str, Any]:
    if config is None:
        return {}
    try:
        content = Path(config).read_bytes()
        if (mark := next((each for each in BYTE_ORDER_MARKS if content.startswith(each)), None)) is not None:
            mistakes.append(f"{config} {BYTE_ORDER_MARKS[mark]}")
            return {}
        return tomllib.loads(content.decode())
    except OSError as error:
        mistakes.append(f"cannot read the settings file {config}: {error.strerror or text_of(error)}")
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError; they quote no values
        mistakes.append(f"{config} is not TOML: {text_of(error)}")
    return {}


def _said(origin: str, value: object, error: Exception, *, secret: bool) -> str:
    if isinstance(error, SettingsError):  # names the setting and the value itself
        return f"{origin}: {text_of(error)}"
    shown = _shown(value) if secret and isinstance(value, str) else value
    return f"{origin}: {shown!r} {text_of(error)}"


def _meant(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
