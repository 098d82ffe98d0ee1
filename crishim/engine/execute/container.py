"""The child that becomes a container's first process, from clone3(2) to execve(2).

It is a copy of the keeper in new mount and PID namespaces (the network, IPC and UTS namespaces are the keeper's own).
It imports nothing: all modules are loaded, and before the root changes the import system is switched off, since
from then on a late import would run the image's code as root.
"""

import sys
from typing import Any, NoReturn

from crishim.engine.execute import mounts, process, root
from crishim.engine.execute.report import Reporter
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups


def run(
    plan: dict[str, Any],
    reporter: Reporter,
    stdio: tuple[int, int, int],
    shm: int | str,
    place: str,
    *,
    born_unified: bool,
    screen: int = -1,
) -> NoReturn:
    """Carry out a ContainerPlan in the child; ends by exec, or by a report and `_exit`.

    Args:
        plan: the JSON form of a ContainerPlan.
        reporter: tells the keeper.
        stdio: fds for 0, 1 and 2; ignored where the plan has a terminal.
        shm: the pod's shared memory: an fd of a detached mount, or the path of an attached one.
        place: an empty directory on which the root is attached in this mount namespace.
        born_unified: the child was made in its v2 control group.
        screen: pidfd of the process whose PID namespace is joined by a second process in the end; -1: the child is
            in its PID namespace already.
    """
    try:
        if screen >= 0:
            reporter.step = "namespaces"
            process.screen(screen)
        reporter.step = "control group"
        group = plan["cgroup"]
        cgroups.join_self(group["directories"], group["version"], born_unified=born_unified)
        if plan["cgroup_namespace"]:
            calls.unshare(calls.CLONE_NEWCGROUP)
        reporter.step = "process"
        process.prepare(plan["process"])
        reporter.step = "root"
        calls.mount("", "/", "", calls.MS_REC | calls.MS_SLAVE)
        top = root.attach(root.mount_overlay(plan["root"]), place, attached=not plan["root"]["append"])
        reporter.step = "mounts"
        context = mounts.Context(top, shm)
        mounts.apply(plan["mounts"], context)
        reporter.step = "root"
        forget_imports()
        root.pivot(top, readonly=plan["root"]["readonly"])
        reporter.step = "terminal"
        if context.slave >= 0:
            reporter.terminal(context.master)
            stdio = (context.slave, context.slave, context.slave)
        reporter.step = "stdio"
        process.wire_stdio(*stdio, reporter)
        if screen >= 0:
            process.step_inside(reporter)
        process.run(plan["process"], reporter, own_terminal=context.slave >= 0)
    except BaseException as error:  # noqa: BLE001  whatever it is, the keeper must hear of it
        reporter.fail(error)


def forget_imports() -> None:
    """Make every later import fail instead of searching the image."""
    sys.meta_path.clear()
    sys.path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
