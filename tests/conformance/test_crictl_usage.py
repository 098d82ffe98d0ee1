"""crictl's commands about use and events: stats, statsp, metricdescs, metricsp, events, update-runtime-config."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.conformance.conftest import Pod
from tests.support.instance import Instance, crictl_path
from tests.support.waiting import wait_for

LIMIT = 64 << 20
CLEAR = "\x1b[2J\x1b[H"


def columns(text: str) -> list[list[str]]:
    """Return the words of each line, without the codes that clear the screen."""
    return [line.split() for line in text.removeprefix(CLEAR).splitlines()]


@contextmanager
def following(instance: Instance, *arguments: str) -> Iterator[str]:
    """Run a crictl command that does not end by itself; give the file that it writes to."""
    path = f"{instance.base}/followed"
    with open(path, "wb") as file:
        command = [crictl_path(), "--config", f"{instance.base}/crictl.yaml", *arguments]
        with subprocess.Popen(command, stdout=file) as program:
            try:
                yield path
            finally:
                program.kill()


def documents(path: str) -> list[dict[str, Any]]:
    """Return the JSON documents that a file holds one after the other."""
    with open(path, encoding="utf-8") as file:
        text, found = file.read(), []
    decoder = json.JSONDecoder()
    while text := text.lstrip():
        try:
            document, end = decoder.raw_decode(text)
        except json.JSONDecodeError:  # the rest is still to come
            break
        found.append(document)
        text = text[end:]
    return found


def test_stats_and_statsp_print_a_line_for_each(pod: Pod) -> None:
    container = pod.run("busy", "while :; do :; done")
    head, row = columns(pod.instance.crictl("stats", "--id", container).stdout)
    assert head == ["CONTAINER", "NAME", "CPU", "%", "MEM", "DISK", "INODES", "SWAP"]
    assert row[:2] == [container[:13], "busy"]
    assert float(row[2]) > 1.0
    head, row = columns(pod.instance.crictl("statsp", "--id", pod.id).stdout)
    assert head[:2] == ["POD", "POD"]
    assert row[0] == "web"
    assert row[1] == pod.id[:13]


def test_metricdescs_lists_all(pod: Pod) -> None:
    found = json.loads(pod.instance.crictl("metricdescs").stdout)["descriptors"]
    assert len(found) == 56
    (usage,) = [one for one in found if one["name"] == "container_cpu_usage_seconds_total"]
    assert usage["labelKeys"] == ["container", "id", "image", "name", "namespace", "pod", "cpu"]


def test_metrics_show_the_pod_and_its_container(pod: Pod) -> None:
    container = pod.run("main", linux={"resources": {"memory_limit_in_bytes": LIMIT}})
    (found,) = json.loads(pod.instance.crictl("metricsp").stdout)["podMetrics"]
    assert found["podSandboxId"] == pod.id
    (inner,) = found["containerMetrics"]
    assert inner["containerId"] == container
    (limit,) = [one for one in inner["metrics"] if one["name"] == "container_spec_memory_limit_bytes"]
    assert (limit["value"], limit["metricType"]) == ({"value": str(LIMIT)}, "GAUGE")
    assert limit["labelValues"][0] == "main"
    assert limit["labelValues"][3] == container
    (received,) = [one for one in found["metrics"] if one["name"] == "container_network_receive_bytes_total"]
    assert received["labelValues"][-1] == "eth0"


def test_events_follow_a_container_through_its_life(pod: Pod) -> None:
    with following(pod.instance, "events") as path:
        wait_for(lambda: "GetContainerEvents" in pod.instance.log() or bool(documents(path)) or nudge(pod))
        container = pod.run("life", "exit 4")
        pod.wait_exit(container)
        pod.instance.crictl("rm", container)
        kinds = ["CREATED", "STARTED", "STOPPED", "DELETED"]
        wait_for(lambda: len([e for e in documents(path) if e["containerId"] == container]) == len(kinds))
        found = [event for event in documents(path) if event["containerId"] == container]
    assert [event["containerEventType"] for event in found] == [f"CONTAINER_{kind}_EVENT" for kind in kinds]
    (stopped,) = found[2]["containersStatuses"]
    assert (stopped["id"], stopped["exitCode"]) == (container, 4)
    assert found[2]["podSandboxStatus"]["id"] == pod.id


def nudge(pod: Pod) -> bool:
    """Make a container and remove it, until events are seen: crictl does not say when it listens."""
    pod.instance.crictl("rm", "-f", pod.run("nudge", "exit 0"))
    return False


def test_update_runtime_config_takes_the_ranges_that_are_used(pod: Pod) -> None:
    done = pod.instance.crictl("update-runtime-config", "--pod-cidr", pod.instance.subnet)
    assert "Runtime config successfully updated" in done.stderr
    wrong = pod.instance.crictl("update-runtime-config", "--pod-cidr", "10.0.0.0/99", check=False)
    assert wrong.returncode == 1
    assert "InvalidArgument" in wrong.stderr
