"""Messages and their ids."""

from __future__ import annotations

import dataclasses
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relmsg import message as module
from relmsg.message import Message, canonical_id, uuid7


def test_id_for_is_the_same_in_every_process_and_version():
    """The id of a business key is fixed for ever: a retried request must meet the row of the first one."""
    assert Message.id_for("order-7-placed") == UUID("ec53f73c-a4a8-588f-b2f2-f943fc29c47b")
    assert Message.id_for("order-7-placed").version == 5


@given(st.text(), st.text())
def test_different_business_keys_have_different_ids(one, other):
    """Ids are equal exactly when the business keys are."""
    assert (Message.id_for(one) == Message.id_for(other)) == (one == other)


def test_uuid7_has_its_version_and_variant():
    """Every id says of itself that it is a UUID of version 7, variant RFC 9562."""
    for _ in range(200):
        made = uuid7()
        assert (made.version, made.variant) == (7, RFC_4122)


def test_uuid7_sorts_by_the_millisecond_it_was_made(monkeypatch):
    """Of two ids the one made in a later millisecond is the greater one, as UUID, as text and as bytes."""
    made = []
    for nanoseconds in (0, 1_000_000, 1_700_000_000_000_000_000, 1_700_000_000_001_000_000, (2**48 - 1) * 1_000_000):
        monkeypatch.setattr(module.time, "time_ns", lambda now=nanoseconds: now)
        made.append(uuid7())
    assert made == sorted(made)
    assert [str(each) for each in made] == sorted(str(each) for each in made)
    assert [each.int >> 80 for each in made] == [0, 1, 1_700_000_000_000, 1_700_000_000_001, 2**48 - 1]


def test_ids_of_one_millisecond_differ(monkeypatch):
    """Within one millisecond 74 random bits keep ids apart."""
    monkeypatch.setattr(module.time, "time_ns", lambda: 5_000_000)
    assert len({uuid7() for _ in range(10_000)}) == 10_000


def test_uuid7_leaves_no_random_bit_out(monkeypatch):
    """All 74 random bits of the id come from the operating system's randomness."""
    monkeypatch.setattr(module.time, "time_ns", lambda: 0)
    monkeypatch.setattr(module.os, "urandom", lambda count: b"\xff" * count)
    assert uuid7() == UUID("00000000-0000-7fff-bfff-ffffffffffff")
    monkeypatch.setattr(module.os, "urandom", bytes)
    assert uuid7() == UUID("00000000-0000-7000-8000-000000000000")


def test_every_message_has_an_id_of_its_own():
    """Messages made without an id get different ones."""
    assert Message().id != Message().id


def test_a_message_is_frozen():
    """A message cannot be changed after it was made, only replaced."""
    message = Message(type="a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.type = "b"
    assert dataclasses.replace(message, type="b").id == message.id


def test_messages_do_not_share_headers():
    """The empty headers of one message are not those of another."""
    assert Message().headers is not Message().headers


@given(st.uuids(), st.sampled_from(["{}", "{{{}}}", "urn:uuid:{}", "URN:UUID:{}"]), st.booleans(), st.booleans())
def test_every_spelling_of_a_uuid_has_one_canonical_id(made, around, upper, hyphens):
    """Upper case, braces, urn:uuid: and missing hyphens are spellings of the same id."""
    spelt = str(made) if hyphens else made.hex
    assert canonical_id(around.format(spelt.upper() if upper else spelt)) == str(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "7",
        "order-7",
        "6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a1g",
        "6f1c9d0a5d0f-5b7e-9c53-0e6b5b0f7a11",
        "6-f1c9d0a5d0f5b7e9c530e6b5b0f7a11",
        "{6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11",
        " 6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11",
        "6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11\n",
        "6f1c9d0a_5d0f5b7e9c530e6b5b0f7a11",
        "٣" * 32,
        "urn:uuıd:6f1c9d0a-5d0f-5b7e-9c53-0e6b5b0f7a11",
    ],
)
def test_what_spells_no_uuid_stays_as_it_is(text):
    """Two texts that are not known to be one UUID are never taken for one message."""
    assert canonical_id(text) == text
