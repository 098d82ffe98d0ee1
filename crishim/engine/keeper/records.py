"""The text of CRI logs: `<RFC3339Nano> <stream> <P|F> <text>`. Pure.

Whole chunks at a time: one stamp, the prefix put in by one `bytes.replace`, nothing copied besides. Only a newline ends
a line; a line over 16 KiB becomes `P` records and a last `F`. A tail without newline is written as `P` at the end of
the stream, so that joining the records gives exactly the bytes that the container wrote. The same chunk with the same
stamp and the same unfinished line before it gives the same records: that is how a chunk is done again.
"""

import time

LINE_LIMIT = 16 * 1024
NAMES = ("stdout", "stderr")

_second = 0
_stamp = b""

Part = bytes | memoryview


def stamp(now: int) -> bytes:
    """Return a time, in ns since the epoch, as RFC3339Nano in UTC, like `2026-01-02T03:04:05.000000006Z`."""
    global _second, _stamp  # noqa: PLW0603  the text changes once a second; formatting it costs more than the rest
    second, nanoseconds = divmod(now, 1_000_000_000)
    if second != _second:
        parts = time.gmtime(second)
        _stamp = b"%04d-%02d-%02dT%02d:%02d:%02d." % parts[:6]
        _second = second
    return _stamp + b"%09dZ" % nanoseconds


class Lines:
    """Turns the bytes of a stream, by name, into records."""

    __slots__ = ("_partial", "_whole")

    def __init__(self, name: str) -> None:
        self._whole = b" " + name.encode() + b" F "
        self._partial = b" " + name.encode() + b" P "

    def take(self, pending: bytes, data: bytes, when: bytes) -> tuple[list[Part], bytes]:
        """Return the records of `pending` and what came after it, in parts, and the line that is unfinished now."""
        parts: list[Part] = []
        end = data.rfind(b"\n")
        if end < 0:
            pending += data
        elif _has_long_line(data, end, len(pending)):
            lines = (pending + data[:end]).split(b"\n")
            parts.append(b"".join([self._long(line, when) for line in lines]))
            pending = data[end + 1 :]
        else:
            rest = data[end + 1 :]
            prefix = when + self._whole
            text = data.replace(b"\n", b"\n" + prefix)
            parts.append(prefix + pending)
            parts.append(memoryview(text)[: len(text) - len(rest) - len(prefix)])
            pending = rest
        if len(pending) > LINE_LIMIT:
            cut = len(pending) - ((len(pending) - 1) % LINE_LIMIT + 1)
            parts.append(self.unfinished(pending[:cut], when))
            pending = pending[cut:]
        return parts, pending

    def unfinished(self, text: bytes, when: bytes) -> bytes:
        """Return records of text that no newline follows."""
        prefix = when + self._partial
        return b"".join([prefix + text[at : at + LINE_LIMIT] + b"\n" for at in range(0, len(text), LINE_LIMIT)])

    def _long(self, line: bytes, when: bytes) -> bytes:
        """Return the records of one line of any length: P for all pieces but the last."""
        rest = (len(line) - 1) % LINE_LIMIT + 1 if line else 0
        cut = len(line) - rest
        return self.unfinished(line[:cut], when) + when + self._whole + line[cut:] + b"\n"


LINES = (Lines("stdout"), Lines("stderr"))


def _has_long_line(data: bytes, end: int, before: int) -> bool:
    """Tell whether a line that ends at or before `end` is over the limit; `before` bytes of the first came earlier.

    Looks at a few places instead of every line.
    """
    start = -before
    while end - start > LINE_LIMIT:
        newline = data.rfind(b"\n", max(start, 0), start + LINE_LIMIT + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False
