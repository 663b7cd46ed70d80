"""What a URL says about TLS is checked before anything connects, and a plain connection is told."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trustme

from relmsg import tls
from relmsg.broker.connection import Connection
from relmsg.database import create_engine
from relmsg.errors import SettingsError
from relmsg.settings import Settings, amqp_urls

DATABASE = "postgresql+asyncpg://user:hunter2@db.example:5432/orders"
BROKER = "amqps://user:hunter2@mq.example:5671/"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """A CA, a certificate with its key, what is none, and what is not there."""
    ca = trustme.CA()
    issued = ca.issue_cert("relay@example.org")
    paths = {name: tmp_path / name for name in ("ca", "cert", "key", "none", "missing")}
    ca.cert_pem.write_to_path(paths["ca"])
    issued.cert_chain_pems[0].write_to_path(paths["cert"])
    issued.private_key_pem.write_to_path(paths["key"])
    paths["none"].write_text("not a certificate")
    return {name: str(path) for name, path in paths.items()}


@pytest.fixture(autouse=True)
def _nothing_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tls, "_warned", set())
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "no root"))
    monkeypatch.delenv("RELMSG_REQUIRE_TLS", raising=False)


WRONG_DATABASE = {
    "sslmode=verify-ful": "verify-full",
    "ssl=yes": "verify-full",
    "sslmode=verify-full": "sslrootcert",
    "sslmode=verify-ca": "sslrootcert",
    "sslmode=verify-full&sslrootcert={missing}": "No such file",
    "sslmode=verify-full&sslrootcert={none}": "PEM",
    "sslrootcert={missing}": "No such file",
    "sslmode=prefer&sslrootcert={ca}": "uses no certificate",
    "sslmode=disable&sslcert={cert}&sslkey={key}": "uses no certificate",
    "sslmode=require&sslkey={key}": "sslkey without sslcert",
    "sslmode=require&sslcert={cert}&sslkey={missing}": "No such file",
    "sslmode=require&sslcert={cert}&sslkey={none}": "PEM",
    "sslmode=verify-full&sslrootcert={ca}&sslcrl={missing}": "No such file",
    "sslmod=verify-full": "did you mean sslmode",
    "SSLMODE=verify-full": "did you mean sslmode",
    "sslmode=verify-full&sslrootcrt={ca}": "did you mean sslrootcert",
    "sslmode=verify-full&sslrootcert={ca}&sslrootcert=system": "twice",
    "sslmode=verify-full&sslmode=disable": "twice",
}


@pytest.mark.parametrize(("query", "told"), WRONG_DATABASE.items(), ids=[*WRONG_DATABASE])
def test_a_wrong_word_about_tls_in_the_databases_url_is_a_settings_error(
    files: dict[str, str], query: str, told: str
) -> None:
    """Neither a mode that does not exist, nor a file that is missing or holds something else, gets to a connection."""
    url = f"{DATABASE}?{query.format(**files)}"
    for make in (lambda: Settings.load({"database_url": url}, {}), lambda: create_engine(url)):
        with pytest.raises(SettingsError, match=told) as caught:
            make()
        assert "hunter2" not in str(caught.value)


WRONG_BROKER = {
    "cafile={missing}": "No such file",
    "cafile={none}": "PEM",
    "capath={missing}": "directory",
    "cafile={ca}&certfile={missing}": "No such file",
    "cafile={ca}&certfile={cert}&keyfile={none}": "PEM",
    "cafile={ca}&keyfile={key}": "keyfile without certfile",
    "cafle={ca}": "did you mean cafile",
    "ca_file={ca}": "did you mean cafile",
    "CAFILE={ca}": "did you mean cafile",
    "cafile={ca}&cafile={cert}": "twice",
    "cafile={ca}&certifle={cert}": "did you mean certfile",
    "verify_ssl=1": "did you mean no_verify_ssl",
    "no_verify=1": "did you mean no_verify_ssl",
    "no_verify_ssl=false": "1 or 0",
    "no_verify_ssl=off": "1 or 0",
    "no_verify_ssl=": "1 or 0",
}


@pytest.mark.parametrize(("query", "told"), WRONG_BROKER.items(), ids=[*WRONG_BROKER])
def test_a_missing_certificate_in_the_brokers_url_is_a_settings_error(
    files: dict[str, str], query: str, told: str
) -> None:
    """It is told when the URL is given, and not when a connection fails."""
    for make in (amqp_urls, lambda url: Settings.load({"amqp_url": url}, {})):
        with pytest.raises(SettingsError, match=told) as caught:
            make(f"{BROKER}?{query.format(**files)}")
        assert "hunter2" not in str(caught.value)


def test_a_certificate_for_a_plain_connection_is_refused(files: dict[str, str]) -> None:
    """Who names a CA and writes amqp:// would believe to be safe."""
    with pytest.raises(SettingsError, match="plain"):
        amqp_urls(f"amqp://mq.example/?cafile={files['ca']}")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "sslmode=disable",
        "sslmode=prefer",
        "sslmode=require",
        "sslmode=require&sslrootcert={ca}",
        "sslmode=verify-ca&sslrootcert={ca}",
        "sslmode=verify-full&sslrootcert=system",
        "sslrootcert={ca}&sslcert={cert}&sslkey={key}",
    ],
)
def test_what_libpq_knows_is_taken(files: dict[str, str], query: str) -> None:
    """Every mode, and files where they are used."""
    url = f"{DATABASE}?{query.format(**files)}"
    assert Settings.load({"database_url": url}, {}).database() == url
    create_engine(url)


HERE = ["127.0.0.1", "127.8.8.8", "localhost", "[::1]", "relay.localhost"]
THERE = ["10.0.0.7", "db.example", "[2001:db8::1]", "localhost.example", "0.0.0.0"]


@pytest.mark.parametrize("host", THERE)
def test_a_plain_connection_to_another_machine_is_warned_of_once(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Once a process and place, for the database and for the broker."""
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            create_engine(f"postgresql+asyncpg://user:hunter2@{host}/orders")
            Connection([f"amqp://user:hunter2@{host}/"])
    assert len(caplog.messages) == 2
    assert all(host.strip("[]") in message and "encrypted" in message for message in caplog.messages)
    assert "hunter2" not in caplog.text


@pytest.mark.parametrize("host", HERE)
def test_the_loopback_may_be_plain(
    host: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not leave the machine is neither warned of nor refused."""
    monkeypatch.setenv("RELMSG_REQUIRE_TLS", "on")
    create_engine(f"postgresql+asyncpg://user@{host}/orders")
    create_engine("postgresql+asyncpg://user@/orders?host=/var/run/postgresql")
    Connection([f"amqp://user@{host}/"])
    assert caplog.messages == []


@pytest.mark.parametrize("query", ["", "?dsn=postgresql://db.example/orders"])
def test_a_host_that_the_url_does_not_name_is_told_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    """Where the driver takes the host from the environment or from another part, that one counts."""
    url = f"postgresql+asyncpg://user:hunter2@/orders{query}"
    monkeypatch.setenv("PGHOST", "127.0.0.1" if query else "localhost,db.example")
    create_engine(url)
    assert "db.example" in caplog.text
    monkeypatch.setenv("RELMSG_REQUIRE_TLS", "on")
    with pytest.raises(SettingsError, match=r"db\.example"):
        create_engine(url)


@pytest.mark.parametrize("mode", ["", "?sslmode=disable", "?sslmode=allow", "?sslmode=prefer"])
@pytest.mark.parametrize("host", THERE)
def test_require_tls_refuses_what_may_be_plain(monkeypatch: pytest.MonkeyPatch, host: str, mode: str) -> None:
    """RELMSG_REQUIRE_TLS=on holds for settings, engines and connections of the library, for each of the hosts."""
    database = f"postgresql+asyncpg://user:hunter2@{host}/orders{mode}"
    broker = f"amqp://user:hunter2@127.0.0.1,{host}/"
    environment = {"RELMSG_REQUIRE_TLS": "on", "RELMSG_DATABASE_URL": database, "RELMSG_AMQP_URL": broker}
    with pytest.raises(SettingsError, match=r"PostgreSQL at .*RabbitMQ at ") as caught:
        Settings.load({}, environment)
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("RELMSG_REQUIRE_TLS", "on")
    with pytest.raises(SettingsError, match="PostgreSQL at"):
        create_engine(database)
    with pytest.raises(SettingsError, match="RabbitMQ at"):
        Connection(amqp_urls(broker))


def test_require_tls_takes_what_is_encrypted(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """amqps:// and sslmode=require or stricter are enough."""
    monkeypatch.setenv("RELMSG_REQUIRE_TLS", "on")
    Connection(amqp_urls(BROKER))
    for query in ("sslmode=require", f"sslrootcert={files['ca']}", f"sslmode=verify-ca&sslrootcert={files['ca']}"):
        create_engine(f"{DATABASE}?{query}")


def test_a_wrong_word_for_require_tls_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch that is neither on nor off must not pass for off."""
    monkeypatch.setenv("RELMSG_REQUIRE_TLS", "yes please")
    with pytest.raises(SettingsError, match="RELMSG_REQUIRE_TLS is not on"):
        Connection(["amqp://127.0.0.1/"])


def test_a_url_may_stand_in_a_file(tmp_path: Path) -> None:
    """Its last line end is not part of it, and it is read anew each time it is asked for."""
    file = tmp_path / "url"
    file.write_text(f"{DATABASE}\n")
    settings = Settings.load({}, {"RELMSG_DATABASE_URL_FILE": str(file)})
    assert settings.database() == DATABASE
    file.write_text(DATABASE.replace("hunter2", "hunter3"))
    assert settings.database() == DATABASE.replace("hunter2", "hunter3")
    assert "hunter" not in repr(settings)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"mysql://user:hunter2@h/d", "postgresql"),
        (f"{DATABASE}\n{DATABASE}".encode(), "line"),
        (b"\xff\xfe", "UTF-8"),
        (b"postgresql://" + b"a" * 100_000, "too large"),
        (None, "No such file"),
    ],
)
def test_a_file_without_a_url_is_a_settings_error(tmp_path: Path, content: bytes | None, told: str) -> None:
    """It is told at the start, with the file's name and without its content."""
    file = tmp_path / "url"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=told) as caught:
        Settings.load({}, {"RELMSG_DATABASE_URL_FILE": str(file)})
    assert str(file) in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_url_and_its_file_together_are_refused(tmp_path: Path) -> None:
    """Which of the two would hold is nobody's guess; only a flag wins over a file."""
    file = tmp_path / "url"
    file.write_text(DATABASE)
    both = {"RELMSG_DATABASE_URL_FILE": str(file), "RELMSG_DATABASE_URL": DATABASE}
    with pytest.raises(SettingsError, match="leave one out"):
        Settings.load({}, both)
    flag = DATABASE.replace("orders", "others")
    settings = Settings.load({"database_url": flag}, {"RELMSG_DATABASE_URL_FILE": str(file)})
    assert settings.database() == flag
