"""The table of database failures: SQLSTATE and driver error, and what they mean."""

from __future__ import annotations

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from relmsg.db.failures import BRIEF_CHARACTERS, FailureKind, brief, failure_kind, named, translate
from relmsg.errors import AccessRefused, DatabaseAway

AWAY, CONTENTION, THEIRS, OURS = FailureKind.AWAY, FailureKind.CONTENTION, FailureKind.THEIRS, FailureKind.OURS

CODES = {
    AWAY: "08000 08001 08003 08004 08006 08007 08P01 25006 25P03 25P04 26000 42P05 40003 53000 53100 53200 53300 53400 "
    "57000 57P01 57P02 57P03 57P04 57P05 58000 58030 58P01 58P02 XX000 XX001 XX002",
    CONTENTION: "40000 40001 40P01 55P03 55006 57014 72000",
    THEIRS: "22001 22P05 23502 23503 23505 23514 23P01 25001 25P01 25P02 40002 44000 54000 54001 55000 P0001",
    OURS: "42601 42703 42P01 42501 28000 28P01 3D000 3F000 0A000 21000",
}


def of_driver(code: str, text: str = "told by the server") -> asyncpg.PostgresError:
    """What asyncpg raises for a code."""
    error = asyncpg.PostgresError(text)
    error.sqlstate = code  # type: ignore[attr-defined]
    return error


def of_sqlalchemy(code: str) -> DBAPIError:
    """What SQLAlchemy makes of it."""
    return OperationalError("SELECT secret", {"secret": "value"}, of_driver(code))


@pytest.mark.parametrize(("kind", "code"), [(kind, code) for kind, codes in CODES.items() for code in codes.split()])
def test_each_code_has_one_meaning(kind: FailureKind, code: str) -> None:
    """A SQLSTATE means the same from the driver, from SQLAlchemy, as a cause, and as a member of a group."""
    caused = RuntimeError("the handler's own")
    caused.__cause__ = of_sqlalchemy(code)
    for error in (of_driver(code), of_sqlalchemy(code), caused, ExceptionGroup("of tasks", [caused])):
        assert failure_kind(error) is kind


@pytest.mark.parametrize("code", CODES[AWAY].split())
def test_what_is_away_is_told_as_database_away(code: str) -> None:
    """AWAY and DatabaseAway are the same set, and the text is one line without the statement."""
    meant = translate(of_sqlalchemy(code), "postgresql://user:secret@db:5432/shop")
    assert isinstance(meant, DatabaseAway)
    assert "db:5432/shop" in str(meant)
    assert "secret" not in str(meant)
    assert "\n" not in str(meant)


@pytest.mark.parametrize("code", ["28000", "28P01", "3D000", "42501"])
def test_a_refused_login_or_permission_is_access_refused(code: str) -> None:
    """A refusal names what to do, and is no outage."""
    assert isinstance(translate(of_driver(code)), AccessRefused)


def test_contention_goes_before_the_loss_that_follows_it() -> None:
    """Where a deadlock was met first and the connection lost in the clearing up, it is contention."""
    error = of_sqlalchemy("08006")
    error.__context__ = of_sqlalchemy("40P01")
    assert failure_kind(error) is CONTENTION


def test_an_error_of_the_handlers_own_has_no_kind() -> None:
    """An OSError, a time-out and a lost HTTP connection tell nothing of the database."""
    for error in (ConnectionResetError("elsewhere"), TimeoutError(), ValueError("no"), OSError(28, "No space left")):
        assert failure_kind(error) is None
        assert translate(error) is None


def test_a_pool_without_a_free_connection_is_contention() -> None:
    """Waiting for a connection that others of this process use is no outage."""
    assert failure_kind(PoolTimeout()) is CONTENTION


def test_an_error_that_is_its_own_cause_is_classified() -> None:
    """A circle of causes does not keep the table busy."""
    error = of_driver("40001")
    error.__cause__ = error
    assert failure_kind(error) is CONTENTION
    wrapped = DBAPIError("SELECT 1", {}, error)
    error.__cause__ = wrapped
    assert failure_kind(wrapped) is CONTENTION
    assert "told by the server" in brief(wrapped)


def test_a_code_that_is_no_text_is_no_code() -> None:
    """An exception of anybody's with an odd ``sqlstate`` is none of the database's."""

    class Odd(Exception):
        sqlstate = 40001

    class Hostile(Exception):
        @property
        def sqlstate(self) -> str:
            raise RuntimeError

    assert failure_kind(Odd()) is None
    assert failure_kind(Hostile()) is None


def test_a_brief_text_is_one_short_line() -> None:
    """Three megabytes over many lines become one line of at most 500 characters, also where the text cannot be read."""
    assert len(brief(of_driver("22001", "long\n" * 600_000))) == BRIEF_CHARACTERS
    assert "\n" not in brief(ValueError("a\nb"))

    class BadText(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert named(BadText()).startswith("BadText: ")


def test_what_was_being_handled_before_is_not_told_as_the_reason() -> None:
    """Looking for a row, not finding it, and inserting it: told is the INSERT's failure, not the one before."""
    met = asyncpg.UniqueViolationError("duplicate key")
    met.__context__ = LookupError("no row was found")
    adapted = of_driver("23505", "adapted")
    adapted.__cause__, adapted.__context__ = met, LookupError("no row was found")
    for driver in (met, adapted):
        wrapped = DBAPIError("INSERT", {}, driver)
        wrapped.__context__ = LookupError("no row was found")
        assert brief(wrapped) == "duplicate key"
        wrapped.__cause__ = driver
        assert brief(wrapped) == "duplicate key"
