"""Tells failures that concern one message from those that concern the service, where no handler has raised them."""

from __future__ import annotations

from asyncio import CancelledError

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from relmsg.db.failures import refuses_values, sqlstate
from relmsg.errors import RelmsgError
from relmsg.exceptions import causes
from relmsg.failpoint import FailpointReached

ENDS = (CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit, FailpointReached)


def concerns_message(error: BaseException) -> bool:
    """Whether what came out of a statement of ours tells nothing of the database, or of this message's values only.

    Waiting would not help then: the same message would fail again, and everything would wait behind it. Another session
    has to be asked whether the database answers, since not everything that is away says so.
    """
    if isinstance(error, ENDS) or (isinstance(error, RelmsgError) and error.retryable):
        return False
    for each in causes(error):
        if sqlstate(each) is not None or isinstance(each, DBAPIError):
            return refuses_values(each)
        if isinstance(each, SQLAlchemyError | OSError | TimeoutError):
            return False
    return isinstance(error, Exception)
