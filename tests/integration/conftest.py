"""Fixtures that several integration tests share."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from compose.local import Services


@pytest.fixture
async def limited(services: Services) -> AsyncIterator[Any]:
    """Sets the broker's max_message_size, for channels that are opened from then on."""

    async def limit(size: int) -> None:
        await asyncio.to_thread(
            services.rabbitmqctl,
            "eval",
            f"application:set_env(rabbit, max_message_size, {size}), persistent_term:put(max_message_size, {size}).",
        )

    yield limit
    await limit(134_217_728)
