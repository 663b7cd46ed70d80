"""Keys by their ids, so that they can be changed while messages are under way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol, TypeVar, cast

from relmsg.arguments import shown
from relmsg.errors import UsageError

KEY_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Key(Protocol):
    """A key of any kind."""

    @property
    def id(self) -> str:
        """The name that travels with the message: 1 to 64 letters, digits, dots, dashes and underscores."""
        ...


K = TypeVar("K", bound=Key)
K_co = TypeVar("K_co", bound=Key, covariant=True)


class KeyProvider(Protocol[K_co]):
    """Where keys come from. Implement it to read them from a vault; ``Keys`` holds a fixed list.

    Both methods are called for each message, on the event loop: keep keys in memory, and let a task of your own renew
    them.
    """

    def current(self) -> K_co:
        """The key for new messages."""
        ...

    def find(self, key_id: str) -> K_co | None:
        """The key with this id, also one that new messages do not use any more; None if there is none."""
        ...


class Keys(KeyProvider[K]):
    """A fixed list of keys. The first is for new messages, the others are for those still under way.

    To change a key: give the new one to all receivers as a second key, then to the senders as the first, and take the
    old one away when no message of it is left in queues, outboxes and error queues.

    :raises UsageError: there is no key, or two have one id.
    """

    def __init__(self, keys: Sequence[K]) -> None:
        if not keys:
            raise UsageError("give at least one key")
        self._keys = {key.id: key for key in keys}
        if len(self._keys) < len(keys):
            raise UsageError("two keys have the same id: a message names its key by that")
        self._current = keys[0]

    def current(self) -> K:
        """The first key."""
        return self._current

    def find(self, key_id: str) -> K | None:
        """The key with this id, if it is in the list."""
        return self._keys.get(key_id)


def provider(keys: K | Sequence[K] | KeyProvider[K]) -> KeyProvider[K]:
    """A provider out of one key, a list of keys, or a provider."""
    if isinstance(keys, Sequence):
        return Keys(keys)
    return cast("KeyProvider[K]", keys) if hasattr(keys, "current") else Keys([keys])


def checked_id(key_id: object) -> str:
    """A key's id, if it can be one.

    :raises UsageError: it cannot.
    """
    if not isinstance(key_id, str) or KEY_ID.fullmatch(key_id) is None:
        raise UsageError(f"a key's id is 1 to 64 letters, digits, dots, dashes or underscores, not {shown(key_id)}")
    return key_id


def require_cryptography(what: str) -> None:
    """Tell how to get the library that Ed25519 and AES need.

    :raises UsageError: it is not installed.
    """
    try:
        import cryptography  # noqa: F401 - an optional dependency, loaded by those who use it
    except ImportError as error:
        raise UsageError(f"{what} needs the library cryptography: pip install 'relmsg[crypto]'") from error
