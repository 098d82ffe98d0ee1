"""ExecSync: a command in a running container, its output bounded, its end waited for.

Unlike all that changes the world, an exec is not shielded: when the caller goes, so do its processes (the keeper's
client ends them on cancellation). A non-zero exit is a result, not an error; only time that runs out is
DeadlineExceeded. Out of scope: streams (exec with a terminal, attach).
Source: CRI `ExecSync`.
"""

from collections.abc import Sequence

from crishim.errors import FailedPreconditionError
from crishim.pods.context import Context
from crishim.pods.objects import Container
from crishim.pods.plans import container_plan
from crishim.pods.views import ContainerState, ExecResult


async def exec_sync(context: Context, container: Container, command: Sequence[str], timeout: int) -> ExecResult:  # noqa: ASYNC109  the CRI's own timeout, enforced by the keeper
    """Run a command; timeout in seconds, 0 for none.

    Raises:
        FailedPreconditionError: the container does not run.
        DeadlineExceededError: the time passed; the command's processes were killed.
    """
    if container.status.state is not ContainerState.RUNNING:
        raise FailedPreconditionError(f"container {container.id} is {container.status.state.name}, not RUNNING")
    keeper = container.sandbox.live_keeper()
    plan = context.planner.exec(await container_plan(context, container), command)
    limit = context.config.runtime.exec_output_limit
    stdout, stderr, exit_code = await keeper.exec_sync(container.id, plan, timeout, limit)
    return ExecResult(stdout, stderr, exit_code)
