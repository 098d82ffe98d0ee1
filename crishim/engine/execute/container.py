"""The child that becomes a container's first process, from its birth to execve(2).

It is born in new mount and PID namespaces (the network, IPC and UTS namespaces are the keeper's own), as a copy of the
keeper, or sharing its memory (`linux.vfork`). It imports nothing: all modules are loaded, and the spawner has switched
the import system off, since once the root has changed a late import would run the image's code.
"""

from typing import Any

from crishim.engine.execute import mounting, process, root
from crishim.engine.execute.report import Report, Reporter
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.vfork import Program


def run(
    plan: dict[str, Any],
    report: Report,
    stdio: tuple[int, int, int],
    pod: int | str,
    place: str,
    *,
    born_unified: bool = False,
    screen: int = -1,
) -> Program | None:
    """Carry out a ContainerPlan in the child; return the program to exec, or None when a step failed and was reported.

    Args:
        plan: the JSON form of a ContainerPlan.
        report: tells the keeper; a `Reporter` where there is a `screen`.
        stdio: fds for 0, 1 and 2, -1 for the container's own null device; ignored where the plan has a terminal.
        pod: the pod's own tmpfs: an fd of a detached mount, or the path of an attached one.
        place: an empty directory on which the root is attached in this mount namespace.
        born_unified: the child was made in its v2 control group.
        screen: pidfd of the process whose PID namespace is joined by a second process in the end; -1: the child is
            in its PID namespace already.
    """
    try:
        if screen >= 0:
            report.step = "namespaces"
            process.screen(screen)
        report.step = "control group"
        group = plan["cgroup"]
        cgroups.join_self(group["directories"], group["version"], born_unified=born_unified)
        if plan["cgroup_namespace"]:
            calls.unshare(calls.CLONE_NEWCGROUP)
        report.step = "process"
        process.prepare(plan["process"])
        report.step = "root"
        calls.mount("", "/", "", calls.MS_REC | calls.MS_SLAVE)
        top = root.attach(root.mount_overlay(plan["root"]), place, attached=not plan["root"]["append"])
        report.step = "mounts"
        context = mounting.Context(top, pod, outside=screen >= 0)
        mounting.apply(plan["mounts"], context)
        report.step = "root"
        root.pivot(top, readonly=plan["root"]["readonly"])
        report.step = "terminal"
        if context.slave >= 0:
            report.terminal(context.master)
            stdio = (context.slave, context.slave, context.slave)
        report.step = "stdio"
        stdin, stdout, stderr = stdio
        process.wire_stdio(context.null if stdin < 0 else stdin, stdout, stderr, report)
        terminal = context.slave >= 0
        if not isinstance(report, Reporter) or screen < 0:
            return process.lower(plan["process"], report, own_terminal=terminal)
        program = process.lower(plan["process"], report, own_terminal=False)
        return process.step_inside(report, program, own_terminal=terminal)
    except BaseException as error:  # noqa: BLE001  whatever it is, the keeper must hear of it
        report.fail(error)
        return None
