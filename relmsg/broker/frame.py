"""The frames of AMQP 0-9-1 (4.2.3): type, channel, size, payload, and an octet that never varies."""

from __future__ import annotations

import struct
from typing import Final

METHOD: Final = 1
HEADER: Final = 2
BODY: Final = 3
HEARTBEAT: Final = 8

HEAD: Final = struct.Struct(">BHI")
"""Type, channel, and the size of the payload."""
END: Final = b"\xce"
END_OCTET: Final = END[0]
OVERHEAD: Final = HEAD.size + len(END)
"""What a frame takes beside its payload."""
