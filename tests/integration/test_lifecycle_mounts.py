"""Mounts of the request, masked paths, and images that try to steer both."""

import asyncio
import os
import stat
import tarfile
from pathlib import Path

import grpc
import pytest

from crishim._proto.runtime.v1 import api_pb2 as api
from crishim.errors import InvalidArgumentError
from crishim.pods import hostpaths
from tests.support import fuse
from tests.support.cri import attempt, refused
from tests.support.layout import Entry, directory, symlink
from tests.support.world import World

pytestmark = pytest.mark.shared_mounts

STAY = "sleep 600"
LIST_MOUNTS = "cat /proc/self/mountinfo"


def mount(host: object, inside: str, **more: object) -> dict[str, object]:
    """Return one mount of a request."""
    return {"host_path": str(host), "container_path": inside, **more}


async def test_a_bind_mount_shows_the_hosts_files_both_ways(world: World, tmp_path: Path) -> None:
    (tmp_path / "from-host").write_text("host\n")
    outcome = await world.once(
        "cat /data/from-host; echo inside > /data/from-inside", mounts=[mount(tmp_path, "/data")]
    )
    assert outcome.stdout == "host\n"
    assert (tmp_path / "from-inside").read_text() == "inside\n"
    (row,) = outcome.status.mounts
    assert (row.host_path, row.container_path, row.readonly) == (str(tmp_path), "/data", False)


async def test_a_read_only_mount_refuses_writes_and_its_source_stays_writable(world: World, tmp_path: Path) -> None:
    mounts = [mount(tmp_path, "/ro", readonly=True), mount(tmp_path, "/rw")]
    outcome = await world.once("echo x > /ro/a; echo y > /rw/b", mounts=mounts)
    assert "Read-only file system" in outcome.stderr
    assert os.listdir(tmp_path) == ["b"]
    assert [row.readonly for row in outcome.status.mounts] == [True, False]


async def test_a_missing_host_path_becomes_a_directory_and_a_link_is_resolved(world: World, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    mounts = [mount(tmp_path / "absent" / "deep", "/made"), mount(tmp_path / "link", "/linked")]
    outcome = await world.once("touch /made/x /linked/y", mounts=mounts)
    assert outcome.code == 0
    assert os.listdir(tmp_path / "absent" / "deep") == ["x"]
    assert os.listdir(tmp_path / "real") == ["y"]
    assert [row.host_path for row in outcome.status.mounts] == [row["host_path"] for row in mounts]


async def test_a_source_that_does_not_answer_holds_its_own_create_only(world: World, tmp_path: Path) -> None:
    pod = await world.pod()
    with fuse.silent(str(tmp_path)):
        config = world.config(STAY, mounts=[mount(tmp_path, "/data")])
        waiting = asyncio.ensure_future(attempt(world.cri.create(pod.id, config, pod.config)))
        outcome = await world.once("echo served", pod=pod)
        assert outcome.stdout == "served\n"
        assert not waiting.done()
    _, error = await waiting
    assert error is not None
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"config.mounts[0].host_path: {tmp_path}: " in (error.details() or "")


async def test_an_update_while_a_source_cannot_be_looked_at_changes_nothing_of_it(world: World, tmp_path: Path) -> None:
    pod = await world.pod()
    config = world.config("ls -d /data/", mounts=[mount(tmp_path, "/data")])
    container = await world.cri.create(pod.id, config, pod.config)
    shares = api.LinuxContainerResources(cpu_shares=300)
    limits = api.UpdateContainerResourcesRequest(container_id=container, linux=shares)
    with fuse.broken(str(tmp_path)):
        message = await refused(world.cri.runtime.UpdateContainerResources(limits), grpc.StatusCode.INVALID_ARGUMENT)
        assert f"{tmp_path}: " in message
    await world.cri.start(container)
    assert (await world.cri.wait_exit(container)).exit_code == 0


async def test_many_sources_that_do_not_answer_hold_nobody_and_the_daemon_ends(world: World, tmp_path: Path) -> None:
    """As many as a program's shared threads, which a pod's removal needs as well."""
    (tmp_path / "dead").mkdir()
    (tmp_path / "fine").mkdir()
    pod, other = await world.pod(), await world.pod()
    with fuse.silent(str(tmp_path / "dead")):
        configs = [world.config(STAY, mounts=[mount(tmp_path / "dead" / str(n), "/data")]) for n in range(33)]
        calls = [asyncio.ensure_future(attempt(world.cri.create(pod.id, config, pod.config))) for config in configs]
        outcome = await world.once("echo served", pod=pod, mounts=[mount(tmp_path / "fine", "/data")])
        assert outcome.stdout == "served\n"
        await world.cri.remove_pod(other.id)
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        world.instance.stop()
    world.instance.start()
    await world.reconnect()


async def test_a_source_that_stopped_answering_holds_no_other_call(world: World, tmp_path: Path) -> None:
    pod = await world.pod()
    config = world.config("echo late", mounts=[mount(tmp_path, "/data")])
    container = await world.cri.create(pod.id, config, pod.config)
    shares = api.LinuxContainerResources(cpu_shares=300)
    limits = api.UpdateContainerResourcesRequest(container_id=container, linux=shares)
    with fuse.silent(str(tmp_path)):  # the new plan looks at the host path again
        waiting = asyncio.ensure_future(attempt(world.cri.runtime.UpdateContainerResources(limits)))
        outcome = await world.once("echo served", pod=pod)
        assert outcome.stdout == "served\n"
        assert not waiting.done()
    await waiting
    await world.cri.start(container)
    await world.cri.wait_exit(container)
    await world.cri.remove(container)


async def test_a_target_below_an_absolute_link_lands_inside_the_root(world: World, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    outcome = await world.once(
        "cat /run/secrets/x/token; readlink /var/run", mounts=[mount(tmp_path, "/var/run/secrets/x")]
    )
    assert outcome.stdout == "secret\n/run\n"
    assert not os.path.exists("/run/secrets/x")


async def test_a_target_that_is_a_dangling_link_is_made_inside_the_root(world: World, tmp_path: Path) -> None:
    zone = "usr/share/zoneinfo/CRISHIM-NONE"
    image = await world.make_image("dangling", [symlink("etc/localtime", f"/{zone}")])
    (tmp_path / "zone").write_text("TZif\n")
    outcome = await world.once(f"cat /{zone}", image=image, mounts=[mount(tmp_path / "zone", "/etc/localtime")])
    assert outcome.stdout == "TZif\n"
    assert not os.path.exists(f"/{zone}")


async def test_a_target_that_climbs_out_stays_inside(world: World, tmp_path: Path) -> None:
    image = await world.make_image("climber", [symlink("up", "../../../../../../etc")])
    name = f"crishim-test-{os.getpid()}"
    outcome = await world.once(f"ls -d /etc/{name}", image=image, mounts=[mount(tmp_path, f"/up/{name}")])
    assert outcome.stdout == f"/etc/{name}\n"
    assert not os.path.lexists(f"/etc/{name}")


async def test_a_mount_inside_another_works_in_the_given_order(world: World, tmp_path: Path) -> None:
    for name in ("outer", "inner"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "outer" / "inner").mkdir()
    (tmp_path / "outer" / "link").symlink_to("/data/inner")
    mounts = [mount(tmp_path / "outer", "/data"), mount(tmp_path / "inner", "/data/link")]
    outcome = await world.once("ls /data /data/inner", mounts=mounts)
    assert outcome.stdout.split() == ["/data:", "inner", "link", "outer", "/data/inner:", "inner"]
    assert sorted(os.listdir(tmp_path / "outer")) == ["inner", "link", "outer"]


async def test_a_directory_over_proc_is_refused(world: World, tmp_path: Path) -> None:
    pod = await world.pod()
    image = await world.make_image("linked-proc", [symlink("process", "/proc")])
    for target in ("/proc", "/process"):
        config = world.config(STAY, image=image, mounts=[mount(tmp_path, target)])
        _, error = await attempt(world.cri.run(pod.id, config, pod.config))
        assert error is not None
        assert "/proc" in str(error.details())


async def test_a_propagation_that_this_version_lacks_is_refused_by_its_field(world: World, tmp_path: Path) -> None:
    pod = await world.pod()
    config = world.config(STAY, mounts=[mount(tmp_path, "/data", propagation=2)])
    call = world.cri.create(pod.id, config, pod.config)
    assert "mounts[0].propagation" in await refused(call, grpc.StatusCode.UNIMPLEMENTED)


async def test_default_devices_are_there_and_are_what_they_say(world: World) -> None:
    script = (
        "for n in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$n; done; ls -d /dev/pts /dev/shm"
    )
    lines = (await world.once(script)).stdout.splitlines()
    assert lines[:3] == ["/dev/null 1:3 666", "/dev/zero 1:5 666", "/dev/full 1:7 666"]
    assert lines[3:] == ["/dev/random 1:8 666", "/dev/urandom 1:9 666", "/dev/tty 5:0 666", "/dev/pts", "/dev/shm"]


MASKED = ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/acpi", "/sys/firmware", "/proc/absent-on-this-kernel"]
READ_ONLY = ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq"]


async def test_masked_and_read_only_paths_of_the_request_are_in_force(world: World) -> None:
    script = "head -c 1 /proc/kcore | wc -c; ls /sys/firmware | wc -l; echo 1 > /proc/sys/kernel/domainname"
    outcome = await world.once(script, security={"masked_paths": MASKED, "readonly_paths": READ_ONLY})
    assert outcome.stdout.split() == ["0", "0"]
    assert "Read-only file system" in outcome.stderr


async def test_nothing_is_masked_where_nothing_is_asked_for_or_all_is_allowed(world: World) -> None:
    script = "grep -c -e ' /proc/kcore ' -e ' /sys/firmware ' /proc/self/mountinfo"
    assert (await world.once(script)).stdout == "0\n"
    pod = await world.pod(security={"privileged": True})
    privileged = {"privileged": True, "masked_paths": MASKED, "readonly_paths": READ_ONLY}
    outcome = await world.once(
        f"{script}; head -c 1 /dev/vda >/dev/null; ls /dev | wc -l", pod=pod, security=privileged
    )
    assert outcome.stdout.split()[0] == "0"
    assert int(outcome.stdout.split()[1]) > 15


HOSTILE_DEV = [
    directory("dev"),
    symlink("dev/null", "/proc/sys/kernel/core_pattern"),
    symlink("dev/console", "/etc/shadow"),
    symlink("dev/pts", "/etc"),
    symlink("dev/shm", "/proc"),
    Entry("dev/zero", b"a plain file\n", 0o666),
    Entry("dev/fifo", kind=tarfile.FIFOTYPE, mode=0o666),
]


async def test_an_image_with_traps_in_dev_gets_the_real_devices(world: World) -> None:
    image = await world.make_image("trapped", HOSTILE_DEV)
    before = Path("/proc/sys/kernel/core_pattern").read_text()
    script = "echo '|/bin/evil' > /dev/null; stat -c '%n %F %t:%T' /dev/null /dev/zero"
    look = f"{script}; grep -c ' /dev/pts ' /proc/self/mountinfo"
    outcome = await world.once(look, image=image, security={"masked_paths": MASKED})
    assert outcome.stdout.splitlines() == [
        "/dev/null character special file 1:3",
        "/dev/zero character special file 1:5",
        "1",
    ]
    assert Path("/proc/sys/kernel/core_pattern").read_text() == before
    assert not stat.S_ISLNK(os.lstat("/dev/null").st_mode)


async def test_a_read_only_root_is_read_only_and_its_mounts_are_not(world: World, tmp_path: Path) -> None:
    script = "touch /etc/x; touch /dev/shm/y && touch /data/z && echo writable"
    outcome = await world.once(script, security={"readonly_rootfs": True}, mounts=[mount(tmp_path, "/data")])
    assert "Read-only file system" in outcome.stderr
    assert outcome.stdout == "writable\n"


async def test_the_hosts_mounts_are_not_visible_inside(world: World) -> None:
    outcome = await world.once(LIST_MOUNTS)
    roots = [line.split()[3] for line in outcome.stdout.splitlines()]
    assert outcome.stdout.splitlines()[0].split()[4] == "/"
    assert not any(world.instance.root in root for root in roots)


async def test_an_absent_mount_source_of_a_file_kind_is_reported_in_status_order(world: World, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    mounts = [mount(tmp_path / "a", "/a"), mount(tmp_path, "/b", readonly=True)]
    pod = await world.pod()
    container = await world.run(pod, STAY, mounts=mounts)
    status = await world.cri.status(container)
    assert [row.container_path for row in status.mounts] == ["/a", "/b"]
    assert all(row.propagation == api.PROPAGATION_PRIVATE for row in status.mounts)


@pytest.mark.parametrize("swapped", ["vol/dir", "vol/dir/sub", "vol/dir/sub/file"])
async def test_a_source_that_became_a_link_after_the_create_is_refused(
    world: World, tmp_path: Path, swapped: str
) -> None:
    """A sibling with the same volume swaps the subPath for a link to the host's root (CVE-2017-1002101)."""
    (tmp_path / "vol/dir/sub").mkdir(parents=True)
    (tmp_path / "vol/dir/sub/file").write_text("mine\n")
    source = tmp_path / "vol/dir/sub" / ("file" if swapped.endswith("file") else "")
    pod = await world.pod()
    sibling = await world.run(pod, STAY, mounts=[mount(tmp_path / "vol", "/vol")])
    config = world.config("ls /data; cat /data", mounts=[mount(source, "/data")])
    container = await world.cri.create(pod.id, config, pod.config)
    away = f"mv /{swapped} /vol/old; ln -s {'/etc/passwd' if swapped.endswith('file') else '/'} /{swapped}"
    await world.cri.output(sibling, "sh", "-c", away)
    message = await refused(world.cri.start(container), grpc.StatusCode.FAILED_PRECONDITION)
    assert f"mount /data: host path {source}: has become a symbolic link since the container was created" in message
    assert (await world.cri.status(container)).mounts[0].host_path == str(source)


async def test_a_source_below_a_link_of_the_host_goes_on_working(world: World, tmp_path: Path) -> None:
    """A host's /var/lib/kubelet may be a link; what is mounted is what it named when the container was created."""
    (tmp_path / "disk/pods/volume").mkdir(parents=True)
    (tmp_path / "disk/pods/volume/file").write_text("right\n")
    (tmp_path / "kubelet").symlink_to("disk")
    pod = await world.pod()
    source = tmp_path / "kubelet/pods/volume"
    config = world.config("cat /data/file", mounts=[mount(source, "/data")], name="linked")
    container = await world.cri.create(pod.id, config, pod.config)
    await world.cri.start(container)
    status = await world.cri.wait_exit(container)
    assert (status.exit_code, status.mounts[0].host_path) == (0, str(source))
    assert " right" in log_of(pod.log("linked"))


def log_of(path: str) -> str:
    return Path(path).read_text(encoding="utf-8")


def test_a_missing_source_is_made_through_no_link_that_came_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(InvalidArgumentError, match="is no directory"):
        hostpaths._make("config.mounts[0].host_path", str(tmp_path / "link/made"))
    assert os.listdir(tmp_path / "elsewhere") == []
