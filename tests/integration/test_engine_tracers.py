"""Beside a container that has CAP_SYS_PTRACE: it sees what comes into its PID namespace, so that must have nothing."""

import asyncio
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.client import StartError
from crishim.linux import calls, capabilities
from crishim.request import Capabilities, ContainerSecurity, NamespaceMode, NamespaceOptions, SecurityProfile
from tests.support.lab import OWN_PID, Container, Lab, open_lab, scenario

TRACER = ContainerSecurity(capabilities=Capabilities(add=("SYS_PTRACE",)), seccomp=SecurityProfile())
WATCH = """
while :; do
  for p in /proc/[0-9]*; do
    name=
    read -r name < $p/comm
    case $name in crishim-reaper) continue;; crishim*) ;; *) continue;; esac
    while read -r key value; do
      case $key in CapInh: | CapPrm: | CapEff: | CapBnd: | CapAmb: | Seccomp:) echo seen $key $value;; esac
    done < $p/status
  done
done 2>/dev/null
"""


@pytest.fixture(scope="module")
def lab(module_leaks: None) -> Iterator[Lab]:
    yield from open_lab()


def mounts_others_procfs() -> bool:
    """Tell whether procfs of another PID namespace can be mounted (`pidns=`, Linux 6.17)."""
    context = calls.fsopen("proc")
    try:
        calls.fsconfig(context, "pidns", "/proc/self/ns/pid")
    except OSError:
        return False
    finally:
        os.close(context)
    return True


def beside(tracer: Container, mode: NamespaceMode) -> ContainerSecurity:
    """Return the context of a second container that is in the PID namespace of the first."""
    return ContainerSecurity(namespaces=NamespaceOptions(pid=mode, target_id=tracer.id))


@pytest.mark.parametrize("mode", [NamespaceMode.POD, NamespaceMode.TARGET])
@scenario
async def test_procfs_beside_a_tracer_is_the_namespaces_own(lab: Lab, mode: NamespaceMode) -> None:
    """An attacker's way to the host's files would be /proc/<a process of the host>/root."""
    async with lab.pod() as pod:
        first = TRACER if mode is NamespaceMode.POD else dataclasses.replace(TRACER, namespaces=OWN_PID)
        tracer = await pod.run("/bin/sleep", "600", security=first)
        second = beside(tracer, mode)
        if not mounts_others_procfs():
            with pytest.raises(StartError, match=r"CAP_SYS_PTRACE.*Linux 6\.17"):
                await pod.run("true", security=second)
            return
        script = "cat /proc/1/comm; for p in /proc/[0-9]*; do cat $p/comm; done 2>/dev/null; cat /proc/self/comm"
        out, err, code = await pod.complete(script, security=second)
        process_1 = "crishim-reaper" if mode is NamespaceMode.POD else "sleep"
        assert out.splitlines()[0] == process_1
        assert set(out.splitlines()) <= {process_1, "sleep", "sh", "cat"}, err
        assert code == 0
        again, _, _ = await pod.exec(tracer, "cat /proc/1/comm")
        assert again.decode().strip() == process_1


@pytest.mark.parametrize("no_new_privs", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@scenario
async def test_a_tracer_sees_nobody_with_more_than_its_rights(lab: Lab, shared: bool, no_new_privs: bool) -> None:
    mask = capabilities.DEFAULT_MASK | 1 << capabilities.NUMBERS["SYS_PTRACE"]
    context = dataclasses.replace(TRACER, no_new_privs=no_new_privs)
    if not shared:
        context = dataclasses.replace(context, namespaces=OWN_PID)
    async with lab.pod() as pod:
        tracer = await pod.run(WATCH, security=context)
        for n in range(100):
            if n % 10 == 9 and b"seen" in Path(tracer.log).read_bytes():
                break
            assert await pod.exec(tracer, "/bin/sh", "-c", f"exit {n % 7}") == (b"", b"", n % 7)
            if shared and mounts_others_procfs() and n % 10 == 0:
                assert (await pod.complete("exit 3", security=context))[2] == 3
        await pod.logged(tracer, b"seen")
        await pod.keeper.kill(tracer.id)
        await pod.ended(tracer)
        seen = {tuple(line.split()[1:]) for line in tracer.output().decode().splitlines()}
        found = {int(value, 16) for key, value in seen if key.startswith("Cap")}
        assert found
        assert [f"{value:x}" for value in found if value & ~mask] == []
        assert {value for key, value in seen if key == "Seccomp:"} == {"2"}


@scenario
async def test_a_terminal_beside_a_tracer_is_the_programs_own(lab: Lab) -> None:
    if not mounts_others_procfs():
        pytest.skip("lacks procfs of another PID namespace (pidns=, Linux 6.17)")
    async with lab.pod() as pod:
        await pod.run("/bin/sleep", "600", security=TRACER)
        container = await pod.run("tty; echo hello > /dev/tty; id -u", security=ContainerSecurity(), tty=True)
        assert (await pod.ended(container)).exit_code == 0
        assert container.output().replace(b"\r", b"").splitlines() == [b"/dev/pts/0", b"hello", b"0"]


@scenario
async def test_many_starts_and_execs_around_a_tracer(lab: Lab) -> None:
    """Whatever is being set up when the tracer comes is done before it runs."""
    async with lab.pod() as pod:
        first = await pod.run("/bin/sleep", "600", security=ContainerSecurity())
        for _ in range(3):
            execs = [asyncio.ensure_future(pod.exec(first, f"exit {n}")) for n in range(6)]
            tracer = await pod.run(WATCH, security=TRACER)
            assert [(await call)[2] for call in execs] == list(range(6))
            await pod.keeper.kill(tracer.id)
            await pod.ended(tracer)
            seen = {line.split()[2] for line in tracer.output().decode().splitlines() if line.startswith("seen Cap")}
            mask = capabilities.DEFAULT_MASK | 1 << capabilities.NUMBERS["SYS_PTRACE"]
            assert [value for value in seen if int(value, 16) & ~mask] == []
