"""What a long-running process says on stdout is there when it is said, also in a file or a container's log."""

from __future__ import annotations

from tests.support.processes import Processes


async def test_a_relay_says_that_it_works_while_it_works(processes: Processes) -> None:
    """Without PYTHONUNBUFFERED, the line comes before the end of the process."""
    relay = await processes.relmsg("relay", "--probes", "127.0.0.1:0", PYTHONUNBUFFERED="")
    assert await relay.line(r"relaying schema relmsg as .*, probes on port \d+")
    assert await relay.terminate() == 0
