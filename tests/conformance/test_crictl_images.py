"""crictl's image commands: info, version, pull, images, inspecti, rmi: outputs compared with what was pushed."""

from tests.support.configs import container_config, pod_config
from tests.support.instance import Instance
from tests.support.registry import PushedImage


def test_version_and_info_say_who_answers_and_that_it_is_ready(shared_instance: Instance) -> None:
    lines = shared_instance.crictl("version").stdout.splitlines()
    answers = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert answers["Version"] == "0.1.0"
    assert answers["RuntimeName"] == "crishim"
    assert answers["RuntimeApiVersion"] == "v1"
    info = shared_instance.json("info")
    conditions = {row["type"]: row["status"] for row in info["status"]["conditions"]}
    assert conditions["RuntimeReady"] is True
    assert conditions["NetworkReady"] is True
    assert info["config"]["stateDir"] == shared_instance.state


def test_an_image_is_pulled_listed_inspected_and_removed(instance: Instance, busybox: PushedImage) -> None:
    assert instance.json("images")["images"] == []
    assert instance.crictl("pull", busybox.reference).stdout == f"Image is up to date for {busybox.id}\n"
    (row,) = instance.json("images")["images"]
    assert row["id"] == busybox.id
    assert row["repoTags"] == [busybox.reference]
    assert [d.partition("@")[0] for d in row["repoDigests"]] == [busybox.reference.rpartition(":")[0]]
    assert int(row["size"]) > 1_000_000
    image = instance.json("inspecti", busybox.reference)
    assert image["status"]["id"] == busybox.id
    assert instance.crictl("images", "-q").stdout == f"{busybox.id}\n"
    assert instance.crictl("rmi", busybox.reference).stdout == f"Deleted: {busybox.reference}\n"
    assert instance.json("images")["images"] == []
    gone = instance.crictl("inspecti", busybox.reference, check=False)
    assert gone.returncode == 1
    assert "no such image" in gone.stderr


def test_an_image_that_the_registry_does_not_have_is_named_and_leaves_no_trace(
    shared_instance: Instance, busybox: PushedImage
) -> None:
    wanted = busybox.reference.replace("busybox:1", "absent:9")
    result = shared_instance.crictl("pull", wanted, check=False)
    assert result.returncode == 1
    assert wanted in result.stderr
    assert "NotFound" in result.stderr
    assert not any(wanted in row["repoTags"] for row in shared_instance.json("images")["images"])


def test_an_unknown_image_is_not_found_before_anything_is_made(shared_instance: Instance) -> None:
    config = pod_config("no-image")
    pod = shared_instance.run_pod(config)
    files = [shared_instance.config_file(c) for c in (container_config("c", "127.0.0.1:1/absent:1"), config)]
    result = shared_instance.crictl("create", "--no-pull", pod, *files, check=False)
    rows = shared_instance.json("ps", "-a")["containers"]
    shared_instance.crictl("rmp", "-f", pod)
    assert result.returncode == 1
    assert "NotFound" in result.stderr
    assert "127.0.0.1:1/absent:1" in result.stderr
    assert rows == []
