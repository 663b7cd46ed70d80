"""What stands in outbox/ and inbox/ fits the code it deploys."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import get_type_hints

import pytest
from prometheus_client import generate_latest

from relmsg.cli.consume import consume
from relmsg.half.metrics import CheckerMetrics, CoordinatorMetrics
from relmsg.inbox.handler import GROUP_OF_LISTS
from relmsg.inbox.inbox import GROUPS_AHEAD, PREFETCH
from relmsg.inbox.metrics import Metrics
from relmsg.outbox.metrics import RelayMetrics
from relmsg.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
OF_BOTH = {"amqp_url", "amqp_url_file", "require_tls", "probes", "log_level", "log_format"}
LIMITS = {f"consumer_max_{name}_bytes" for name in ("body", "json", "header")}
OF_CONSUMER = {"prefetch", "concurrency", "consumer_drain", *LIMITS}
OF_NEITHER = {"config", "management_url"}
WITHOUT_DEFAULT = {
    "database_url",
    "amqp_url",
    "listen_url",
    "database_url_file",
    "amqp_url_file",
    "relay_name",
    "prefetch",
}  # the last follows the handlers of a queue


def settings_of(process: str) -> dict[str, object]:
    """The annotated file with every setting switched on."""
    text = (ROOT / process / "relmsg.toml").read_text()
    return tomllib.loads(re.sub(r"(?m)^# (?=[a-z_]+ = )", "", text))


def test_the_annotated_files_name_every_setting_with_its_default() -> None:
    """Each setting stands in the file of the process that reads it, and shows the default that is in force."""
    every = {each.name for each in dataclasses.fields(Settings)}
    relay, consumer = settings_of("outbox"), settings_of("inbox")
    assert set(consumer) == OF_BOTH | OF_CONSUMER
    assert set(relay) == every - OF_CONSUMER - OF_NEITHER
    for name, value in [*relay.items(), *consumer.items()]:
        if name not in WITHOUT_DEFAULT:
            assert value == getattr(Settings(), name), name


def test_the_operations_page_names_every_setting() -> None:
    """The table of settings is complete, and names no setting that is not there."""
    page = (ROOT / "docs/operations.md").read_text()
    named = set(re.findall(r"`RELMSG_([A-Z_]+)`", page))
    assert named == {name.upper() for name in Settings.KNOWN}


def test_the_operations_page_shows_the_defaults() -> None:
    """Each row of the table of settings shows the defaults that are in force."""
    shown = {}
    for names, defaults in re.findall(r"(?m)^\| (`RELMSG_.*?`) \| (.*?) \|", (ROOT / "docs/operations.md").read_text()):
        told = [each.strip(" `") for each in defaults.split(",")]
        shown |= dict(zip(re.findall(r"RELMSG_([A-Z_]+)", names), told, strict=False))
    for each in dataclasses.fields(Settings):
        value = each.default
        if isinstance(value, bool):
            assert shown[each.name.upper()] == ("on" if value else "off")
        elif isinstance(value, int | float):
            assert float(shown[each.name.upper()]) == value, each.name
        elif isinstance(value, str):
            assert shown[each.name.upper()] == value


def test_the_prefetch_is_told_everywhere_as_it_is() -> None:
    """It follows the handlers of a queue and is no default of the settings: 250, or 1000 with a list handler."""
    assert (PREFETCH, GROUPS_AHEAD * GROUP_OF_LISTS) == (250, 1000)
    told = r"prefetch.*\b250\b.*\b1000\b"
    for page in ("docs/operations.md", "docs/inbox.md", "inbox/relmsg.toml"):
        assert re.search(told, (ROOT / page).read_text(), re.IGNORECASE), page
    usage = " ".join(str(get_type_hints(consume, include_extras=True)["prefetch"].__metadata__[0].help).split())
    assert "By default 250, or 1000" in usage


@pytest.mark.parametrize("process", ["outbox", "inbox"])
def test_the_alerts_are_about_metrics_that_exist(process: str) -> None:
    """An alert on a metric that nobody exports would never fire; one without an entry in the runbook helps nobody."""
    alerts = (ROOT / process / "alerts.yaml").read_text()
    registries = [RelayMetrics(), CoordinatorMetrics()] if process == "outbox" else [Metrics()]
    exported = set(re.findall(r"# TYPE (\w+)", "".join(generate_latest(each.registry).decode() for each in registries)))
    expressions = "\n".join(line for line in alerts.splitlines() if not line.lstrip().startswith("#"))
    assert set(re.findall(r"\brelmsg_\w+", expressions)) <= exported
    runbook = (ROOT / process / "README.md").read_text()
    assert [name for name in re.findall(r"alert: (\w+)", alerts) if f"**{name}" not in runbook] == []


@pytest.mark.parametrize("page", ["docs/operations.md"])
def test_the_metrics_of_the_operations_page_exist_and_are_all_of_them(page: str) -> None:
    """The page names every metric, and none that is not exported."""
    parts = (RelayMetrics(), CoordinatorMetrics(), CheckerMetrics(), Metrics())
    text = "".join(generate_latest(each.registry).decode() for each in parts)
    exported = {name for name in re.findall(r"# TYPE (\w+)", text) if not name.endswith("_created")}
    named = set(re.findall(r"\b(relmsg_(?:outbox|relay|half|consumer)_\w+)", (ROOT / page).read_text()))
    assert named == exported


def test_a_consumer_in_kubernetes_is_confined_as_a_relay_is() -> None:
    """Both patches take every right away that a process of relmsg's does not need."""
    relay, consumer = (confinement(process) for process in ("outbox", "inbox"))
    assert relay == consumer
    assert relay == {
        "allowPrivilegeEscalation: false",
        "readOnlyRootFilesystem: true",
        "runAsNonRoot: true",
        "seccompProfile: {type: RuntimeDefault}",
        "capabilities: {drop: [ALL]}",
    }


def confinement(process: str) -> set[str]:
    """The lines of the patch's security context, without comments."""
    (block,) = re.findall(r"securityContext:\n((?: +.*\n?)+)", (ROOT / process / "kubernetes-sidecar.yaml").read_text())
    return {line.partition(" #")[0].strip() for line in block.splitlines()}


def test_an_image_is_built_from_what_it_needs_only() -> None:
    """The build context leaves everything out but what is named, so that no secret beside the code gets into it."""
    first, *rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert first == "*"
    named = {rule[1:] for rule in rules if rule[0] == "!"}
    copied = re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", (ROOT / "outbox/Dockerfile").read_text())
    assert {name for line in copied for name in line.split()} <= named
    assert all((ROOT / name).exists() for name in named)


@pytest.mark.parametrize("process", ["outbox", "inbox"])
def test_the_first_line_tells_where_the_mechanism_is(process: str) -> None:
    """Whoever opens the folder of a process is sent to its mechanism at once."""
    first = (ROOT / process / "README.md").read_text().splitlines()[0]
    assert first == f"the process; its mechanism is relmsg/{process}/"
