"""python -m tests.benchmarks: run the suite, print its table.

Exit codes: 0 done, whatever the figures say; 1 a contender of ours failed or was found wrong; 2 wrong use; 3 a service
is missing or does not start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from compose.local import Services, ServicesError
from tests.benchmarks.bench import Bench
from tests.benchmarks.machine import setup
from tests.benchmarks.measure import Measured, failed_of_ours, measure
from tests.benchmarks.model import CheckFailed, Comparison
from tests.benchmarks.rows import COMPARISONS
from tests.benchmarks.table import markdown, results


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="measure relmsg against its peers")
    parser.add_argument("--quick", action="store_true", help="few messages, one turn: does it all work?")
    parser.add_argument("--scale", action="store_true", help="the rows of a million messages and more, and only those")
    parser.add_argument("--only", action="append", metavar="NAME", help="comparisons whose name contains this")
    parser.add_argument("--list", action="store_true", help="name the comparisons and end")
    parser.add_argument("--queue", choices=("quorum", "classic"), help="default: quorum from RabbitMQ 4 on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    given = parser.parse_args()
    chosen = [each for each in COMPARISONS if _is_chosen(each, given)]
    if given.list or not chosen:
        for comparison in chosen or COMPARISONS:
            print(f"{comparison.name}{' (--scale)' if comparison.scale else ''}")
        return 0 if given.list else 2
    try:
        services = Services(lambda line: print(line, file=sys.stderr, flush=True))
        services.start()
    except ServicesError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 3
    with services:
        try:
            return asyncio.run(_measure(services, chosen, given))
        except CheckFailed as error:
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1


def _is_chosen(comparison: Comparison, given: argparse.Namespace) -> bool:
    if given.only:
        return any(part in comparison.name for part in given.only)
    return comparison.scale == given.scale or (given.quick and not comparison.scale)


async def _measure(services: Services, chosen: list[Comparison], given: argparse.Namespace) -> int:
    measured: dict[str, Measured] = {}
    async with Bench(services, quick=given.quick, queue_type=given.queue) as bench:
        about = setup(bench)
        for comparison in chosen:
            measured[comparison.name] = await measure(bench, comparison)
    print(markdown(results(chosen, measured), about["queue_type"]))
    if given.json:
        kept = {name: each.as_json() for name, each in measured.items()}
        given.json.write_text(json.dumps({"setup": about, "comparisons": kept}, indent=1) + "\n")
    failed = failed_of_ours(chosen, measured)
    for line in failed:
        print(f"benchmarks: ours failed: {line}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
