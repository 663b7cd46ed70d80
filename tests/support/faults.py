"""A PostgreSQL that refuses chosen statements of a process, with one SQLSTATE after another.

The process has a login of its own, under row security: a policy calls a function, which raises where the text of the
running statement is like a pattern. So a SELECT can be refused as well as a write. How many codes were raised is
counted by a sequence, which no rollback sets back.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine

from relmsg.testing import eventually

# PostgreSQL documentation, appendix A: all codes of the classes that a server tells of its own state with.
CLASSES = {
    "08": "000 001 003 004 006 007 P01",
    "25": "000 001 002 003 004 005 006 007 008 P01 P02 P03 P04",
    "40": "000 001 002 003 P01",
    "53": "000 100 200 300 400",
    "55": "000 006 P02 P03 P04",
    "57": "000 014 P01 P02 P03 P04 P05",
    "58": "000 030 P01 P02 P03",
    "XX": "000 001 002",
}
CODES = [class_ + rest for class_, codes in CLASSES.items() for rest in codes.split()]
TABLES = (
    "outbox_message",
    "outbox_slot",
    "outbox_relay",
    "half_message",
    "inbox_message",
    "inbox_attempt",
    "inbox_window",
)
PAGE = Path(__file__).resolve().parents[2] / "docs/operations.md"

ARM = """
CREATE SCHEMA fault;
CREATE TABLE fault.armed (pattern text, codes text[]);
CREATE SEQUENCE fault.taken;
CREATE FUNCTION fault.pass() RETURNS boolean LANGUAGE plpgsql STABLE SECURITY DEFINER AS $$
DECLARE armed fault.armed; number int;
BEGIN
    SELECT * INTO armed FROM fault.armed;
    IF armed.pattern IS NULL OR current_query() NOT LIKE armed.pattern THEN RETURN true; END IF;
    number := nextval('fault.taken');
    IF number > cardinality(armed.codes) THEN RETURN true; END IF;
    RAISE EXCEPTION 'refused by a test' USING ERRCODE = armed.codes[number];
END $$;
GRANT USAGE ON SCHEMA fault TO {role};
GRANT EXECUTE ON FUNCTION fault.pass() TO {role};
"""


class Faults:
    """Refuses statements of one login. ``url`` is that login's."""

    def __init__(self, engine: AsyncEngine, url: str, role: str) -> None:
        self._engine = engine
        self.url = url
        self.role = role

    async def arm(self, pattern: str, codes: list[str] | None = None) -> None:
        """From now on a statement whose text is like ``pattern`` is refused, as often as there are codes."""
        await self.execute("TRUNCATE fault.armed; SELECT setval('fault.taken', 1, false)")
        async with self._engine.begin() as connection:
            await connection.execute(
                text("INSERT INTO fault.armed VALUES (:pattern, :codes)"),
                {"pattern": pattern, "codes": CODES if codes is None else codes},
            )

    async def disarm(self) -> None:
        """Refuse nothing more."""
        await self.execute("TRUNCATE fault.armed")

    async def spent(self, *, within: float = 60.0) -> None:
        """Wait until every code was raised, and the statement was let through after that."""

        async def check() -> None:
            async with self._engine.connect() as connection:
                taken = await connection.scalar(text("SELECT last_value FROM fault.taken"))
                codes = await connection.scalar(text("SELECT cardinality(codes) FROM fault.armed"))
            assert taken is not None
            assert taken > (codes or 0), f"{taken} of {codes} were raised"

        await eventually(check, within=within, every=0.1)

    async def execute(self, statements: str) -> None:
        """Run statements as the owner of everything."""
        async with self._engine.begin() as connection:
            for statement in re.split(r";\n|; ", statements):
                if statement.strip():
                    await connection.exec_driver_sql(statement)


@asynccontextmanager
async def faults(engine: AsyncEngine, database_url: str) -> AsyncIterator[Faults]:
    """A login with the relay's grants of docs/operations.md, whose statements can be refused."""
    role = f"relay_{secrets.token_hex(4)}"
    (grants,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    lines = [re.sub(r" TO .*", f" TO {role};", line) for line in grants.splitlines() if re.search(r"\brelay[,;]", line)]
    url = make_url(database_url).set(username=role, password="secret").render_as_string(hide_password=False)
    made = Faults(engine, url, role)
    try:
        await made.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'secret'")
        await made.execute("\n".join(lines) + "\n")
        async with engine.begin() as connection:
            # One by one: the function has semicolons of its own.
            head, function, tail = ARM.format(role=role).partition("CREATE FUNCTION")
            body, end, grant = tail.partition("END $$;")
            for statement in (*head.split(";\n"), function + body + end, *grant.split(";\n")):
                if statement.strip():
                    await connection.exec_driver_sql(statement)
            for table in TABLES:
                await connection.exec_driver_sql(f"ALTER TABLE relmsg.{table} ENABLE ROW LEVEL SECURITY")
                await connection.exec_driver_sql(
                    f"CREATE POLICY fault ON relmsg.{table} USING (fault.pass()) WITH CHECK (fault.pass())"
                )
        yield made
    finally:
        await made.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
