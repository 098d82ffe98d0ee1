"""SIGKILL at a chosen step: every call and every store that takes output from a container to its log is counted.

`Strikes(n).arm()` in a forked child: it kills itself at the n-th point. A call has points before, after, and where the
kernel itself may be interrupted in the middle (an append, a splice to /dev/null); a store has one before each word.
"""

import os
import signal
import struct
from collections.abc import Callable
from typing import Any
from unittest import mock

from crishim.engine.keeper import state
from crishim.linux import calls


class Strikes:
    """Counts points down to the one at which the process dies."""

    def __init__(self, left: int) -> None:
        self.left = left

    def point(self) -> None:
        """One more point is reached."""
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def arm(self) -> None:
        """Count from now on, in this process and for the rest of its life."""
        self._wrap(os, "read")
        self._wrap(os, "lseek")
        self._wrap(os, "writev", self._half_append)
        self._wrap(os, "splice", self._half_splice)
        self._wrap(calls, "tee")
        for name in ("_WORD", "_NOTE", "_FILE", "_PLACE"):
            mock.patch.object(state, name, Torn(self, getattr(state, name))).start()

    def _wrap(self, module: Any, name: str, half: Callable[..., None] | None = None) -> None:
        call = getattr(module, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            self.point()
            if half is not None and self.left == 1:
                half(call, *arguments, **named)
                self.point()
            result = call(*arguments, **named)
            self.point()
            return result

        mock.patch.object(module, name, counted).start()

    @staticmethod
    def _half_append(call: Callable[..., int], fd: int, parts: list[bytes]) -> None:
        whole = b"".join(parts)
        call(fd, [whole[: len(whole) * 2 // 3]])

    @staticmethod
    def _half_splice(call: Callable[..., int], source: int, target: int, size: int, flags: int) -> None:
        call(source, target, max(1, size // 2), flags=flags)


class Torn:
    """A `Struct` whose stores are made word by word, as a kill sees them."""

    def __init__(self, strikes: Strikes, whole: struct.Struct) -> None:
        self._strikes = strikes
        self._whole = whole
        self.size = whole.size
        self.unpack = whole.unpack
        self.unpack_from = whole.unpack_from

    def pack_into(self, target: Any, at: int, *words: int) -> None:
        """Store the words in their order."""
        for n, word in enumerate(words):
            self._strikes.point()
            struct.pack_into("@Q", target, at + 8 * n, word)
