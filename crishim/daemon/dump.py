"""What the daemon is doing right now, as text for the log (SIGUSR1): calls in flight, tasks and threads with stacks.

Reads only; out of scope is everything that is not in this process.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Iterable

STACK_DEPTH = 12


def dump(calls: Iterable[str]) -> str:
    """Return the text; `calls` is one line for each RPC in flight."""
    lines = ["calls in flight:", *(f"  {line}" for line in calls)]
    current = asyncio.current_task()
    tasks = sorted((task for task in asyncio.all_tasks() if task is not current), key=lambda task: task.get_name())
    lines += [f"tasks ({len(tasks)}):"]
    for task in tasks:
        lines += [f"  {task.get_name()}: {_title(task)}", *_frames(task)]
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}  # noqa: SLF001  documented, in spite of its name
    lines += [f"threads ({len(frames)}):"]
    for ident, frame in frames.items():
        lines += [f"  {threads.get(ident, ident)}:", *_indented(traceback.format_stack(frame, STACK_DEPTH))]
    return "\n".join(lines) + "\n"


def _title(task: asyncio.Task[object]) -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", str(coroutine))


def _frames(task: asyncio.Task[object]) -> list[str]:
    found = []
    for frame in task.get_stack(limit=STACK_DEPTH):
        found += _indented(traceback.format_stack(frame, 1))
    return found


def _indented(entries: Iterable[str]) -> list[str]:
    return [f"    {line.strip()}" for entry in entries for line in entry.rstrip().split("\n")]
