"""Groups of this host's kernel: made, joined, limited, frozen, killed, counted, removed."""

import contextlib
import errno
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from crishim.errors import FailedPreconditionError
from crishim.linux.cgroups import apply, bpf
from crishim.linux.cgroups.devices import ALL, DEFAULT, DeviceRule, compile_rules
from crishim.linux.cgroups.layout import Layout, detect
from crishim.linux.cgroups.settings import Limits, plan_settings
from crishim.linux.cgroups.stats import Readers
from crishim.linux.cgroups.update import plan_update, read_current
from tests.support.ownership import run_id

MIB = 1 << 20
MEMBERS: set[int] = set()
"""Children that are not reaped yet; a test that fails half-way leaves them to the fixture."""


def can_make_groups() -> bool:
    """Try to make a group in every hierarchy."""
    try:
        dirs = detect().directories(f"/crishim-test-{run_id()}-probe-{secrets.token_hex(3)}")
        apply.make(dirs)
        apply.remove(dirs)
    except OSError:
        return False
    return True


@pytest.fixture
def layout() -> Layout:
    if not can_make_groups():
        pytest.skip("lacks the ability to make control groups")
    return detect()


@pytest.fixture
def group(layout: Layout) -> Iterator[str]:
    name = f"/crishim-test-{run_id()}-{secrets.token_hex(3)}"
    apply.make(layout.directories(name), parent=True)
    yield name
    dirs = layout.directories(name)
    apply.kill(dirs, layout.version)
    while MEMBERS:
        pid = MEMBERS.pop()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    apply.remove(dirs, patience=5)


class Member:
    """A child process in a group, which does something there and ends when told."""

    def __init__(self, layout: Layout, group: str, work: Callable[[], object] = lambda: None) -> None:
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                apply.join_self(layout.directories(group), layout.version)
                work()
                os.write(tell, b"ok")
            except OSError as error:
                os.write(tell, str(error).encode())
            finally:
                signal.pause()
                os._exit(0)
        os.close(tell)
        MEMBERS.add(self.pid)
        self._ready = ready

    def wait_ready(self) -> str:
        """Return "ok", the error's text, or "" if it died first."""
        text = os.read(self._ready, 1000).decode()
        os.close(self._ready)
        return text

    def reap(self) -> int:
        """Return the exit status as waitstatus_to_exitcode has it."""
        MEMBERS.discard(self.pid)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def put(layout: Layout, group: str, limits: Limits) -> None:
    settings = plan_settings(limits, layout, group, swap=True)
    apply.write_all((w.directory, w.file, w.value) for w in settings.writes)
    if settings.device_program:
        bpf.attach(layout.directories(group)[0], settings.device_program)


def use(size: int) -> Callable[[], object]:
    """Return work that keeps `size` bytes of anonymous memory in use."""
    kept: list[bytearray] = []

    def work() -> None:
        block = bytearray(size)
        for at in range(0, size, 4096):
            block[at] = 1
        kept.append(block)

    return work


def test_making_twice_and_removing_twice_is_fine(layout: Layout, group: str) -> None:
    dirs = layout.directories(f"{group}/deep/er")
    apply.make(dirs)
    apply.make(dirs)
    assert all(os.path.isdir(d) for d in dirs)
    apply.remove(dirs)
    apply.remove(dirs)
    assert not any(os.path.exists(d) for d in dirs)


def test_a_member_is_in_every_hierarchy(layout: Layout, group: str) -> None:
    apply.make(layout.directories(f"{group}/c"))
    member = Member(layout, f"{group}/c")
    assert member.wait_ready() == "ok"
    assert apply.pids(layout.directories(f"{group}/c")) == [member.pid]
    with open(f"/proc/{member.pid}/cgroup", encoding="ascii") as file:
        lines = [line.strip().split(":", 2) for line in file]
    unified = {""} if layout.unified else set()
    used = {name for hierarchy in layout.hierarchies for name in hierarchy.controllers} | unified
    assert {path for _, names, path in lines if used & set(names.split(","))} == {f"{group}/c"}
    if layout.unified:
        assert apply.leaf(member.pid, layout.unified.mountpoint) == layout.unified_directory(f"{group}/c")
    apply.kill(layout.directories(f"{group}/c"), layout.version)
    assert member.reap() == -signal.SIGKILL


def test_limits_are_in_force(layout: Layout, group: str) -> None:
    put(layout, group, Limits(cpu_period=50_000, cpu_quota=20_000, cpu_shares=512, memory_limit=64 * MIB, pids_limit=7))
    current = read_current(layout, group)
    assert (current.memory_limit, current.cpu_period) == (64 * MIB, 50_000)
    pids = layout.directory("pids", group)
    assert pids is not None
    assert apply.read(pids, "pids.max") == b"7\n"


def test_a_refused_write_names_file_value_and_directory(layout: Layout, group: str) -> None:
    directory = layout.directory("pids", group)
    assert directory is not None
    with pytest.raises(OSError, match=r"write pids.max=many") as caught:
        apply.write(directory, "pids.max", "many")
    assert (caught.value.errno, caught.value.filename) == (errno.EINVAL, directory)


def test_memory_limits_move_in_both_directions(layout: Layout, group: str) -> None:
    for limit, total in ((64, 96), (200, 300), (32, 32), (128, -1), (16, 20)):
        limits = Limits(memory_limit=limit * MIB, memory_swap_limit=total * MIB if total > 0 else -1)
        settings = plan_update(limits, layout, group)
        apply.write_all((w.directory, w.file, w.value) for w in settings.writes)
        assert read_current(layout, group).memory_limit == limit * MIB


def test_a_limit_below_use_is_refused_and_the_member_lives(layout: Layout, group: str) -> None:
    put(layout, group, Limits(memory_limit=160 * MIB))
    member = Member(layout, group, use(80 * MIB))
    assert member.wait_ready() == "ok"
    with pytest.raises(FailedPreconditionError, match="memory_limit_in_bytes"):
        plan_update(Limits(memory_limit=40 * MIB), layout, group)
    assert read_current(layout, group).memory_limit == 160 * MIB
    raised = plan_update(Limits(memory_limit=200 * MIB, memory_swap_limit=300 * MIB), layout, group)
    apply.write_all((w.directory, w.file, w.value) for w in raised.writes)
    assert read_current(layout, group).memory_limit == 200 * MIB
    assert apply.pids(layout.directories(group)) == [member.pid]
    apply.kill(layout.directories(group), layout.version)
    assert member.reap() == -signal.SIGKILL
    assert apply.oom_kills(layout.directories(group), layout.version) == 0


def test_oom_kills_are_counted_in_groups_below_too(layout: Layout, group: str) -> None:
    put(layout, group, Limits(memory_limit=24 * MIB))
    apply.make(layout.directories(f"{group}/nested"))
    member = Member(layout, f"{group}/nested", use(64 * MIB))
    assert member.wait_ready() == ""
    assert member.reap() == -signal.SIGKILL
    assert apply.oom_kills(layout.directories(group), layout.version) == 1
    assert apply.oom_kills(layout.directories(f"{group}/gone"), layout.version) == 0


def family(count: int) -> Callable[[], object]:
    """Return work that forks children, which sleep."""

    def work() -> None:
        for _ in range(count):
            if os.fork() == 0:
                time.sleep(1000)
                os._exit(0)

    return work


def test_kill_takes_a_whole_tree_and_remove_follows(layout: Layout, group: str) -> None:
    apply.make(layout.directories(f"{group}/c"))
    for directory in layout.directories(f"{group}/c/own"):
        os.mkdir(directory)  # as a container would
    outer, inner = Member(layout, f"{group}/c", family(5)), Member(layout, f"{group}/c/own", family(3))
    assert (outer.wait_ready(), inner.wait_ready()) == ("ok", "ok")
    dirs = layout.directories(f"{group}/c")
    assert len(apply.pids(dirs)) == 10
    assert not apply.is_empty(dirs)
    apply.kill(dirs, layout.version)
    assert (outer.reap(), inner.reap()) == (-signal.SIGKILL, -signal.SIGKILL)
    apply.remove(dirs, patience=5)
    assert not any(os.path.exists(d) for d in dirs)
    assert apply.is_empty(dirs)
    apply.kill(dirs, layout.version)


def test_kill_by_the_freezer_where_there_is_no_cgroup_kill(layout: Layout, group: str) -> None:
    if layout.version == 2:
        pytest.skip("lacks a v1 freezer hierarchy")
    dirs = [d for d in layout.directories(group) if d != layout.unified_directory(group)]
    member = Member(layout, group, family(4))
    assert member.wait_ready() == "ok"
    assert len(apply.pids(dirs)) == 5
    apply.kill(dirs, 1)
    assert member.reap() == -signal.SIGKILL


@pytest.mark.parametrize("side", ["ours", "v1 freezer"])
def test_a_frozen_group_dies_too(layout: Layout, group: str, side: str) -> None:
    dirs = list(layout.directories(group))
    if side == "v1 freezer":
        directory = layout.directory("freezer", group)
        if layout.version == 2 or directory is None:
            pytest.skip("lacks a v1 freezer hierarchy")
        dirs = [directory]
    member = Member(layout, group, family(2))
    assert member.wait_ready() == "ok"
    assert apply.freeze(dirs, layout.version)
    apply.kill(layout.directories(group), layout.version)
    assert member.reap() == -signal.SIGKILL


def test_freeze_and_thaw(layout: Layout, group: str) -> None:
    dirs = layout.directories(group)
    member = Member(layout, group)
    assert member.wait_ready() == "ok"
    assert apply.freeze(dirs, layout.version)
    apply.thaw(dirs)
    os.kill(member.pid, signal.SIGTERM)
    assert member.reap() == -signal.SIGTERM


def test_remove_says_how_many_are_left(layout: Layout, group: str) -> None:
    apply.make(layout.directories(f"{group}/c"))
    member = Member(layout, f"{group}/c")
    assert member.wait_ready() == "ok"
    with pytest.raises(OSError, match="1 processes are left") as caught:
        apply.remove(layout.directories(f"{group}/c"), patience=0.01)
    assert caught.value.errno == errno.EBUSY
    apply.kill(layout.directories(f"{group}/c"), layout.version)
    member.reap()


def test_statistics_of_a_member(layout: Layout, group: str) -> None:
    put(layout, group, Limits(memory_limit=128 * MIB))
    member = Member(layout, group, use(32 * MIB))
    assert member.wait_ready() == "ok"
    readers = Readers(layout)
    sample = readers.read(group)
    assert sample is not None
    assert sample.cpu_usage is not None
    assert sample.cpu_usage > 0
    assert sample.rss is not None
    assert sample.rss >= 30 * MIB
    assert sample.working_set is not None
    assert 30 * MIB <= sample.working_set <= 128 * MIB
    assert (sample.memory_limit, sample.pids) == (128 * MIB, 1)
    apply.kill(layout.directories(group), layout.version)
    member.reap()
    apply.remove(layout.directories(group))
    assert readers.read(group) is None
    assert readers.read(group) is None
    readers.close()


def opens(paths: tuple[str, ...]) -> Callable[[], object]:
    def work() -> None:
        for path in paths:
            os.close(os.open(path, os.O_RDWR))

    return work


@pytest.mark.parametrize(
    ("rules", "path", "result"),
    [
        (DEFAULT, "/dev/null", "ok"),
        (DEFAULT, "/dev/zero", "ok"),
        (DEFAULT, "/dev/kmsg", "Operation not permitted"),
        (ALL, "/dev/kmsg", "ok"),
        ((), "/dev/null", "Operation not permitted"),
        ((DeviceRule("c", 1, 3, "r"),), "/dev/null", "Operation not permitted"),
    ],
)
def test_device_rules_of_the_host(
    layout: Layout, group: str, rules: tuple[DeviceRule, ...], path: str, result: str
) -> None:
    put(layout, group, Limits(devices=rules))
    member = Member(layout, group, opens((path,)))
    assert result in member.wait_ready()
    apply.kill(layout.directories(group), layout.version)
    member.reap()


def test_a_device_program_is_replaced_and_never_doubled(layout: Layout, group: str) -> None:
    directory = layout.unified_directory(group)
    if directory is None:
        pytest.skip("lacks a v2 hierarchy")
    try:
        bpf.attach(directory, compile_rules(DEFAULT))
    except OSError as error:
        pytest.skip(f"lacks the ability to attach a device program ({error})")
    first = bpf.attached(directory)
    bpf.attach(directory, compile_rules((DeviceRule("c", 1, 5, "r"),)))
    second = bpf.attached(directory)
    assert (len(first), len(second)) == (1, 1)
    assert first != second
    member = Member(layout, group, opens(("/dev/null",)))
    assert "Operation not permitted" in member.wait_ready()
    bpf.attach(directory, compile_rules(ALL))
    other = Member(layout, group, opens(("/dev/null",)))
    assert other.wait_ready() == "ok"
    apply.kill(layout.directories(group), layout.version)
    member.reap()
    other.reap()


def test_a_program_that_the_verifier_refuses_leaves_the_old_one(layout: Layout, group: str) -> None:
    directory = layout.unified_directory(group)
    if directory is None:
        pytest.skip("lacks a v2 hierarchy")
    try:
        bpf.attach(directory, compile_rules(ALL))
    except OSError as error:
        pytest.skip(f"lacks the ability to attach a device program ({error})")
    before = bpf.attached(directory)
    with pytest.raises(OSError, match="load device program"):
        bpf.attach(directory, b"\xff" * 16)
    assert bpf.attached(directory) == before


def test_no_deny_window_while_limits_and_programs_change(layout: Layout, group: str) -> None:
    put(layout, group, Limits(devices=DEFAULT))
    stop, told = os.pipe()

    def work() -> None:
        os.set_blocking(stop, False)
        while True:
            os.close(os.open("/dev/null", os.O_RDWR))
            with contextlib.suppress(BlockingIOError):
                if os.read(stop, 1):
                    return

    member = Member(layout, group, work)
    while not apply.pids(layout.directories(group)):
        time.sleep(0.001)
    for quota in range(20_000, 40_000, 1000):
        settings = plan_update(Limits(cpu_quota=quota, cpu_period=100_000), layout, group)
        apply.write_all((w.directory, w.file, w.value) for w in settings.writes)
        if layout.version == 2:
            bpf.attach(layout.directories(group)[0], compile_rules(DEFAULT))
    os.write(told, b"x")
    assert member.wait_ready() == "ok"
    for fd in (stop, told):
        os.close(fd)
    apply.kill(layout.directories(group), layout.version)
    member.reap()


def test_cpus_and_nodes_come_from_above_even_through_groups_that_have_none(layout: Layout) -> None:
    directory = layout.directory("cpuset", f"/crishim-test-{run_id()}-{secrets.token_hex(3)}")
    if layout.version == 2 or directory is None:
        pytest.skip("lacks a v1 cpuset hierarchy")
    os.mkdir(directory)  # as a manager would that does not fill it
    assert apply.read(directory, "cpuset.cpus").strip() == b""
    try:
        apply.make([f"{directory}/a/b"])
        above = apply.read(os.path.dirname(directory), "cpuset.cpus")
        assert apply.read(f"{directory}/a/b", "cpuset.cpus") == above
        assert apply.read(f"{directory}/a/b", "cpuset.mems").strip()
    finally:
        apply.remove([directory])


@pytest.fixture
def v2(layout: Layout) -> Iterator[str]:
    """Return a fresh group's directory in the v2 hierarchy, treated as if the host had no other."""
    if layout.unified is None or not layout.unified.controllers:
        pytest.skip("lacks a v2 hierarchy with a controller")
    root = layout.unified.mountpoint
    before = apply.read(root, "cgroup.subtree_control").split()
    directory = layout.unified.directory(f"/crishim-test-{run_id()}-{secrets.token_hex(3)}")
    yield directory
    apply.kill([directory], 2)
    apply.remove([directory], patience=5)
    for controller in set(apply.read(root, "cgroup.subtree_control").split()) - set(before):
        with contextlib.suppress(OSError):  # other groups may use it by now
            apply.write(root, "cgroup.subtree_control", f"-{controller.decode()}")


def test_v2_controllers_are_passed_on_to_the_group(layout: Layout, v2: str) -> None:
    assert layout.unified is not None
    apply.make([f"{v2}/pod/c"])
    assert set(apply.read(f"{v2}/pod/c", "cgroup.controllers").split()) >= {
        name.encode() for name in layout.unified.controllers if name in {"cpu", "memory", "pids", "hugetlb"}
    }
    assert apply.read(f"{v2}/pod/c", "cgroup.subtree_control").split() == []
    apply.make([f"{v2}/pod/c"])


def test_v2_a_group_with_groups_of_its_own_is_joined_at_its_leaf(layout: Layout, v2: str) -> None:
    assert layout.unified is not None
    apply.make([f"{v2}/c"])
    as_v2 = Layout(2, (), layout.unified)
    name = v2.removeprefix(layout.unified.mountpoint)
    member = Member(as_v2, f"{name}/c")
    assert member.wait_ready() == "ok"
    # What a container does that manages groups: move itself into a leaf, then pass controllers on.
    os.mkdir(f"{v2}/c/init")
    apply.write(f"{v2}/c/init", "cgroup.procs", str(member.pid))
    apply.write(f"{v2}/c", "cgroup.subtree_control", f"+{layout.unified.controllers[0]}")
    refused = Member(as_v2, f"{name}/c")
    assert "write cgroup.procs=0" in refused.wait_ready()
    os.kill(refused.pid, signal.SIGKILL)
    refused.reap()
    leaf = apply.leaf(member.pid, layout.unified.mountpoint)
    assert leaf == f"{v2}/c/init"
    joined = Member(as_v2, leaf.removeprefix(layout.unified.mountpoint))
    assert joined.wait_ready() == "ok"
    assert sorted(apply.pids([f"{v2}/c"])) == sorted([member.pid, joined.pid])
    assert apply.freeze([f"{v2}/c"], 2)
    apply.kill([f"{v2}/c"], 2)
    assert (member.reap(), joined.reap()) == (-signal.SIGKILL, -signal.SIGKILL)
    apply.remove([f"{v2}/c"], patience=5)
    assert not os.path.exists(f"{v2}/c")
