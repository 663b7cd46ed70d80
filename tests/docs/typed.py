"""The programs of the documentation as files, for a type checker.

A page's python blocks share a namespace, so they are one module; what a bash block writes by a here-document is another
one. All are checked by one run of a checker, which reads the libraries once.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
WRITTEN = re.compile(r"^cat > (?P<name>\w+\.py) <<'PYTHON'\n(?P<code>.*?)^PYTHON$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"#\s*(?P<name>\w+\.py)\s*\n")


@dataclass
class Written:
    """The files. Their names begin with that of the page: two pages have a shop.py."""

    copied: list[Path] = field(default_factory=list)
    """What a reader copies as a file: a named block, or a here-document."""
    pages: list[Path] = field(default_factory=list)
    """The other blocks, one file a page, in the package ``pages``."""


def write(directory: Path) -> Written:
    """Write the programs of all pages below the directory."""
    written = Written()
    copied, pages = directory / "copied", directory / "pages"
    for each in (copied, pages):
        each.mkdir()
    (pages / "__init__.py").touch()
    for page in PAGES:
        text, name = page.read_text(), page.stem.lower().replace("-", "_")
        blocks = [_plain(found["code"], found["indent"]) for found in BLOCK.finditer(text)]
        modules = {found["name"]: found["code"] for found in WRITTEN.finditer(text)}
        for block in blocks:
            if named := NAMED.match(block):
                modules[named["name"]] = block
        for module, code in modules.items():
            written.copied.append(copied / f"{name}_{module}")
            written.copied[-1].write_text(_importing(code, modules, name))
        if any(NAMED.match(block) is None for block in blocks):
            written.pages.append(pages / f"{name}.py")
            body = textwrap.indent("\n".join(blocks), "    ")
            written.pages[-1].write_text(f"async def page() -> None:\n{body}")  # its blocks await
    return written


def _importing(code: str, modules: Iterable[str], page: str) -> str:
    """The code, which imports its page's other modules under the names that they have here."""
    for module in modules:
        stem = module.removesuffix(".py")
        code = re.sub(rf"^( *(?:from|import) )({stem})\b", rf"\1{page}_\2", code, flags=re.MULTILINE)
    return code


def _plain(code: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
