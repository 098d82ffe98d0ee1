"""The C floor makes the kernel calls of the default container plan and no others, and the engine makes at least those.

The floor's figure is only worth something if it does the plan's work: its system calls are counted by strace and
compared with the list derived from the plan, then with what crishim's own child did for the same plan.
"""

import os
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.benchlib import cage, floor, floor_ops
from scripts.benchlib.crishim_engine import CrishimEngine
from tests.support.abilities import need_containers

# The C library's own start and end, opening and emptying directories: they vary and cost nothing to speak of.
INCIDENTAL = frozenset({
    *("openat", "close", "read", "write", "getdents64", "newfstatat", "fstat", "fcntl", "lseek", "unlinkat"),
    *("brk", "mmap", "munmap", "mprotect", "wait4", "waitid", "exit_group", "exit", "clock_gettime", "nanosleep"),
    *("clock_nanosleep", "getrandom", "readlink", "readlinkat", "set_tid_address", "set_robust_list", "rseq"),
    *("arch_prctl", "rt_sigreturn", "restart_syscall"),
})  # fmt: skip
# What the parent does once for the pod in crishim: the shared memory's own file system.
SHARED_MEMORY = Counter({"fsopen": 1, "fsconfig": 3, "fsmount": 1})
TRUE = "int main(void) { return 0; }\n"


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CrishimEngine]:
    need_containers()
    for tool in ("strace", "cc"):
        if shutil.which(tool) is None:
            pytest.skip(f"lacks the program {tool} (scripts/install brings it)")
    scratch = tmp_path_factory.mktemp("layer")
    layer = scratch / "layer"
    for name in ("bin", "etc", "proc", "sys", "dev"):
        (layer / name).mkdir(parents=True)
    (scratch / "true.c").write_text(TRUE)
    subprocess.run(["cc", "-static", "-o", layer / "bin/true", scratch / "true.c"], check=True)
    own = cage.Cage("floor-test")
    found = CrishimEngine(own, str(layer))
    try:
        found.run(1, 0.0)  # starts the spawner
        yield found
    finally:
        found.close()
        own.close()
        cage.sweep()


@pytest.fixture
def traced_floor(engine: CrishimEngine, tmp_path: Path) -> floor.Floor:
    return floor.Floor(engine.pod, engine.container, engine.place, str(tmp_path))


def summary(command: list[str], path: Path) -> Counter[str]:
    """Return how often each call was made by a command and its children, from strace -c."""
    subprocess.run(["strace", "-f", "-c", "-o", str(path), *command], check=True, capture_output=True)
    rows = [line.split() for line in path.read_text().splitlines()]
    return Counter(
        {row[-1]: int(row[3]) for row in rows if len(row) >= 5 and row[0][0].isdigit() and row[-1] != "total"}
    )


def test_the_floor_makes_exactly_the_plans_calls(
    engine: CrishimEngine, traced_floor: floor.Floor, tmp_path: Path
) -> None:
    program, file = traced_floor.command
    made = summary([program, file], tmp_path / "turn")
    idle = summary([program, "--loop", "0", file], tmp_path / "idle")
    user = summary([f"{_layer(engine)}/bin/true"], tmp_path / "user")
    user["execve"] -= 1  # the floor's own list has the user's program's execve
    found = {name: count for name, count in (made - idle - user).items() if name not in INCIDENTAL}
    wanted = {name: count for name, count in floor_ops.counts(traced_floor.text).items() if name not in INCIDENTAL}
    assert found == wanted


def test_the_floor_leaves_nothing(engine: CrishimEngine, traced_floor: floor.Floor) -> None:
    assert len(traced_floor.run(2, 0.0)) == 2
    assert not any(map(os.path.exists, engine.container.cgroup.directories))
    assert not os.path.exists(os.path.dirname(engine.container.root.upper))


def test_the_engines_child_makes_at_least_the_floors_calls(
    engine: CrishimEngine, traced_floor: floor.Floor, tmp_path: Path
) -> None:
    watched = engine.cage.processes()  # the spawner, and the keepers that it has ready
    with open(tmp_path / "errors", "wb") as errors:
        command = ["strace", "-f", "-ff", "-o", str(tmp_path / "trace"), *(f"-p{pid}" for pid in sorted(watched))]
        tracer = subprocess.Popen(command, stderr=errors)
    try:
        for pid in watched:
            _wait_attached(pid)
        engine.run(1, 0.0)
    finally:
        tracer.terminate()
        tracer.wait()
    traces = [path.read_text() for path in tmp_path.glob("trace.*")]
    child = next(text for text in traces if re.search(r'^execve\("/bin/true"', text, re.MULTILINE))
    before = child[: child.index('execve("/bin/true"')]
    done = Counter(re.findall(r"^([a-z_0-9]+)\(", before, re.MULTILINE))
    text = traced_floor.text
    wanted = floor_ops.counts(text[text.index("[child]") : text.index("[delete]")]) - SHARED_MEMORY
    wanted -= Counter({"execve": 1, "sethostname": 1})
    ignored = INCIDENTAL | {"dup3", "setsid"}
    missing = {name: count - done[name] for name, count in wanted.items() if name not in ignored and done[name] < count}
    assert not missing


def _layer(engine: CrishimEngine) -> str:
    root = engine.container.root
    return os.path.join(root.base, root.lower[0])


def _wait_attached(pid: int) -> None:
    for _ in range(200):
        with open(f"/proc/{pid}/status", encoding="ascii") as file:
            if "TracerPid:\t0\n" not in file.read():
                return
        time.sleep(0.02)
    pytest.fail(f"strace did not attach to process {pid}")
