"""The closed set of messages between the daemon and its keepers, and what keepers write down for one another. Pure.

A keeper serves many pods. Each pod has a socket of its own between daemon and keeper, which the daemon makes and hands
over by the keeper's control socket; so a pod goes to another keeper by being adopted there.

```
control    daemon                         keeper
             │ ◄─────────────────── hello │   {version, name, pid, pods}
             │ pod {plan} + [sock] ─────► │   make a pod; it greets on `sock`
             │ adopt {pod} + [sock] ────► │   take a pod over from the state directory, or serve one more connection
             │ release {pod} ───────────► │   let go of a pod that another keeper is to adopt
             │ ◄──────────────────── busy │   {share, pods}: it has no time left
a pod's      │ ◄─────────────────── hello │   {version, pod, pid, start_time, containers, exits, execs}
             │ start {plan} ────────────► │   answer {started} | {error}
             │ exec {exec, plan} + 3 fds ►│   answer {pid, user} | {error}; later event exec_exit {exec, status}
             │ signal, kill, exec_kill,   │
             │ reopen ──────────────────► │   answer {…} | {error}
             │ ◄──────────────────── exit │   {seq, container, status, oom_kills, finished_at}
             │ ack {seq} ───────────────► │   no answer: the end is in the store, the kernel may forget it
             │ stop ────────────────────► │   kills what runs, ends the agent, answers
             │ ◄──────────────────── lost │   the pod's agent is gone; its containers' ends came before
```
Requests carry `n`, answers repeat it, events have none. What is not of this set is answered with an error, and the
keeper serves on. The hellos tell the version; the last two are spoken. Version 1 is that of keepers with one pod each,
which know nothing of a control socket: their hello, and their requests, are those of a pod's socket.
"""

from typing import Any, Final, Literal, NotRequired, TypedDict

VERSION: Final = 2
OLDEST: Final = 1

Plan = dict[str, Any]
"""The JSON form of a PodPlan, ContainerPlan or ExecPlan (`plan.types`)."""
User = tuple[int, int, list[int]]
"""uid, gid, supplementary groups."""


class Failed(TypedDict):
    """What is told of a step that failed; `inside`: an exec's process was in the container already.

    `kind` says which error it is: of the request's own step, or that its time was over, or that too many starts hang.
    """

    step: str
    errno: int
    path: str
    message: str
    inside: NotRequired[bool]
    kind: NotRequired[Literal["step", "deadline", "exhausted"]]


class Running(TypedDict):
    """A container that runs; times in ns since the epoch, ticks since boot."""

    id: str
    pid: int
    start_time: int
    started_at: int
    user: User | None


class Ended(TypedDict):
    """The end of a container, numbered by its keeper; `status` is 0-255, or 128 + signal."""

    seq: int
    container: str
    status: int
    oom_kills: int
    finished_at: int


class RunningExec(TypedDict):
    """An exec that runs, by the number that a daemon gave it."""

    exec: int
    container: str
    pid: int


# --- the control socket ------------------------------------------------------------------------------------------


class KeeperHello(TypedDict):
    """A keeper's first words on a control socket; `pods` are those that it serves."""

    event: Literal["hello"]
    version: int
    name: str
    pid: int
    pods: list[str]


class MakePod(TypedDict):
    """Make a pod; one fd: the keeper's end of the pod's socket."""

    op: Literal["pod"]
    plan: Plan


class AdoptPod(TypedDict):
    """Serve a pod that is there already; one fd as for `MakePod`."""

    op: Literal["adopt"]
    pod: str


class ReleasePod(TypedDict):
    """Let go of a pod; answered when another keeper may adopt it."""

    op: Literal["release"]
    pod: str
    n: NotRequired[int]


class Busy(TypedDict):
    """The keeper works all the time: the share of a CPU that it took lately, and bytes of log by pod."""

    event: Literal["busy"]
    share: float
    pods: dict[str, int]


# --- a pod's socket ----------------------------------------------------------------------------------------------


class PodHello(TypedDict):
    """First words on a pod's socket; from version 2 on `pid` and `start_time` are the agent's.

    With the first one come, once, the fds: the directory of the pod's files, and where it has a network of its own the
    namespace and a route socket in it.
    """

    event: Literal["hello"]
    version: int
    pod: str
    pid: int
    start_time: NotRequired[int]
    containers: list[Running]
    exits: list[Ended]
    execs: NotRequired[list[RunningExec]]


class PodFailed(TypedDict):
    """Instead of a hello: the pod could not be made or adopted."""

    event: Literal["failed"]
    error: Failed


class Start(TypedDict):
    """Start a container; one that runs already, or is being started, is the same answer once more."""

    op: Literal["start"]
    plan: Plan
    n: NotRequired[int]


class Execute(TypedDict):
    """Run a process in a container; three fds: its standard streams."""

    op: Literal["exec"]
    exec: int
    plan: Plan
    n: NotRequired[int]


class ExecKill(TypedDict):
    """Kill an exec with all that it started; answered with `found`: an `exec_exit` will come."""

    op: Literal["exec_kill"]
    exec: int
    n: NotRequired[int]


class Signal(TypedDict):
    """Signal a container's first process; answered with `sent`."""

    op: Literal["signal"]
    container: str
    signal: int
    n: NotRequired[int]


class Kill(TypedDict):
    """Kill all that is in a container's control group."""

    op: Literal["kill"]
    container: str
    n: NotRequired[int]


class Reopen(TypedDict):
    """Open a container's log anew."""

    op: Literal["reopen"]
    container: str
    n: NotRequired[int]


class Ack(TypedDict):
    """Ends up to this number are in the store."""

    op: Literal["ack"]
    seq: int


class Stop(TypedDict):
    """End the pod: kill what runs, let the agent go."""

    op: Literal["stop"]
    n: NotRequired[int]


class ExitEvent(Ended):
    """A container has ended."""

    event: Literal["exit"]


class ExecExit(TypedDict):
    """An exec has ended."""

    event: Literal["exec_exit"]
    exec: int
    status: int


class Lost(TypedDict):
    """The pod's agent is gone, and with it all that ran."""

    event: Literal["lost"]


# --- what keepers write down for whoever comes after them -----------------------------------------------------------


class AgentRecord(TypedDict):
    """How to find a pod's agent: its process, and the name that its socket was bound to."""

    pid: int
    start_time: int
    bound: str


class PodRecord(TypedDict):
    """`pods/<id>/pod.json`: a pod that was made; `place` is where its tmpfs is attached, "" where it is detached.

    `first` is the pid of process 1 of the shared PID namespace, 0 for none.
    """

    version: int
    plan: Plan
    agent: AgentRecord
    place: str
    first: int


class ContainerRecord(TypedDict):
    """What is kept of a container in its state file.

    `block` is where the agent holds its descriptors. `running` is missing until its program runs.
    """

    version: int
    id: str
    block: int
    group: Plan
    own_pid: bool
    cgroup_namespace: bool
    stdin: bool
    terminal: bool
    log_path: str
    running: NotRequired[Running]


CONTROL_OPS: Final = frozenset({"pod", "adopt", "release"})
POD_OPS: Final = frozenset({"start", "exec", "exec_kill", "signal", "kill", "reopen", "ack", "stop"})
