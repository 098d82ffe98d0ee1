"""The engine rows: one container made, started, waited for and deleted, back to back and after 1 s of quiet.

`crishim` is measured from the daemon's side of the spawner's socket, `crun` and `runc` by their `run` command, `C
floor` by scripts/floor/floor.c. All run /bin/true of the same image with a network namespace of its own. Systems take
turns in batches. Out of scope: images, networks, the CRI.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from crishim.engine.plan import types
from crishim.linux.seccomp.default import default_profile
from scripts.benchlib import bundle, floor, oci
from scripts.benchlib.cage import Cage
from scripts.benchlib.crishim_engine import CrishimEngine
from scripts.benchlib.measure import Samples
from scripts.benchlib.rows import CRUN, FLOOR, RUNC, SUBJECT
from scripts.benchlib.setting import Setting

ROWS = frozenset({"engine", "engine-quiet"})
BATCH = 10
QUIET = 1.0
Run = Callable[[int, float], list[float]]
"""Take so many samples, each after so many seconds of quiet; return them in ms."""


def measure(setting: Setting, image: oci.Image, samples: Samples, rows: frozenset[str]) -> None:
    """Measure the rows that are wanted on each system that is there."""
    with contextlib.ExitStack() as stack:
        runs = dict(_systems(setting, image, samples, stack))
        for run in runs.values():
            run(3, 0.0)  # the first ones fault pages in
        if "engine" in rows:
            for _ in range(setting.times(8)):
                for name, run in runs.items():
                    samples.add("engine", name, *run(BATCH, 0.0))
        if "engine-quiet" in rows:
            for _ in range(setting.times(10)):
                for name, run in runs.items():
                    samples.add("engine-quiet", name, *run(1, QUIET))


def _systems(
    setting: Setting, image: oci.Image, samples: Samples, stack: contextlib.ExitStack
) -> Iterator[tuple[str, Run]]:
    """Set up each system; one that fails is named, and the others still run."""
    cage = Cage("engine")
    stack.callback(cage.close)
    layer = os.path.join(setting.scratch, "layer")
    os.makedirs(layer)
    oci.unpack(image, layer)
    engine = CrishimEngine(cage, layer)
    stack.callback(engine.close)
    builders: dict[str, Callable[[], Run]] = {
        SUBJECT: lambda: engine.run,
        FLOOR: lambda: floor.Floor(engine.pod, engine.container, engine.place, setting.scratch).run,
        CRUN: lambda: _oci(CRUN, setting, image, engine, stack),
        RUNC: lambda: _oci(RUNC, setting, image, engine, stack),
    }
    for name, build in builders.items():
        if not setting.asked(name) or (name in {CRUN, RUNC} and not getattr(setting.peers, name)):
            continue
        try:
            run = build()
            run(1, 0.0)
        except Exception as error:  # noqa: BLE001  whatever one system lacks, the others still have figures
            samples.note(f"engine on {name}: failed: {type(error).__name__}: {error}")
        else:
            yield name, run


def _oci(name: str, setting: Setting, image: oci.Image, engine: CrishimEngine, stack: contextlib.ExitStack) -> Run:
    directory = os.path.join(setting.scratch, f"bundle-{name}")
    program = str(getattr(setting.peers, name))
    bundle.write(directory, image, engine.container, f"{engine.cage.pods}/{name}", _profile(engine.container))
    command = [sys.executable, "-m", "scripts.benchlib.ociloop", program, directory]
    if name == CRUN:
        command.append("legacy")
    path = os.path.join(directory, "log")
    with open(path, "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    stack.callback(process.wait)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    stack.callback(process.stdin.close)
    asks, answers = process.stdin, process.stdout

    def run(count: int, quiet: float) -> list[float]:
        found = []
        for _ in range(count):
            time.sleep(quiet)
            asks.write("\n")
            asks.flush()
            answer = answers.readline().strip()
            if not answer.isdigit():
                raise RuntimeError(f"{name} run {answer or 'ended'}: {_read(path)}")
            found.append(int(answer) / 1e6)
        return found

    return run


def _profile(plan: types.ContainerPlan) -> dict[str, Any] | None:
    return bundle.seccomp(default_profile(), plan.process.capabilities.bounding) if plan.process.seccomp else None


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return " ".join(file.read().split())[-300:]
