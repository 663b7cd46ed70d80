"""The application of docs/inbox.md: FastAPI with an inbox in its lifespan, as a real process."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.testing import eventually
from tests.support.broker import Broker
from tests.support.processes import Process, Processes

PAGE = Path(__file__).resolve().parents[2] / "docs/inbox.md"


@pytest.fixture
async def directory(tmp_path: Path, engine: AsyncEngine) -> Path:
    """A directory with the page's billing.py and app.py, and the table they need."""
    page = PAGE.read_text()
    patterns = {
        "billing.py": r"```python\n(# billing\.py\n.*?)```",
        "app.py": r"cat > app\.py <<'PYTHON'\n(.*?)PYTHON\n",
    }
    for name, pattern in patterns.items():
        found = re.search(pattern, page, re.DOTALL)
        assert found, name
        (tmp_path / name).write_text(found[1])
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE payment (id int, total int)"))
    return tmp_path


async def serving(processes: Processes, directory: Path) -> Process:
    return await processes.python_with_relmsg("-m", "uvicorn", "app:app", "--port", "0", PYTHONPATH=str(directory))


async def get(url: str) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(ask)


async def test_the_application_consumes_while_it_serves(
    processes: Processes, directory: Path, broker: Broker, engine: AsyncEngine
) -> None:
    """It is live and ready, counts on its own /metrics, pauses visibly, and drains when it is stopped."""
    await broker.queue("billing.orders")
    application = await serving(processes, directory)
    url = (await application.line(r"Uvicorn running on (http://\S+)"))[1]
    assert await get(f"{url}/ready") == (200, '{"status":"ok"}')
    assert await get(f"{url}/live") == (200, '{"status":"ok"}')
    body = json.dumps({"id": 7, "total": 12}).encode()
    await broker.publish(body, routing_key="billing.orders", message_type="order.placed", message_id="1")

    async def paid() -> None:
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT id, total FROM payment"))).all() == [(7, 12)]
        _, metrics = await get(f"{url}/metrics")
        assert re.search(r'relmsg_consumer_deliveries_total\{.*outcome="handled".*\} 1\.0', metrics)
        assert "python_info" in metrics

    await eventually(paid, within=20)
    await broker.delete_queue("billing.orders")

    async def not_ready() -> None:
        status, verdict = await get(f"{url}/ready")
        assert status == 503
        assert "billing.orders" in verdict

    await eventually(not_ready, within=20)
    assert await application.terminate() in (0, -15)
    assert "Application shutdown complete" in application.stderr


async def test_the_application_does_not_start_without_its_queue(processes: Processes, directory: Path) -> None:
    """What keeps the inbox from consuming is told by the log, and the process ends."""
    application = await serving(processes, directory)
    assert await application.wait() != 0
    assert "QueueMissing" in application.stderr
    assert "billing.orders" in application.stderr
