"""The run: prepare the peers, leave for namespaces of its own, measure group by group, report, leave nothing.

usage: scripts/bench [ROW...] [--json FILE] [--quick] [--list]

A group that fails is named in the report and the others still run. Exit status: 0 if crishim has a figure in every
row that was asked for, 1 if not, 2 for wrong usage. Whether budgets are met does not change it: that is for the reader.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from scripts.benchlib import cage, mounts, peers, report
from scripts.benchlib.measure import Samples
from scripts.benchlib.rows import NAMES, ROWS, SUBJECT
from scripts.benchlib.setting import Setting

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def main() -> int:
    """Run what the command line asks for."""
    options = _parse()
    if options.list:
        print("\n".join(f"{row.name:16} {row.what} [{row.unit}]" for row in ROWS))
        return 0
    wanted = options.rows or list(NAMES)
    cache = os.path.join(os.environ.get("CRISHIM_CACHE") or os.path.join(CHECKOUT, ".cache"), "peers")
    found = peers.prepare(cache, options.seed, build=not options.no_build)
    samples = Samples(notes=list(found.notes))
    for name, version in found.versions.items():
        samples.note(f"{name} is {version}")
    with _own_place() as scratch:
        from scripts.benchlib import plan

        plan.run(wanted, Setting(found, cache, scratch, options.systems, quick=options.quick), samples)
    rows = [row for row in ROWS if row.name in wanted]
    print(report.table(rows, samples))
    if options.json:
        with open(os.path.join(options.directory, options.json), "w", encoding="utf-8") as file:
            json.dump(report.document(rows, samples), file, indent=1)
            file.write("\n")
    return 0 if all(SUBJECT in samples.of(row.name) for row in rows) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure crishim beside its peers.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to measure; all by default")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    parser.add_argument("--quick", action="store_true", help="fewer samples")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--systems", type=lambda text: text.split(","), help="only these systems, parted by commas")
    parser.add_argument("--seed", action="append", default=[], metavar="DIR", help="take programs built before")
    parser.add_argument("--no-build", action="store_true", help="measure only peers that are in the cache already")
    parser.add_argument("--directory", default=os.getcwd(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in NAMES]
    if unknown:
        parser.error(f"no row {unknown[0]!r}: one of {', '.join(NAMES)}")
    if os.geteuid():
        parser.error("needs root: start it as scripts/bench")
    return options


@contextlib.contextmanager
def _own_place() -> Iterator[str]:
    """Namespaces of its own, a scratch directory, and an end that leaves nothing, however it comes."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    cage.sweep()
    mounts.isolate()
    scratch, _ = cage.working_directories("scratch")
    try:
        yield scratch
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        cage.sweep()


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
