"""What the CRI has and this version has not: one answer everywhere, and no field of a request is passed over unread."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf import json_format

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim._proto.runtime.v1 import api_pb2_grpc as rpc
from crishim.errors import InvalidArgumentError, UnimplementedError
from crishim.pods.admission.abilities import Abilities
from crishim.pods.admission.admission import admit_sandbox
from crishim.problems import Problems
from crishim.request import SandboxConfig, SandboxSecurity, SelinuxOptions
from crishim.server.service import Server
from crishim.server.unimplemented import SENTENCES
from tests.fakes.cri_backend import FakeImages, FakeObserver
from tests.fakes.daemon import pod, running
from tests.fakes.images import NAME

ROOT = Path(__file__).parents[2]
LACKING, WRONG = grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.INVALID_ARGUMENT
USERNS = {"mode": "POD", "uids": [{"host_id": 9, "length": 9}], "gids": [{"host_id": 9, "length": 9}]}
WINDOWS = re.compile(r"\w+\.windows|Windows\w+\.\w+")
"""Fields for the other system, which the CRI calls optional and a Linux runtime need not read."""

MOUNTS: list[tuple[dict[str, Any], grpc.StatusCode, str]] = [
    (
        {"host_path": "/x", "propagation": "PROPAGATION_BIDIRECTIONAL"},
        LACKING,
        "propagation: not supported yet: BIDIRECTIONAL",
    ),
    (
        {"host_path": "/x", "propagation": "PROPAGATION_HOST_TO_CONTAINER"},
        LACKING,
        "propagation: not supported yet: HOST_TO_CONTAINER",
    ),
    ({"host_path": "/x", "propagation": 7}, WRONG, "propagation: must be"),
    (
        {"host_path": "/x", "readonly": True, "recursive_read_only": True},
        LACKING,
        "recursive_read_only: not supported yet: ",
    ),
    ({"host_path": "/x", "recursive_read_only": True}, WRONG, "recursive_read_only: needs readonly"),
    ({"host_path": "/x", "mount_options": ["noexec"]}, LACKING, "mount_options: not supported yet: "),
    ({"host_path": "/x", "uidMappings": [{"length": 1}]}, LACKING, "uidMappings: not supported yet: idmapped"),
    ({"host_path": "/x", "gidMappings": [{"length": 1}]}, LACKING, "gidMappings: not supported yet: idmapped"),
    ({"image": {"image": NAME}, "readonly": True}, LACKING, "image: not supported yet: image volumes"),
    ({"image": {"image": NAME}}, WRONG, "readonly: must be true when image is given"),
    ({"image": {"image_ref": NAME}, "readonly": True}, WRONG, "image.image: is missing"),
]


async def answer(directory: Path, rpc_name: str, request: Any) -> tuple[grpc.StatusCode, str, str]:
    """Return code, sentence and level of the log line with which a runtime over fakes refuses a request."""
    with structlog.testing.capture_logs() as lines:
        async with running(directory) as daemon:
            path = f"{directory}/run/cri.sock"
            server = Server(daemon.runtime, FakeImages(), path, FakeObserver())
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
                    stub: Any = rpc.RuntimeServiceStub(channel)
                    if rpc_name == "CreateContainer":
                        request.pod_sandbox_id = await daemon.runtime.run_sandbox(pod(), "")
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await getattr(stub, rpc_name)(request)
            finally:
                await server.stop(0)
    details = caught.value.details() or ""
    (level,) = [line["log_level"] for line in lines if line["event"] == details]
    return caught.value.code(), details, level


def container(**fields: Any) -> Any:
    message = {"config": {"metadata": {"name": "c"}, "image": {"image": NAME}, **fields}}
    return json_format.ParseDict(message, pb.CreateContainerRequest())


@pytest.mark.parametrize(("mount", "code", "problem"), MOUNTS)
async def test_a_mount(tmp_path: Path, mount: dict[str, Any], code: grpc.StatusCode, problem: str) -> None:
    given = container(mounts=[{"container_path": "/a", **mount}])
    found = await answer(tmp_path, "CreateContainer", given)
    assert (found[0], found[1][: len(problem) + 17], found[2]) == (code, f"config.mounts[0].{problem}", "warning")


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"CDI_devices": [{"name": "vendor.com/gpu=0"}]}, "config.CDI_devices[0].name: not supported yet: "),
        (
            {"linux": {"security_context": {"namespace_options": {"userns_options": USERNS}}}},
            "config.linux.security_context.namespace_options.userns_options: not supported yet: user namespaces",
        ),
    ],
)
async def test_a_container(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    code, details, level = await answer(tmp_path, "CreateContainer", container(**fields))
    assert (code, details[: len(problem)], level) == (LACKING, problem, "warning")


async def test_a_sandbox(tmp_path: Path) -> None:
    linux = {"security_context": {"namespace_options": {"userns_options": USERNS}}}
    message = {"config": {"metadata": {"name": "p"}, "linux": linux}}
    request = json_format.ParseDict(message, pb.RunPodSandboxRequest())
    code, details, level = await answer(tmp_path, "RunPodSandbox", request)
    assert (code, level) == (LACKING, "warning")
    assert details.startswith("config.linux.security_context.namespace_options.userns_options: ")


def admit(config: SandboxConfig, abilities: Abilities) -> None:
    problems = Problems()
    admit_sandbox(problems, config, "", abilities)
    problems.check()


def test_a_selinux_label_where_selinux_is_on() -> None:
    config = pod(security=SandboxSecurity(selinux=SelinuxOptions(level="s0")))
    admit(config, Abilities())
    with pytest.raises(UnimplementedError, match="selinux_options: not supported yet"):
        admit(config, Abilities(selinux=True))


def test_what_is_wrong_in_any_version_wins_and_both_are_named() -> None:
    config = pod(hostname="no spaces", security=SandboxSecurity(selinux=SelinuxOptions(level="s0")))
    with pytest.raises(InvalidArgumentError, match=r"^config.hostname: .*; config.linux.*selinux_options: ") as caught:
        admit(config, Abilities(selinux=True))
    assert caught.value.field == "config.hostname"


async def test_an_absent_rpc_is_no_news(tmp_path: Path) -> None:
    found = await answer(tmp_path, "UpdatePodSandboxResources", pb.UpdatePodSandboxResourcesRequest())
    assert found == (LACKING, SENTENCES["UpdatePodSandboxResources"], "debug")


def request_fields() -> Iterator[tuple[str, str]]:
    """Yield (message, field) for all that a request of a served RPC can hold."""
    api = json.loads((ROOT / "tests/data/runtime-v1.json").read_text())
    calls = [call for service in api["services"].values() for call in service if call["rpc"] not in SENTENCES]
    waiting, seen = [call["request"] for call in calls], set()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in api["messages"]:
            continue
        seen.add(name)
        for field in api["messages"][name]["fields"]:
            yield name, field["name"]
            waiting.append(re.sub(r"repeated |map<\w+, |>", "", field["type"]))


def test_every_field_of_a_request_is_read_at_the_border() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "crishim/server").rglob("*.py"))
    words = set(re.findall(r"\w+", source))
    unread = [f"{message}.{field}" for message, field in request_fields() if field not in words]
    assert [name for name in unread if not WINDOWS.fullmatch(name)] == []
