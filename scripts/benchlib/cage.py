"""A control group around everything of one system: its daemon, its helpers and its pods.

Gives the CPU time of all of them (the kernel keeps adding what ended groups below used), the processes, and an end
that leaves none: `close` kills what is inside and removes the groups in every hierarchy. Works on cgroup v1 (the
accounting is cpuacct's) and on v2. Source: cgroups(7), the kernel's admin-guide/cgroup-v1/cpuacct and cgroup-v2.

Out of scope: limits. Invariant: nothing outside of `/<PREFIX>…` is ever touched.
"""

import contextlib
import glob
import os
import shutil
import signal
import tempfile
import time

from scripts.benchlib import mounts

PREFIX = "crishim-bench-"
DIRECTORIES = ("/var/lib", "/run")
ROOT = "/sys/fs/cgroup"


def hierarchies() -> list[str]:
    """Return the mount points of all cgroup hierarchies, v1 and v2."""
    found = []
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, target, kind, *_ = line.split(" ")
            if kind in {"cgroup", "cgroup2"} and target.startswith(ROOT):
                found.append(target)
    return found


class Cage:
    """The groups of one system: `name` is `crishim-bench-<pid>/<system>`."""

    def __init__(self, system: str) -> None:
        self.name = f"{PREFIX}{os.getpid()}/{system}"
        self.version = 2 if os.path.exists(f"{ROOT}/cgroup.controllers") else 1
        base = ROOT if self.version == 2 else f"{ROOT}/cpuacct"
        self._account = f"{base}/{self.name}"
        self._daemon = f"{self._account}/daemon"
        if self.version == 2:
            _delegate(base, self.name)
        os.makedirs(self._daemon, exist_ok=True)
        if self.version == 2:
            _pass_on(self._account)

    @property
    def pods(self) -> str:
        """The cgroup parent to give to pods, as a CRI `cgroup_parent`."""
        return f"/{self.name}/pods"

    @property
    def own(self) -> str:
        """The cgroup parent for the runtime's own processes."""
        return f"/{self.name}/own"

    def enter(self, argv: list[str]) -> list[str]:
        """Return a command that first moves itself into the daemon's group, then becomes `argv`."""
        file = f"{self._daemon}/cgroup.procs"
        return ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', file, *argv]

    def cpu_ms(self) -> float:
        """Return the CPU time that all inside have used so far, those that ended included, in ms."""
        if self.version == 2:
            with open(f"{self._account}/cpu.stat", encoding="ascii") as file:
                return int(file.readline().split()[1]) / 1e3
        with open(f"{self._account}/cpuacct.usage", encoding="ascii") as file:
            return int(file.read()) / 1e6

    def processes(self) -> set[int]:
        """Return the pids of all processes inside, in whichever hierarchy they are."""
        return members(self.name)

    def close(self) -> None:
        """Kill everything inside and remove the groups."""
        destroy(self.name)


def members(name: str) -> set[int]:
    """Return the pids whose /proc/<pid>/cgroup has the group `name` or one below it."""
    found = set()
    for path in glob.glob("/proc/[0-9]*/cgroup"):
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
            text = file.read()
            if f":/{name}/" in text or f":/{name}\n" in text:
                found.add(int(path.split("/")[2]))
    return {pid for pid in found if not _zombie(pid)}


def destroy(name: str) -> None:
    """Kill every process of a group until none is left, then remove the group in each hierarchy."""
    deadline = time.monotonic() + 10
    while (left := members(name)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for hierarchy in hierarchies():
        for directory, _, _ in sorted(os.walk(f"{hierarchy}/{name}"), reverse=True):
            _remove(directory)


def sweep() -> None:
    """End what belongs to this run, and what an earlier one left that could not clean up (it was killed)."""
    for path in [path for place in (*hierarchies(), *DIRECTORIES) for path in glob.glob(f"{place}/{PREFIX}*")]:
        owner = path.rsplit("-", 1)[1]
        if not os.path.exists(f"/proc/{owner}") or owner == str(os.getpid()):
            destroy(os.path.basename(path))
    for directory in DIRECTORIES:
        for path in glob.glob(f"{directory}/{PREFIX}*"):
            owner = path.rsplit("-", 1)[1]
            if not os.path.exists(f"/proc/{owner}") or owner == str(os.getpid()):
                mounts.detach_below(path)
                shutil.rmtree(path, ignore_errors=True)


def working_directories(system: str) -> tuple[str, str]:
    """Make and return a directory that lasts and one for run-time state, both searchable by all, swept at the end."""
    made = []
    for directory in DIRECTORIES:
        owner = f"{directory}/{PREFIX}{os.getpid()}"
        os.makedirs(owner, mode=0o711, exist_ok=True)
        path = tempfile.mkdtemp(prefix=f"{system[:4]}-", dir=owner)
        os.chmod(path, 0o711)
        made.append(path)
    return made[0], made[1]


def _zombie(pid: int) -> bool:
    """Tell whether a process is dead and only waits for its parent: it holds no group."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2][:1] == "Z"
    except OSError:
        return True


def _remove(directory: str) -> None:
    for _ in range(50):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)  # a process that was just killed still holds it
        else:
            return


def _delegate(base: str, name: str) -> None:
    """v2: controllers must be handed down level by level before the daemon's leaf exists."""
    path = base
    for part in ["", *name.split("/")[:-1]]:
        path = f"{path}/{part}".rstrip("/")
        os.makedirs(path, exist_ok=True)
        _pass_on(path)
    os.makedirs(f"{base}/{name}", exist_ok=True)


def _pass_on(directory: str) -> None:
    """Let the groups below have each controller that is there; one that is not must not cost the others."""
    for controller in ("cpu", "cpuset", "memory", "pids", "io"):
        with contextlib.suppress(OSError), open(f"{directory}/cgroup.subtree_control", "w", encoding="ascii") as file:
            file.write(f"+{controller}")
