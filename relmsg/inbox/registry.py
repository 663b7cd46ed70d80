"""Which handler gets which message; contradictions are refused when they are made."""

from __future__ import annotations

from relmsg.arguments import name_of
from relmsg.errors import HandlerRefused, UnknownType
from relmsg.inbox.handler import ANY_TYPE, Handler


class Registry:
    """The handlers of an inbox, by queue and type."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, str], Handler] = {}

    @property
    def queues(self) -> list[str]:
        """The queues to be consumed, in the order in which they were first named."""
        return list(dict.fromkeys(queue for queue, _ in self._handlers))

    @property
    def consumers(self) -> set[str]:
        """The names under which these handlers' messages are remembered."""
        return {each.consumer for each in self._handlers.values()}

    def add(self, handler: Handler) -> None:
        """Register a handler.

        :raises HandlerRefused: its queue and type have one already, or a message that reaches two queues would be taken
            for a duplicate on the second (reliability C1).
        """
        taken = self._handlers.get((handler.queue, handler.type))
        if taken is not None:
            raise HandlerRefused(
                f"handler {_name(handler)}: messages of type {handler.type!r} from queue {handler.queue!r} go to "
                f"{_name(taken)} already; a type has one handler a queue"
            )
        for other in self._handlers.values():
            overlap = handler.type == other.type or ANY_TYPE in (handler.type, other.type)
            if overlap and other.queue != handler.queue and other.consumer == handler.consumer:
                raise HandlerRefused(
                    f"handler {_name(handler)}: {_name(other)} takes type {other.type!r} from queue {other.queue!r} as "
                    f"the same consumer {handler.consumer!r}; a message that comes through both queues would take "
                    f'effect in one of them only: name another one, such as consumer="{handler.consumer}.'
                    f'{handler.queue}"'
                )
        self._handlers[handler.queue, handler.type] = handler

    def largest_group(self, queue: str) -> int:
        """How many messages the handlers of a queue may have in one transaction; 0 if it has none."""
        return max((each.group for each in self._handlers.values() if each.queue == queue), default=0)

    def find(self, queue: str, type_: str | None) -> Handler:
        """The handler for a message.

        :raises UnknownType: no handler takes this type from this queue.
        """
        found = self._handlers.get((queue, type_ or "")) or self._handlers.get((queue, ANY_TYPE))
        if found is not None:
            return found
        known = ", ".join(sorted(repr(type_) for of, type_ in self._handlers if of == queue))
        what = f"the message type {type_!r}" if type_ else "a message without a type"
        raise UnknownType(f"no handler takes {what} from queue {queue!r}; there are handlers for {known}")


def _name(handler: Handler) -> str:
    return name_of(handler.function)
