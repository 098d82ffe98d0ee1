"""crishim's own read-only commands on a real instance: ps, logs, inspect, stats, top, events."""

import json
import os
import pty
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from tests.support.configs import Config, pod_config, shell
from tests.support.instance import Instance, python
from tests.support.machine import read
from tests.support.waiting import wait_for

STAY = "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); done; echo err >&2; exec sleep 600"


def crishim(instance: Instance, *words: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a command against an instance."""
    command = [python(), "-m", "crishim", words[0], "--socket", instance.socket, *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


Shown = tuple[Instance, str, list[str], Config]
"""An instance with a pod, the pod's containers, and its config."""


@contextmanager
def following(instance: Instance, *words: str) -> Iterator[IO[str]]:
    """Run a command that goes on by itself; give what it prints."""
    command = [python(), "-m", "crishim", words[0], "--socket", instance.socket, *words[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            yield program.stdout
        finally:
            program.kill()


@pytest.fixture(scope="module")
def pod(shared_instance: Instance, shared_image: str) -> Iterator[Shown]:
    """Return an instance with a pod of two containers, one of which has ended."""
    config = pod_config("shown", log_directory=f"{shared_instance.logs}/shown")
    identifier = shared_instance.run_pod(config)
    containers = [
        shared_instance.run(identifier, shell("main", shared_image, STAY), config),
        shared_instance.run(identifier, shell("short", shared_image, "exit 3"), config),
    ]
    wait_for(lambda: b" err\n" in read(f"{shared_instance.logs}/shown/main.log"))
    yield shared_instance, identifier, containers, config
    shared_instance.crictl("rmp", "-f", identifier)


def test_ps_joins_containers_and_pods(pod: Shown) -> None:
    instance, identifier, (main, short), _ = pod
    head, *rows = crishim(instance, "ps").stdout.splitlines()
    assert head.split() == ["CONTAINER", "NAME", "POD", "IMAGE", "STATE", "ATTEMPT", "CREATED"]
    (words,) = [row.split() for row in rows]
    assert words[:2] == [main[:13], "main"]
    assert words[2].endswith("/shown")
    assert words[4:6] == ["running", "0"]
    found = json.loads(crishim(instance, "ps", "-a", "--format", "json").stdout)
    assert [(one["id"], one["state"], one["pod"]["id"]) for one in found] == [
        (short, "exited", identifier),
        (main, "running", identifier),
    ]
    assert crishim(instance, "ps", "-aq", "--no-trunc", "short").stdout == f"{short}\n"
    before = [python(), "-m", "crishim", "--socket", instance.socket, "ps", "-q", "--no-trunc"]
    assert subprocess.run(before, capture_output=True, text=True, check=True).stdout == f"{main}\n"
    assert "no container or pod has the name or id 'none'" in crishim(instance, "ps", "none", status=1).stderr


def test_logs_have_streams_tails_times(pod: Shown) -> None:
    instance, _, (main, _), _ = pod
    done = crishim(instance, "logs", "main")
    assert done.stdout == "".join(f"line {n}\n" for n in range(20))
    assert done.stderr == "err\n"
    done = crishim(instance, "logs", "--tail", "3", "shown/main")
    assert (done.stdout, done.stderr) == ("line 18\nline 19\n", "err\n")
    assert crishim(instance, "logs", "--tail", "0", main[:8]).stdout == ""
    stamp, text = crishim(instance, "logs", "-t", "--tail", "2", main).stdout.split(" ", 1)
    assert text == "line 19\n"
    assert crishim(instance, "logs", "--since", stamp, main).stdout.endswith("line 19\n")
    assert crishim(instance, "logs", "--since", "2100-01-01T00:00:00Z", main).stdout == ""
    assert "--since: 'soon' is neither" in crishim(instance, "logs", "--since", "soon", main, status=2).stderr
    assert "means 2 containers" in crishim(instance, "logs", "shown", status=2).stderr


def test_logs_follow_to_the_end_over_a_rotation(pod: Shown, shared_image: str) -> None:
    instance, identifier, _, config = pod
    script = "echo one; while [ ! -e /two ]; do sleep 0.05; done; echo two; while [ ! -e /end ]; do sleep 0.05; done"
    container = instance.run(identifier, shell("rotated", shared_image, f"{script}; echo three"), config)
    path = f"{instance.logs}/shown/rotated.log"
    with following(instance, "logs", "-f", container) as told:
        assert told.readline() == "one\n"
        os.rename(path, f"{path}.1")
        instance.crictl("logs", "--reopen", container, check=False)
        instance.crictl("exec", "-s", container, "touch", "/two")
        instance.crictl("exec", "-s", container, "touch", "/end")
        assert told.read() == "two\nthree\n"


def test_inspect_shows_status_and_plan(pod: Shown) -> None:
    instance, identifier, (main, short), _ = pod
    document = json.loads(crishim(instance, "inspect", "short").stdout)
    assert (document["status"]["id"], document["status"]["exitCode"]) == (short, 3)
    assert "info" in document
    document = json.loads(crishim(instance, "inspect", "--pod", "shown").stdout)
    assert document["status"]["id"] == identifier
    assert "no pod has the name" in crishim(instance, "inspect", "-p", "none", status=1).stderr
    assert json.loads(crishim(instance, "inspect", main).stdout)["status"]["state"] == "CONTAINER_RUNNING"


def test_stats_and_top_show_what_is_used(pod: Shown) -> None:
    instance, identifier, (main, _), _ = pod
    head, *rows = crishim(instance, "stats").stdout.splitlines()
    assert head.split() == ["CONTAINER", "NAME", "POD", "CPU%", "MEMORY", "SWAP", "WRITTEN", "FILES"]
    assert [row.split()[:2] for row in rows] == [[main[:13], "main"]]
    (usage,) = json.loads(crishim(instance, "stats", "--format", "json").stdout)
    assert usage["memory_working_set"] > 0
    assert usage["cpu_cores"] is not None
    first, _, head, row = crishim(instance, "top", "-n", "1", "-d", "0.6").stdout.splitlines()
    assert first.startswith("1 pods, ")
    assert head.split() == ["POD", "CPU%", "MEMORY", "RX/s", "TX/s", "PROCESSES", "RESTARTS"]
    assert row.split()[0].endswith("/shown")
    (found,) = json.loads(crishim(instance, "top", "-n", "1", "--format", "json").stdout)
    assert (found["id"], found["restarts"]) == (identifier, 0)
    assert found["cpu_percent"] is not None
    assert "--delay: is less than 0.6 seconds" in crishim(instance, "top", "-d", "0", status=2).stderr


def test_top_draws_over_itself_on_a_terminal(pod: Shown) -> None:
    instance, _, _, _ = pod
    ours, theirs = pty.openpty()
    command = [python(), "-m", "crishim", "top", "--socket", instance.socket, "-n", "2", "-d", "0.6"]
    with subprocess.Popen(command, stdout=theirs) as program:
        os.close(theirs)
        assert program.wait(60) == 0
    drawn = os.read(ours, 65536)
    os.close(ours)
    assert drawn.count(b"\x1b[H") == drawn.count(b"\x1b[J") == 2
    assert drawn.count(b"/shown") == 2


def test_events_name_containers_and_pods(pod: Shown, shared_image: str) -> None:
    instance, identifier, _, config = pod
    with following(instance, "events", "--format", "json") as told:
        while not select.select([told], [], [], 0.1)[0]:
            instance.crictl("rm", "-f", instance.run(identifier, shell("nudge", shared_image, "exit 0"), config))
        container = instance.run(identifier, shell("told", shared_image, "exit 4"), config)
        instance.crictl("rm", "-f", container)
        found: list[dict[str, object]] = []
        while len(found) < 4:
            event = json.loads(told.readline())
            if event["id"] == container:
                found.append(event)
    assert [event["event"] for event in found] == ["created", "started", "stopped", "deleted"]
    assert all((event["name"], event["pod"], event["kind"]) == ("told", "shown", "container") for event in found)
    assert found[2]["exit_code"] == 4
