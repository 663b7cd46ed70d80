"""`relmsg db`: relmsg's tables in the database."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from relmsg import migrate
from relmsg.cli import options, output, progress
from relmsg.database import create_engine
from relmsg.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create relmsg's tables, bring them up to date, check them.")


@app.command()
def upgrade(
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
) -> None:
    """Create the tables, or bring them to this version, while everything runs. Nothing is done where nothing is to do.

    Stopped half way, it is gone on with by the next call.
    """
    settings = options.settings(database_url=database_url, schema=schema, config=config)
    with progress.bar() as bar:

        def tell(index: str, share: float) -> None:
            bar.tell(f"building index {index}", share)

        applied = asyncio.run(migrate.upgrade(settings.database(), settings.schema, tell))
    done = f"applied {', '.join(applied)}" if applied else "is up to date"
    output.write(f"schema {settings.schema}: {done}")


@app.command()
def sql(
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="REVISION", show_default=False, help="For a database at this revision, not an empty one."
        ),
    ] = None,
    schema: options.Schema = None,
    config: options.Config = None,
) -> None:
    """Print what `upgrade` does to an empty database, as plain SQL; needs no database."""
    sys.stdout.write(migrate.sql(options.settings(schema=schema, config=config).schema, since))


@app.command()
def check(
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Compare the tables with what this version needs: one line a difference, and exit code 1 if there is any."""
    settings = options.settings(database_url=database_url, schema=schema, config=config)
    differences = asyncio.run(_differences(settings))
    if json:
        output.emit([{"difference": each} for each in differences], json, ["difference"])
    elif differences:
        for each in differences:
            output.write(output.printable(each))
    else:
        output.write(f"schema {settings.schema} is as it should be")
    if differences:
        raise typer.Exit(1)


async def _differences(settings: Settings) -> list[str]:
    engine = create_engine(settings.database())
    try:
        return await migrate.check(engine, settings.schema)
    finally:
        await engine.dispose()
