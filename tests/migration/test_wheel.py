"""What is installed from a wheel can migrate."""

from __future__ import annotations

import asyncio
import os
import sys
import zipfile
from pathlib import Path

from relmsg import migrate

ROOT = Path(__file__).parents[2]


async def run(*arguments, **options):
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, **options
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, (output + errors).decode()
    return output.decode()


async def test_an_installed_wheel_upgrades(tmp_path, empty_url, empty_engine):
    """The wheel holds the migrations inside the package, nothing beside it, and upgrades from there."""
    await run("-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    (wheel,) = tmp_path.glob("relmsg-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"relmsg"}
    assert {"relmsg/migrations/env.py", "relmsg/migrations/versions/0001_outbox_and_inbox.py"} <= set(names)
    assert not [name for name in names if "__pycache__" in name]

    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "RELMSG_DATABASE_URL": empty_url}
    found = await run("-c", "from relmsg import migrate; print(migrate.location())", env=environ, cwd=tmp_path)
    assert found.strip() == str(tmp_path / "site" / "relmsg" / "migrations")
    assert await run("-m", "relmsg.cli.main", "db", "upgrade", env=environ, cwd=tmp_path) == (
        "schema relmsg: applied 0001, 0002, 0003\n"
    )
    assert await migrate.check(empty_engine) == []
