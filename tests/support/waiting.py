"""Waiting for what the system under test does on its own; a bound keeps a failure from hanging the run."""

import inspect
import time
from collections.abc import Callable


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until a condition holds; fail when the time passes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not so after {seconds} s: {inspect.getsource(condition).strip()}")
        time.sleep(0.02)
