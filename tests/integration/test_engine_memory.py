"""Memory limits and what a start needs: the smallest one is enough; where one is too small, that is what is said."""

import dataclasses
from collections.abc import Iterator

import pytest

from crishim.engine.client import StartError
from crishim.engine.plan.types import ContainerPlan
from crishim.linux.cgroups.limits import MIN_MEMORY
from crishim.request import Capabilities, ContainerSecurity, Resources
from tests.support.lab import OWN_PID, Lab, open_lab, scenario

FILES = {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.max"}
SMALL = Resources(memory_limit_in_bytes=MIN_MEMORY)
OWN = ContainerSecurity(namespaces=OWN_PID)
TRACING = ContainerSecurity(capabilities=Capabilities(add=("SYS_PTRACE",)), namespaces=OWN_PID)


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


def squeezed(plan: ContainerPlan, limit: int) -> ContainerPlan:
    """Return the plan with a memory limit that no request may have."""
    small = tuple(
        dataclasses.replace(write, value=str(limit)) if write.file in FILES else write for write in plan.cgroup.writes
    )
    assert small != plan.cgroup.writes
    return dataclasses.replace(plan, cgroup=dataclasses.replace(plan.cgroup, writes=small))


@scenario
async def test_the_smallest_memory_limit_is_enough_for_every_start_and_exec(lab: Lab) -> None:
    async with lab.pod() as pod:
        for rights in (OWN, ContainerSecurity(), TRACING):
            for tty in (False, True):
                container = await pod.run("/bin/sleep", "600", security=rights, tty=tty, resources=SMALL)
                for _ in range(3):
                    assert (await pod.exec(container, "/bin/true", ""))[2] == 0


@scenario
async def test_a_start_or_exec_without_memory_says_so(lab: Lab) -> None:
    async with lab.pod() as pod:
        forked = squeezed(pod.plan("/bin/sleep", "600", tty=True, resources=SMALL), 400 << 10)
        with pytest.raises(StartError, match="killed before it ran the program: the memory limit") as caught:
            await pod.start(forked)
        assert "seccomp" not in str(caught.value)
        shared = pod.plan("/bin/sleep", "600", resources=SMALL)
        if shared.shared:  # what is never forked starts with this little, but an exec is forked
            container = await pod.start(squeezed(shared, 400 << 10))
            with pytest.raises(StartError, match="killed before it ran its program: the memory limit"):
                await pod.exec(container, "/bin/true", "")
