"""From the default container's plan to the floor's list of kernel calls and to an OCI bundle."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crishim.engine.plan import types
from crishim.engine.plan.settings import PlanSettings
from crishim.linux import calls, capabilities, rlimits
from crishim.linux.cgroups.layout import Hierarchy, Layout
from crishim.linux.seccomp.default import default_profile
from crishim.linux.seccomp.profile import parse_profile
from crishim.paths import Paths
from scripts.benchlib import bundle, default_plan, floor_ops

KERNEL = (6, 18)
Plans = tuple[types.PodPlan, types.ContainerPlan]


@pytest.fixture
def plans(tmp_path: Path) -> Plans:
    layer = tmp_path / "layer"
    for name in ("etc", "proc", "sys", "dev"):
        (layer / name).mkdir(parents=True)
    (layer / "etc/hosts").touch()
    hierarchies = (Hierarchy("/sys/fs/cgroup/memory", ("memory",)), Hierarchy("/sys/fs/cgroup/pids", ("pids",)))
    settings = PlanSettings(
        paths=Paths(str(tmp_path), str(tmp_path / "state")),
        layout=Layout(1, hierarchies),
        cgroup_parent="/bench",
        kernel=KERNEL,
        bounding=capabilities.ALL,
        rlimits=rlimits.container(rlimits.DEFAULT, 9000),
        pids_limit=1024,
        seccomp=default_profile(),
    )
    return default_plan.make(settings, str(layer))


def sections(text: str) -> dict[str, list[list[str]]]:
    found: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            current = found.setdefault(line[1:-1], [])
        else:
            current.append(line.split("\t"))
    return found


def test_the_floor_has_the_plans_groups_namespaces_and_program(plans: Plans) -> None:
    pod, plan = plans
    found = sections(floor_ops.program(pod, plan, "/place"))
    assert list(found) == ["make", "child", "delete"]
    wanted = calls.CLONE_NEWNS | calls.CLONE_NEWPID | calls.CLONE_NEWNET | calls.CLONE_NEWIPC | calls.CLONE_NEWUTS
    assert found["make"][-1] == ["clone3", str(wanted)]
    groups = [line[1] for line in found["make"] if line[0] == "mkdir"][-2:]
    assert groups == ["/sys/fs/cgroup/memory/bench/" + "c" * 64, "/sys/fs/cgroup/pids/bench/" + "c" * 64]
    assert [line[1] for line in found["delete"] if line[0] == "rmdir"] == groups
    assert [line[1:] for line in found["child"][:2]] == [[f"{group}/tasks", "0"] for group in groups]
    assert found["child"][-1][:4] == ["execve", "/bin/true", "1", "/bin/true"]


def test_the_floor_makes_every_mount_once(plans: Plans) -> None:
    pod, plan = plans
    counts = floor_ops.counts(floor_ops.program(pod, plan, "/place"))
    kernel = sum(isinstance(operation, types.MountFs) for operation in plan.mounts)
    # overlay, the pod's shared memory, the frame of the v1 groups, the empty mask
    assert counts["fsopen"] == counts["fsmount"] == kernel + 4
    assert counts["pivot_root"] == counts["seccomp"] == counts["execve"] == counts["clone3"] == 1
    assert counts["mknodat"] == 6
    assert counts["prlimit64"] == len(plan.process.rlimits)
    dropped = 41 - plan.process.capabilities.bounding.bit_count()
    assert counts["prctl"] == dropped + 2


def test_a_target_that_the_image_lacks_is_made_with_its_parents(plans: Plans) -> None:
    pod, plan = plans
    extra = types.Bind("/etc/passwd", "/a/b/file", directory=False)
    found = sections(floor_ops.program(pod, replace(plan, mounts=(*plan.mounts, extra)), "/place"))["child"]
    start = next(n for n, line in enumerate(found) if line[0] == "?openat2" and line[2] == "/a/b/file")
    pivot = next(n for n, line in enumerate(found) if line[0] == "pivot_root")
    made = [(line[0], line[2]) for line in found[start:pivot] if line[0] in {"mkdirat", "openat"}]
    assert made == [("mkdirat", "a"), ("mkdirat", "b"), ("openat", "file")]


def test_what_does_not_exist_is_looked_for_and_not_masked(plans: Plans) -> None:
    pod, plan = plans
    before = floor_ops.counts(floor_ops.program(pod, plan, "/place"))
    more = types.MaskPaths(("/proc/no-such-thing",))
    after = floor_ops.counts(floor_ops.program(pod, replace(plan, mounts=(*plan.mounts, more)), "/place"))
    assert after - before == {"openat2": 1}


def test_bytes_survive_the_floors_file(plans: Plans) -> None:
    pod, plan = plans
    found = sections(floor_ops.program(pod, plan, "/place"))["child"]
    field = next(line[2] for line in found if line[0] == "seccomp")
    parts = field.split("%")
    data = parts[0].encode() + b"".join(bytes([int(part[:2], 16)]) + part[2:].encode() for part in parts[1:])
    assert data == plan.process.seccomp


def test_a_terminal_is_refused(plans: Plans) -> None:
    pod, plan = plans
    with pytest.raises(ValueError, match="no terminals"):
        floor_ops.program(pod, replace(plan, mounts=(*plan.mounts, types.Terminal())), "/place")


def test_the_bundle_is_the_same_container(plans: Plans) -> None:
    _, plan = plans
    document = bundle.config(plan, "/bench/crun", None)
    process: dict[str, Any] = document["process"]
    assert process["args"] == ["/bin/true"]
    assert set(process["capabilities"]["bounding"]) == {f"CAP_{name}" for name in capabilities.DEFAULT}
    limits = {limit["type"]: (limit["soft"], limit["hard"]) for limit in process["rlimits"]}
    assert limits["RLIMIT_NOFILE"] == (1024, 524288)
    assert limits["RLIMIT_CPU"] == (2**64 - 1, 2**64 - 1)
    assert "/proc/kcore" in document["linux"]["maskedPaths"]
    targets = [mount["destination"] for mount in document["mounts"]]
    assert targets.index("/proc") < targets.index("/etc/hosts")
    assert "seccomp" not in document["linux"]


def test_the_bundles_profile_allows_what_the_plans_does() -> None:
    held = capabilities.mask(capabilities.DEFAULT)
    document = bundle.seccomp(default_profile(), held)
    assert parse_profile(document, "bundle").rules
    allowed = {name for rule in document["syscalls"] if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]}
    assert {"read", "execve", "chroot"} <= allowed
    assert not {"mount", "bpf", "reboot"} & allowed
    clone3 = next(rule for rule in document["syscalls"] if "clone3" in rule["names"])
    assert (clone3["action"], clone3["errnoRet"]) == ("SCMP_ACT_ERRNO", errno.ENOSYS)
    wider = bundle.seccomp(default_profile(), held | 1 << capabilities.NUMBERS["SYS_ADMIN"])
    assert any("mount" in rule["names"] for rule in wider["syscalls"])


def test_the_pods_files_exist_for_every_turn(plans: Plans) -> None:
    _, plan = plans
    sources = [operation.source for operation in plan.mounts if isinstance(operation, types.Bind)]
    assert [os.path.basename(source) for source in sources] == ["hosts", "hostname", "resolv.conf"]
    assert all(os.path.isfile(source) for source in sources)
