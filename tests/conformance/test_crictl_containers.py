"""crictl's container commands: create, start, ps, inspect, logs, exec -s, stats, update, stop, rm."""

import re

from tests.conformance.conftest import Pod
from tests.support.configs import shell
from tests.support.registry import PushedImage

LIMIT = 64 << 20


def limited(memory: int) -> dict[str, dict[str, int]]:
    """Return the `linux` part of a container config with a memory limit in bytes."""
    return {"resources": {"memory_limit_in_bytes": memory}}


def test_create_and_start_go_through_the_states(pod: Pod, busybox: PushedImage) -> None:
    files = [pod.instance.config_file(c) for c in (shell("c", pod.image, "sleep 600", labels={"k": "v"}), pod.config)]
    container = pod.instance.crictl("create", "--no-pull", pod.id, *files).stdout.strip()
    assert re.fullmatch(r"[0-9a-f]{64}", container)
    created = pod.status(container)
    assert created["state"] == "CONTAINER_CREATED"
    assert created["labels"] == {"k": "v"}
    assert pod.instance.crictl("start", container).stdout == f"{container}\n"
    running = pod.status(container)
    assert running["state"] == "CONTAINER_RUNNING"
    assert running["metadata"] == {"name": "c", "attempt": 0}
    assert running["imageRef"].startswith(f"{busybox.reference.rpartition(':')[0]}@sha256:")
    assert (running["imageId"], running["image"]["image"]) == (busybox.id, busybox.reference)
    assert running["image"]["image"] in {busybox.reference, busybox.id}
    assert running["logPath"] == f"{pod.config['log_directory']}/c.log"
    again = pod.instance.crictl("start", container, check=False)
    assert again.returncode == 1


def test_ps_shows_what_runs_and_filters(pod: Pod, busybox: PushedImage) -> None:
    one, two = pod.run("one"), pod.run("two", labels={"pick": "me"})
    assert {row["id"] for row in pod.instance.json("ps")["containers"]} == {one, two}
    (row,) = pod.instance.json("ps", "--label", "pick=me")["containers"]
    assert (row["id"], row["podSandboxId"], row["state"]) == (two, pod.id, "CONTAINER_RUNNING")
    assert row["imageRef"].startswith(f"{busybox.reference.rpartition(':')[0]}@sha256:")
    assert row["imageId"] == busybox.id
    pod.instance.crictl("stop", one)
    assert [row["id"] for row in pod.instance.json("ps")["containers"]] == [two]
    (row,) = pod.instance.json("ps", "-a", "--state", "exited")["containers"]
    assert (row["id"], row["state"]) == (one, "CONTAINER_EXITED")
    assert pod.instance.crictl("ps", "-a", "-q", "--no-trunc", "--id", one[:12]).stdout == f"{one}\n"


def test_logs_keep_every_byte_of_both_streams(pod: Pod) -> None:
    container = pod.run("logs", "echo one; echo two >&2; printf 'a\\tb\\n'; printf tail")
    pod.wait_exit(container)
    both = pod.instance.crictl("logs", container)
    assert pod.instance.crictl("logs", "--stream", "stdout", container).stdout.rstrip("\n") == "one\na\tb\ntail"
    assert pod.instance.crictl("logs", "--tail", "1", container).stdout.rstrip("\n") == "tail"
    assert both.stderr == "two\n"


def test_exec_gives_output_code_and_a_timeout(pod: Pod) -> None:
    container = pod.run("exec")
    script = "echo out; echo err >&2"
    assert pod.instance.crictl("exec", "-s", container, "sh", "-c", script).stdout == "out\n\nerr\n\n"
    failed = pod.instance.crictl("exec", "-s", container, "sh", "-c", "echo why >&2; exit 3", check=False)
    assert failed.returncode == 1
    assert "exited with 3" in failed.stderr
    absent = pod.instance.crictl("exec", "-s", container, "/no/such/program", check=False)
    assert absent.returncode == 1
    assert "/no/such/program" in absent.stderr
    slow = pod.instance.crictl("exec", "-s", "--timeout", "1", container, "sleep", "600", check=False)
    assert slow.returncode == 1
    assert "DeadlineExceeded" in slow.stderr
    assert "sleep 600" not in pod.instance.crictl("exec", "-s", container, "ps").stdout


def test_stats_show_use_and_inspect_the_limit_in_force(pod: Pod) -> None:
    container = pod.run("stats", linux=limited(LIMIT))
    (row,) = pod.instance.json("stats", "--id", container)["stats"]
    assert row["attributes"]["id"] == container
    assert int(row["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert 0 < int(row["memory"]["workingSetBytes"]["value"]) < LIMIT
    assert int(row["memory"]["availableBytes"]["value"]) < LIMIT
    assert int(row["writableLayer"]["inodesUsed"]["value"]) >= 0
    assert pod.status(container)["resources"]["linux"]["memoryLimitInBytes"] == str(LIMIT)


def test_update_changes_the_limit_in_the_kernel_and_in_the_status(pod: Pod) -> None:
    container = pod.run("update", linux=limited(LIMIT))
    updated = pod.instance.crictl(
        "update", "--memory", str(2 * LIMIT), "--cpu-quota", "20000", "--cpu-period", "100000", container
    )
    assert updated.stdout == f"{container}\n"
    linux = pod.status(container)["resources"]["linux"]
    assert (linux["memoryLimitInBytes"], linux["cpuQuota"], linux["cpuPeriod"]) == (str(2 * LIMIT), "20000", "100000")
    files = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max"
    inside = pod.instance.crictl("exec", "-s", container, "sh", "-c", f"({files}) 2>/dev/null").stdout
    assert inside.split() == [str(2 * LIMIT)]


def test_stop_asks_first_and_the_exit_code_is_the_programs_own(pod: Pod) -> None:
    container = pod.run("asked")
    pod.wait_up("asked")
    assert pod.instance.crictl("stop", "--timeout", "20", container).stdout == f"{container}\n"
    status = pod.status(container)
    assert (status["state"], status["exitCode"], status["reason"]) == ("CONTAINER_EXITED", 7, "Error")
    assert status["finishedAt"] > status["startedAt"]


def test_stop_kills_what_does_not_listen(pod: Pod) -> None:
    container = pod.run("deaf", "trap '' TERM; echo up; while :; do sleep 0.05; done")
    pod.wait_up("deaf")
    pod.instance.crictl("stop", "--timeout", "1", container)
    status = pod.status(container)
    assert (status["state"], status["exitCode"]) == ("CONTAINER_EXITED", 137)


def test_a_program_that_ends_well_is_completed(pod: Pod) -> None:
    container = pod.run("done", "exit 0")
    pod.wait_exit(container)
    status = pod.status(container)
    assert (status["state"], status["exitCode"], status["reason"]) == ("CONTAINER_EXITED", 0, "Completed")


def test_rm_removes_a_container_once_and_a_running_one_only_by_force(pod: Pod) -> None:
    container = pod.run("gone")
    assert pod.instance.crictl("rm", container, check=False).returncode == 1
    assert pod.instance.crictl("rm", "-f", container).stdout.split() == [container, container]  # stopped, removed
    assert pod.instance.json("ps", "-a")["containers"] == []
    gone = pod.instance.crictl("inspect", container, check=False)
    assert gone.returncode == 1
    assert "NotFound" in gone.stderr


def test_a_command_that_does_not_exist_is_named_and_the_container_can_be_removed(pod: Pod) -> None:
    config = {**shell("typo", pod.image, ""), "command": ["/no/such/program"]}
    files = [pod.instance.config_file(c) for c in (config, pod.config)]
    container = pod.instance.crictl("create", "--no-pull", pod.id, *files).stdout.strip()
    failed = pod.instance.crictl("start", container, check=False)
    assert failed.returncode == 1
    assert "/no/such/program" in failed.stderr
    status = pod.status(container)
    assert (status["state"], status["reason"]) == ("CONTAINER_EXITED", "StartError")
    assert status["exitCode"] != 0
    assert pod.instance.crictl("rm", container).stdout == f"{container}\n"
