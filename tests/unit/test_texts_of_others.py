"""Other people's ``__str__`` and ``__repr__`` are called through the functions that survive them, and nowhere else."""

from __future__ import annotations

import ast
import builtins
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import relmsg
from relmsg.errors import RelmsgError

ROOT = Path(relmsg.__file__).parent
READERS = {"exceptions.py"}  # the functions that may


def _modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.name not in READERS and "migrations" not in path.parts)


def test_the_text_of_an_exception_is_made_by_text_of_alone() -> None:
    """No module of relmsg formats an exception that is not one of relmsg's own, in a string or in a log line."""
    found = [f"{path.relative_to(ROOT)}:{line}: {name}" for path in _modules() for line, name in _formatted(path)]
    assert found == []


def test_no_log_line_has_logging_format_a_trace() -> None:
    """``log.exception`` and ``exc_info`` would call the ``__str__`` of an exception; ``trace_of`` is taken instead."""
    found = []
    for path in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                asks = {each.arg for each in node.keywords} & {"exc_info"}
                if asks or (node.func.attr == "exception" and getattr(node.func.value, "id", "") == "log"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


def test_the_repr_of_what_a_caller_gives_is_made_by_shown_alone() -> None:
    """No module of relmsg formats the repr of a value that could be of any type or is a function."""
    found = []
    for path in _modules():
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            given = {
                each.arg
                for each in (*function.args.args, *function.args.kwonlyargs)
                if each.annotation is not None and ast.unparse(each.annotation) in ("object", "Any", "Checker")
            }
            found += [
                f"{path.relative_to(ROOT)}:{node.lineno}: {name}"
                for node in ast.walk(function)
                if (name := _repr_of(node)) in given and not _is_of_known_type(function, name)
            ]
    assert found == []


def _repr_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.FormattedValue) and node.conversion == ord("r") and isinstance(node.value, ast.Name):
        return node.value.id
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "repr" and isinstance(node.args[0], ast.Name):
        return node.args[0].id
    return None


def _is_of_known_type(function: ast.AST, name: str | None) -> bool:
    """Whether the function looks at the exact type first: ``type(value) in PLAIN``."""
    return any(
        isinstance(node, ast.Compare) and ast.unparse(node.left) == f"type({name})" for node in ast.walk(function)
    )


def _formatted(path: Path) -> Iterator[tuple[int, str]]:
    """The places where a name that holds somebody else's exception becomes text."""
    module = ".".join((ROOT.name, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    names = vars(importlib.import_module(module)) if not module.endswith("__main__") else {}
    for scope in ast.walk(ast.parse(path.read_text())):
        for name, kinds in _exceptions_of(scope):
            if all(_is_ours(each, names) for each in kinds):
                continue
            body = getattr(scope, "body", [])
            for node in (each for statement in body for each in ast.walk(statement)):
                if _makes_text(node, name):
                    yield node.lineno, name


def _exceptions_of(scope: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """The names that hold an exception in it, and the classes it can be of."""
    if isinstance(scope, ast.ExceptHandler) and scope.name is not None and scope.type is not None:
        yield scope.name, _classes(scope.type)
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
        for argument in (*scope.args.args, *scope.args.kwonlyargs):
            if argument.annotation is not None:
                classes = _classes(argument.annotation)
                if any(each.endswith(("Exception", "Error")) for each in classes):
                    yield argument.arg, [each for each in classes if each != "None"]


def _classes(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Tuple):
        return [name for each in node.elts for name in _classes(each)]
    if isinstance(node, ast.BinOp):
        return _classes(node.left) + _classes(node.right)
    return [ast.unparse(node)]


def _is_ours(name: str, names: dict[str, Any]) -> bool:
    head, *rest = name.split(".")
    found = names.get(head, getattr(builtins, head, None))
    for part in rest:
        found = getattr(found, part, None)
    return isinstance(found, type) and issubclass(found, RelmsgError)


def _makes_text(node: ast.AST, name: str) -> bool:
    if isinstance(node, ast.FormattedValue):
        return isinstance(node.value, ast.Name) and node.value.id == name
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(node.right))
    if isinstance(node, ast.Call):
        function = node.func
        is_text = isinstance(function, ast.Name) and function.id in ("str", "repr", "format", "print")
        is_log = isinstance(function, ast.Attribute) and getattr(function.value, "id", "") == "log"
        is_format = isinstance(function, ast.Attribute) and function.attr == "format"
        if is_text or is_log or is_format:
            return any(isinstance(each, ast.Name) and each.id == name for each in node.args)
    return False
