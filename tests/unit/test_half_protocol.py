"""The half protocol: groups, their queues, and what a decision must say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relmsg.errors import GroupRefused
from relmsg.half.producer import _login
from relmsg.half.protocol import MAX_GROUP_BYTES, check_queue, checks_of, group_name
from relmsg.half.state import DECIDES, OPEN, HalfState, Resolution
from relmsg.topology import MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ("", "give the name of your service"),
        ("  ", "give the name of your service"),
        (None, "give the name of your service"),
        (7, "give the name of your service"),
        ("g" * 129, "takes 129 bytes"),
        ("zahlung-ü", "ASCII letters"),
        ("a\nb", "ASCII letters"),
        ("a\0b", "ASCII letters"),
        ("a*", "ASCII letters"),
    ],
)
def test_a_group_that_cannot_be_is_refused(group, said):
    """A group is 1 to 128 bytes that can stand in the name of a queue; anything else is refused by name."""
    with pytest.raises(GroupRefused, match=said):
        group_name(group)


@pytest.mark.parametrize("group", ["orders", "g" * MAX_GROUP_BYTES, "shop/orders v2", "a.b-c_d:e@f#g,h+i"])
def test_a_group_that_can_be_is_taken_as_it_is(group):
    """The longest name and every permitted character pass unchanged."""
    assert group_name(group) == group


@given(st.text(max_size=140))
def test_every_group_that_passes_has_a_queue(group):
    """Whatever group_name lets pass, its check queue can be declared, and no two groups share one."""
    try:
        group_name(group)
    except GroupRefused:
        return
    queue = checks_of(group)
    assert queue.name == check_queue(group)
    assert queue.name.removeprefix("relmsg.half.check.") == group
    assert len(queue.name.encode()) <= MAX_NAME_BYTES
    assert queue.type == "quorum"
    assert queue.dead_letter_exchange is None


def test_only_two_states_are_final():
    """A state is final exactly if no decision counts in it any more; UNKNOWN is no state of a row at all."""
    assert {state for state in HalfState if state.is_final} == set(DECIDES.values())
    assert {state for state in HalfState if not state.is_final} == {*OPEN, HalfState.UNKNOWN}
    assert Resolution.UNKNOWN not in DECIDES


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("amqp://shop:secret@host:5672/vhost", "shop"),
        ("amqp://a%40b%2Fc:secret@host/", "a@b/c"),
        ("amqp://host", "guest"),
        ("amqp://:secret@host", "guest"),
    ],
)
def test_the_login_is_that_of_the_url(url, login):
    """The user id is the decoded user of the URL, and RabbitMQ's default user without one."""
    assert _login(url) == login
