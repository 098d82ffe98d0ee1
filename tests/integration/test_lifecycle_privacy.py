"""What containers make stays out of reach of the host's users: no path leads anyone but root to it."""

import os
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.instance import Instance
from tests.support.world import World

STAY = "while :; do sleep 100; done"
TRAPS = """
cp /bin/sh /trap && chmod 4755 /trap
mknod /null c 1 3 && chmod 666 /null
chmod 4755 /etc/hostname /etc/hosts /etc/resolv.conf
touch /ready
"""


def everything(top: str) -> Iterator[str]:
    """Give a directory and all that is below it, mounts and links not followed."""
    yield top
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            yield f"{directory}/{name}"


def reached(paths: list[str]) -> list[str]:
    """Return the paths whose inode a user of the host finds, and the directories among them that he can enter."""
    program = """
import os, sys
os.setgroups([]); os.setgid(1000); os.setuid(1000)
for path in sys.stdin.buffer.read().split(b"\\0"):
    for flags in (os.O_PATH | os.O_NOFOLLOW, os.O_RDONLY | os.O_NONBLOCK, os.O_WRONLY | os.O_NONBLOCK):
        try:
            os.close(os.open(path, flags))
        except OSError as error:
            if error.errno not in (13, 20, 40, 6, 1):
                raise
        else:
            sys.stdout.buffer.write(path + b"\\0")
            break
"""
    data = b"\0".join(map(os.fsencode, paths))
    result = subprocess.run(["/usr/bin/env", "python3", "-Ic", program], input=data, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    return [os.fsdecode(path) for path in result.stdout.split(b"\0") if path]


async def test_no_user_of_the_host_gets_at_anything_below_root_and_state(world: World) -> None:
    pod = await world.pod()
    container = await world.run(pod, TRAPS + STAY)
    while (await world.cri.exec(container, "test", "-e", "/ready")).exit_code:
        pass
    instance = world.instance
    paths = [path for top in (instance.root, instance.state) for path in everything(top)]
    trap = next(path for path in paths if path.endswith("/upper/trap"))
    assert os.stat(trap).st_mode & stat.S_ISUID, "the trap is there"
    assert any(stat.S_ISCHR(os.lstat(path).st_mode) for path in paths if path.endswith("/upper/null"))
    # the two directories themselves are seen from the one above; nothing in them is
    assert sorted(reached(paths)) == sorted([instance.root, instance.state])
    for top in (instance.root, instance.state):
        assert stat.S_IMODE(os.stat(top).st_mode) == 0o700


async def test_a_pods_files_run_nobodys_rights(world: World) -> None:
    outcome = await world.once("grep -E ' /etc/(hosts|hostname|resolv.conf) ' /proc/self/mountinfo")
    options = [set(line.split()[5].split(",")) for line in outcome.stdout.splitlines()]
    assert len(options) == 3
    assert all({"nosuid", "nodev"} <= found for found in options)


@pytest.mark.parametrize("ipc", ["POD", "NODE"])
async def test_a_pods_files_hold_no_more_than_the_pods_own_memory(world: World, ipc: str) -> None:
    security = {"namespace_options": {"ipc": ipc, "pid": "CONTAINER"}}
    pod = await world.pod(security=security)
    fill = "for f in hosts hostname resolv.conf; do dd if=/dev/zero of=/etc/$f bs=1048576 count=100; done"
    script = f"{fill}; stat -c %s /etc/hosts"
    outcome = await world.once(script, pod=pod, security=security)
    assert outcome.stderr.count("No space left on device") == 3
    assert int(outcome.stdout) <= 64 << 20
    found = [os.lstat(path) for path in everything(world.instance.state)]
    assert sum(status.st_blocks * 512 for status in found if status.st_dev == found[0].st_dev) < 1 << 20
    await world.run(await world.pod(), STAY)


async def test_a_pods_files_outlive_the_daemon(own_world: World) -> None:
    pod = await own_world.pod(hostname="steady")
    one = await own_world.run(pod, "echo 192.0.2.1 mine >>/etc/hosts; " + STAY)
    own_world.instance.restart()
    await own_world.reconnect()
    two = await own_world.run(pod, STAY)
    for container in (one, two):
        assert await own_world.cri.output(container, "cat", "/etc/hostname") == "steady\n"
        assert (await own_world.cri.output(container, "tail", "-n", "1", "/etc/hosts")) == "192.0.2.1 mine\n"


def test_directories_of_an_earlier_version_are_closed_at_start(instance: Instance) -> None:
    instance.stop()
    tops = [instance.root, instance.state, f"{instance.root}/containers", f"{instance.root}/layers"]
    for path in (*tops, f"{instance.state}/pods"):
        os.chmod(path, 0o711)
    instance.start()
    for path in (*tops, f"{instance.state}/pods"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
