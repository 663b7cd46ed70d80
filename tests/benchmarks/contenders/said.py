"""The contender's side of the protocol: say ready, wait for go, say what was measured, stay until told to end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any


async def when_told(measured: Callable[[], Awaitable[dict[str, Any] | None]]) -> None:
    """Run ``measured`` between "go" and the JSON line. What it returns is said beside the ``seconds`` it took; if it
    returns ``seconds`` itself, those count.
    """
    print("ready", flush=True)
    if (await asyncio.to_thread(sys.stdin.readline)).strip() != "go":
        return
    began = time.perf_counter()
    figures = await measured()
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds} | (figures or {})), flush=True)
    await asyncio.to_thread(sys.stdin.read)
