"""Agents on real kernel objects: containers and execs born by batches, what fails, who dies, who takes over."""

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.agent import area, layout
from crishim.engine.agent.batch import Batch
from crishim.linux.cgroups import apply as cgroups
from crishim.request import Capabilities, Mount, NamespaceMode
from tests.support import filters
from tests.support.abilities import need_containers, need_program
from tests.support.agents import MACHINE, PATIENCE, AgentPod, agent_pod
from tests.support.leases import leased
from tests.support.ownership import run_id
from tests.support.waiting import wait_for


@pytest.fixture
def pod(tmp_path: Path, test_leaks: None) -> Iterator[AgentPod]:
    need_containers()
    with agent_pod(str(tmp_path)) as made:
        yield made


def batch() -> Batch:
    return Batch(MACHINE, layout.AREA + layout.FIRST)


# --- containers -----------------------------------------------------------------------------------


def test_a_container_has_nothing_of_the_agents(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/sh", "-c", "echo $$; ls /proc/self/fd | wc -l; readlink /proc/self/fd/0")).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text() == "1\n4\n/dev/null\n"  # 0, 1, 2, and the one that ls reads the directory with
    assert pod.ended(run.pid) == 0


def test_a_container_has_the_rights_and_signals_of_its_plan(pod: AgentPod) -> None:
    pattern = "^(Sig(Blk|Ign)|NoNewPrivs|Seccomp|Cap(Prm|Bnd|Amb))"
    plan = pod.plan("/bin/grep", "-E", pattern, "/proc/self/status", no_new_privs=True)
    lines = pod.start(plan).follow().text().split("\n")[:-1]
    assert {line.split(":\t")[0]: int(line.split(":\t")[1], 16) for line in lines} == {
        "SigBlk": 0,
        "SigIgn": 0,
        "NoNewPrivs": 1,
        "Seccomp": 2,
        "Seccomp_filters": 1,
        "CapPrm": 0xA80425FB,
        "CapBnd": 0xA80425FB,
        "CapAmb": 0,
    }


def test_it_is_in_the_pods_namespaces_and_five_of_its_own(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/sleep", "100")).follow()
    kinds = ("net", "ipc", "uts", "mnt", "pid", "cgroup")
    ours, agents, theirs = (
        {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in kinds} for pid in ("self", pod.pid, run.pid)
    )
    assert [kind for kind in kinds if agents[kind] != ours[kind]] == ["net", "ipc", "uts"]
    assert [kind for kind in kinds if theirs[kind] != agents[kind]] == ["mnt", "pid", "cgroup"]
    with open(f"/proc/{run.pid}/cgroup", encoding="ascii") as file:
        assert pod.parent in file.read()


def test_users_groups_and_the_working_directory(pod: AgentPod) -> None:
    plan = pod.plan(
        "/bin/sh",
        "-c",
        "id; pwd; echo $HOME; cat /dev/stdin; ls -l /proc/self/fd/1",
        run_as_username="me",
        working_dir="/new/one",
    )
    run = pod.start(plan).follow()
    assert run.watched is not None
    assert run.watched.identity is not None
    assert run.watched.identity.groups == [1000, 77]
    lines = run.text().split("\n")
    assert lines[0] == "uid=1000(me) gid=1000(me) groups=77(extra),1000(me)"
    assert lines[1:3] == ["/new/one", "/home/me"]
    assert pod.ended(run.pid) == 0


def test_a_working_directory_that_only_its_user_may_enter(pod: AgentPod) -> None:
    os.chmod(f"{pod.layer}/home/me", 0o700)
    plan = pod.plan(
        "/bin/sh",
        "-c",
        "pwd; echo x > file; ls",
        run_as_username="me",
        working_dir="/home/me",
        capabilities=Capabilities(drop=("ALL",)),
    )
    assert pod.start(plan).follow().text() == "/home/me\nfile\n"


def test_long_files_of_users_are_read_in_windows(pod: AgentPod) -> None:
    with open(f"{pod.layer}/etc/passwd", "ab") as file:
        file.write(b"".join(b"u%d:x:%d:%d::/h%d:/bin/sh\n" % (n, n, n, n) for n in range(2000, 6000)))
    run = pod.start(pod.plan("/bin/sh", "-c", "echo $HOME", run_as_username="u5999")).follow()
    assert run.text() == "/h5999\n"


@pytest.mark.parametrize("kind", ["fifo", "directory", "device", "/proc/self/mem", "/proc/kmsg"])
def test_a_strange_passwd_holds_nobody(pod: AgentPod, kind: str) -> None:
    path = f"{pod.layer}/etc/passwd"
    os.unlink(path)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    elif kind == "device":
        os.mknod(path, 0o020666, os.makedev(1, 5))
    else:
        os.symlink(kind, path)
    assert pod.start(pod.plan("/bin/sh", "-c", "echo $HOME")).follow().text() == "/\n"


def test_mount_points_are_made_inside_the_root_whatever_the_image_links_to(pod: AgentPod, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("bound\n")
    os.symlink(str(outside), f"{pod.layer}/absolute")
    os.symlink("../../../../../../..", f"{pod.layer}/up")
    os.symlink("/tmp/not-there", f"{pod.layer}/dangling")
    mounts = (
        Mount("/a/b/c", str(source)),
        Mount("/up/made", str(source), readonly=True),
        Mount("/dangling", str(source / "file")),
    )
    script = "cat /a/b/c/file /made/file /tmp/not-there; echo no > /made/new; ls /a/b/c"
    run = pod.start(pod.plan("/bin/sh", "-c", script, mounts=mounts)).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text() == "bound\nbound\nbound\n/bin/sh: can't create /made/new: Read-only file system\nfile\n"
    assert list(outside.iterdir()) == []


def test_mount_points_are_made_through_links_that_lead_nowhere(pod: AgentPod, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("bound\n")
    os.makedirs(f"{pod.layer}/sub")
    for name, leads_to in (
        ("run", "/nowhere"),
        ("whole", "some/where/else"),
        ("one", "two"),
        ("two", "sub/../sub/three"),
        ("sub/three", "../../../four/five"),
        ("file", "/six/seven/target"),
    ):
        os.symlink(leads_to, f"{pod.layer}/{name}")
    targets = {
        "/run/a/b": "/nowhere/a/b",
        "/run/c": "/nowhere/c",
        "/whole": "/some/where/else",
        "/one/x": "/four/five/x",
    }
    mounts = [Mount(target, str(source)) for target in targets] + [Mount("/file", str(source / "file"))]
    script = "cat " + " ".join([f"{path}/file" for path in targets.values()]) + " /six/seven/target"
    run = pod.start(pod.plan("/bin/sh", "-c", script, mounts=tuple(mounts))).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text() == "bound\n" * 5
    assert pod.ended(run.pid) == 0


@pytest.mark.parametrize(
    ("leads_to", "words"),
    [
        ("/proc/1/root/tmp/not-there", "the image has a symbolic link there"),
        ("/proc/self/cwd/not-there", "the image has a symbolic link there"),
        ("/proc/not-there", "no such file or directory"),
        ("/etc/passwd/not-there", "is a file in the image, a directory must be mounted there"),
        ("a/" * 100, "the image's symbolic link /data/x leads through too many directories"),
        ("data", "the image has a symbolic link there"),
    ],
)
def test_links_that_lead_where_nothing_can_be_made(pod: AgentPod, tmp_path: Path, leads_to: str, words: str) -> None:
    os.symlink(leads_to, f"{pod.layer}/data")
    run = pod.start(pod.plan("/bin/true", mounts=(Mount("/data/x", str(tmp_path)),))).follow()
    assert run.watched is not None
    assert words in str(run.watched.failure)
    assert str(run.watched.failure).startswith("mount /data/x: ")
    assert pod.ended(run.pid) == 127


def test_links_behind_links_have_an_end(pod: AgentPod, tmp_path: Path) -> None:
    for number in range(60):
        os.makedirs(f"{pod.layer}/deep{number}")
        os.symlink(f"/deep{number + 1}/link/missing{number}", f"{pod.layer}/deep{number}/link")
    run = pod.start(pod.plan("/bin/true", mounts=(Mount("/deep0/link", str(tmp_path)),))).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == "mount /deep0/link: the image has a symbolic link there"
    assert pod.ended(run.pid) == 127


def test_nothing_is_mounted_over_procfs_through_a_link(pod: AgentPod, tmp_path: Path) -> None:
    os.symlink("/proc/sys", f"{pod.layer}/link")
    run = pod.start(pod.plan("/bin/true", mounts=(Mount("/link", str(tmp_path)),))).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == "mount /link: leads into /proc by a link in the image"


def test_masked_and_read_only_paths(pod: AgentPod) -> None:
    plan = pod.plan(
        "/bin/sh",
        "-c",
        "wc -c < /etc/passwd; ls -A /home | wc -l; echo 1 > /tmp/x; cat /bin/nothing 2>/dev/null; echo end",
        masked_paths=("/etc/passwd", "/home", "/not/there", "/etc/passwd/below"),
        readonly_paths=("/tmp", "/not/there"),
    )
    assert pod.start(plan).follow().text() == "0\n0\n/bin/sh: can't create /tmp/x: Read-only file system\nend\n"


def test_a_read_only_root_still_gets_its_mount_points(pod: AgentPod, tmp_path: Path) -> None:
    plan = pod.plan(
        "/bin/sh",
        "-c",
        "ls /made; echo x > /file; echo y > /dev/shm/y",
        mounts=(Mount("/made", str(tmp_path)),),
        readonly_rootfs=True,
    )
    (tmp_path / "inside").write_text("")
    run = pod.start(plan).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    text = run.text()
    assert "inside" in text
    assert text.endswith("/bin/sh: can't create /file: Read-only file system\n")


def test_an_environment_of_a_megabyte(pod: AgentPod) -> None:
    envs = tuple((f"V{number}", b"x" * 100_000) for number in range(10))
    run = pod.start(pod.plan("/bin/sh", "-c", "echo ${#V9}", envs=envs)).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text() == "100000\n"


@pytest.mark.parametrize("append", [True, False])
def test_a_start_that_did_not_come_to_its_program_is_done_anew(pod: AgentPod, append: bool) -> None:
    plan = pod.plan("/bin/sh", "-c", "echo runs")
    if not append:
        plan["root"]["append"] = False
    for _ in range(2):
        run = pod.start(plan)
        assert len(run.report.recv(4096)) == 8
        os.kill(run.pid, signal.SIGKILL)
        assert pod.ended(run.pid) == 137
    run = pod.start(plan).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text() == "runs\n"


def test_layers_as_one_option_string(pod: AgentPod) -> None:
    plan = pod.plan("/bin/sh", "-c", "echo x > /new; cat /new")
    plan["root"]["append"] = False
    run = pod.start(plan).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text() == "x\n"
    assert Path(f"{plan['root']['upper']}/new").read_text(encoding="ascii") == "x\n"


def test_a_container_among_the_hosts_processes_and_an_exec_in_it(pod: AgentPod) -> None:
    plan = pod.plan("/bin/sleep", "100", pid=NamespaceMode.NODE)
    container = pod.start(plan).follow()
    run = pod.execute(plan, container.pid, "/bin/sh", "-c", "echo $$ $PPID; readlink /proc/self/ns/pid")
    run.follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.watched.pid_inside() == 0
    assert run.text() == f"{run.pid} {pod.pid}\n{os.readlink('/proc/self/ns/pid')}\n"
    assert pod.ended(run.pid) == 0


def test_a_terminal_is_its_controlling_one_and_its_master_comes_to_the_keeper(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/sh", "-c", "tty; echo x > /dev/tty; echo y > /dev/console", tty=True)).follow()
    assert run.terminal >= 0
    found = b""
    while b"y" not in found:
        found += os.read(run.terminal, 4096)
    assert found.replace(b"\r", b"") == b"/dev/pts/0\nx\ny\n"
    assert pod.ended(run.pid) == 0


def test_between_clone_and_exec_a_child_makes_its_batches_calls_and_no_others(pod: AgentPod, tmp_path: Path) -> None:
    strace = need_program("strace", "strace")
    trace = tmp_path / "trace"
    plan = pod.plan("/bin/true", run_as_username="me", no_new_privs=True)
    command = [strace, "-f", "-ttt", "-o", str(trace), "-p", str(pod.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        assert "attached" in tracer.stderr.readline()
        run = pod.start(plan).follow()
        assert pod.ended(run.pid) == 0
        tracer.send_signal(signal.SIGINT)
        tracer.communicate(timeout=PATIENCE)
    lines = [line.split(None, 2)[2] for line in trace.read_text().splitlines() if line.startswith(f"{run.pid} ")]
    made = [line.partition("(")[0] for line in lines if "(" in line and not line.startswith(("<", "+", "-"))]
    made = made[: made.index("execve")]
    assert run.watched is not None
    second = run.watched._second
    assert second is not None
    asked = iter([call.name for call in (*run.watched._first.batch.calls, *second.batch.calls)])
    # in this order, some left out: those that were skipped
    assert [name for name in made if name not in asked] == []
    assert len(made) > 200


# --- shared PID namespaces and execs ----------------------------------------------------------------


def test_containers_share_a_pid_namespace_with_a_process_1_that_has_nothing(pod: AgentPod) -> None:
    first, target = pod.first_process()
    try:
        wait_for(lambda: Path(f"/proc/{first.pid}/comm").read_text(encoding="ascii") == "crishim-agent\n")
        assert os.listdir(f"/proc/{first.pid}/fd") == []
        status = Path(f"/proc/{first.pid}/status").read_text(encoding="ascii")
        assert "CapPrm:\t0000000000000000" in status
        assert "CapBnd:\t0000000000000000" in status
        script = "ls /proc | grep -c '^[0-9]'; readlink /proc/self/ns/pid; (sleep 0.1 &) ; cat /proc/1/comm"
        plan = pod.plan("/bin/sh", "-c", script, pid=NamespaceMode.POD)
        run = pod.start(plan, target).follow()
        assert run.watched is not None
        assert run.watched.failure is None
        lines = run.text().split("\n")
        assert int(lines[0]) < 6  # process 1, the shell, and those of the pipe: not the host's
        assert lines[1] == os.readlink(f"/proc/{first.pid}/ns/pid")
        assert lines[2] == "crishim-agent"
        assert pod.ended(run.pid) == 0
        inner = run.watched.pid_inside()
        assert pod.ended(inner) == 0
        children = Path(f"/proc/{first.pid}/task/{first.pid}/children")
        wait_for(lambda: children.read_text(encoding="ascii") == "")
    finally:
        os.close(target)


def test_an_exec_sees_its_container_and_nobody_saw_it_before(pod: AgentPod) -> None:
    plan = pod.plan("/bin/sleep", "100")
    container = pod.start(plan).follow()
    run = pod.execute(
        plan, container.pid, "/bin/sh", "-c", "echo $$ $PPID; cat /proc/1/comm; ls /proc/self/fd | wc -l; exit 7"
    )
    run.follow()
    assert run.watched is not None
    assert run.watched.failure is None
    numbers, name, count, _ = run.text().split("\n")
    assert int(numbers.split()[0]) > 1
    assert numbers.split()[1] == "0"  # its parent is outside: the agent
    assert (name, count) == ("sleep", "4")
    assert pod.ended(run.pid) == 0
    inner = run.watched.pid_inside()
    assert pod.ended(inner) == 7


def test_an_exec_without_input_has_its_containers_own_null_device(pod: AgentPod) -> None:
    plan = pod.plan("/bin/sleep", "100")
    container = pod.start(plan).follow()
    run = pod.execute(plan, container.pid, "/bin/sleep", "100").follow()
    assert run.watched is not None
    inner = run.watched.pid_inside()
    own = os.stat(f"/proc/{container.pid}/root/dev/null")
    found = os.stat(f"/proc/{inner}/fd/0")
    assert (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
    assert (found.st_dev, found.st_ino) != (os.stat("/dev/null").st_dev, os.stat("/dev/null").st_ino)
    os.unlink(f"/proc/{container.pid}/root/dev/null")
    os.mkfifo(f"/proc/{container.pid}/root/dev/null")
    run = pod.execute(plan, container.pid, "/bin/sh", "-c", "cat; readlink /proc/self/fd/0").follow()
    assert run.text().startswith("pipe:")


def test_an_exec_has_only_its_final_rights_when_it_becomes_visible(pod: AgentPod, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    program = volume / "program"
    program.write_bytes(Path(f"{pod.layer}/bin/busybox").read_bytes())
    program.chmod(0o755)
    plan = pod.plan("/bin/sleep", "100", mounts=(Mount("/volume", str(volume)),))
    container = pod.start(plan).follow()
    with leased(str(program)):  # who opens it waits
        run = pod.execute(plan, container.pid, "/volume/program")
        assert run.watched is not None
        assert len(stop := run.report.recv(4096)) == 8
        assert run.watched.heard(stop)
        run.report.send(b"goes on.")
        assert pod.ended(run.pid) == 0
        inner = run.watched.pid_inside()
        found = Path(f"/proc/{inner}/status").read_text(encoding="ascii")
        assert "CapEff:\t00000000a80425fb" in found
        assert "CapBnd:\t00000000a80425fb" in found
        maps = Path(f"/proc/{inner}/maps").read_text(encoding="ascii")
        assert ("/agent\n" in maps, "slot" in maps, "agent.area" in maps) == (True, False, False)
        assert sorted(os.listdir(f"/proc/{inner}/fd")) == ["0", "1", "2", "3"]
        assert os.stat(f"/proc/{inner}/mem").st_uid == 0  # not dumpable: only root's, and nobody's to trace
        # whoever waits there holds up nobody else
        other = pod.start(pod.plan("/bin/true")).follow()
        assert pod.ended(other.pid) == 0
        os.kill(inner, signal.SIGKILL)
    assert pod.ended(inner) == 137


@pytest.mark.parametrize("action", [filters.ERRNO, filters.KILL])
def test_an_exec_passes_a_filter_that_refuses_clone_and_exit(pod: AgentPod, action: int) -> None:
    plan = pod.plan("/bin/sleep", "100")
    container = pod.start(plan).follow()
    plan["process"]["seccomp"] = filters.refusing(action, "clone", "clone3", "exit_group")
    run = pod.execute(plan, container.pid, "/bin/sh", "-c", "echo runs; (echo forked)")
    run.follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert run.text().split("\n")[0] == "runs"
    assert "forked" not in run.text()


def test_a_container_shares_the_processes_of_another_one(pod: AgentPod) -> None:
    target = pod.start(pod.plan("/bin/sleep", "100")).follow()
    pidfd = os.pidfd_open(target.pid)
    try:
        number = layout.block(2)
        pod.fetch_procfs(pidfd, number)
        plan = pod.plan("/bin/sh", "-c", "cat /proc/1/comm; echo $$", pid=NamespaceMode.TARGET)
        run = pod.start(plan, pidfd, proc=number).follow()
        assert run.watched is not None
        assert run.watched.failure is None
        name, own = run.text().split()
        assert (name, int(own) > 1) == ("sleep", True)
    finally:
        os.close(pidfd)


def test_a_child_is_born_in_its_v2_group(pod: AgentPod) -> None:
    mountpoint = next((path for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if is_v2(path)), "")
    if not mountpoint:
        pytest.skip("lacks a mounted cgroup v2 hierarchy")
    plan = pod.plan("/bin/sleep", "100")
    group = f"{mountpoint}/crishim-test-{run_id()}-agent"
    os.mkdir(group)
    try:
        plan["cgroup"] = {"version": 2, "directories": [group]}
        run = pod.start(plan).follow()
        assert run.watched is not None
        assert run.watched.failure is None
        assert Path(f"{group}/cgroup.procs").read_text(encoding="ascii") == f"{run.pid}\n"
        os.kill(run.pid, signal.SIGKILL)
        assert pod.ended(run.pid) == 137
    finally:
        os.rmdir(group)


def test_an_exec_in_a_container_whose_group_has_groups_of_its_own(pod: AgentPod) -> None:
    mountpoint = next((path for path in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if is_v2(path)), "")
    if not mountpoint or "pids" not in Path(f"{mountpoint}/cgroup.controllers").read_text(encoding="ascii").split():
        pytest.skip("lacks a mounted cgroup v2 hierarchy with the pids controller")
    Path(f"{mountpoint}/cgroup.subtree_control").write_text("+pids", encoding="ascii")
    plan = pod.plan("/bin/sleep", "100")
    group = f"{mountpoint}/crishim-test-{run_id()}-agent"
    os.mkdir(group)
    try:
        plan["cgroup"] = {"version": 2, "directories": [group]}
        container = pod.start(plan).follow()
        os.mkdir(f"{group}/own")  # as systemd does in a container of its own
        Path(f"{group}/own/cgroup.procs").write_text(str(container.pid), encoding="ascii")
        Path(f"{group}/cgroup.subtree_control").write_text("+pids", encoding="ascii")
        with pytest.raises(area.BatchFailedError) as caught:
            pod.execute(plan, container.pid, "/bin/true")
        assert caught.value.record.errno == errno.EBUSY
        plan["cgroup"]["directories"] = [cgroups.leaf(container.pid, mountpoint)]
        run = pod.execute(plan, container.pid, "/bin/cat", "/proc/self/cgroup").follow()
        assert run.watched is not None
        assert run.watched.failure is None
        assert pod.ended(run.watched.pid_inside()) == 0
        os.kill(container.pid, signal.SIGKILL)
        assert pod.ended(container.pid) == 137
        os.rmdir(f"{group}/own")
    finally:
        os.rmdir(group)


def is_v2(path: str) -> bool:
    return os.path.exists(f"{path}/cgroup.procs") and not os.path.exists(f"{path}/tasks")
