"""ExecSync: a command in a running container, its output bounded, its end waited for.

Unlike all that changes the world, an exec is not shielded: when the caller goes, so do its processes (the keeper's
client ends them on cancellation). A non-zero exit is a result, not an error; only time that runs out is
DeadlineExceeded. A program that cannot be run is a result too, as for a shell: 127 if it is not there, 126 if it may
not be executed, with the sentence on stderr; kubelet discards a probe that ends with an error, and the container would
live on. Out of scope: streams (exec with a terminal, attach).
Source: CRI `ExecSync`; POSIX, Shell Command Language, 2.8.2.
"""

import errno
from collections.abc import Sequence

from crishim.engine.keeper_client import StartError
from crishim.errors import FailedPreconditionError
from crishim.pods.context import Context
from crishim.pods.objects import Container
from crishim.pods.plans import container_plan
from crishim.pods.views import ContainerState, ExecResult

NOT_FOUND = 127
NOT_EXECUTABLE = 126
KILLED = 137
_CODES = {errno.ENOENT: NOT_FOUND, errno.EINTR: KILLED}
_CONTAINERS_OWN = {"exec", "working directory", "user"}
"""Steps of an exec whose failure is that of the container's files, not of the runtime."""


async def exec_sync(context: Context, container: Container, command: Sequence[str], timeout: int) -> ExecResult:  # noqa: ASYNC109  the CRI's own timeout, enforced by the keeper
    """Run a command; timeout in seconds, 0 for none.

    Raises:
        FailedPreconditionError: the container does not run.
        DeadlineExceededError: the time passed; the command's processes were killed.
    """
    if container.status.state is not ContainerState.RUNNING:
        raise FailedPreconditionError(f"container {container.id} is {container.status.state.name}, not RUNNING")
    await container.sandbox.meet()
    keeper = container.sandbox.live_keeper()
    plan = context.planner.exec(await container_plan(context, container), command)
    limit = context.config.runtime.exec_output_limit
    try:
        stdout, stderr, exit_code = await keeper.exec_sync(container.id, plan, timeout, limit, context.outputs)
    except StartError as error:
        if not error.inside or error.step not in _CONTAINERS_OWN or not error.errno:
            raise
        code = _CODES.get(error.errno, NOT_EXECUTABLE) if error.step == "exec" else NOT_EXECUTABLE
        return ExecResult(b"", f"{error}\n".encode(), code)
    return ExecResult(stdout, stderr, exit_code)
