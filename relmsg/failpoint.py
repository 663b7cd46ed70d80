"""Named points at which a test may end, stop or fail the process.

``RELMSG_FAILPOINTS="relay.after_read=kill@3"`` ends the process by SIGKILL the third time it comes by. Several points
are separated by commas. Actions: ``kill`` (SIGKILL to itself), ``raise`` (FailpointReached), ``stop`` (SIGSTOP to
itself). Without the variable a point costs one lookup in an empty dict.

Every point is registered here, so that a test can go through all of them and none stays untested.
"""

from __future__ import annotations

import os
import re
import signal

from relmsg.errors import RelmsgError, SettingsError

FAILPOINTS: dict[str, str] = {
    "relay.after_read": "rows are read, nothing is sent",
    "publish.half_of_frames": "half of a batch is in the socket",
    "publish.after_last_frame": "a whole batch is in the socket, no confirm awaited yet",
    "publish.after_first_confirm": "the broker has answered for the first message of a batch",
    "publish.after_all_confirms": "the broker has answered for a whole batch",
    "relay.before_delete": "the batch is confirmed, its rows are not yet deleted",
    "relay.after_delete": "the delete of a batch has been committed",
    "half.after_prepare": "a half message is confirmed, the local work has not begun",
    "half.before_commit": "the local work is done, the commit is not sent",
    "half.after_commit": "the broker has confirmed a commit, no coordinator has answered yet",
    "coordinator.before_statement": "a delivery is read, nothing of it is in the database",
    "coordinator.after_statement": "what it wanted is committed, the producer is not told and the delivery not acked",
    "coordinator.after_ack": "the ack of a delivery is on its way",
    "coordinator.after_claim": "checks are claimed in the database, none is sent",
    "coordinator.after_checks": "the broker has answered for the checks of one look",
    "consumer.before_inbox_row": "a transaction is open, the inbox row is not yet written",
    "consumer.inside_group": "half of a group's handlers have finished, or its list handler; nothing is committed",
    "consumer.before_commit": "the handler has finished, nothing is committed",
    "consumer.after_commit": "the effect is committed, the delivery is not acked",
    "consumer.after_ack": "the ack is on its way: it is written within 20 ms",
}

ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "raise": None}


class FailpointReached(RelmsgError):
    """A failpoint set to `raise` was reached."""


def parse(text: str) -> dict[str, tuple[str, int]]:
    """Read ``name=action@count,…``; the count defaults to 1.

    :raises SettingsError: for a name or an action that does not exist.
    """
    armed: dict[str, tuple[str, int]] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = item.partition("=")
        action, _, count = rest.partition("@")
        if name not in FAILPOINTS or action not in ACTIONS or not re.fullmatch("[1-9][0-9]{0,8}", count or "1"):
            raise SettingsError(
                f"RELMSG_FAILPOINTS: {item!r} is not name=action@count; names: {', '.join(FAILPOINTS)}; "
                f"actions: {', '.join(ACTIONS)}"
            )
        armed[name] = (action, int(count or 1))
    return armed


_armed: dict[str, tuple[str, int]] | None = None


def arm() -> dict[str, tuple[str, int]]:
    """Read the environment, once; otherwise the first point that is passed does so.

    :raises SettingsError: RELMSG_FAILPOINTS is malformed.
    """
    global _armed
    if _armed is None:
        _armed = parse(os.environ.get("RELMSG_FAILPOINTS", ""))
    return _armed


def reach(name: str) -> None:
    """Pass the point ``name``; does nothing unless the point is armed and its count is reached."""
    armed = arm() if _armed is None else _armed
    if name not in armed:
        return
    action, left = armed[name]
    if left > 1:
        armed[name] = (action, left - 1)
        return
    del armed[name]
    sent = ACTIONS[action]
    if sent is None:
        raise FailpointReached(f"failpoint {name} reached")
    os.kill(os.getpid(), sent)
