"""The child that runs a further process in a running container (ExecSync, and later Exec).

The keeper forks it into the container's PID namespace; here it joins the control group and the mount namespace of
the container's first process, then ends like that one did: `process.lower`. It is not dumpable, so nothing in the
container can look into it or reopen its executable before it execs (CVE-2019-5736, CVE-2016-9962). It is a subreaper,
and its program goes on as one (PR_SET_CHILD_SUBREAPER(2const)): what loses its parent in there falls to it instead of
the container's first process, and is found when all of the exec has to end.
"""

import contextlib
import os
from typing import Any

from crishim.engine.execute import null, process
from crishim.engine.execute.report import Reporter
from crishim.linux import calls
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.vfork import Program


def run(
    plan: dict[str, Any],
    reporter: Reporter,
    stdio: tuple[int, int, int],
    init: int,
    *,
    own_cgroup_namespace: bool,
    born_unified: bool,
    screened: bool,
) -> Program | None:
    """Carry out an ExecPlan in the child; return the program to exec, or None when a step failed and was reported.

    `init` is the pidfd of the container's first process. A null device in `stdio` is the caller's way to say that there
    is no input; the container's own takes its place.

    `screened`: the child is not in the container's PID namespace; a second process joins it in the end.
    """
    try:
        if screened:
            reporter.step = "namespaces"
            process.screen(init)
        reporter.step = "control group"
        group = plan["cgroup"]
        cgroups.join_self(group["directories"], group["version"], born_unified=born_unified)
        reporter.step = "process"
        process.prepare(plan["process"])
        reporter.step = "namespaces"
        flags = calls.CLONE_NEWNS | (calls.CLONE_NEWCGROUP if own_cgroup_namespace else 0)
        calls.setns(init, flags, "the container's namespaces")
        reporter.step = "stdio"
        stdin, stdout, stderr = stdio
        if null.is_null(os.fstat(stdin)):
            stdin = null.of_this_root()
        process.wire_stdio(stdin, stdout, stderr, reporter)
        reporter.step = "process"
        calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
        program = process.lower(plan["process"], reporter, own_terminal=False)
        if screened:
            program = process.step_inside(reporter, program, own_terminal=False)
            with contextlib.suppress(OSError):  # no clone inherits it, and the program's filter may refuse it
                calls.prctl(calls.PR_SET_CHILD_SUBREAPER, 1)
    except BaseException as error:  # noqa: BLE001  whatever it is, the keeper must hear of it
        reporter.fail(error)
        return None
    return program
