"""A pod by hand: an agent with its namespaces, containers from a busybox layer, execs; for tests of `engine.agent`."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from crishim import codec, request
from crishim.engine.agent import area, births, layout, pods, shapes, starts, watching
from crishim.engine.agent.batch import Batch
from crishim.engine.plan.container import ContainerInput, plan_container
from crishim.engine.plan.host import HostView
from crishim.engine.plan.process import plan_exec
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import ContainerPlan
from crishim.linux import calls, facts
from crishim.linux.cgroups import apply as cgroups
from crishim.linux.cgroups.layout import detect
from crishim.linux.seccomp.default import default_profile
from crishim.paths import Paths
from crishim.problems import Problems
from tests.support.busybox import find_busybox
from tests.support.ownership import run_id

MACHINE = os.uname().machine
PATIENCE = 20.0
POD = "b" * 64
APPLETS = ("sh", "true", "id", "cat", "ls", "sleep", "grep", "ps", "readlink", "wc", "kill", "mount", "tty", "hostname")
PASSWD = b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1000::/home/me:/bin/sh\n"
GROUP = b"root:x:0:\nme:x:1000:\nextra:x:77:me\n"


def program(agent: area.Agent, bell: area.Bell, batch: Batch, fds: Sequence[int] = ()) -> list[int]:
    """Run a batch and return the descriptors of its answer."""
    return bell.run(agent, batch.finish().content, fds, PATIENCE)


@dataclasses.dataclass
class Run:
    """One start as a test follows it."""

    pid: int
    output: int
    report: socket.socket
    watched: watching.Watched | None
    slot: int
    terminal: int = -1

    def follow(self) -> "Run":
        """Answer what the child asks until it runs or has failed."""
        while True:
            said, ancillary, _, _ = self.report.recvmsg(65536, socket.CMSG_SPACE(4))
            for _, _, rights in ancillary:
                self.terminal = struct.unpack("i", rights)[0]
            if not said:
                return self
            if len(said) > 1 and self.watched is not None and self.watched.heard(said):
                self.report.send(b"goes on.")
            elif len(said) == 8:
                self.report.close()
                return self

    def text(self) -> str:
        """Return all output to its end."""
        found = b""
        while piece := os.read(self.output, 65536):
            found += piece
        return found.decode()

    def close(self) -> None:
        """Let go of the descriptors."""
        for fd in (self.output, self.slot, self.terminal):
            if fd >= 0:
                os.close(fd)
        self.report.close()


class AgentPod:
    """An agent and what a keeper does for it; everything it makes is gone after `close`."""

    def __init__(self, directory: str, machine: str = MACHINE) -> None:
        self.machine = machine
        self.layout = detect()
        self.paths = Paths(f"{directory}/root", f"{directory}/state")
        self.layer = f"{self.paths.layers}/one"
        self.parent = f"/crishim-test-{run_id()}/agent"
        for path in (self.paths.root, self.paths.empty, f"{self.paths.pod(POD)}"):
            os.makedirs(path)
        self._fill_layer()
        os.chdir(self.paths.state)  # names of sockets are relative
        self.runs: list[Run] = []
        self._groups: list[tuple[str, ...]] = []
        self._ended = pods.Ended(machine)
        self._shapes = shapes.Shapes(machine)
        self.program = births.make_program(machine)
        sock, fd = births.make_socket("agent.sock"), births.make_area("agent.area")
        self.pid = births.start(self.program, sock.fileno(), fd)
        self.pidfd = os.pidfd_open(self.pid)
        sock.close()
        self.agent = area.Agent("agent.sock", fd)
        self.bell = area.Bell(f"keeper-{time.monotonic_ns()}.sock")
        # kernels before 6.15 clone no detached mount
        self.place = "" if facts.probe().kernel_version >= (6, 15) else f"{self.paths.state}/own"
        if self.place:
            os.mkdir(self.place)
        self.run_batch(pods.settled(machine))
        self.run_batch(pods.namespaces(machine, ("net", "ipc", "uts"), 1 << 20, self.place))
        self._complete()

    def _complete(self) -> None:
        """Do what the daemon does with what an agent hands over."""
        self.agent.want([layout.HELD_NETNS, layout.HELD_ROUTE, layout.HELD_FILES])
        netns, route, files = self.run_batch(Batch(self.machine, layout.AREA + layout.FIRST))
        assert os.readlink(f"/proc/self/fd/{netns}") == os.readlink(f"/proc/{self.pid}/ns/net")
        for name in ("hosts", "hostname", "resolv.conf"):
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=files)
            os.write(fd, b"of the pod\n")
            os.close(fd)
        for fd in (netns, route, files):
            os.close(fd)
        self.run_batch(pods.let_go(self.machine))

    def _fill_layer(self) -> None:
        for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "home/me", "root"):
            os.makedirs(f"{self.layer}/{name}")
        os.chown(f"{self.layer}/home/me", 1000, 1000)
        shutil.copy(find_busybox(), f"{self.layer}/bin/busybox")
        for name in APPLETS:
            os.link(f"{self.layer}/bin/busybox", f"{self.layer}/bin/{name}")
        for name, content in (("passwd", PASSWD), ("group", GROUP)):
            with open(f"{self.layer}/etc/{name}", "wb") as file:
                file.write(content)

    def run_batch(self, batch: Batch, fds: Sequence[int] = ()) -> list[int]:
        """Have the agent run a batch."""
        return program(self.agent, self.bell, batch, fds)

    def settings(self) -> PlanSettings:
        """Return settings of this machine."""
        host = facts.probe()
        return PlanSettings(
            paths=self.paths,
            layout=self.layout,
            cgroup_parent=self.parent,
            kernel=host.kernel_version,
            bounding=host.bounding,
            overlay_append=host.overlay_lowerdir_plus,
            seccomp=default_profile(),
        )

    def plan(self, *command: str, pid: request.NamespaceMode = request.NamespaceMode.CONTAINER, **fields: Any) -> Any:
        """Return the JSON form of an ordinary container's plan; `fields` are the security context's."""
        sandbox = request.SandboxConfig(metadata=request.Metadata("p"))
        options = request.NamespaceOptions(pid=pid)
        more = {name: fields.pop(name) for name in ("tty", "working_dir", "envs", "mounts") if name in fields}
        given = {"seccomp": request.SecurityProfile(), **fields}
        security = request.ContainerSecurity(namespaces=options, **given)
        config = request.ContainerConfig(
            metadata=request.ContainerMetadata("c"), command=command, security=security, **more
        )
        identifier = f"{len(self._groups):02x}" * 32
        top = self.paths.container(identifier)
        for name in ("upper", "work"):
            os.makedirs(f"{top}/{name}")
        wanted = ContainerInput(
            id=identifier,
            sandbox_id=POD,
            sandbox=sandbox,
            config=config,
            image=request.ImageConfig(env=("PATH=/sbin:/bin",)),
            layers=(self.layer,),
            upper=f"{top}/upper",
            work=f"{top}/work",
            host=HostView(frozenset(mount.host_path for mount in config.mounts if os.path.isdir(mount.host_path))),
        )
        problems = Problems()
        plan = plan_container(problems, wanted, self.settings())
        assert not problems
        self._groups.append(plan.cgroup.directories)
        cgroups.make(plan.cgroup.directories)
        return _json(plan)

    def fetch_procfs(self, target: int, number: int) -> None:
        """Have the agent hold the procfs of the container whose first process has the pidfd `target`."""
        first = pods.fetch_procfs(self.machine)
        run = self._bear(first, None, 0, {"version": 0, "directories": []}, target).follow()
        self.run_batch(pods.hold(self.machine, number), [run.terminal])

    def start(self, plan: Any, target: int = -1, proc: int = layout.HELD_PROC) -> Run:
        """Bear a container's process; `target`: pidfd of the one whose PID namespace it shares."""
        ready = self._shapes.container(plan, self.paths.empty, pod=self.place, proc=proc)
        terminal = plan["stdio"]["terminal"]
        watched = watching.Watched(ready, plan["process"], self.machine, terminal=terminal, own_terminal=terminal)
        flags = calls.CLONE_NEWNS | (calls.CLONE_NEWPID if plan["pid"] == "new" else 0)
        return self._bear(ready.first, watched, flags, plan["cgroup"], target)

    def execute(self, plan: Any, init: int, *command: str) -> Run:
        """Bear a further process in the container whose first process has the pid `init`."""
        process = plan_exec(codec.loads(ContainerPlan, json.dumps(plan)), command)
        request_ = _json(process)
        first = starts.execution(self.machine, request_, inside=plan["pid"] != "host", cgroup_namespace=True)
        watched = watching.Watched(shapes.ready(first), request_["process"], self.machine)
        target = os.pidfd_open(init)
        try:
            return self._bear(first, watched, 0, request_["cgroup"], target)
        finally:
            os.close(target)

    def first_process(self) -> tuple[Run, int]:
        """Bear process 1 of a shared PID namespace; return it with its pidfd. Its procfs is held by the agent."""
        first = pods.first_process(self.machine, self.paths.empty)
        flags = calls.CLONE_NEWNS | calls.CLONE_NEWPID
        run = self._bear(first, None, flags, {"version": 0, "directories": []}, self.program)
        run.follow()
        self.run_batch(pods.hold_procfs(self.machine, self.place), [run.terminal])
        return run, os.pidfd_open(run.pid)

    def _bear(self, first: starts.First, watched: watching.Watched | None, flags: int, group: Any, target: int) -> Run:
        content = watched.content() if watched else first.batch.finish().content
        size = watched.slot_size if watched else layout.PAGE
        slot = os.memfd_create("slot", os.MFD_CLOEXEC)
        os.posix_fallocate(slot, 0, size)
        os.pwrite(slot, content, 0)
        if watched:
            watched.bind(slot)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE)
        reading, writing = os.pipe2(os.O_CLOEXEC)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        born_in = -1
        if group["version"] == 2:
            born_in = os.open(group["directories"][0], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stage = layout.Stage
        given = {
            stage.SLOT: slot,
            stage.REPORT: theirs.fileno(),
            stage.STDIN: null,
            stage.STDOUT: writing,
            stage.STDERR: writing,
            stage.TARGET: target,
            stage.GROUP: born_in,
        }
        blob = starts.bear(self.machine, first.needs, flags)
        try:
            self.bell.run(self.agent, blob.fill(slot_size=size), [given[need] for need in first.needs], PATIENCE)
        except area.BatchFailedError:
            kept = layout.block(1)  # where nothing is held
            cleaned = starts.clean(self.machine).fill(slot_size=size, first=kept, last=kept)
            self.bell.run(self.agent, cleaned, (), PATIENCE)
            ours.close()
            os.close(reading)
            os.close(slot)
            raise
        finally:
            theirs.close()
            for fd in (writing, null, born_in):
                if fd >= 0:
                    os.close(fd)
        run = Run(self.agent.result(starts.clone_index(first.needs)), reading, ours, watched, slot)
        self.runs.append(run)
        return run

    def status(self, pid: int) -> int | None:
        """Look how a child ended, without collecting it."""
        self.bell.run(self.agent, self._ended.look.fill(pid=pid), (), PATIENCE)
        return self._ended.status(self.agent.read(0, layout.AREA_SIZE))

    def ended(self, pid: int) -> int:
        """Wait for a child's end, collect it, and return its status."""
        deadline = time.monotonic() + PATIENCE
        while (found := self.status(pid)) is None:
            assert time.monotonic() < deadline, f"{pid} goes on"
            time.sleep(0.005)
        self.bell.run(self.agent, self._ended.reap.fill(pid=pid), (), PATIENCE)
        return found

    def kill_agent(self) -> None:
        """SIGKILL the agent."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def close(self) -> None:
        """End everything."""
        self.kill_agent()
        for run in self.runs:
            run.close()
        os.close(self.pidfd)
        os.close(self.program)
        if self.place:
            calls.umount(self.place, calls.MNT_DETACH)
        self.bell.close()
        self.agent.close()
        for directories in self._groups:
            cgroups.kill(directories, self.layout.version)
            cgroups.remove(directories)
        for group in (f"{self.parent}/{POD}", self.parent, os.path.dirname(self.parent)):
            cgroups.remove(self.layout.directories(group))


@contextlib.contextmanager
def agent_pod(directory: str) -> Iterator[AgentPod]:
    """Yield a pod with its agent; the working directory is its state meanwhile."""
    before = os.open(".", os.O_PATH | os.O_DIRECTORY)
    pod = AgentPod(directory)
    try:
        yield pod
    finally:
        pod.close()
        os.fchdir(before)
        os.close(before)


def _json(plan: Any) -> Any:
    return json.loads(bytes(codec.frozen(plan)))
