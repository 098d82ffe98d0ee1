"""Runs inside a guest, as root on its first boot: the checks of the suite that the payload names, told on the console.

Only the standard library; the harness outside reads what is told (`tests/vm/report.py`).
"""

import importlib
import sys
import time
import traceback

from tests.vm.inside.harness import Check, Failed, Skipped

MARK = "@@guest"


def main() -> None:
    """Run all checks in their order; one whose need has failed is skipped."""
    suite = importlib.import_module(f"tests.vm.inside.{sys.argv[1]}")
    checks: list[Check] = suite.CHECKS
    with open("/proc/uptime", encoding="ascii") as file:
        tell(f"| booted in {file.read().split('.')[0]} s")
    done: set[str] = set()
    failed = False
    for check in checks:
        missing = [need for need in check.needs if need not in done]
        if missing:
            tell(f"skip {check.name}: {', '.join(missing)} did not pass")
            continue
        began = time.monotonic()
        try:
            check.run()
        except Skipped as reason:
            tell(f"skip {check.name}: {reason}")
        except Failed as reason:
            first, *rest = str(reason).split("\n")
            tell(f"fail {check.name}: {first}", *(f"| {line}" for line in rest))
            failed = True
        except Exception as error:  # noqa: BLE001  a fault of the check itself must be told too
            tell(f"fail {check.name}: {type(error).__name__}: {error}", *_lines(traceback.format_exc()))
            failed = True
        else:
            done.add(check.name)
            tell(f"ok {check.name} ({time.monotonic() - began:.0f} s)")
    if failed:
        tell(*_lines(suite.evidence()))
    tell("end")


def tell(*lines: str) -> None:
    """Write lines to the console."""
    with open("/dev/ttyS0", "w", encoding="utf-8", errors="replace") as console:
        console.writelines(f"{MARK} {line}\n" for line in lines)


def _lines(text: str) -> list[str]:
    return [f"| {line}" for line in text.rstrip().split("\n")]


if __name__ == "__main__":
    main()
