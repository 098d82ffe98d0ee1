"""The pure and small parts: validation, sysctls, signals, mounts, logs, rates, usage, records."""

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest

from crishim import codec
from crishim.engine.plan import host
from crishim.errors import CrishimError, DeadlineExceededError, FailedPreconditionError, InvalidArgumentError
from crishim.network.model import Attachment
from crishim.pods import hostpaths, logs, signals, updates
from crishim.pods.rates import Rates
from crishim.pods.records import (
    ContainerRecord,
    ContainerSpec,
    ContainerStatus,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    join,
)
from crishim.pods.states import CONTAINER_MOVES, SANDBOX_MOVES, Stage, check_container, check_sandbox
from crishim.pods.usage import Usage, walk
from crishim.pods.views import ContainerState, FsStats
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerSecurity,
    Device,
    HugepageLimit,
    Mount,
    ProfileType,
    Resources,
    SecurityProfile,
)
from tests.fakes.daemon import app, pod


def test_signals() -> None:
    assert signals.parse("SIGTERM") == signals.parse("term") == signals.parse("15") == 15
    assert signals.parse("SIGRTMIN+3") == signals.parse("SIGRTMINPLUS3") == 37
    assert signals.parse("SIGRTMAX-1") == signals.parse("RTMAXMINUS1") == 63
    assert signals.parse("SIGPOLL") == signal.SIGIO
    for bad in ("", "0", "65", "SIGNOPE", "SIGRTMIN+31", "SIGRTMIN+x", "-1", "9" * 5000):
        assert signals.parse(bad) is None
    assert signals.cri_name("SIGRTMIN+3") == "SIGRTMINPLUS3"
    assert signals.cri_name("60") == "SIGRTMAXMINUS4"
    assert signals.cri_name("SIGPOLL") == "SIGPOLL"
    assert signals.cri_name("9") == "SIGKILL"
    assert signals.cri_name("x") == ""


async def test_host_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("made-later")
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")

    def named(name: str) -> ContainerConfig:
        return app(mounts=(Mount("/x", f"{tmp_path}/{name}"),))

    async def examine(problems: Problems, name: str) -> hostpaths.Examined:
        return await hostpaths.examine(problems, named(name))

    for name, place, directory in (
        ("link", "real", True),
        ("file", "file", False),
        ("a/b/../c", "a/c", True),
        ("dangling", "made-later", True),
    ):
        found = await examine(Problems(), name)
        assert found.mounts[0].host_path == f"{tmp_path}/{place}"
        assert (found.view.directories == {f"{tmp_path}/{place}"}) is directory
        assert (name in {"a/b/../c", "dangling"}) == bool(found.missing) == (not (tmp_path / place).exists())
        await hostpaths.make_missing(named(name), found)
        assert (tmp_path / place).is_dir() is directory
    for bad in ("loop", "file/below", "zero\0byte"):
        problems = Problems()
        await examine(problems, bad)
        with pytest.raises(InvalidArgumentError, match=r"config\.mounts\[0\]\.host_path"):
            problems.check()


@pytest.mark.parametrize("name", ["pipe", "zero\0byte", "/dev/zero", "absent", "."])
async def test_a_seccomp_profile_that_is_no_file_is_a_problem_of_its_field(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    profile = SecurityProfile(ProfileType.LOCALHOST, os.path.join(tmp_path, name))
    problems = Problems()
    await hostpaths.examine(problems, app(security=ContainerSecurity(seccomp=profile)))
    with pytest.raises(InvalidArgumentError, match=r"^config\.linux\.security_context\.seccomp\.localhost_ref: "):
        problems.check()


async def test_a_device_whose_path_is_none_is_left_to_the_admission() -> None:
    found = await hostpaths.examine(Problems(), app(devices=(Device("/dev/x", "/dev/zero\0byte", "r"),)))
    assert found.view.nodes == ()


async def test_a_host_path_that_does_not_answer_is_waited_for_by_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, looks = threading.Event(), []

    def look(_: Problems, config: ContainerConfig) -> host.HostView:
        looks.append(config.mounts[0].host_path)
        if looks[-1].endswith("dead"):
            answers.wait()
        return host.NOTHING

    monkeypatch.setattr(host, "look", look)
    monkeypatch.setattr(hostpaths, "SECONDS", 0.05)
    dead, other = (app(mounts=(Mount("/x", f"{tmp_path}/{name}"),)) for name in ("dead", "other"))
    for _ in range(5):
        with pytest.raises(DeadlineExceededError, match=f"{tmp_path}/dead"):
            await hostpaths.examine(Problems(), dead)
    assert len(looks) == 1
    monkeypatch.setattr(hostpaths, "SECONDS", 60.0)
    await hostpaths.examine(Problems(), other)
    answers.set()
    await hostpaths.examine(Problems(), dead)
    assert len(looks) == 3


def test_log_paths(tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    fine = Problems()
    assert logs.log_file(fine, str(directory), "app/0.log") == f"{directory}/app/0.log"
    assert logs.log_file(fine, str(directory), "") == logs.log_file(fine, "", "x") == ""
    (tmp_path / "outside").mkdir()
    directory.mkdir()
    (directory / "evil").symlink_to("../outside")
    problems = Problems()
    logs.log_file(problems, str(directory), "evil/x")
    with pytest.raises(InvalidArgumentError, match=r"config\.log_path: 'evil/x' leads out of the log directory"):
        problems.check()
    (tmp_path / "link").symlink_to("logs")  # the log directory itself may be a link
    assert logs.log_file(fine, f"{tmp_path}/link", "x") == f"{tmp_path}/link/x"
    fine.check()
    logs.ensure_directory(f"{directory}/app/0.log")
    assert (directory / "app").is_dir()
    (directory / "file").write_text("")
    with pytest.raises(FailedPreconditionError, match="a file is on the way to the log directory"):
        logs.ensure_directory(f"{directory}/file/below/0.log")


def test_rates_need_two_samples_apart() -> None:
    rates = Rates()
    second = 1_000_000_000
    assert rates.rate("a", 0, 100) is None
    assert rates.rate("a", 10_000_000, 200) is None
    assert rates.rate("a", second, 100 + 500_000_000) == 500_000_000
    assert rates.rate("a", second + 1, 200 + 500_000_000) == 500_000_000
    assert rates.rate("a", 2 * second, 100 + 500_000_000) == 0
    assert rates.rate("a", 3 * second, 5) is None  # the counter began again
    assert rates.rate("a", 4 * second, 6) == 1
    rates.forget("a")
    assert rates.rate("a", 5 * second, 7) is None


def test_usage_counts_blocks_inodes_and_links_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/file").write_bytes(b"x" * 100_000)
    os.link(tmp_path / "d/file", tmp_path / "again")
    (tmp_path / "link").symlink_to("/etc")
    stats = walk([str(tmp_path)])
    assert stats is not None
    assert stats.inodes_used == 4
    assert 100_000 <= stats.used_bytes < 140_000
    assert walk([str(tmp_path)], 3) is None
    assert walk([f"{tmp_path}/none"]) is None


async def test_usage_is_measured_while_the_container_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crishim.pods.usage.TICK", 0.01)
    monkeypatch.setattr("crishim.pods.usage.SHARE", 0)
    walks: list[str] = []

    def walked(trees: list[str], limit: int = 0) -> FsStats | None:
        if not limit:
            walks.append(os.path.basename(trees[0]))
        return walk(trees, limit)

    monkeypatch.setattr("crishim.pods.usage.walk", walked)
    usage = Usage(lambda container_id: [f"{tmp_path}/{container_id}"])
    for name, count in (("small", 0), ("large", 100)):
        (tmp_path / name).mkdir()
        (tmp_path / f"{name}.cpu").write_text("1")
        for n in range(count):
            (tmp_path / f"{name}/{n}").touch()
    first = usage.read("small")
    assert first is not None
    assert first.inodes_used == 1
    assert usage.read("large") is None  # not on the spot
    assert usage.read("gone") is None
    usage.watch(lambda: {name: f"{tmp_path}/{name}.cpu" for name in ("small", "large")})
    async with asyncio.timeout(10):
        while (found := usage.read("large")) is None:
            await asyncio.sleep(0.001)
    assert found.inodes_used == 101
    for number in range(1, 4):
        (tmp_path / f"small/{number}").touch()
        (tmp_path / "small.cpu").write_text(str(number + 1))
        async with asyncio.timeout(10):
            while (found := usage.read("small")) is None or found.inodes_used <= number:
                await asyncio.sleep(0.001)
        assert found.timestamp > first.timestamp
    await asyncio.sleep(0.05)
    assert walks.count("large") == 1  # it did nothing
    assert walks.count("small") == 4
    usage.forget("small")
    assert usage.read("small") is not found
    usage.close()


def test_merge_of_resources() -> None:
    old = Resources(cpu_shares=100, memory_limit_in_bytes=10, oom_score_adj=5, unified={"a": "1"})
    pages = (HugepageLimit("2MB", 4),)
    new = updates.merge(old, Resources(memory_limit_in_bytes=20, hugepage_limits=pages, unified={"b": "2"}))
    assert new == Resources(
        cpu_shares=100,
        memory_limit_in_bytes=20,
        oom_score_adj=5,
        hugepage_limits=pages,
        unified={"a": "1", "b": "2"},
    )
    assert updates.merge(new, Resources()) == new


def test_records_survive_the_codec() -> None:
    spec = SandboxSpec("i", pod(labels={"ä": "\udc80"}, sysctls={"a.b": "c"}), 5, "boot")
    status = SandboxStatus(Stage.READY, 7, 8, Attachment(ips=("10.0.0.1",)), network_held=True)
    assert codec.loads(SandboxRecord, join(codec.dumps(spec), status)) == SandboxRecord(spec, status)
    config = app(envs=(("A", b"\xff\n"),), mounts=(Mount("/a", "/b"),), security=ContainerSecurity(run_as_user=0))
    inner = ContainerSpec("c", "i", config, 6, "sha256:x", layers=("/l",), mounts=config.mounts)
    inside = ContainerStatus(ContainerState.EXITED, exit_code=3, resources=Resources(cpu_shares=2))
    assert codec.loads(ContainerRecord, join(codec.dumps(inner), inside)) == ContainerRecord(inner, inside)


def test_states_never_go_back() -> None:
    for old, allowed in CONTAINER_MOVES.items():
        for new in ContainerState:
            if new in allowed:
                check_container("c", old, new)
            else:
                with pytest.raises(CrishimError, match=f"no way from {old.name} to {new.name}"):
                    check_container("c", old, new)
    assert CONTAINER_MOVES[ContainerState.EXITED] == {ContainerState.EXITED}
    assert SANDBOX_MOVES[Stage.NOTREADY] == {Stage.NOTREADY}
    with pytest.raises(CrishimError, match="sandbox s: no way from NOTREADY to READY"):
        check_sandbox("s", Stage.NOTREADY, Stage.READY)
