"""Environment variables: those that tell a process of the services, and those that the servers must not see."""

from __future__ import annotations

import os

DATABASE_URL = "RELMSG_DATABASE_URL"
AMQP_URL = "RELMSG_AMQP_URL"
MANAGEMENT_URL = "RELMSG_MANAGEMENT_URL"
MARIADB_URL = "RELMSG_MARIADB_URL"
STATE = "RELMSG_LOCAL_STATE"
CACHE = "RELMSG_LOCAL_CACHE"

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Debian's own programs, root's too


def for_servers() -> dict[str, str]:
    """Ours, without what would steer PostgreSQL, RabbitMQ or Erlang elsewhere, and without relmsg's own."""
    steering = ("PG", "RABBITMQ_", "ERL_", "RELMSG_", "NOTIFY_SOCKET")
    return {name: value for name, value in os.environ.items() if not name.startswith(steering)}
