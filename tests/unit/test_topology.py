"""Topology as values: safe defaults, and refusals where a broker could only refuse or do something else."""

from __future__ import annotations

import sys

import pytest

from relmsg.broker.mismatch import Difference, difference, phrase
from relmsg.cli.target import load_target
from relmsg.errors import ImportTargetError, UsageError
from relmsg.topology import Binding, Exchange, Queue, Topology, error_queue


def test_a_queue_is_safe_by_default():
    """A queue is a quorum queue with a limit, dead letters that arrive at least once, and refusal when full."""
    assert Queue("billing.orders").declaration == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "relmsg.errors",
        "x-dead-letter-routing-key": "billing.orders.errors",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_none_switches_a_single_thing_off():
    """Each default can be left out alone, and what depends on it goes with it."""
    full = Queue("q").declaration
    assert Queue("q", delivery_limit=None).declaration == without(full, "x-delivery-limit")
    assert Queue("q", overflow=None).declaration == without(full, "x-overflow", "x-dead-letter-strategy")
    bare = Queue("q", dead_letter_exchange=None).declaration
    assert bare == {"x-queue-type": "quorum", "x-delivery-limit": 20, "x-overflow": "reject-publish"}
    kept = Queue("q", dead_letter_exchange="dead", dead_letter_routing_key=None).declaration
    assert "x-dead-letter-routing-key" not in kept


def test_a_classic_queue_asks_only_for_what_it_supports():
    """A classic queue has neither a delivery limit nor a dead-letter strategy."""
    asked = Queue("q", type="classic").declaration
    assert {"x-delivery-limit", "x-dead-letter-strategy"}.isdisjoint(asked)
    assert asked["x-queue-type"] == "classic"


def test_an_error_queue_keeps_what_is_looked_at():
    """An error queue has so large a limit that looking neither reorders nor drops, and no dead letters of its own."""
    asked = error_queue("billing.orders")
    assert asked.name == "billing.orders.errors"
    assert asked.declaration == {
        "x-queue-type": "quorum",
        "x-delivery-limit": 1_000_000,
        "x-overflow": "reject-publish",
    }


def test_a_topology_brings_the_error_exchange_and_error_queues():
    """A queue that dead-letters to relmsg.errors brings that exchange, its error queue and the binding, once."""
    whole = Topology(queues=[Queue("a", bindings=[Binding("shop", routing_key="#")])]).whole()
    assert [(each.name, each.type) for each in whole.exchanges] == [("relmsg.errors", "direct")]
    assert [each.name for each in whole.queues] == ["a", "a.errors"]
    assert whole.bindings == (Binding("shop", "a", "#"), Binding("relmsg.errors", "a.errors", "a.errors"))
    assert whole.whole() == whole


def test_an_own_dead_letter_key_reaches_the_error_queue_too():
    """The error queue is bound by its own name and by the key with which the broker dead-letters."""
    whole = Topology(queues=[Queue("a", dead_letter_routing_key="odd")]).whole()
    assert {each.routing_key for each in whole.bindings if each.queue == "a.errors"} == {"a.errors", "odd"}


def test_an_error_queue_that_stands_in_the_topology_is_kept():
    """Whoever declares the error queue differently gets it as declared."""
    own = Queue("a.errors", type="classic", dead_letter_exchange=None)
    whole = Topology(queues=[Queue("a"), own]).whole()
    assert own in whole.queues
    assert len(whole.queues) == 2


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: Queue("q" * 256), "255 bytes"),
        (lambda: Queue("q" * 250), "error queue's name"),
        (lambda: Queue(""), "non-empty"),
        (lambda: Queue("amq.q"), "amq."),
        (lambda: Queue("näher"), "ASCII"),
        (lambda: Exchange("amq.mine"), "amq."),
        (lambda: Exchange("x" * 128), "127"),
        (lambda: Exchange("x", type="fan-out"), "direct, topic, fanout, headers"),
        (lambda: Queue("q", type="stream"), "quorum or classic"),
        (lambda: Queue("q", delivery_limit=0), "1 or more"),
        (lambda: Queue("q", type="classic", delivery_limit=5), "no delivery limit"),
        (lambda: Queue("q", dead_letter_exchange=None, dead_letter_routing_key="k"), "needs a dead_letter_exchange"),
        (lambda: Queue("q", dead_letter_routing_key=None), "needs a dead_letter_routing_key"),
        (lambda: Queue("q", arguments={"x-overflow": "drop-head"}), "give overflow=…"),
        (lambda: Queue("q", arguments={"x-max-length": 1.5}), "x-max-length"),
        (lambda: Queue("q", bindings=[Binding("x", "other")]), "does not belong here"),
        (lambda: Binding("", "q"), "default exchange"),
        (lambda: Binding("x", "q", "k" * 256), "255 bytes"),
        (lambda: Topology(bindings=[Binding("x")]), "names no queue"),
        (lambda: Topology(queues=[Queue("q"), Queue("q", delivery_limit=5)]), "twice"),
        (lambda: Topology(queues=["q"]), "a Queue is expected"),
    ],
)
def test_what_the_broker_could_only_refuse_is_refused_at_once(make, rule):
    """A mistake is told where it is written, by the rule that it breaks."""
    with pytest.raises(UsageError, match=rule.replace(".", r"\.")):
        make()


def test_foreign_exchanges_may_be_bound_to():
    """A binding may lead from an exchange that others declare, also from one of RabbitMQ's own."""
    assert Topology(bindings=[Binding("amq.topic", "theirs", "#")]).whole().bindings


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("received 'quorum' but current is 'classic'", Difference("arg", True, "classic")),
        ("received none but current is the value 'x' of type 'longstr'", Difference("arg", True, "x")),
        ("received the value '20' of type 'byte' but current is none", Difference("arg", True, None)),
        ("received 'it's' but current is 'what's'", Difference("arg", True, "what's")),
        ("received 'true' but cur...", Difference("arg", False)),
    ],
)
def test_refusals_of_every_shape_are_read(text, found):
    """RabbitMQ's texts, also those cut short after 255 bytes, tell which argument differs and what is there."""
    assert difference(f"PRECONDITION_FAILED - inequivalent arg 'arg' for queue 'q' in vhost '/': {text}") == found


def test_other_refusals_are_not_taken_for_differences():
    """A refusal of another kind is no difference."""
    assert difference("PRECONDITION_FAILED - invalid arg 'x-max-priority' for queue 'q' in vhost '/'") is None


def test_a_cut_refusal_still_tells_the_argument():
    """Where RabbitMQ did not come to say what is there, what was asked for is still told."""
    assert phrase(Queue("q"), Difference("x-queue-type", False)) == "x-queue-type is not 'quorum', as asked for"


@pytest.fixture
def program(tmp_path, monkeypatch):
    """A module in the current directory, as a user has it."""
    (tmp_path / "shop_messaging.py").write_text(
        "from relmsg.topology import Topology\ntopology = Topology()\nother = 7\nclass room:\n    inner = Topology()\n"
    )
    (tmp_path / "broken_messaging.py").write_text("import no_such_thing\n")
    (tmp_path / "failing_messaging.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in ("shop_messaging", "broken_messaging", "failing_messaging"):
        sys.modules.pop(name, None)


def test_a_target_is_found_in_the_current_directory(program):
    """`module:name` leads to the object, also through dots."""
    assert load_target("shop_messaging:topology", Topology) == Topology()
    assert load_target("shop_messaging:room.inner", Topology) == Topology()


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("shop_messaging", "is not module:name, such as shop.messaging:topology"),
        ("shop_mesaging:topology", "did you mean shop_messaging?"),
        ("shop_messaging:topolgy", "there is no 'topolgy' in shop_messaging, did you mean topology?"),
        ("shop_messaging:other", "is of type int, not Topology; shop_messaging has topology"),
        ("broken_messaging:topology", "No module named 'no_such_thing'"),
        ("failing_messaging:topology", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_target_that_leads_nowhere_is_explained_in_one_line(program, target, told):
    """What was not found is named, and what may have been meant."""
    with pytest.raises(ImportTargetError) as raised:
        load_target(target, Topology)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def without(pairs, *names):
    return {name: value for name, value in pairs.items() if name not in names}
