"""Every python and bash block of the README and of the pages in docs/ works as it stands."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.testing.eventually import eventually

sys.path.insert(0, str(Path(__file__).parent))

from pages import ROOT, Run, blocks

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def environment(database_url: str, amqp_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The two URLs, as a page finds them; probes on any free port, since many tests share this machine."""
    monkeypatch.setenv("RELMSG_DATABASE_URL", database_url)
    monkeypatch.setenv("RELMSG_AMQP_URL", amqp_url)
    monkeypatch.setenv("RELMSG_PROBES", "127.0.0.1:0")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.delenv("RELMSG_LOCAL_STATE", raising=False)
    return dict(os.environ)


@pytest.fixture
async def run(request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]) -> AsyncIterator[Run]:
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    monkeypatch.chdir(tmp_path)
    async with Run(request.param, tmp_path, environment) as run:
        yield run


@pytest.mark.parametrize(
    "run", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in PAGES if page != README], indirect=True
)
async def test_the_blocks_of_a_page_work_as_they_stand(run: Run) -> None:
    """A reader who copies the blocks of a page in their order gets what the page says."""
    for block in blocks(run.page):
        if block.reason is None:
            await run.block(block)


@pytest.mark.parametrize("run", [pytest.param(README, id="README.md")], indirect=True)
async def test_the_example_of_the_readme_has_its_effect_once(run: Run, engine: AsyncEngine) -> None:
    """The README's example, run as it stands, places an order that is paid once."""
    for block in blocks(run.page):
        if block.reason is None:
            await run.block(block)

    async def paid() -> None:
        async with engine.connect() as connection:
            assert (await connection.execute(text("SELECT id, payments FROM orders"))).all() == [(7, 1)]
            assert await connection.scalar(text("SELECT count(*) FROM relmsg.outbox_message")) == 0

    await eventually(paid, within=30)


def test_a_block_that_is_not_run_says_why() -> None:
    """Every block that is passed over has a reason, these are few, and in the README only what runs this very test."""
    every = [(page, block) for page in PAGES for block in blocks(page)]
    excused = [(page, block) for page, block in every if block.reason is not None]
    for page, block in excused:
        assert len(block.reason or "") >= 10, f"{page.name}:{block.line} gives no reason"
    assert len(excused) <= len(every) / 10, [f"{page.name}:{block.line}" for page, block in excused]
    of_readme = [block.code for page, block in excused if page == README]
    assert all(re.fullmatch(r"(make \w+.*\n)+", code) for code in of_readme), of_readme


def test_every_page_is_in_the_index() -> None:
    """Whoever opens docs/README.md finds every page."""
    index = (ROOT / "docs/README.md").read_text()
    missing = [page.name for page in PAGES[1:] if page.name != "README.md" and f"({page.name})" not in index]
    assert not missing


def test_links_between_the_pages_lead_somewhere() -> None:
    """A relative link names a file that is there."""
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
            if not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken
