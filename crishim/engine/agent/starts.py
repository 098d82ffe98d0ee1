"""A start as batches: what the agent does to bear a child, and what the child does until it stops for its ids. Pure.

A start takes descriptors along (`Needs`), in the order of `Needs.stages`: first those that the child finds at `Stage`,
then those that the agent goes on holding. The child's batch goes into the slot, the agent's into its area; the second
batch of the child (`lowering`) is written behind the first one when its ids are known.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from crishim.engine.agent.batch import Batch, Blob, Half, Param
from crishim.engine.agent.kernel import Dangling, Kernel
from crishim.engine.agent.layout import (
    AREA,
    CMSG_DATA,
    FIRST,
    HELD_POD,
    HELD_PROC,
    RECEIVED,
    RECEIVED_FIRST,
    RECEIVED_LAST,
    SLOT,
    STAGE,
    STAGE_LAST,
    Own,
    Stage,
)
from crishim.engine.agent.processes import Look, settle
from crishim.engine.agent.roots import Root
from crishim.linux import calls

_SHARED_MAPPING = 0x1 | 0x10  # MAP_SHARED | MAP_FIXED: one slot at a time, whatever a failed start left there
_READ_WRITE = 3
_SIGCHLD = 17
_CLONE_ARGS_SIZE = 88


_NONE: Mapping[int, Dangling] = {}


class First(NamedTuple):
    """A child's first batch.

    `look`: what it reads before it stops; None: it execs without a stop. `needs`: what must come with the doorbell.
    `inside`: it ends as a new process in a PID namespace. `dangling`: where it may stop before (`kernel.Dangling`).
    """

    batch: Batch
    look: Look | None
    needs: tuple[int, ...]
    inside: bool
    dangling: Mapping[int, Dangling] = _NONE


def container(machine: str, plan: dict[str, Any], place: str, *, pod: str = "", proc: int = HELD_PROC) -> First:
    """Return the first batch of a container's process.

    Args:
        machine: as `uname -m` names it.
        plan: the JSON form of a ContainerPlan.
        place: an empty directory of the host's, on which the root is attached.
        pod: where the pod's own tmpfs is attached; "" if the agent holds it as a detached mount (`HELD_POD`).
        proc: which descriptor of the agent's is the procfs of a shared PID namespace: the pod's (cloned; if its tmpfs
            is attached, this is in there instead, `pods.hold_procfs`), or another container's (used up).
    """
    batch = Batch(machine, SLOT)
    kernel = Kernel(batch)
    stdio = plan["stdio"]
    streams = [] if stdio["terminal"] else [Stage.STDOUT, Stage.STDERR]
    if stdio["stdin"] and not stdio["terminal"]:
        streams.insert(0, Stage.STDIN)
    inside = plan["pid"] not in {"new", "host"}
    keep = [] if pod else [(Own.POD, HELD_POD)]
    if inside:
        keep += [(Own.TARGET, Stage.TARGET), (Own.SLOT, Stage.SLOT)]
        if not pod or plan["pid"] != "pod":
            keep.append((Own.PROC, proc))
    settle(kernel, plan["cgroup"], plan["process"]["oom_score_adj"], streams, keep)
    if inside:
        batch.reason("its children are born in the shared PID namespace")
        batch.call("setns", Own.TARGET, calls.CLONE_NEWPID)
    if plan["cgroup_namespace"]:
        batch.reason("its control group is what it sees as the top")
        batch.call("unshare", calls.CLONE_NEWCGROUP)
    root = Root(kernel, plan, place, pod=pod, proc=inside)
    root.gather()
    root.enter()
    root.furnish()
    batch.reason("standard streams")
    if root.slave is not None:
        for number in range(3):
            kernel.duplicate(root.slave, number, keep=True)
    elif not stdio["stdin"]:
        beneath = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS
        null = kernel.openat2(root.own["/dev"], "null", os.O_RDWR, beneath, what="/dev/null")
        kernel.duplicate(null, 0, keep=True)
    _close_what_is_the_hosts(kernel, inside=inside)
    look = Look(kernel)
    return First(batch, look, _needs(plan["cgroup"], streams, inside=inside), inside, kernel.dangling)


def execution(machine: str, plan: dict[str, Any], *, inside: bool, cgroup_namespace: bool) -> First:
    """Return the first batch of a further process in a running container; its first process's pidfd comes along.

    Args:
        machine: as `uname -m` names it.
        plan: the JSON form of an ExecPlan.
        inside: the container has a PID namespace that is not the agent's.
        cgroup_namespace: it has a cgroup namespace.
    """
    batch = Batch(machine, SLOT)
    kernel = Kernel(batch)
    streams = [Stage.STDIN, Stage.STDOUT, Stage.STDERR]
    keep = [(Own.TARGET, Stage.TARGET), (Own.SLOT, Stage.SLOT)]
    settle(kernel, plan["cgroup"], plan["process"]["oom_score_adj"], streams, keep)
    batch.reason("the container's namespaces")
    if inside:
        batch.call("setns", Own.TARGET, calls.CLONE_NEWPID, what="its PID namespace, for children")
    flags = calls.CLONE_NEWNS | (calls.CLONE_NEWCGROUP if cgroup_namespace else 0)
    batch.call("setns", Own.TARGET, flags, what="its mounts")
    batch.reason("no input is the container's own null device")
    kernel.own_null()
    _close_what_is_the_hosts(kernel, inside=inside)
    look = Look(kernel)
    return First(batch, look, (*_needs(plan["cgroup"], streams, inside=True),), inside)


def _close_what_is_the_hosts(kernel: Kernel, *, inside: bool) -> None:
    """Before the image has a say, nothing of the host's is open but the way to the keeper, and the slot's own file."""
    kernel.batch.reason("no descriptor of the host's is left when the image has a say")
    if inside:
        kernel.close_from(Own.REPORT + 1, Own.SLOT - 1)
        kernel.close_from(Own.FREE)
    else:
        kernel.close_from(Own.REPORT + 1)


def _needs(group: dict[str, Any], streams: Sequence[int], *, inside: bool) -> tuple[int, ...]:
    target = (Stage.TARGET,) if inside else ()
    born_in = (Stage.GROUP,) if group["version"] == 2 else ()
    return (Stage.SLOT, Stage.REPORT, *streams, *target, *born_in)


def bear(machine: str, needs: Sequence[int], flags: int, held: int = 0) -> Blob:
    """Return the agent's batch that makes a child; `clone_index(needs, held)` tells which call's result is its pid.

    Args:
        machine: as `uname -m` names it.
        needs: which of `Stage` the descriptors are that come along, in their order.
        flags: CLONE_NEW* flags.
        held: how many more descriptors come along, which the agent holds from the parameter `block` on.
    """
    batch = Batch(machine, AREA + FIRST)
    batch.reason("what the child is given, and what is held for it")
    for number, stage in enumerate(needs):
        batch.call("dup3", Half(AREA + RECEIVED + CMSG_DATA + 4 * number), stage, os.O_CLOEXEC)
    for number in range(held):
        came = Half(AREA + RECEIVED + CMSG_DATA + 4 * (len(needs) + number))
        batch.call("dup3", came, Param(f"held{number}"), os.O_CLOEXEC)
    batch.call("close_range", RECEIVED_FIRST, RECEIVED_LAST, 0)
    batch.reason("the child, with its slot and nothing else")
    batch.call("mmap", SLOT, Param("slot_size"), _READ_WRITE, _SHARED_MAPPING, Stage.SLOT, 0)
    group = Stage.GROUP if Stage.GROUP in needs else 0
    flags |= calls.CLONE_INTO_CGROUP if group else 0
    # pidfd, child_tid, parent_tid; stack, its size, tls, set_tid, its size
    arguments = batch.words(flags, 0, 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, group, note=f"{{flags={flags:#x}}}")
    batch.call("clone3", arguments, _CLONE_ARGS_SIZE, result="pid")
    batch.child(SLOT)
    batch.call("munmap", SLOT, Param("slot_size"))
    batch.call("close_range", STAGE, STAGE_LAST, 0)
    return batch.finish()


def clone_index(needs: Sequence[int], held: int = 0) -> int:
    """Return which call of `bear` makes the child."""
    return len(needs) + held + 2


def clean(machine: str) -> Blob:
    """Return the agent's batch after one that failed: what came along goes."""
    batch = Batch(machine, AREA + FIRST)
    batch.call("munmap", SLOT, Param("slot_size"))
    batch.call("close_range", RECEIVED_FIRST, RECEIVED_LAST, 0)
    batch.call("close_range", STAGE, STAGE_LAST, 0)
    batch.call("close_range", Param("first"), Param("last"), 0)
    return batch.finish()
