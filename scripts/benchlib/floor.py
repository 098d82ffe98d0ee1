"""The C floor as a system: built, given the plan's kernel calls, and run.

Each batch is a process of its own (the time is taken inside, without its start); it sleeps the quiet itself.
"""

import os
import subprocess

from crishim.engine.plan import types
from scripts.benchlib import floor_ops

SOURCE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "floor", "floor.c")


def build(directory: str) -> str:
    """Compile the floor into a directory and return the program's path."""
    program = os.path.join(directory, "floor")
    command = ["cc", "-static", "-O2", "-Wall", "-Wextra", "-o", program, SOURCE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the floor cannot be built: {done.stderr.strip().splitlines()[-1]}")
    return program


class Floor:
    """A floor for one plan; `run` gives samples."""

    def __init__(self, pod: types.PodPlan, plan: types.ContainerPlan, place: str, directory: str) -> None:
        self._program = build(directory)
        self._file = os.path.join(directory, "floor.calls")
        self.text = floor_ops.program(pod, plan, place)
        with open(self._file, "w", encoding="ascii") as file:
            file.write(f"{self.text}\n")

    @property
    def command(self) -> tuple[str, str]:
        """The program and the file with its calls: one turn."""
        return self._program, self._file

    def run(self, count: int, quiet: float) -> list[float]:
        """Return so many times in ms, each after so many seconds of quiet."""
        command = [self._program, "--loop", str(count), "--pause", str(int(quiet * 1000)), self._file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the floor failed: {done.stderr.strip()}")
        return [int(line) / 1e6 for line in done.stdout.split()]
