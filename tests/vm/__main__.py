"""Run checks in a guest: `python -m tests.vm [SUITE [CHECKS]]`; the last line says how they went.

Exit status 0: nothing failed; 1: something did, or the guest could not be made. Where QEMU or debootstrap are not to
be had, that is the reason of a skip.
"""

import os
import platform
import shutil
import signal
import sys
import tempfile

from tests.vm import base, payload, qemu
from tests.vm.report import Report

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SECONDS = 900.0
_PROGRAMS = {"debootstrap": "debootstrap", "mkfs.ext4": "e2fsprogs", qemu.PROGRAM: "qemu-system-x86"}


def main(words: list[str]) -> int:
    """Run; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the guest is ended too
    suite, checks, *_ = [*words, *("trixie", "smoke")[len(words) :]]
    if lack := _lack():
        print(f"guest: skipped: {lack}")
        return 0
    cache = os.environ.get("CRISHIM_CACHE", f"{_ROOT}/.cache")
    report = Report()
    try:
        system = base.ensure(suite, cache)
        with tempfile.TemporaryDirectory() as scratch:
            payload.make(f"{scratch}/payload.tar", checks, base.SUITES[suite], cache)
            with open(f"{cache}/vm/{suite}-console.log", "w", buffering=1, encoding="utf-8") as log:
                for line in qemu.console(system, f"{scratch}/payload.tar", _SECONDS):
                    log.write(f"{line}\n")
                    if said := report.hear(line):
                        print(said, flush=True)
    except (base.BuildError, payload.PayloadError) as error:
        print(f"guest: FAILED: {error}; see {cache}/vm")
        return 1
    if not report.good:
        print(f"the console is in {cache}/vm/{suite}-console.log")
    print(report.summary("guest"))
    return 0 if report.good else 1


def _lack() -> str:
    if platform.machine() != "x86_64":
        return f"guests are x86-64 machines, this one is {platform.machine()}"
    missing = [f"{name} (Debian package {package})" for name, package in _PROGRAMS.items() if not shutil.which(name)]
    if missing:
        return f"lacks {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "lacks root, which debootstrap needs"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
