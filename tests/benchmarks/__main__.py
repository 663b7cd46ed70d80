"""python -m tests.benchmarks: run the suite, print its table.

Exit codes: 0 done, whatever the figures say; 1 a contender of ours failed or was found wrong; 2 wrong use; 3 a service
is missing or does not start.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from pathlib import Path

from compose.local import Services, ServicesError
from tests.benchmarks import page
from tests.benchmarks.bench import Bench
from tests.benchmarks.machine import setup
from tests.benchmarks.measure import failed_of_ours, measure
from tests.benchmarks.model import CheckFailed, Comparison
from tests.benchmarks.program import ROOT
from tests.benchmarks.record import Record, Run
from tests.benchmarks.rows import COMPARISONS
from tests.benchmarks.table import markdown, results

DOCS = ROOT / "docs"
PLOT = ROOT / ".local" / "benchmark.png"
GOALS_ARE_FOR = "4"
INSTALLED = "installed"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="measure relmsg against its peers")
    parser.add_argument("--quick", action="store_true", help="few messages, one turn: does it all work?")
    parser.add_argument("--scale", action="store_true", help="the rows of a million messages and more, and only those")
    parser.add_argument("--only", action="append", choices=[each.name for each in COMPARISONS], help="this comparison")
    parser.add_argument("--list", action="store_true", help="name the comparisons and end")
    parser.add_argument("--rabbitmq", metavar="VERSION", help="4 (the default), or installed (that of --quick)")
    parser.add_argument("--postgres", metavar="VERSION", help="17, or installed (the default)")
    parser.add_argument("--queue", choices=("quorum", "classic"), help="default: quorum from RabbitMQ 4 on")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample there")
    parser.add_argument("--plot", type=Path, metavar="FILE", default=PLOT, help="the picture (default: %(default)s)")
    parser.add_argument("--write-docs", action="store_true", help="record the run and write docs/performance.md")
    parser.add_argument("--again", action="store_true", help="... beside the recorded run, not in its place")
    parser.add_argument("--page", action="store_true", help="write docs/performance.md from the record; run nothing")
    given = parser.parse_args()
    chosen = [each for each in COMPARISONS if _is_chosen(each, given)]
    if given.list:
        print("\n".join(f"{each.name}{' (--scale)' if each.scale else ''}" for each in COMPARISONS))
        return 0
    if given.page:
        page.write(DOCS, Record.read(DOCS / page.FIGURES), COMPARISONS)
        return 0
    if given.write_docs and given.quick:
        parser.error("the figures of a quick run mean nothing: they are not recorded")
    # SIGTERM as Ctrl-C: what was started is stopped.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        services = _started(given)
        with services:
            return asyncio.run(_measure(services, chosen, given))
    except ServicesError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 3
    except (CheckFailed, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _is_chosen(comparison: Comparison, given: argparse.Namespace) -> bool:
    if given.only:
        return comparison.name in given.only
    return bool(comparison.scale == given.scale)


def _started(given: argparse.Namespace) -> Services:
    rabbitmq = given.rabbitmq or (INSTALLED if given.quick else GOALS_ARE_FOR)
    services = Services(
        lambda line: print(line, file=sys.stderr, flush=True),
        rabbitmq=None if rabbitmq == INSTALLED else rabbitmq,
        postgres=None if given.postgres in (None, INSTALLED) else given.postgres,
    )
    services.start()
    return services


async def _measure(services: Services, chosen: list[Comparison], given: argparse.Namespace) -> int:
    async with Bench(services, quick=given.quick, queue_type=given.queue) as bench:
        run = Run(setup(bench), {each.name: await measure(bench, each) for each in chosen})
    found = results(chosen, run.measured)
    print(markdown(found, run.queue_type))
    if given.quick:
        print("\nA quick run: it shows that everything works. Its figures mean nothing.")
    given.plot.parent.mkdir(exist_ok=True)
    print(page.picture(found, run, given.plot), file=sys.stderr)
    alone = Record([], [])
    if given.json:
        alone.add(run, scale=given.scale, partial=False, again=False)
        alone.write(given.json)
    failed = failed_of_ours(chosen, run.measured)
    for line in failed:
        print(f"benchmarks: ours failed: {line}", file=sys.stderr)
    if given.write_docs and not failed:
        record = Record.read(DOCS / page.FIGURES)
        record.add(run, scale=given.scale, partial=bool(given.only), again=given.again)
        record.write(DOCS / page.FIGURES)
        page.write(DOCS, record, COMPARISONS)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
