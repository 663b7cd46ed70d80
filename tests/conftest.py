"""Real services for every test: a database and a virtual host of its own.

The services are those of RELMSG_DATABASE_URL and RELMSG_AMQP_URL, as under `python compose/local.py run -- pytest`; a
plain `pytest` starts them once. If they cannot be had the tests fail: they never skip. Each worker of `pytest -n 2` has
a pair of its own, since there are tests that restart them: the first has those of the environment.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for compose.local and tests.support

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from compose.local import Services, ServicesError
from tests.support.broker import Broker
from tests.support.databases import Databases
from tests.support.processes import Processes
from tests.support.vhosts import VirtualHosts

# A machine that is busy is no fault of what is tested.
settings.register_profile("relmsg", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relmsg")

WORKERS = 2  # one waits while another computes: more would only be in each other's way on two cores


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """How many `-n auto` is. Of services that somebody else runs there is no second pair: one."""
    try:
        services = Services.from_environment()
    except ServicesError as error:
        raise pytest.UsageError(str(error)) from None
    return WORKERS if services is None or services.controlled else 1


@pytest.fixture(autouse=True)
def levels_of_loggers() -> Iterator[None]:
    """A command that is run in this process sets the levels of loggers, as it would in its own: give them back."""
    loggers = [logging.getLogger(name) for name in (None, "relmsg", "aiormq", "aio_pika", "pamqp", "asyncio")]
    levels = [each.level for each in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    """The PostgreSQL and RabbitMQ of this session. Restart them, stop them, ask rabbitmqctl: see compose/local.py."""
    services = Services.obtain(in_memory=True)
    if not services.owned and os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        services = services.another()
        services.start()
    with services:
        yield services


@pytest.fixture(scope="session")
def mariadb_url(services: Services) -> str:
    """A MariaDB in which one may make databases, started by the first test that asks for it."""
    return services.start_mariadb()


@pytest.fixture(scope="session")
def databases(services: Services) -> Iterator[Databases]:
    """Makes databases that have relmsg's tables, for tests that need more than one."""
    databases = Databases(services.database_url)
    asyncio.run(databases.migrate_template())
    yield databases
    asyncio.run(databases.drop_all())


@pytest.fixture
async def database_url(databases: Databases) -> AsyncIterator[str]:
    """A database of this test's own, with relmsg's tables in the schema ``relmsg``."""
    url = await databases.create()
    yield url
    await databases.drop(url)


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """An engine on this test's database, as an application has one."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    """Sessions on this test's database."""
    return async_sessionmaker(engine, expire_on_commit=False)


@pytest.fixture(scope="session")
def virtual_hosts(services: Services) -> Iterator[VirtualHosts]:
    """Makes virtual hosts, for tests that need more than one."""
    virtual_hosts = VirtualHosts(services)
    yield virtual_hosts
    virtual_hosts.delete_all()


@pytest.fixture
def amqp_url(virtual_hosts: VirtualHosts) -> str:
    """A virtual host of this test's own; if the broker was only given by URL, that URL."""
    return virtual_hosts.take()


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[Broker]:
    """A look into this test's virtual host with plain aiormq."""
    async with Broker(amqp_url) as broker:
        yield broker


@pytest.fixture
async def processes(database_url: str, amqp_url: str) -> AsyncIterator[Processes]:
    """Starts real `relmsg …` processes on this test's database and virtual host; none outlives the test."""
    named = {"RELMSG_DATABASE_URL": database_url, "RELMSG_AMQP_URL": amqp_url}
    async with Processes(named) as processes:
        yield processes
