"""Lock, directories, sd_notify, the dump and the reload of the daemon, each by itself."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crishim.config.load import load
from crishim.config.model import Config
from crishim.daemon import directories, notify
from crishim.daemon.dump import dump
from crishim.daemon.lock import acquire
from crishim.errors import FailedPreconditionError, KernelError
from crishim.paths import Paths
from tests.support.surroundings import ABSENT


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    lock = acquire(path, "the root /x")
    with pytest.raises(FailedPreconditionError, match=rf"another daemon \(process {os.getpid()}\) serves the root /x"):
        acquire(path, "the root /x")
    lock.release()
    lock.release()
    acquire(path, "the root /x").release()


def test_lock_is_not_held_on_by_children(tmp_path: Path) -> None:
    lock = acquire(str(tmp_path / "lock"), "x")
    code = "print(flush=True); import sys; sys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, close_fds=False) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it runs: vfork lets us go on a moment before exec has closed descriptors
        lock.release()
        acquire(str(tmp_path / "lock"), "x").release()
        child.communicate()


def test_lock_of_a_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(KernelError, match="ELOOP"):
        acquire(str(tmp_path / "link"), "x")


def modes(paths: Paths) -> dict[str, int]:
    every = [paths.root, paths.state, paths.content, paths.layers, paths.containers]
    every += [paths.pods, paths.namespaces, paths.empty]
    return {os.path.basename(path): os.stat(path).st_mode & 0o7777 for path in every}


def test_directories_and_their_modes_whatever_the_umask(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "a/b/root"), str(tmp_path / "a/state"))
    old = os.umask(0o077)
    try:
        directories.make(paths)
    finally:
        os.umask(old)
    private = dict.fromkeys(("root", "state", "content", "layers", "containers", "pods", "ns", "empty"), 0o700)
    assert modes(paths) == private
    assert os.stat(tmp_path / "a/b").st_mode & 0o777 == 0o755
    for path in (paths.root, paths.state, paths.layers, paths.containers, paths.pods):
        os.chmod(path, 0o711)  # as an earlier version made them
    directories.make(paths)
    assert modes(paths) == private


def test_images_on_a_path_of_their_own(tmp_path: Path) -> None:
    paths = Paths(str(tmp_path / "root"), str(tmp_path / "state"), str(tmp_path / "images"))
    directories.make(paths)
    assert sorted(os.listdir(paths.images)) == ["content", "layers"]
    assert os.listdir(paths.root) == ["containers"]
    assert os.stat(paths.images).st_mode & 0o777 == 0o700
    assert paths.image_lock == f"{paths.images}/images.lock"
    os.chmod(paths.images, 0o777)
    with pytest.raises(FailedPreconditionError, match="images can be written by other users"):
        directories.make(paths)


def test_directories_that_others_could_write_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    root.chmod(0o777)
    with pytest.raises(FailedPreconditionError, match="can be written by other users"):
        directories.make(Paths(str(root), str(tmp_path / "state")))
    assert os.listdir(root) == []


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(KernelError, match=r"mkdir .*/root: File exists"):
        directories.make(Paths(str(tmp_path / "root"), str(tmp_path / "state")))


def test_descriptors_and_oom_score() -> None:
    code = (
        "import resource; from crishim.daemon import limits\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))\n"
        "assert limits.raise_descriptors() == hard\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)\n"
        "before = int(open('/proc/self/oom_score_adj').read())\n"
        "now = limits.protect_from_oom()\n"
        "assert now == int(open('/proc/self/oom_score_adj').read())\n"
        "assert now in (-999, before)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("abstract", [False, True])
def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"@crishim-test-{os.getpid()}" if abstract else str(tmp_path / "n")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name.replace("@", "\0"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify.ready("serving")
        assert systemd.recv(1000) == f"READY=1\nSTATUS=serving\nMAINPID={os.getpid()}".encode()
        notify.reloading()
        assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        notify.stopping("bye")
        assert systemd.recv(1000) == b"STOPPING=1\nSTATUS=bye"


def test_notify_without_a_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", f"{ABSENT}/n")
    assert not notify.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "relative")
    assert not notify.notify("READY=1")


def test_dump_shows_calls_and_tasks_with_their_stacks() -> None:
    async def waiting_for_something() -> None:
        await asyncio.Event().wait()

    async def work() -> str:
        task = asyncio.create_task(waiting_for_something(), name="waiter")
        await asyncio.sleep(0)
        text = dump(["RunPodSandbox: 1.0 s"])
        task.cancel()
        return text

    text = asyncio.run(work())
    assert "calls in flight:\n  RunPodSandbox: 1.0 s\n" in text
    assert "waiter: test_dump_shows_calls_and_tasks_with_their_stacks.<locals>.waiting_for_something" in text
    assert "await asyncio.Event().wait()" in text


RELOAD = """
import sys
from crishim.config.load import load_file
from crishim.log import configure
from crishim.daemon.reload import apply_log, reload
from crishim.errors import InternalError
path = sys.argv[1]
def write(text):
    with open(path, "w") as file: file.write(text)
def broken(config): raise InternalError("cannot")
taken = []
write("")
config = load_file(path, {"network.bridge": "b1"})
configure("info", "console")
def again(text, images=taken.append):
    global config
    write(text)
    config = reload(config, path, {"network.bridge": "b1"}, {"log": apply_log, "images": images})
again("")
again('root = "/other"\\n[log]\\nlevel = "debug"\\n[images]\\nparallel_pulls = 2\\n[network]\\nbridge = "b2"\\n')
assert (config.root, config.log.level, config.images.parallel_pulls) == ("/var/lib/crishim", "debug", 2)
assert len(taken) == 1
again('rot = 3')
again('root = "/other"\\n[log]\\nlevel = "info"\\n[images]\\nparallel_pulls = 3\\n', broken)
assert (config.log.level, config.images.parallel_pulls) == ("info", 2)
"""


def test_reload_applies_what_it_can_and_names_the_rest(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path / "c.toml")], capture_output=True, text=True, check=False
    )
    wrong = f"[\"{tmp_path}/c.toml:1: rot: unknown key, did you mean 'root'?\"]"
    lines = [line.split(" ", 1)[1].split("crishim.daemon  ")[-1] for line in done.stderr.split("\n")[:-1]]
    assert lines == [
        "the configuration has not changed",
        "a setting has changed  option=images.parallel_pulls value=2",
        "a setting has changed  option=log.level value=debug",
        "a changed setting needs a restart  option=root value=/other",
        f"the configuration is wrong, the one in force stays  problems={wrong}",
        "changed settings cannot be applied  section=images error=cannot",
        "a setting has changed  option=log.level value=info",
        "a changed setting needs a restart  option=root value=/other",
    ]
    assert done.returncode == 0


def test_default_paths() -> None:
    assert Config().paths == Paths("/var/lib/crishim", "/run/crishim")
    assert load('state = "/run/two"', "").paths.journal("p") == "/run/two/pods/p/journal"


UNHANDLED = """
import asyncio, gc
from crishim.log import configure
from crishim.daemon.app import unhandled
configure("info", "json")
async def work():
    asyncio.get_running_loop().set_exception_handler(unhandled)
    async def fails():
        raise ValueError("nobody looks")
    asyncio.get_running_loop().create_task(fails(), name="the task")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
asyncio.run(work())
"""


def test_an_exception_that_no_task_handles_is_logged_once() -> None:
    done = subprocess.run([sys.executable, "-c", UNHANDLED], capture_output=True, text=True, check=True)
    (line,) = [json.loads(line) for line in done.stderr.splitlines()]
    assert (line["level"], line["task"]) == ("error", "the task")
    assert line["stack"].rstrip().endswith("ValueError: nobody looks")
