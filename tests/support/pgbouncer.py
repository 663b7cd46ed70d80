"""A PgBouncer of a test's own before PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from sqlalchemy import make_url

from compose.services.ports import free_ports
from compose.services.programs import find_pgbouncer
from relmsg.testing import eventually
from tests.support.processes import Processes


@contextlib.asynccontextmanager
async def pgbouncer(database_url: str, *, mode: str = "transaction") -> AsyncIterator[str]:
    """The URL of the same database through a PgBouncer that lends two server connections in turn."""
    program = await asyncio.to_thread(find_pgbouncer, print)
    url = make_url(database_url)
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="relmsg-pgbouncer-") as directory:
        config, users = Path(directory) / "pgbouncer.ini", Path(directory) / "users.txt"
        users.write_text(f'"{url.username}" "{url.password}"\n')
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={url.port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
            f"listen_port = {port}\nunix_socket_dir =\nauth_type = plain\nauth_file = {users}\n"
            f"pool_mode = {mode}\ndefault_pool_size = 2\nmax_client_conn = 200\n"
        )
        command = [str(program), str(config)]
        if os.geteuid() == 0:  # it refuses to run as root
            nobody = pwd.getpwnam("nobody")
            os.chmod(directory, 0o755)  # noqa: PTH101 - ruff would have asynchronous files
            command = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", *command]
        async with Processes() as processes:
            server = await processes.start(*command)

            async def answers() -> None:
                assert server.returncode is None, server.stderr
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                except OSError as error:
                    raise AssertionError(server.stderr) from error
                writer.close()

            await eventually(answers, within=20)
            yield url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
