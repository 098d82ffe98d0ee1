"""Nothing of whoever started the daemon reaches a container: signals, processors, priorities, limits, modes."""

import asyncio
import ctypes
import os
import platform
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.abilities import can_raise_limits, need_containers
from tests.support.instance import Instance
from tests.support.registry import Registry
from tests.support.world import World

STAY = ["/bin/sleep", "600"]
SHOW = "grep ^Cpus_allowed_list: /proc/self/status"


@pytest.fixture
def burdened(test_leaks: None) -> Iterator[Instance]:
    need_containers()
    made = Instance(launcher=[sys.executable, "-m", "tests.support.burden"])
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def bent(burdened: Instance, busybox_reference: str, registry: Registry) -> World:
    burdened.crictl("pull", busybox_reference)
    return World(burdened, busybox_reference, registry)


def io_priority(pid: int) -> int:
    """Return what ioprio_get(2) says of a process."""
    return int(ctypes.CDLL(None).syscall(ctypes.c_long({"x86_64": 252, "aarch64": 31}[platform.machine()]), 1, pid))


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines)}


def allowed(text: str) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def members(world: World, container: str) -> list[int]:
    """Return the container's processes, as the host knows them."""
    root = "/sys/fs/cgroup/pids" if os.path.isdir("/sys/fs/cgroup/pids") else "/sys/fs/cgroup"
    (file,) = Path(root + world.instance.cgroup_parent).glob(f"**/*{container}*/cgroup.procs")
    return [int(word) for word in file.read_text(encoding="ascii").split()]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def check(pid: int, processors: set[int]) -> None:
    """Compare all that a process inherits with what the kernel gives its first one."""
    found = status(pid)
    assert {found[name] for name in ("SigIgn", "SigBlk", "SigCgt")} == {"0" * 16}
    assert os.sched_getaffinity(pid) == processors
    assert (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)) == (os.SCHED_OTHER, 0)
    assert io_priority(pid) >> 13 == 0
    assert Path(f"/proc/{pid}/timerslack_ns").read_text(encoding="ascii") == "50000\n"
    assert Path(f"/proc/{pid}/personality").read_text(encoding="ascii") == "00000000\n"
    assert found.get("THP_enabled", "1") == "1"
    assert found["Umask"] == "0022"
    policies = {line.split()[1] for line in Path(f"/proc/{pid}/numa_maps").read_text(encoding="ascii").splitlines()}
    assert policies == {"default"}
    merged = Path(f"/proc/{pid}/ksm_stat")
    assert "ksm_merge_any: yes" not in (merged.read_text(encoding="ascii") if merged.exists() else "")
    threads = int(Path("/proc/sys/kernel/threads-max").read_text(encoding="ascii")) // 2
    for kind, soft, hard in (
        (resource.RLIMIT_CORE, 0, resource.RLIM_INFINITY),
        (resource.RLIMIT_STACK, 8 << 20, resource.RLIM_INFINITY),
        (resource.RLIMIT_NPROC, threads, threads),
        (resource.RLIMIT_SIGPENDING, threads, threads),
    ):
        assert resource.prlimit(pid, kind) == (within(kind, soft), within(kind, hard)), kind


def within(kind: int, wanted: int) -> int:
    """Return a limit as it can be had here: nobody raises a hard one without CAP_SYS_RESOURCE."""
    top = resource.getrlimit(kind)[1]
    if can_raise_limits() or top == resource.RLIM_INFINITY:
        return wanted
    return top if wanted == resource.RLIM_INFINITY else min(wanted, top)


async def test_nothing_of_the_daemons_starter_is_inherited(bent: World) -> None:
    """Job in the background, nohup, taskset, chrt, nice, ionice, numactl, setarch, ulimit before `crishim serve`."""
    everything = allowed(Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip())
    container = await bent.run(await bent.pod(), STAY)
    (first,) = members(bent, container)
    check(first, everything)
    call = asyncio.ensure_future(bent.cri.exec(container, *STAY))
    async with asyncio.timeout(60):
        while len(members(bent, container)) < 2 or b"sleep" not in command(members(bent, container)[-1]):
            await asyncio.sleep(0.01)
    (second,) = set(members(bent, container)) - {first}
    check(second, everything)
    os.kill(second, signal.SIGQUIT)  # which a script's background job ignores
    assert (await call).exit_code == 128 + signal.SIGQUIT


async def test_processors_are_those_of_the_cpuset(bent: World) -> None:
    container = await bent.run(await bent.pod(), STAY, resources={"cpuset_cpus": "0"})
    (first,) = members(bent, container)
    assert os.sched_getaffinity(first) == {0}
    assert allowed((await bent.cri.output(container, "sh", "-c", SHOW)).split()[1]) == {0}
    online = Path("/sys/devices/system/cpu/online").read_text(encoding="ascii").strip()
    wider = api.LinuxContainerResources(cpuset_cpus=online)
    await bent.cri.runtime.UpdateContainerResources(
        api.UpdateContainerResourcesRequest(container_id=container, linux=wider)
    )
    assert os.sched_getaffinity(first) == allowed(online)


async def test_the_daemon_can_be_ended_whatever_its_starter_ignored(burdened: Instance) -> None:
    burdened.stop()
