"""What we promise to run on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"^([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?(>=)([0-9.]+),<([0-9.]+)$")


def declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    return [*project["project"]["dependencies"], *(each for extra in extras for each in extra)]


def test_every_dependency_has_a_lower_bound_and_a_major_cap() -> None:
    """Bounds are a floor and a cap on a coming major version, nothing narrower."""
    for requirement in [*declared(), *tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]["dev"]]:
        match = NAME.match(requirement)
        assert match, requirement
        assert match.group(4).count(".") == 0, f"{requirement}: the cap is a major version"


def test_the_lowest_versions_that_ci_runs_are_the_lower_bounds() -> None:
    """tests/lowest.txt pins the newest patch of each lower bound, or the bound itself."""
    pinned = dict(re.findall(r"^([a-z0-9-]+)==([0-9.]+)$", (ROOT / "tests/lowest.txt").read_text(), re.MULTILINE))
    for requirement in declared():
        match = NAME.match(requirement)
        assert match, requirement
        name, bound = match.group(1).lower(), match.group(3)
        assert f"{pinned[name]}.".startswith(f"{bound}."), f"{name}: {pinned[name]} is pinned, {bound} promised"
