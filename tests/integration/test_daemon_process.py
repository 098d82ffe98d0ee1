"""The real daemon process: its start, its signals, its end, and what it refuses."""

import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.abilities import need_containers
from tests.support.instance import Instance

STORE = ["state.db", "state.db-reserve", "state.db-spare"]
"""The store's files after a clean end: the database, and the space that is kept for a full disk."""


@pytest.fixture
def fresh(test_leaks: None) -> Iterator[Instance]:
    """Return an instance that is not started."""
    need_containers()
    made = Instance()
    yield made
    made.close()


def until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def rerun(instance: Instance, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*instance.command(), *more], capture_output=True, text=True, check=False, timeout=30)


def test_what_a_started_daemon_is(instance: Instance) -> None:
    assert stat.S_IMODE(os.stat(instance.socket).st_mode) == 0o600
    for path in (instance.root, instance.state, f"{instance.state}/pods", f"{instance.state}/ns"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert (
        resource.prlimit(instance.pid, resource.RLIMIT_NOFILE)
        == (resource.prlimit(instance.pid, resource.RLIMIT_NOFILE)[1],) * 2
    )
    with open(f"/proc/{instance.pid}/status", encoding="ascii") as file:
        assert "Umask:\t0022\n" in file.read()
    version = instance.crictl("version").stdout
    assert "RuntimeName:  crishim" in version
    status = json.loads(instance.crictl("info").stdout)["status"]["conditions"]
    assert {c["type"]: c["status"] for c in status} == {"RuntimeReady": True, "NetworkReady": True}


def test_a_second_daemon_on_the_same_root_refuses(instance: Instance) -> None:
    other = rerun(instance, "--state", f"{instance.base}/s2", "--socket", f"{instance.base}/s2.sock")
    assert other.returncode == 1
    assert (
        f"crishim: another daemon (process {instance.pid}) serves the root {instance.root}: stop it, or give"
        in other.stderr
    )
    assert "Traceback" not in other.stderr
    other = rerun(instance, "--root", f"{instance.base}/r2", "--socket", f"{instance.base}/s2.sock")
    assert other.returncode == 1
    assert f"another daemon (process {instance.pid}) serves the state {instance.state}" in other.stderr
    instance.crictl("version")


def test_two_instances_side_by_side(instance: Instance) -> None:
    other = Instance()
    try:
        other.start()
        assert instance.crictl("version").returncode == other.crictl("version").returncode == 0
    finally:
        other.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_nothing_is_left(fresh: Instance, number: signal.Signals) -> None:
    fresh.start()
    assert os.path.exists(f"/sys/class/net/{fresh.bridge}")
    program, fresh._program = fresh.program, None
    assert program.stop(number) == 0
    assert not os.path.exists(fresh.socket)
    assert not os.path.exists(f"/sys/class/net/{fresh.bridge}")
    assert f"{fresh.state}/ns" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert os.listdir(f"{fresh.state}/pods") == []
    assert sorted(name for name in os.listdir(fresh.root) if name.startswith("state.db")) == STORE
    assert "Traceback" not in fresh.log()
    assert fresh.log().rstrip().endswith("ended")


def test_a_signal_while_it_starts(fresh: Instance) -> None:
    for delay in (0.05, 0.12, 0.2, 0.3):
        child = subprocess.Popen(fresh.command(), stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        child.terminate()
        _, text = child.communicate(timeout=30)
        assert child.returncode in {0, -signal.SIGTERM, 143}, text  # before Python is up, the signal ends it
        assert "Traceback" not in text


def test_a_killed_daemon_leaves_nothing_in_the_way(fresh: Instance) -> None:
    fresh.start()
    for _ in range(3):
        fresh.restart()
    assert fresh.crictl("pods", "-q").stdout == ""


def test_reload_changes_the_level_and_names_what_needs_a_restart(fresh: Instance) -> None:
    fresh.config = f"{fresh.base}/config.toml"
    path = Path(fresh.config)
    path.write_text("", encoding="utf-8")
    fresh.start()
    fresh.crictl("pods")
    assert " debug " not in fresh.log()
    path.write_text('cgroup_parent = "/x"\n[log]\nlevel = "debug"\n[limits]\nshutdown_seconds = 3\n', encoding="utf-8")
    os.kill(fresh.pid, signal.SIGHUP)
    until(lambda: "a changed setting needs a restart  option=limits.shutdown_seconds value=3" in fresh.log(), "reload")
    assert "a setting has changed  option=log.level value=debug" in fresh.log()
    assert "option=cgroup_parent" not in fresh.log()  # a flag wins over the file
    fresh.crictl("pods")
    assert " debug " in fresh.log()
    path.write_text("levle = 1\n", encoding="utf-8")
    os.kill(fresh.pid, signal.SIGHUP)
    until(lambda: "levle: unknown key" in fresh.log(), "complaint")
    fresh.crictl("version")


def test_a_dump_shows_what_is_going_on(instance: Instance) -> None:
    os.kill(instance.pid, signal.SIGUSR1)
    until(lambda: "threads (" in instance.log(), "dump")
    assert "calls in flight:" in instance.log()
    assert "tasks (" in instance.log()
    instance.crictl("version")


def test_systemd_is_told(fresh: Instance, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{fresh.base}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        fresh.start()
        assert systemd.recv(1000).decode().split("\n") == [
            "READY=1",
            f"STATUS=serving on {fresh.socket}",
            f"MAINPID={fresh.pid}",
        ]
        os.kill(fresh.pid, signal.SIGHUP)
        assert systemd.recv(1000).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert systemd.recv(1000).startswith(b"READY=1\n")
        fresh.stop()
        assert systemd.recv(1000).startswith(b"STOPPING=1\n")


def test_a_json_log_holds_one_object_a_line(fresh: Instance) -> None:
    fresh.config = f"{fresh.base}/config.toml"
    Path(fresh.config).write_text(f'[log]\nformat = "json"\nfile = "{fresh.base}/d.json"\n', encoding="utf-8")
    fresh.start()
    fresh.crictl("pods")
    fresh.stop()
    assert fresh.log() == ""
    lines = [json.loads(line) for line in Path(f"{fresh.base}/d.json").read_text(encoding="utf-8").splitlines()]
    assert [line["event"] for line in lines if line["event"] in {"starting", "ready", "ended"}] == [
        "starting",
        "ready",
        "ended",
    ]
    assert all(line["time"].endswith("Z") and line["level"] and line["logger"] for line in lines)


def test_state_of_a_newer_version_is_refused_and_left_alone(fresh: Instance) -> None:
    fresh.start()
    fresh.stop()
    path = f"{fresh.root}/state.db"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 77")
    database.close()
    before = Path(path).read_bytes()
    done = rerun(fresh)
    assert done.returncode == 1
    assert f"crishim: {path} has schema version 77 and this crishim knows" in done.stderr
    assert Path(path).read_bytes() == before
    os.unlink(path)


def test_damaged_state_is_moved_aside_and_the_daemon_serves(fresh: Instance) -> None:
    fresh.start()
    fresh.stop()
    Path(f"{fresh.root}/state.db").write_bytes(b"\xa5" * 20000)
    fresh.start()
    assert fresh.crictl("pods", "-q").stdout == ""
    assert "stored state was damaged" in fresh.log()
    assert [name for name in os.listdir(fresh.root) if ".corrupt-" in name]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--metrics-listen", "203.0.113.7:9999"], "crishim: listen on 203.0.113.7:9999 for metrics: "),
        (["--socket", "/proc/x.sock"], "crishim: "),
        (["--root", "/proc/crishim"], "crishim: mkdir /proc/crishim: "),
    ],
)
def test_what_cannot_be_is_one_sentence(fresh: Instance, more: list[str], text: str) -> None:
    done = rerun(fresh, *more)
    assert done.returncode == 1
    assert done.stderr.rstrip().split("\n")[-1].startswith(text)
    assert "Traceback" not in done.stderr


def test_directories_of_others_are_refused(fresh: Instance) -> None:
    os.mkdir(fresh.root)
    os.chmod(fresh.root, 0o777)
    done = rerun(fresh)
    assert done.returncode == 1
    assert f"crishim: {fresh.root} can be written by other users" in done.stderr
    shutil.rmtree(fresh.root)


def test_a_socket_path_longer_than_the_kernel_takes(fresh: Instance) -> None:
    folder = f"{fresh.base}/{'d' * 100}"
    os.mkdir(folder)
    fresh.socket = f"{folder}/cri.sock"
    fresh._program = None
    with subprocess.Popen(fresh.command(), stderr=subprocess.PIPE, text=True) as child:
        until(lambda: os.path.exists(fresh.socket), "socket")
        found = subprocess.run(
            [*fresh.command()[:3], "plan", "--socket", fresh.socket, "nobody"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        child.terminate()
        child.communicate(timeout=30)
    assert child.returncode == 0
    assert found.returncode == 1
    assert "nobody" in found.stderr
    fresh.socket = f"{fresh.base}/cri.sock"


def test_without_a_network(fresh: Instance) -> None:
    fresh.config = f"{fresh.base}/config.toml"
    Path(fresh.config).write_text("[network]\nenabled = false\n", encoding="utf-8")
    fresh.start()
    conditions = json.loads(fresh.crictl("info").stdout)["status"]["conditions"]
    (network,) = [c for c in conditions if c["type"] == "NetworkReady"]
    assert (network["status"], network["reason"]) == (False, "NetworkDisabled")
    assert not os.path.exists(f"/sys/class/net/{fresh.bridge}")
