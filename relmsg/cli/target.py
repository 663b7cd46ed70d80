"""`module:name` on the command line: from that text to the object of the user's program."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from relmsg.errors import ImportTargetError
from relmsg.exceptions import text_of, type_name

T = TypeVar("T")


def load_target(target: str, kind: type[T]) -> T:
    """The object at ``module:name``, which is to be a ``kind``; a name may have dots. The module is imported, with the
    current directory before everything else on ``sys.path``.

    :raises ImportTargetError: in one line, what was not found, and what may have been meant.
    """
    module_name, colon, path = target.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise ImportTargetError(f"{target!r} is not module:name, such as shop.messaging:{kind.__name__.lower()}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _module(module_name)
    walked = module_name
    for part in path.split("."):
        if not hasattr(found, part):
            raise ImportTargetError(f"there is no {part!r} in {walked}{_meant(part, _names(found, kind))}")
        found = getattr(found, part)
        walked += f".{part}"
    if not isinstance(found, kind):
        others = _names(sys.modules[module_name], kind, strictly=True)
        hint = f"; {module_name} has {', '.join(others)}" if others else ""
        raise ImportTargetError(f"{target} is of type {type(found).__name__}, not {kind.__name__}{hint}")
    return found


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ImportTargetError(
                f"there is no module {missing!r} here (in {Path.cwd()}){_meant(missing, _siblings(missing))}"
            ) from error
        raise ImportTargetError(f"module {name!r} cannot be imported: {text_of(error)}{_place(error)}") from error
    except (Exception, SystemExit) as error:
        raise ImportTargetError(
            f"module {name!r} cannot be imported: {type_name(error)}: {text_of(error)}{_place(error)}"
        ) from error


def _siblings(name: str) -> Iterable[str]:
    """The modules that stand beside where this one was looked for."""
    parent, _, _ = name.rpartition(".")
    if not parent:
        return {each.name for each in pkgutil.iter_modules()}
    path = getattr(sys.modules.get(parent), "__path__", [])
    return {f"{parent}.{each.name}" for each in pkgutil.iter_modules(path)}


def _names(owner: object, kind: type, *, strictly: bool = False) -> list[str]:
    fitting = [name for name, value in sorted(vars(owner).items()) if isinstance(value, kind)]
    return fitting if fitting or strictly else [name for name in dir(owner) if not name.startswith("_")]


def _place(error: BaseException) -> str:
    """The line of the user's program at which the import broke."""
    frames = [each for each in traceback.extract_tb(error.__traceback__) if "importlib" not in each.filename]
    last = frames[-1] if frames else None
    return f" ({last.filename}:{last.lineno})" if last and last.filename != __file__ else ""


def _meant(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {near[0]}?" if near else ""
