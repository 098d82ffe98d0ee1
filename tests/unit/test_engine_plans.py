"""Golden plans: a host and a request as JSON → the plan as JSON, one small file a case; and what is refused.

A file of tests/golden/plans holds `host` (a file of hosts/), `pod` and `container` (requests in the codec's form),
`image`, and the expected `plan`, `pod_plan` and `exec`. A change of plans is looked at, then written with
CRISHIM_GOLDEN=write. Seccomp programs stand there as a name: their own golden files are in tests/golden/seccomp.
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from crishim import codec
from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.container import MAX_LAYERS, ContainerInput, plan_container
from crishim.engine.plan.host import HostView, look
from crishim.engine.plan.mounts import volume_paths
from crishim.engine.plan.planner import Planner
from crishim.engine.plan.pod import plan_pod
from crishim.engine.plan.process import plan_exec
from crishim.engine.plan.settings import PlanSettings
from crishim.engine.plan.types import Bind, ContainerPlan, DeviceNode, ExecPlan, PodPlan
from crishim.errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from crishim.linux.arch import ARCHES
from crishim.linux.calls import MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID
from crishim.linux.capabilities import DEFAULT_MASK
from crishim.linux.seccomp.compiler import compile_profile
from crishim.linux.seccomp.default import default_profile
from crishim.linux.seccomp.profile import parse_profile
from crishim.pods.admission.abilities import Abilities
from crishim.pods.admission.admission import admit_container
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    Device,
    ImageConfig,
    Metadata,
    Mount,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    Resources,
    SandboxConfig,
    SandboxSecurity,
    SecurityProfile,
    UserNamespace,
)
from crishim.server.convert.container import config as convert

GOLDEN = Path(__file__).parent.parent / "golden" / "plans"
CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))
LOCALHOST = {
    "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"],
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
}


def settings(name: str) -> PlanSettings:
    document = json.loads((GOLDEN / "hosts" / f"{name}.json").read_text(encoding="utf-8"))
    machine, profile = document.pop("machine"), document.pop("seccomp")
    base = codec.from_value(PlanSettings, {**document, "arch": codec.to_value(ARCHES[machine])})
    return dataclasses.replace(base, seccomp=default_profile() if profile else None)


def container_input(
    pod: SandboxConfig, config: ContainerConfig, image: ImageConfig, base: PlanSettings, layers: tuple[str, ...] = ()
) -> ContainerInput:
    log = f"{pod.log_directory}/{config.log_path}" if config.log_path else ""
    upper = f"{base.paths.container('c1')}/upper"
    return ContainerInput(
        id="c1",
        sandbox_id="p1",
        sandbox=pod,
        config=dataclasses.replace(config, log_path=log),
        image=image,
        layers=layers or (f"{base.paths.layers}/bottom", f"{base.paths.layers}/top"),
        upper=upper,
        work=upper.replace("upper", "work"),
    )


def named(value: Any, programs: dict[str, str]) -> Any:
    """Return a plan's JSON with seccomp programs by their names."""
    if isinstance(value, dict):
        return {
            key: programs[item] if key == "seccomp" and item else named(item, programs) for key, item in value.items()
        }
    return [named(item, programs) for item in value] if isinstance(value, list) else value


def programs_of(base: PlanSettings, plan: ContainerPlan) -> dict[str, str]:
    bounding = plan.process.capabilities.bounding
    profiles = {"default": default_profile(), "localhost": parse_profile(LOCALHOST, "test")}
    return {
        codec.to_value(compile_profile(profile, bounding, base.arch, base.kernel)): name
        for name, profile in profiles.items()
    }


@pytest.mark.parametrize("name", CASES)
def test_plans(name: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{name}.json"
    text = path.read_text(encoding="utf-8")
    (tmp_path / "profile.json").write_text(json.dumps(LOCALHOST), encoding="utf-8")
    case = json.loads(text.replace("$TMP", str(tmp_path)))
    base = settings(case["host"])
    pod = codec.from_value(SandboxConfig, case["pod"])
    config = codec.from_value(ContainerConfig, case["container"])
    image = codec.from_value(ImageConfig, case["image"])
    nodes = tuple(codec.from_value(DeviceNode, node) for node in case.get("nodes", ()))
    profile = look(Problems(), dataclasses.replace(config, mounts=(), devices=())).profile
    host = HostView(frozenset(case.get("directories", ())), nodes, case.get("local", True), profile)
    wanted = dataclasses.replace(container_input(pod, config, image, base), host=host)
    plan = plan_container(Problems(), wanted, base)
    programs = programs_of(base, plan)
    # each plan reads back as it was written: what a keeper gets is what was planned
    assert codec.loads(ContainerPlan, codec.dumps(plan)) == plan
    found = {
        "plan": named(codec.to_value(plan), programs),
        "pod_plan": codec.to_value(plan_pod("p1", pod, base)),
        "exec": named(codec.to_value(plan_exec(plan, ("true",))), programs),
    }
    found["exec"] = {key: value for key, value in found["exec"].items() if value != found["plan"].get(key)}
    if os.environ.get("CRISHIM_GOLDEN") == "write":
        inputs = {key: value for key, value in json.loads(text).items() if key not in found}
        written = json.dumps({**inputs, **found}, indent=1, ensure_ascii=False) + "\n"
        path.write_text(written.replace(str(tmp_path), "$TMP"), encoding="utf-8")
    else:
        assert found == {key: case[key] for key in found}


def test_default_sysctls_are_for_pods_with_a_network_of_their_own() -> None:
    def planned(sysctls: dict[str, str], **options: Any) -> dict[str, str]:
        security = SandboxSecurity(namespaces=NamespaceOptions(**options))
        pod = SandboxConfig(Metadata("pod"), sysctls=sysctls, security=security)
        return dict(plan_pod("p1", pod, settings("v2")).sysctls)

    default = dict(settings("v2").sysctls)
    assert len(default) == 3
    own = {"net/ipv4/ping_group_range": "5 6", "net.ipv4.ip_unprivileged_port_start": "1024"}
    assert planned({}) == default
    expected = {**default, "net/ipv4/ip_unprivileged_port_start": "1024", "net/ipv4/ping_group_range": "5 6"}
    assert planned(own) == expected
    assert planned({}, network=NamespaceMode.NODE) == {}
    users = UserNamespace(NamespaceMode.POD)
    assert "net/ipv4/ping_group_range" not in planned({}, userns=users)
    assert planned(own, userns=users) == expected


def test_there_are_cases() -> None:
    assert len(CASES) >= 25


# --- refusals -------------------------------------------------------------------------------------

POD = SandboxConfig(Metadata("pod", "u", "ns"), log_directory="/logs")
IMAGE = ImageConfig(cmd=("/bin/sh",))
SECURITY = "config.linux.security_context"
RESOURCES = "config.linux.resources"


def test_where_an_images_volumes_lie_and_what_covers_them() -> None:
    volumes = ("/data", "//data/", "/data/below", "relative", "/", "/..", "/proc/x", "/dev/shm", "/sys", "/keep", "")
    assert volume_paths(volumes, ()) == ["/data", "/data/below", "/keep", "/relative"]
    assert volume_paths(volumes, (Mount("/data/", "/host"), Mount("/keep/sub", "/host"))) == ["/keep", "/relative"]


def test_a_volume_is_writable_on_a_read_only_root_and_the_requests_mounts_come_after_it() -> None:
    base = settings("v1")
    readonly = dataclasses.replace(request(), mounts=(Mount("/v/sub", "/host"),))
    wanted = dataclasses.replace(
        container_input(POD, readonly, IMAGE, base),
        volumes=(Mount("/v", "/root/containers/c/volumes/0"),),
        host=HostView(frozenset(["/host"])),
    )
    plan = plan_container(Problems(), wanted, base)
    binds = [operation for operation in plan.mounts if isinstance(operation, Bind)]
    assert [bind.target for bind in binds] == ["/v", "/v/sub"]
    assert (binds[0].readonly, binds[0].attributes) == (False, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)


def refused(config: ContainerConfig, image: ImageConfig = IMAGE, host: str = "v1", layers: tuple[str, ...] = ()) -> str:
    base = settings(host)
    problems = Problems()
    view = look(problems, config)
    plan_container(problems, dataclasses.replace(container_input(POD, config, image, base, layers), host=view), base)
    with pytest.raises(InvalidArgumentError) as caught:
        problems.check()
    assert str(caught.value).startswith(caught.value.field)
    return str(caught.value)


def request(**fields: Any) -> ContainerConfig:
    return ContainerConfig(ContainerMetadata("c"), **fields)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (request(command=("",)), "config.command: the program's name is empty"),
        (request(command=("a\0b",)), "config.command: contains a NUL character"),
        (
            request(security=ContainerSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, "/none.json"))),
            f"{SECURITY}.seccomp.localhost_ref: ",
        ),
        (request(resources=Resources(unified={"memory.high": "1"})), f"{RESOURCES}.unified"),
    ],
)
def test_refusals_name_the_field(config: ContainerConfig, words: str) -> None:
    assert words in refused(config)


def test_every_problem_is_told_at_once() -> None:
    """The converter's, the admission's and the planner's: one answer, in the order in which they were found."""
    message = pb.ContainerConfig(metadata=pb.ContainerMetadata(name="c"), stop_signal=99, log_path="../x")  # type: ignore[arg-type]
    message.image.image = "busybox"
    message.linux.security_context.seccomp.profile_type = pb.SecurityProfile.Localhost
    message.linux.security_context.seccomp.localhost_ref = "/none.json"
    problems = Problems()
    config = convert(problems, message)
    admit_container(problems, config, POD, Abilities())
    base = settings("v1")
    view = look(problems, config)
    plan_container(problems, dataclasses.replace(container_input(POD, config, ImageConfig(), base), host=view), base)
    with pytest.raises(InvalidArgumentError) as caught:
        problems.check()
    assert [part.partition(": ")[0] for part in str(caught.value).split("; ")] == [
        "config.stop_signal",
        "config.log_path",
        f"{SECURITY}.seccomp.localhost_ref",
        "config.command",
    ]


def test_nothing_to_run() -> None:
    assert refused(request(), ImageConfig()) == "config.command: neither the request nor the image says what to run"


def test_number_of_layers() -> None:
    layers = tuple(f"/l/{n}" for n in range(MAX_LAYERS + 1))
    assert "config.image: has 501 layers; the kernel mounts at most 500" in refused(request(), layers=layers)


def test_a_profile_with_a_listener_is_not_there_yet(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"defaultAction": "SCMP_ACT_NOTIFY"}')
    security = ContainerSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, str(path)))
    problems = Problems()
    look(problems, request(security=security))
    with pytest.raises(UnimplementedError, match=f"^{SECURITY}.seccomp.localhost_ref: {path}: defaultAction: SCMP"):
        problems.check()


def test_a_profile_that_nobody_read_is_a_problem_and_no_filter_is_left_out() -> None:
    security = ContainerSecurity(seccomp=SecurityProfile(ProfileType.LOCALHOST, "/profile.json"))
    base, problems = settings("v1"), Problems()
    plan_container(problems, container_input(POD, request(security=security), IMAGE, base), base)
    with pytest.raises(InvalidArgumentError, match=f"^{SECURITY}.seccomp.localhost_ref: could not be read$"):
        problems.check()


def test_host_without_filters() -> None:
    base = dataclasses.replace(settings("v1"), seccomp=None)
    for profile, planned in ((None, True), (ProfileType.UNCONFINED, True), (ProfileType.RUNTIME_DEFAULT, False)):
        security = ContainerSecurity(seccomp=None if profile is None else SecurityProfile(profile))
        wanted = container_input(POD, request(security=security), IMAGE, base)
        if planned:
            assert plan_container(Problems(), wanted, base).process.seccomp == b""
        else:
            with pytest.raises(FailedPreconditionError, match="no seccomp filters"):
                plan_container(Problems(), wanted, base)


@pytest.mark.parametrize(
    ("device", "words"),
    [
        (Device("/dev/x", "/dev/no-such"), "config.devices[0].host_path: /dev/no-such: no such file or directory"),
        (Device("/dev/x", "/etc/passwd"), "config.devices[0].host_path: /etc/passwd: "),
    ],
)
def test_devices_are_looked_up(device: Device, words: str) -> None:
    problems = Problems()
    look(problems, request(devices=(device,)))
    with pytest.raises(InvalidArgumentError) as caught:
        problems.check()
    assert words in str(caught.value)


def test_devices_of_the_host() -> None:
    base = settings("v1")
    config = request(devices=(Device("/dev/zero", "/dev/null", "r"),))
    wanted = dataclasses.replace(container_input(POD, config, IMAGE, base), host=look(Problems(), config))
    plan = Planner(base).container(Problems(), wanted)
    (devices,) = [operation for operation in plan.mounts if type(operation).__name__ == "Devices"]
    nodes = {node.path: node for node in devices.nodes}  # type: ignore[union-attr]
    assert (nodes["zero"].major, nodes["zero"].minor, nodes["zero"].access) == (1, 3, "r")
    assert len(nodes) == len(devices.nodes)  # type: ignore[union-attr]


def test_defaults_have_the_default_capabilities() -> None:
    base = settings("v1")
    plan = plan_container(Problems(), container_input(POD, request(), IMAGE, base), base)
    assert plan.process.capabilities.permitted == DEFAULT_MASK
    assert isinstance(plan_exec(plan, ("true",)), ExecPlan)
    assert isinstance(plan_pod("p1", POD, base), PodPlan)
