"""What is to be said of the few received messages that could not be read as they came."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Remarks:
    """The parts of a message that were left out or repaired, and whether it can be handled without them.

    ``altered`` names properties and headers, with ``(dropped)`` or ``(repaired)`` behind. ``fault`` is the error of
    what cannot be read; with one, the message must not be handled. ``cluster_id`` is a property few clients send.
    ``originals`` are the bytes of the properties that were repaired.
    """

    altered: list[str] = field(default_factory=list)
    fault: Exception | None = None
    cluster_id: str | None = None
    originals: dict[str, bytes] = field(default_factory=dict)

    def left_out(self, name: str, fault: Exception | None = None) -> None:
        """This part is missing from the message."""
        self.altered.append(f"{name} (dropped)")
        self.fault = self.fault or fault

    def repaired(self, name: str, fault: Exception, original: bytes) -> None:
        """This part is not as it came."""
        self.originals[name] = original
        self.altered.append(f"{name} (repaired)")
        self.fault = self.fault or fault
