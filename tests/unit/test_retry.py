"""When a handler is tried again, and when not."""

import pytest

from relmsg.errors import Undecodable, UsageError
from relmsg.retry import Retry, full_jitter


def most() -> float:
    return 1.0


def test_the_wait_doubles_up_to_the_cap() -> None:
    """Without jitter's luck the waits are base, twice that, four times that, and never more than cap."""
    retry = Retry(attempts=6, base=1, cap=5)
    assert [retry.delay(n, ValueError(), 0, most) for n in range(1, 7)] == [1, 2, 4, 5, 5, None]


def test_jitter_takes_anything_down_to_nothing() -> None:
    """Full jitter spreads the wait over the whole range from zero."""
    assert full_jitter(3, 1, 10, lambda: 0.0) == 0
    assert full_jitter(3, 1, 10, lambda: 0.5) == 2
    assert full_jitter(10_000, 1, 10, most) == 10


def test_no_attempt_starts_behind_the_budget() -> None:
    """A wait that would end behind the budget is not begun."""
    retry = Retry(attempts=10, base=4, cap=4, budget=10)
    assert retry.delay(1, ValueError(), 6, most) == 4
    assert retry.delay(1, ValueError(), 6.1, most) is None


def test_on_and_never_choose_the_errors() -> None:
    """What is not listed in `on` is not retried, and `never` wins over `on`."""
    retry = Retry(on=(OSError,), never=(ConnectionRefusedError,))
    assert retry.retries(TimeoutError())
    assert not retry.retries(ValueError())
    assert not retry.retries(ConnectionRefusedError())


def test_an_error_may_say_of_itself_that_a_retry_is_no_use() -> None:
    """An exception with retryable = False goes to the error exchange at once."""

    class Hopeless(Exception):
        retryable = False

    assert not Retry().retries(Hopeless())
    assert not Retry().retries(Undecodable())


@pytest.mark.parametrize("options", [{"attempts": 0}, {"base": -1.0}, {"cap": -1.0}, {"budget": -1.0}])
def test_a_policy_that_could_never_work_is_refused(options: dict[str, float]) -> None:
    """Mistakes in a policy are told where it is written."""
    with pytest.raises(UsageError):
        Retry(**options)  # type: ignore[arg-type]


def test_never_is_looked_for_in_groups_and_causes() -> None:
    """An error that holds or came from one of ``never`` is not tried again."""
    retry = Retry(never=(KeyError,))
    caused = ValueError("caused")
    caused.__cause__ = KeyError("never")
    in_context = ValueError("in context")
    in_context.__context__ = KeyError("never")
    for error in (KeyError(), caused, in_context, ExceptionGroup("g", [ValueError(), KeyError()])):
        assert not retry.retries(error)
    assert retry.retries(ExceptionGroup("g", [ValueError()]))


def test_on_is_looked_for_in_groups() -> None:
    """A group is tried again if one of its members would be."""
    retry = Retry(on=(ConnectionError,))
    assert retry.retries(ExceptionGroup("g", [ConnectionResetError()]))
    assert not retry.retries(ExceptionGroup("g", [ValueError()]))


def test_a_retryable_that_raises_is_none_said() -> None:
    """An exception whose ``retryable`` raises is tried again as any other."""

    class Hostile(Exception):
        @property
        def retryable(self) -> bool:
            raise RuntimeError

    assert Retry().retries(Hostile())
    assert not Retry().retries(ExceptionGroup("g", [UsageError("not again")]))


def test_a_class_that_raises_when_it_is_asked_matches_nothing() -> None:
    """A policy's classes may have metaclasses of anybody's making."""

    class Hostile(type):
        def __instancecheck__(cls, _: object) -> bool:
            raise KeyboardInterrupt

    kind = Hostile("Kind", (Exception,), {})
    assert not Retry(on=kind).retries(ValueError())
    assert Retry(never=kind).retries(ValueError())
