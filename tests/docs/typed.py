"""The programs of the documentation as files, for a type checker.

A page's python blocks share a namespace, so they are one module; what a bash block writes by a here-document is another
one, under the name that it has there.
"""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^(?P<indent> *)```python\n(?P<code>.*?)^ *```$", re.DOTALL | re.MULTILINE)
WRITTEN = re.compile(r"^cat > (?P<name>\w+\.py) <<'PYTHON'\n(?P<code>.*?)^PYTHON$", re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"#\s*(?P<name>\w+\.py)\s*\n")


def write(directory: Path) -> list[Path]:
    """Write each page's programs into a directory of its own; the files, in the order of the pages."""
    written: list[Path] = []
    for page in PAGES:
        text = page.read_text()
        here = directory / page.stem.lower()
        here.mkdir(parents=True, exist_ok=True)
        blocks = [_plain(found["code"], found["indent"]) for found in BLOCK.finditer(text)]
        modules = {found["name"]: found["code"] for found in WRITTEN.finditer(text)}
        for block in blocks:
            if named := NAMED.match(block):
                modules[named["name"]] = block
        unnamed = any(NAMED.match(block) is None for block in blocks)
        if unnamed:
            body = "\n".join(blocks)
            name = f"page_{page.stem.lower().replace('-', '_')}.py"
            modules[name] = f"async def page() -> None:\n{textwrap.indent(body, '    ')}"  # its blocks await
        for name, code in modules.items():
            (here / name).write_text(code)
            written.append(here / name)
    return written


def _plain(code: str, indent: str) -> str:
    return "".join(line.removeprefix(indent) for line in code.splitlines(keepends=True))
