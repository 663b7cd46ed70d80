"""A PostgreSQL and a RabbitMQ of one's own that speak TLS, with certificates of a CA that nobody else knows."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme
from sqlalchemy import make_url

from compose.local import Services
from compose.services.ports import free_ports


@dataclass(frozen=True)
class Secured:
    """URLs without a query, and the files to name there. The servers' certificates are for ``localhost``."""

    services: Services
    database_url: str
    amqp_url: str
    ca: Path
    certificate: Path
    key: Path
    other_ca: Path


def secure(services: Services, directory: Path) -> Secured:
    """Have both servers, which are running and ours alone, speak TLS: PostgreSQL on its port, RabbitMQ on a second one.

    RabbitMQ asks each client for a certificate and refuses one of another CA; PostgreSQL takes nothing plain.
    """
    ca, other = trustme.CA(), trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("relay@example.org", common_name="relay")
    paths = {name: directory / f"{name}.pem" for name in ("ca", "certificate", "key", "other_ca")}
    ca.cert_pem.write_to_path(paths["ca"])
    other.cert_pem.write_to_path(paths["other_ca"])
    client.cert_chain_pems[0].write_to_path(paths["certificate"])
    client.private_key_pem.write_to_path(paths["key"])
    assert services.state_file is not None
    state: Any = json.loads(services.state_file.read_text())
    port = _rabbitmq(services, Path(state["rabbitmq"]["home"]), ca, server)
    _postgres(services, Path(state["postgres"]["data"]), ca, server)
    amqp = services.amqp_url.rpartition("@")[0].replace("amqp://", "amqps://")
    return Secured(
        services,
        make_url(services.database_url).set(host="localhost").render_as_string(hide_password=False),
        f"{amqp}@localhost:{port}/",
        **paths,
    )


def _rabbitmq(services: Services, home: Path, ca: trustme.CA, server: trustme.LeafCert) -> int:
    (port,) = free_ports(1)
    files = {"cacertfile": ca.cert_pem, "certfile": server.cert_chain_pems[0], "keyfile": server.private_key_pem}
    for name, blob in files.items():
        blob.write_to_path(home / f"{name}.pem")
        shutil.chown(home / f"{name}.pem", home.stat().st_uid, home.stat().st_gid)
    lines = [f"ssl_options.{name} = {home / name}.pem" for name in files]
    lines += ["ssl_options.verify = verify_peer", "ssl_options.fail_if_no_peer_cert = true"]
    services.stop_rabbitmq()
    with (home / "rabbitmq.conf").open("a") as conf:
        conf.write("\n".join([f"listeners.ssl.default = 127.0.0.1:{port}", *lines, ""]))
    services.start_rabbitmq()
    return port


def _postgres(services: Services, data: Path, ca: trustme.CA, server: trustme.LeafCert) -> None:
    files = {"root.crt": ca.cert_pem, "server.crt": server.cert_chain_pems[0], "server.key": server.private_key_pem}
    for name, blob in files.items():
        blob.write_to_path(data / name)
        (data / name).chmod(0o600)
        shutil.chown(data / name, data.stat().st_uid, data.stat().st_gid)
    services.stop_postgres()
    with (data / "postgresql.conf").open("a") as conf:
        conf.write("ssl = on\nssl_ca_file = 'root.crt'\n")
    hba = data / "pg_hba.conf"
    rules = hba.read_text().replace("host ", "hostssl ").replace("host\t", "hostssl\t")
    hba.write_text(rules)
    services.start_postgres()
