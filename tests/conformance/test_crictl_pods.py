"""crictl's pod commands: runp, pods, inspectp, statsp, stopp, rmp: each output compared with an expected value."""

import ipaddress
import re

from tests.conformance.conftest import Pod
from tests.support.configs import pod_config
from tests.support.instance import Instance


def test_runp_prints_the_id_and_pods_shows_it_ready(pod: Pod) -> None:
    assert re.fullmatch(r"[0-9a-f]{64}", pod.id)
    (row,) = pod.instance.json("pods")["items"]
    assert row["id"] == pod.id
    assert row["state"] == "SANDBOX_READY"
    assert row["metadata"] == {**pod.config["metadata"], "attempt": 0}
    assert row["labels"] == {"app": "web"}
    assert row["annotations"] == {"note": "of the request"}


def test_inspectp_shows_state_address_and_namespaces(pod: Pod) -> None:
    document = pod.instance.json("inspectp", pod.id)
    status = document["status"]
    assert status["id"] == pod.id
    assert status["state"] == "SANDBOX_READY"
    assert ipaddress.ip_address(status["network"]["ip"]) in ipaddress.ip_network(pod.instance.subnet)
    assert status["linux"]["namespaces"]["options"]["network"] == "POD"
    network = document["info"]["network"]
    assert network["kind"] == "embedded"
    assert network["namespace"].endswith(f"{pod.id}/net")
    lo, eth0 = network["interfaces"]
    assert (lo["name"], lo["up"]) == ("lo", True)
    assert (eth0["name"], eth0["up"], eth0["mac"]) == ("eth0", True, network["attachment"]["mac"])
    assert eth0["addresses"][0] == f"{status['network']['ip']}/24"
    assert {"destination": "default", "gateway": network["attachment"]["gateway"], "interface": "eth0"} in network[
        "routes"
    ]


def test_pods_filters_by_prefix_label_name_and_state(pod: Pod) -> None:
    def ids(*arguments: str) -> list[str]:
        return pod.instance.crictl("pods", "-q", "--no-trunc", *arguments).stdout.split()

    assert ids("--id", pod.id[:10]) == [pod.id]
    assert ids("--id", "ffffffffffff") == []
    assert ids("--label", "app=web") == [pod.id]
    assert ids("--label", "app=other") == []
    assert ids("--name", "^web$") == [pod.id]
    assert ids("--state", "ready") == [pod.id]
    assert ids("--state", "notready") == []


def test_statsp_shows_cpu_memory_network_and_containers(pod: Pod) -> None:
    container = pod.run("stats")
    (row,) = pod.instance.json("statsp", "--id", pod.id)["stats"]
    linux = row["linux"]
    assert row["attributes"]["id"] == pod.id
    assert row["attributes"]["labels"] == {"app": "web"}
    assert int(linux["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert int(linux["memory"]["workingSetBytes"]["value"]) > 0
    assert linux["network"]["defaultInterface"]["name"] == "eth0"
    assert int(linux["process"]["processCount"]["value"]) >= 1
    assert [c["attributes"]["id"] for c in linux["containers"]] == [container]


def test_stopp_and_rmp_end_everything_in_the_pod(pod: Pod) -> None:
    container = pod.run("ends")
    assert pod.instance.crictl("stopp", pod.id).stdout == f"Stopped sandbox {pod.id}\n"
    assert pod.instance.json("inspectp", pod.id)["status"]["state"] == "SANDBOX_NOTREADY"
    assert pod.status(container)["state"] == "CONTAINER_EXITED"
    assert pod.instance.crictl("stopp", pod.id).returncode == 0
    assert pod.instance.crictl("rmp", pod.id).stdout == f"Removed sandbox {pod.id}\n"
    assert pod.instance.json("pods")["items"] == []
    assert pod.instance.json("ps", "-a")["containers"] == []
    gone = pod.instance.crictl("inspectp", pod.id, check=False)
    assert gone.returncode == 1
    assert "NotFound" in gone.stderr


def test_a_name_is_taken_until_its_pod_is_removed(pod: Pod) -> None:
    again = pod_config("other")
    again["metadata"] = pod.config["metadata"]
    taken = pod.instance.crictl("runp", pod.instance.config_file(again), check=False)
    assert taken.returncode == 1
    assert "AlreadyExists" in taken.stderr
    assert pod.id in taken.stderr


def test_a_wrong_field_is_refused_by_its_path(shared_instance: Instance) -> None:
    config = pod_config("ports", port_mappings=[{"container_port": 80, "host_port": 70000}])
    result = shared_instance.crictl("runp", shared_instance.config_file(config), check=False)
    assert result.returncode == 1
    assert "InvalidArgument" in result.stderr
    assert "port_mappings[0].host_port" in result.stderr
    assert "Traceback" not in result.stderr
    assert shared_instance.json("pods")["items"] == []
