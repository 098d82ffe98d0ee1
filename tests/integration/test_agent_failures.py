"""Starts that fail: the call, errno and words that come back, and what is left of them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from crishim.engine.agent import area, layout
from crishim.engine.agent.batch import Batch
from crishim.request import Mount
from tests.support.abilities import need_containers
from tests.support.agents import MACHINE, AgentPod, agent_pod

INTERPRETER = "its interpreter (the #! line's, or the dynamic loader) does not exist in the image"


@pytest.fixture
def pod(tmp_path: Path, test_leaks: None) -> Iterator[AgentPod]:
    need_containers()
    with agent_pod(str(tmp_path)) as made:
        yield made


def batch() -> Batch:
    return Batch(MACHINE, layout.AREA + layout.FIRST)


def test_a_host_path_that_became_a_link_is_not_followed(pod: AgentPod, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    plan = pod.plan("/bin/true", mounts=(Mount("/data", str(tmp_path / "source")),))
    (tmp_path / "source").rmdir()
    (tmp_path / "source").symlink_to("/etc")
    run = pod.start(plan).follow()
    assert run.watched is not None
    hint = "has become a symbolic link since the container was created"
    assert str(run.watched.failure) == f"mount /data: host path {tmp_path}/source: {hint}"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/etc/passwd", "mount /etc/passwd: is a file in the image, a directory must be mounted there"),
        ("/etc/passwd/below", "mount /etc/passwd/below: is a file in the image, a directory must be mounted there"),
    ],
)
def test_a_file_in_the_way_of_a_mount(pod: AgentPod, tmp_path: Path, target: str, words: str) -> None:
    run = pod.start(pod.plan("/bin/true", mounts=(Mount(target, str(tmp_path)),))).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == words


def test_a_directory_in_the_way_of_a_file(pod: AgentPod, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = pod.start(pod.plan("/bin/true", mounts=(Mount("/etc", str(tmp_path / "file")),))).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == "mount /etc: is a directory in the image, a file must be mounted there"


@pytest.mark.parametrize(
    ("cwd", "words"),
    [
        ("/etc/passwd", "working directory /etc/passwd: is a file"),
        ("/etc/passwd/x", "working directory /etc/passwd/x: is a file"),
        ("/run/x", "working directory /run/x: a symbolic link of the image on the way leads nowhere"),
        ("/run", "working directory /run: a symbolic link of the image on the way leads nowhere"),
        ("/proc/self/fd/0/..", "working directory /proc/self/fd/0/..: too many levels of symbolic links"),
    ],
)
def test_a_working_directory_that_is_none(pod: AgentPod, cwd: str, words: str) -> None:
    os.symlink("/nowhere", f"{pod.layer}/run")
    run = pod.start(pod.plan("/bin/true", working_dir=cwd)).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == words


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/bin/nothing",), "exec /bin/nothing: no such file or directory"),
        (("nothing",), "exec nothing: executable file not found in $PATH"),
        (("/etc/passwd",), "exec /etc/passwd: permission denied"),
        (("/etc",), "exec /etc: permission denied"),
        (("/script",), f"exec /script: {INTERPRETER}"),
        (("/empty",), "execve /empty: exec format error (another architecture, or a script without #!)"),
    ],
)
def test_a_program_that_cannot_run(pod: AgentPod, command: tuple[str, ...], words: str) -> None:
    for path, text in (("script", "#!/not/there\n"), ("empty", "")):
        Path(f"{pod.layer}/{path}").write_text(text)
        os.chmod(f"{pod.layer}/{path}", 0o755)
    run = pod.start(pod.plan(*command)).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == words
    assert pod.ended(run.pid) == 127


LONGEST = 32 * os.sysconf("SC_PAGE_SIZE") - 1  # MAX_ARG_STRLEN (execve(2))


@pytest.mark.parametrize(
    ("command", "envs", "words"),
    [
        ((), ("BIG=" + "x" * LONGEST,), f"environment variable BIG has {LONGEST + 4} bytes"),
        (("x", "y" * (LONGEST + 1)), (), f"argument 2 has {LONGEST + 1} bytes"),
        (
            (),
            tuple(f"V{n}=" + "x" * 100_000 for n in range(30)),
            "32 environment variables and 0 arguments have 3000441 bytes",
        ),
    ],
)
def test_what_is_too_large_for_execve_is_named(
    pod: AgentPod, command: tuple[str, ...], envs: tuple[str, ...], words: str
) -> None:
    pairs = tuple((name, value.encode()) for name, _, value in (entry.partition("=") for entry in envs))
    run = pod.start(pod.plan("/bin/true", *command, envs=pairs)).follow()
    assert run.watched is not None
    assert str(run.watched.failure).startswith("execve /bin/true: ")
    assert words in str(run.watched.failure)


def test_the_largest_that_execve_takes(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/true", "y" * LONGEST, envs=(("BIG", b"x" * (LONGEST - 4)),))).follow()
    assert run.watched is not None
    assert run.watched.failure is None
    assert pod.ended(run.pid) == 0


def test_a_refused_candidate_is_remembered(pod: AgentPod) -> None:
    os.makedirs(f"{pod.layer}/sbin")
    Path(f"{pod.layer}/sbin/tool").write_text("x")
    run = pod.start(pod.plan("tool")).follow()
    assert run.watched is not None
    assert str(run.watched.failure) == "exec /sbin/tool: permission denied"


def test_the_call_that_failed_is_named_with_its_reason(pod: AgentPod) -> None:
    plan = pod.plan("/bin/true")
    plan["root"]["upper"] = "/not/there"
    run = pod.start(plan).follow()
    assert run.watched is not None
    failure = run.watched.failure
    assert failure is not None
    appended = ("fsconfig", 2, "root overlay upperdir=/not/there")
    as_options = ("mount", 2, "root overlay")
    assert (failure.call, failure.errno, failure.what) == (appended if plan["root"]["append"] else as_options)
    assert failure.reason == "the root: the image's layers and one read/write layer"
    assert pod.ended(run.pid) == 127


def test_an_unknown_user(pod: AgentPod) -> None:
    run = pod.start(pod.plan("/bin/true", run_as_username="nobody-here")).follow()
    assert run.watched is not None
    assert "user nobody-here: not in the image's /etc/passwd" in str(run.watched.failure)
    assert pod.ended(run.pid) == 127  # its keeper went without a word


def test_the_first_failure_stops_an_agents_batch(pod: AgentPod) -> None:
    wrong = batch()
    wrong.call("getpid")
    wrong.call("close", 1000)
    wrong.call("umask", 0)
    with pytest.raises(area.BatchFailedError) as caught:
        pod.run_batch(wrong)
    record = caught.value.record
    assert (record.position, record.errno, record.number) == (1, 9, wrong.numbers["close"])
    assert pod.agent.result(0) == pod.pid
    assert pod.agent.result(2) == 0
    pod.run_batch(batch())
