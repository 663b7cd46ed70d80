"""Keys by their ids, so that they can be changed while messages are under way."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

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

    :raises UsageError: there is no key, one is no key, or two have one id.
    """

    def __init__(self, keys: Sequence[K]) -> None:
        listed = _listed("Keys(keys)", keys)
        self._keys = {key.id: key for key in listed}
        if len(self._keys) < len(listed):
            raise UsageError("two keys have the same id: a message names its key by that")
        self._current: K = listed[0]

    @property
    def all(self) -> tuple[K, ...]:
        """The keys, in no order."""
        return tuple(self._keys.values())

    def current(self) -> K:
        """The first key."""
        return self._current

    def find(self, key_id: str) -> K | None:
        """The key with this id, if it is in the list."""
        return self._keys.get(key_id)


def provider(name: str, keys: K | Sequence[K] | KeyProvider[K], does: str, hint: str) -> KeyProvider[K]:
    """A provider out of one key, a list of keys, or a provider.

    :param name: the argument, as its caller wrote it.
    :param does: the method that tells a key of the right kind: "sign", "verify", "encrypt".
    :param hint: which keys these are.
    :raises UsageError: it is none of these, or a key of another kind.
    """
    if not isinstance(keys, type) and all(callable(getattr(keys, each, None)) for each in ("current", "find")):
        if not isinstance(keys, Keys):
            return cast("KeyProvider[K]", keys)  # it may have to ask for them yet
        found: KeyProvider[K] = keys
        listed = keys.all
    else:
        listed = _listed(name, [keys] if isinstance(getattr(keys, "id", None), str) else keys)
        found = Keys(listed)
    for key in listed:
        if not hasattr(key, does):
            raise UsageError(f"{name}: a {type(key).__name__} cannot {does} here; give {hint}")
    return found


def _listed(name: str, keys: object) -> tuple[Any, ...]:
    """:raises UsageError: there is no key, or one is no key. The value is not shown: it may be the secret itself."""
    if isinstance(keys, str | bytes | bytearray | Mapping | type) or not isinstance(keys, Iterable):
        what = f"the class {keys.__name__}" if isinstance(keys, type) else f"a {type(keys).__name__}"
        raise UsageError(f"{name} is a key, a list of keys or a KeyProvider, not {what}")
    listed = tuple(keys)
    if not listed:
        raise UsageError(f"{name}: give at least one key")
    for key in listed:
        if isinstance(key, type) or not isinstance(getattr(key, "id", None), str):
            what = f"the class {key.__name__}" if isinstance(key, type) else f"a {type(key).__name__}"
            raise UsageError(f"{name} holds keys, such as HmacKey(id, secret), not {what}")
    return listed


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
