"""What happened in the pod and the daemon has not committed yet: numbered entries, kept until acknowledged.

An entry is in the file before it is sent. The daemon acknowledges a number after its commit in the store; an entry
seen twice changes nothing. The file (on a tmpfs) is for the case that the keeper itself dies before a daemon came:
the next daemon reads it then. Where the tmpfs is full, entries are in memory alone: a container's end must never get
lost for that.
"""

import json
import os
from typing import Any

from crishim.outlet import complain


class Journal:
    """Entries in memory and in `<pod>/journal`, one JSON object a line."""

    __slots__ = ("_entries", "_fd", "_next")

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._entries: list[dict[str, Any]] = []
        self._next = 1

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def add(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Number and keep an entry; return it with its `seq`."""
        entry = {"seq": self._next, **entry}
        self._next += 1
        self._entries.append(entry)
        try:
            os.write(self._fd, json.dumps(entry).encode() + b"\n")
        except OSError as error:
            complain(f"crishim keeper: journal: {os.strerror(error.errno or 0)}; it is kept in memory")
        return entry

    def acknowledge(self, seq: int) -> None:
        """Drop the entries up to this number."""
        self._entries = [entry for entry in self._entries if entry["seq"] > seq]
        if not self._entries:
            os.ftruncate(self._fd, 0)

    def pending(self) -> list[dict[str, Any]]:
        """Return what is not acknowledged, oldest first."""
        return self._entries


def read(path: str) -> list[dict[str, Any]]:
    """Return the entries of a journal whose keeper is gone; a line that was cut off is left out."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries
