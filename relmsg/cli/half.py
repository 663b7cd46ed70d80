"""`relmsg half`: half messages that nobody has decided, and deciding them."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from uuid import UUID

import typer

from relmsg.cli import brief, options, output
from relmsg.errors import HalfUnknown, RelmsgError, UsageError
from relmsg.half.desk import Desk, Standing, half_uuid
from relmsg.half.state import DECIDES, OPEN, HalfState, Resolution

T = TypeVar("T")

app = typer.Typer(no_args_is_help=True, help="See the half messages that nobody has decided, and decide them.")

COLUMNS = (
    *("half_id", "producer_group", "type", "state", "checks", "max_checks", "last_answer", "next_check_at"),
    *("decided_by", "decided_at"),
)


class State(StrEnum):
    """What `--state` takes."""

    OPEN = "open"
    PREPARED = "prepared"
    PARKED = "parked"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    ALL = "all"

    @property
    def meant(self) -> tuple[HalfState, ...]:
        """The states of a row that it stands for."""
        if self is State.OPEN:
            return OPEN
        if self is State.ALL:
            return (*OPEN, *DECIDES.values())
        return (HalfState[self.name],)


Ids = Annotated[list[str], typer.Argument(metavar="ID...", help="Half ids, which are the messages' ids.")]
Group = Annotated[str | None, typer.Option("--group", show_default=False, help="Only of this producer group.")]
Type = Annotated[str | None, typer.Option("--type", show_default=False, help="Only this message type.")]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="NAME", show_default=False, help="Who decides; default: the user of this process."),
]


@app.command(name="list")
def list_(
    state: Annotated[State, typer.Option("--state", help="Only these; open: prepared and parked.")] = State.OPEN,
    group: Group = None,
    type: Type = None,  # noqa: A002 - the flag's name
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 50,
    wide: options.Wide = False,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """The oldest half messages; those that wait for a decision unless told otherwise."""

    def ask(desk: Desk) -> Any:
        return desk.rows(states=state.meant, group=group, message_type=type, limit=limit)

    rows = _with_desk(ask, database_url=database_url, schema=schema, config=config)
    output.emit(rows, json, COLUMNS, wide=wide, brief=_brief)


@app.command()
def show(
    half_id: Annotated[str, typer.Argument(metavar="ID", help="The half id, which is the message's id.")],
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Everything about one: where it stands, who was asked, who decided, the message. Exit code 1 if unknown."""
    row = _with_desk(lambda desk: desk.show(half_id), database_url=database_url, schema=schema, config=config)
    row = {**row, "body": output.text(row["body"])}
    if json:
        output.emit([row], json, COLUMNS)
        return
    for column, value in row.items():
        output.write(f"{column:<17}{output.cell(value)}".rstrip())


@app.command()
def commit(
    ids: Ids,
    by: By = None,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Send these: their local work is known to be done. Exit code 1 if one is rolled back already, or unknown."""
    _decide(ids, Resolution.COMMIT, by, json=json, database_url=database_url, schema=schema, config=config)


@app.command()
def rollback(
    ids: Ids,
    by: By = None,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Drop these: their local work is known never to be done. Exit code 1 if one is committed already, or unknown."""
    _decide(ids, Resolution.ROLLBACK, by, json=json, database_url=database_url, schema=schema, config=config)


@app.command()
def resume(
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Half ids.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that are parked (and match the filters).")] = False,
    group: Group = None,
    type: Type = None,  # noqa: A002 - the flag's name
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --all: only tell how many.")] = False,
    by: By = None,
    database_url: options.DatabaseUrl = None,
    schema: options.Schema = None,
    config: options.Config = None,
    json: options.Json = False,
) -> None:
    """Have parked ones checked again, from the first check on. Exit code 1 if one is decided already, or unknown."""
    if bool(ids) == every:
        raise UsageError("name the half messages to resume, or give --all")
    if ids and (group or type or dry_run):
        raise UsageError("--group, --type and --dry-run go with --all")
    name = _name(by)
    flags = {"database_url": database_url, "schema": schema, "config": config}
    if ids:
        _each(ids, lambda desk, half_id: desk.resume(half_id, name), HalfState.PREPARED, json=json, **flags)
        return

    def act(desk: Desk) -> Any:
        return desk.resume_all(name, group=group, message_type=type, dry_run=dry_run)

    count = _with_desk(act, **flags)
    if json:
        output.write(output.as_json({"dry_run": dry_run, "half_messages": count}))
    else:
        output.write(f"{count} half messages {'would be' if dry_run else 'are'} checked again")


def _brief(row: Mapping[str, Any]) -> dict[str, object]:
    """The columns for a terminal: which half message, since when, how it stands, and who is asked."""
    return {
        "half_id": row["half_id"],
        "age": output.age(row["created_at"]),
        "state": row["state"],
        "checks": f"{row['checks']}/{row['max_checks']}",
        "producer_group": row["producer_group"],
        "type": row["type"],
        "last_answer": row["last_answer"],
    }


def _decide(ids: list[str], resolution: Resolution, by: str | None, *, json: bool, **flags: Any) -> None:
    name = _name(by)

    def act(desk: Desk, half_id: UUID) -> Awaitable[Standing]:
        return desk.decide(half_id, resolution, name)

    _each(ids, act, DECIDES[resolution], json=json, **flags)


def _each(
    ids: list[str], act: Callable[[Desk, UUID], Awaitable[Standing]], wanted: HalfState, *, json: bool, **flags: Any
) -> None:
    """Do it to each, one transaction a half message, and tell what became of all, also where some fail."""
    standings: list[Standing] = []
    unknown: list[str] = []
    meant = dict.fromkeys(half_uuid(each) for each in ids)  # all of them are read before anything is done

    async def all_of_them(desk: Desk) -> None:
        for half_id in meant:
            try:
                standings.append(await act(desk, half_id))
            except HalfUnknown as error:
                unknown.append(str(error))

    try:
        _with_desk(all_of_them, **flags)
    except BaseException:
        if standings:
            _tell(standings, json=json)
        raise
    _tell(standings, json=json)
    others = [f"{each.half_id} is {each.state}" for each in standings if each.state is not wanted]
    if unknown or others:
        raise RelmsgError("; ".join([*unknown, *others]))


def _tell(standings: list[Standing], *, json: bool) -> None:
    if json:
        output.write(output.as_json([each._asdict() for each in standings]))
        return
    for each in standings:
        output.write(_told(each))


def _told(standing: Standing) -> str:
    line = f"{standing.half_id} {'is now' if standing.changed else 'was already'} {standing.state}"
    if standing.decided_at is not None and not standing.changed:
        line += f", by {standing.decided_by} at {output.cell(standing.decided_at)}"
    return output.printable(line)


def _name(by: str | None) -> str:
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name; KeyError before Python 3.13
        raise UsageError("nobody knows who you are: give --by NAME") from None


def _with_desk(ask: Callable[[Desk], Awaitable[T]], **flags: Any) -> T:
    settings = options.settings(**flags)
    return brief.asked(settings, lambda engine: ask(Desk(engine, schema=settings.schema)))
