"""What checks inside a guest are made of: programs that are run, waits, and the words for how a check ended."""

import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_PATIENCE = 120.0


class Failed(Exception):  # noqa: N818  an outcome
    """The check did not hold; the first line says why, the others what was seen."""


class Skipped(Exception):  # noqa: N818  an outcome
    """The check could not be tried here."""


@dataclass(frozen=True)
class Check:
    """One check: its name, what it does, and the checks without which it makes no sense."""

    name: str
    run: Callable[[], None]
    needs: tuple[str, ...] = ()


def run(*command: str, status: int | None = 0, data: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a program; fail unless it ends with `status` (None: any)."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_PATIENCE, input=data, errors="replace"
    )
    if status is not None and done.returncode != status:
        raise Failed(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}".rstrip())
    return done


def output(*command: str) -> str:
    """Return what a program prints, without the last newline."""
    return run(*command).stdout.rstrip("\n")


def document(*command: str) -> Any:
    """Return the JSON document that a program prints."""
    return json.loads(run(*command).stdout)


def equal(what: str, found: object, wanted: object) -> None:
    """Fail unless both are equal."""
    if found != wanted:
        raise Failed(f"{what}: is {found!r}, should be {wanted!r}")


def holds(what: str, true: object, seen: str = "") -> None:
    """Fail unless it is true."""
    if not true:
        raise Failed(f"{what}\n{seen}".rstrip())


def until(what: str, condition: Callable[[], object]) -> None:
    """Wait for what happens by itself."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise Failed(f"{what}: did not happen within {_PATIENCE:g} s")
        time.sleep(0.1)


def read(path: str) -> str:
    """Return a file's text without space around it."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read().strip()
