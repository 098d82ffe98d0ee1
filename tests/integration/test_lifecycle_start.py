"""Programs that cannot start, and what programs inherit when they do."""

import hashlib
import os
import resource

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from tests.support.abilities import can_raise_limits
from tests.support.configs import env
from tests.support.cri import attempt
from tests.support.layout import Entry, directory, symlink
from tests.support.world import World

pytestmark = pytest.mark.shared_mounts

STAY = "sleep 600"
BAD_PROGRAMS = {
    "absent": (["/no/such/program"], "/no/such/program"),
    "absent-on-path": (["no-such-program"], "no-such-program"),
    "not-executable": (["/etc/passwd"], "/etc/passwd"),
    "directory": (["/etc"], "/etc"),
    "wrong-format": (["/bad/format"], "/bad/format"),
    "no-interpreter": (["/bad/script"], "/bad/script"),
}
BAD_FILES = [
    directory("bad"),
    Entry("bad/format", b"\x7fELF\x02\x01\x01" + bytes(57), 0o755),
    Entry("bad/script", b"#!/no/such/interpreter\n", 0o755),
    Entry("bad/file", b"", 0o644),
]


@pytest.mark.parametrize("case", BAD_PROGRAMS)
async def test_a_program_that_cannot_start_is_named_and_the_container_can_be_removed(world: World, case: str) -> None:
    command, named = BAD_PROGRAMS[case]
    image = await world.make_image("bad", BAD_FILES)
    pod = await world.pod()
    container = await world.cri.create(pod.id, world.config(command, image=image), pod.config)
    _, error = await attempt(world.cri.start(container))
    assert error is not None
    assert error.code() not in {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL}
    assert named in str(error.details())
    status = await world.cri.status(container)
    assert (status.state, status.reason) == (api.CONTAINER_EXITED, "StartError")
    assert status.exit_code != 0
    assert 0 < status.started_at <= status.finished_at
    assert named in status.message
    await world.cri.remove(container)


async def test_a_working_directory_that_is_a_file_is_named(world: World) -> None:
    image = await world.make_image("bad", BAD_FILES)
    pod = await world.pod()
    config = world.config(STAY, image=image, working_dir="/bad/file")
    _, error = await attempt(world.cri.run(pod.id, config, pod.config))
    assert error is not None
    assert "/bad/file" in str(error.details())


async def test_an_exec_that_cannot_start_says_so_and_the_container_lives_on(world: World) -> None:
    container = await world.run(await world.pod(), STAY)
    for command, code in ((["/no/such/program"], 127), (["/etc/passwd"], 126)):
        reply, error = await attempt(world.cri.exec(container, *command))
        if error is None:
            assert reply is not None
            assert (reply.exit_code, command[0].encode() in reply.stderr) == (code, True)
        else:
            assert command[0] in str(error.details())
    assert (await world.cri.status(container)).state == api.CONTAINER_RUNNING


async def test_a_container_whose_start_failed_cannot_be_started_again(world: World) -> None:
    pod = await world.pod()
    container = await world.cri.create(pod.id, world.config(["/no/such/program"]), pod.config)
    await attempt(world.cri.start(container))
    _, error = await attempt(world.cri.start(container))
    assert error is not None
    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION


LOOK = (
    "grep -E '^Sig(Blk|Ign):' /proc/self/status; umask; cut -d' ' -f19 /proc/self/stat; ls -1 /proc/self/fd | wc -l; "
    "cat /proc/self/oom_score_adj; ulimit -n; ulimit -Hn"
)


async def test_run_and_exec_inherit_nothing_of_ours(world: World) -> None:
    resources = {"oom_score_adj": 345}
    pod = await world.pod()
    container = await world.run(pod, STAY, resources=resources)
    run = (await world.once(LOOK, pod=pod, resources=resources)).stdout.splitlines()
    inside = (await world.cri.output(container, "sh", "-c", LOOK)).splitlines()
    assert run == inside
    blocked, ignored, mask, nice, files, score, soft, hard = run
    assert int(blocked.split()[1], 16) == int(ignored.split()[1], 16) == 0
    assert (mask, nice, score) == ("0022", "0", "345")
    assert int(files) == 4  # 0, 1, 2 and the directory that ls reads
    own = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert (soft, int(hard)) == ("1024", 524288 if can_raise_limits() else min(524288, own))


async def test_a_broken_pipe_ends_its_writer(world: World) -> None:
    outcome = await world.once("yes | head -n 1")
    assert (outcome.stdout, outcome.code) == ("y\n", 0)


async def test_each_program_has_a_session_of_its_own(world: World) -> None:
    show = "cut -d' ' -f6 /proc/self/stat; cut -d' ' -f6 /proc/1/stat"
    container = await world.run(await world.pod(), STAY)
    own, first = (await world.cri.output(container, "sh", "-c", show)).split()
    assert first == "1"
    assert own not in {"0", first}


@pytest.mark.parametrize("number", [3, 5, 7, 8, 9, 12, 17, 25, 40])
async def test_a_working_directory_through_a_descriptor_never_leaves_the_root(world: World, number: int) -> None:
    pod = await world.pod()
    config = world.config("pwd; ls /proc/self/cwd/; cat /proc/self/cwd/../../../../etc/hostname", name="escape")
    config["working_dir"] = f"/proc/self/fd/{number}"
    container, error = await attempt(world.cri.run(pod.id, config, pod.config))
    if error is None:
        await world.cri.wait_exit(str(container))
        with open(pod.log("escape"), encoding="utf-8") as file:
            text = file.read()
        assert "(unreachable)" not in text
        assert "crishim" not in text


async def test_an_exec_through_a_link_to_a_descriptor_is_contained(world: World) -> None:
    image = await world.make_image("fdlink", [symlink("cwd", "/proc/self/fd/7")])
    pod = await world.pod()
    _, error = await attempt(world.cri.run(pod.id, world.config(STAY, image=image, working_dir="/cwd"), pod.config))
    assert error is not None


OVERWRITE = """
for n in 1 2 3 4 5 6 7 8 9 10; do
  for exe in /proc/[0-9]*/exe; do
    (printf evil >> $exe) 2>/dev/null && case "$(readlink $exe)" in */python*|*memfd*) echo "wrote $exe";; esac
  done
done
exit 0
"""


async def test_no_binary_of_the_host_can_be_written_through_proc(world: World) -> None:
    path = os.path.realpath(f"/proc/{world.instance.pid}/exe")
    before = hashlib.sha256(read(path)).hexdigest()
    image = await world.make_image("self", [Entry("bin/self", b"#!/proc/self/exe\n", 0o755)])
    security = {"capabilities": {"add_capabilities": ["SYS_PTRACE"]}, "namespace_options": {"pid": 0}}
    pod = await world.pod(security={"namespace_options": {"pid": 0}})
    container = await world.run(pod, STAY, image=image, security=security)
    await attempt(world.cri.exec(container, "/bin/self"))
    outcome = await world.once(OVERWRITE, pod=pod, image=image, security=security)
    assert outcome.stdout == ""
    assert hashlib.sha256(read(path)).hexdigest() == before


def read(path: str) -> bytes:
    """Return a file's bytes."""
    with open(path, "rb") as file:
        return file.read()


TOO_MUCH = {
    "one": ([("LITTLE", "x"), ("HUGE", "x" * (200 << 10))], ["env HUGE", "204806 bytes", "131072"]),
    "all": ([(f"V{number}", "x" * (100 << 10)) for number in range(70)], ["env, 7", "kernel takes", "env V"]),
}


@pytest.mark.parametrize("terminal", [False, True], ids=["pipes", "terminal"])
@pytest.mark.parametrize("case", TOO_MUCH)
async def test_an_environment_that_the_kernel_does_not_take_is_named_with_the_limit(
    world: World, case: str, terminal: bool
) -> None:
    given, words = TOO_MUCH[case]
    envs = [env(key, value) for key, value in given]
    pod = await world.pod()
    container = await world.cri.create(pod.id, world.config(STAY, envs=envs, tty=terminal), pod.config)
    _, error = await attempt(world.cri.start(container))
    assert error is not None
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    for word in words:
        assert word in str(error.details())
    await world.cri.remove(container)
