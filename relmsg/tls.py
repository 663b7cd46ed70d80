"""TLS as URLs ask for it: whether what they name is right and there, and where a connection would be plain."""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from relmsg.errors import SettingsError
from relmsg.exceptions import text_of
from relmsg.readers import switch

log = logging.getLogger(__name__)

REQUIRE_TLS = "RELMSG_REQUIRE_TLS"
MODES: Final = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
ENCRYPTED: Final = ("require", "verify-ca", "verify-full")
DATABASE_FILES: Final = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
AMQP_FILES: Final = ("cafile", "capath", "certfile", "keyfile")
UNVERIFIED: Final = "no_verify_ssl"
# A name that begins so means TLS. One that is misspelled would be dropped, and the connection be less than was meant.
DATABASE_NAMES: Final = ("ssl",), ("sslmode", "ssl", *DATABASE_FILES)
AMQP_NAMES: Final = ("ca", "cert", "key", "no_", "verify", "ssl", "tls"), (*AMQP_FILES, "cadata", UNVERIFIED)
SYSTEM = "system"  # as libpq: the machine's own authorities

_warned: set[str] = set()


def database_tls(query: Mapping[str, str]) -> str | ssl.SSLContext | None:
    """What asyncpg takes as ``ssl`` for the query of a database's URL; None where the URL says nothing.

    ``sslmode`` (or ``ssl``) is one of libpq's six; ``sslrootcert``, ``sslcert``, ``sslkey`` and ``sslcrl`` are files,
    read at each call; ``sslrootcert`` alone means ``verify-full``.

    :raises ValueError: with the rule that was broken.
    """
    files = {name: query[name] for name in DATABASE_FILES if name in query}
    mode = query.get("sslmode", query.get("ssl"))
    if mode is None:
        if not files:
            return None
        mode = "verify-full" if "sslrootcert" in files else "require"
    if mode not in MODES:
        raise ValueError(f"sslmode={mode}: it is one of {', '.join(MODES)}")
    if files and mode not in ENCRYPTED:
        raise ValueError(f"sslmode={mode} uses no certificate: with {min(files)} it is one of {', '.join(ENCRYPTED)}")
    verifies = mode.startswith("verify") or "sslrootcert" in files
    if mode.startswith("verify") and "sslrootcert" not in files and not _libpq_root():
        raise ValueError(
            f"sslmode={mode} needs sslrootcert=FILE, or sslrootcert=system for the machine's own authorities"
        )
    if not files:
        return mode
    root = files.get("sslrootcert")
    context = _context(
        "sslrootcert", None if root == SYSTEM else root, "sslcert", files.get("sslcert"), files.get("sslkey")
    )
    context.check_hostname = mode == "verify-full"
    context.verify_mode = ssl.CERT_REQUIRED if verifies else ssl.CERT_NONE
    if "sslcrl" in files:
        _readable("sslcrl", files["sslcrl"])
        context.load_verify_locations(files["sslcrl"])
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    return context


def check_names(query: Iterable[tuple[str, str]], begins: tuple[str, ...], names: tuple[str, ...]) -> None:
    """:raises ValueError: a part of a URL's query means TLS and is misspelled, or stands there twice."""
    seen = set()
    for name, _ in query:
        if name not in names and name.lower().startswith(begins):
            near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)
            raise ValueError(f"has {name}, which there is not; did you mean {near[0]}?")
        if name in names and name in seen:
            raise ValueError(f"has {name} twice")
        seen.add(name)


def check_amqp_tls(scheme: str, query: Mapping[str, str]) -> None:
    """:raises ValueError: the files of an AMQP URL are not there, are no certificates, or would not be used."""
    if query.get(UNVERIFIED, "0") not in ("0", "1"):  # aiormq takes all but 0 for 1
        raise ValueError(f"has {UNVERIFIED}={query[UNVERIFIED]}: it is 1 or 0")
    files = {name: query[name] for name in AMQP_FILES if name in query}
    if not files:
        return
    if scheme != "amqps":
        raise ValueError(f"has {min(files)} and is not amqps://: it would be a plain connection")
    if "capath" in files and not Path(files["capath"]).is_dir():
        raise ValueError(f"capath={files['capath']}: there is no such directory")
    _context("cafile", files.get("cafile"), "certfile", files.get("certfile"), files.get("keyfile"))


def tls_required() -> bool:
    """What ``RELMSG_REQUIRE_TLS`` says. :raises SettingsError: it says neither on nor off."""
    try:
        return switch(os.environ.get(REQUIRE_TLS, "off"))
    except ValueError as error:
        raise SettingsError(f"{REQUIRE_TLS} {text_of(error)}") from None


def plain_hosts(hosts: Iterable[str | None]) -> list[str]:
    """Those of the hosts that are not this machine; a socket's directory and an empty name are."""
    return [host for host in hosts if host and not _is_here(host)]


def tell_plain(service: str, hosts: Iterable[str | None], *, required: bool) -> None:
    """Warn, once a process, that a connection may go unencrypted over a network.

    :raises SettingsError: that is not allowed.
    """
    for host in plain_hosts(hosts):
        how = "use amqps://" if service == "RabbitMQ" else "set sslmode=verify-full and sslrootcert in the URL"
        if required:
            raise SettingsError(
                f"{service} at {host}: {REQUIRE_TLS} is on, and nothing has the connection encrypted: {how}"
            )
        place = f"{service} at {host}"
        if place not in _warned:
            _warned.add(place)
            log.warning("%s: nothing has the connection encrypted, passwords and messages can be read: %s", place, how)


def _is_here(host: str) -> bool:
    if host.startswith(("/", "@")) or host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _libpq_root() -> bool:
    named = os.environ.get("PGSSLROOTCERT")
    return Path(named).exists() if named else Path("~/.postgresql/root.crt").expanduser().exists()


def _context(ca_name: str, ca: str | None, name: str, certificate: str | None, key: str | None) -> ssl.SSLContext:
    key_name = name.replace("cert", "key")
    if key is not None and certificate is None:
        raise ValueError(f"has {key_name} without {name}")
    for each, path in ((ca_name, ca), (name, certificate), (key_name, key)):
        if path is not None:
            _readable(each, path)
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    except (ssl.SSLError, OSError):
        raise ValueError(f"{ca_name}={ca}: holds no certificate in PEM") from None
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key, password=_no_password)
        except (ssl.SSLError, OSError):
            raise ValueError(
                f"{name}={certificate}: holds no certificate in PEM, or its key does not fit or has a password"
            ) from None
    return context


def _no_password() -> str:
    """Instead of a question on the terminal."""
    return ""


def _readable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{name}={path}: {error.strerror or error}") from None
