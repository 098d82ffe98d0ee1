"""OCI bundles for crun and runc alone: the same container as the engine row's, as the runtime-spec's config.json.

Made from the same plan: its namespaces, masks, capabilities, rlimits, limits and (where crishim's default profile
can say it in the OCI's words) seccomp profile. The root file system is a plain directory: an overlay is not these
programs' work, which is in their favour.
"""

import json
import os
from typing import Any

from crishim.engine.plan import types
from crishim.linux import capabilities, rlimits
from crishim.linux.arch import ARCHES, native
from crishim.linux.seccomp.profile import ACTIONS, Profile, Rule
from scripts.benchlib import oci

VERSION = "1.0.2"
PLAIN = ["nosuid", "noexec", "nodev"]
MOUNTS = (
    ("/proc", "proc", "proc", PLAIN),
    ("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", [*PLAIN, "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", PLAIN),
    ("/sys", "sysfs", "sysfs", [*PLAIN, "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", [*PLAIN, "relatime", "ro"]),
)


def write(directory: str, image: oci.Image, plan: types.ContainerPlan, cgroup: str, profile: Any) -> None:
    """Write a bundle whose process is the plan's.

    Args:
        directory: the bundle, made here.
        image: unpacked as the root file system.
        plan: what the container is to be.
        cgroup: its control group's path.
        profile: a `linux.seccomp` of the runtime-spec, or None.
    """
    root = os.path.join(directory, "rootfs")
    os.makedirs(root, exist_ok=True)
    oci.unpack(image, root)
    with open(os.path.join(directory, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config(plan, cgroup, profile), file)


def config(plan: types.ContainerPlan, cgroup: str, profile: Any) -> dict[str, Any]:
    """Return the runtime-spec document of a plan."""
    spaces = ("pid", "network", "ipc", "uts", "mount", "cgroup")
    linux: dict[str, Any] = {
        "cgroupsPath": cgroup,
        "namespaces": [{"type": space} for space in spaces],
        "maskedPaths": _paths(plan, types.MaskPaths),
        "readonlyPaths": _paths(plan, types.ReadonlyPaths),
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "cpu": {"shares": 102}, "pids": {"limit": 1024}},
    }
    if profile is not None:
        linux["seccomp"] = profile
    return {
        "ociVersion": VERSION,
        "root": {"path": "rootfs"},
        "hostname": "bench",
        "process": _process(plan.process),
        "mounts": [*(_mount(*mount) for mount in MOUNTS), *_binds(plan)],
        "linux": linux,
    }


def seccomp(profile: Profile, held: int) -> dict[str, Any]:
    """Return a profile of ours as the runtime-spec's `linux.seccomp`.

    Args:
        profile: with conditions on capabilities and kernels, which are resolved here.
        held: the container's capabilities as a mask.
    """
    action, number = _action(profile.default_action)
    rules = [_rule(rule) for rule in profile.rules if _counts(rule, held)]
    machine = native()
    names = [machine.scmp, *(ARCHES[sub].scmp for sub in machine.subs)]
    return {"defaultAction": action, "defaultErrnoRet": number, "architectures": names, "syscalls": rules}


def _rule(rule: Rule) -> dict[str, Any]:
    action, number = _action(rule.action)
    found: dict[str, Any] = {"names": list(rule.names), "action": action}
    if action == "SCMP_ACT_ERRNO":
        found["errnoRet"] = number
    if rule.args:
        found["args"] = [{"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op} for a in rule.args]
    return found


def _counts(rule: Rule, held: int) -> bool:
    """Tell whether a rule's conditions on capabilities hold; this kernel is newer than any that a rule names."""

    def has(name: str) -> bool:
        return bool(held >> capabilities.NUMBERS[name.removeprefix("CAP_")] & 1)

    return all(map(has, rule.includes.caps)) and not any(map(has, rule.excludes.caps))


def _action(value: int) -> tuple[str, int]:
    """Split a SECCOMP_RET_* value into the spec's action and its errno."""
    names = {number: name for name, number in ACTIONS.items() if name != "SCMP_ACT_KILL"}
    return names[value & 0xFFFF0000], value & 0xFFFF


def _process(process: types.ProcessPlan) -> dict[str, Any]:
    names = [
        f"CAP_{name}" for name, number in capabilities.NUMBERS.items() if process.capabilities.permitted >> number & 1
    ]
    limits = [
        {"type": rlimits.name_of(limit.resource), "soft": limit.soft % (1 << 64), "hard": limit.hard % (1 << 64)}
        for limit in process.rlimits
    ]
    return {
        "user": {"uid": 0, "gid": 0},
        "args": list(process.argv),
        "env": list(process.env),
        "cwd": process.cwd,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), names),
        "rlimits": limits,
        "noNewPrivileges": process.no_new_privs,
        "oomScoreAdj": process.oom_score_adj or 0,
    }


def _paths(plan: types.ContainerPlan, kind: type[types.MaskPaths | types.ReadonlyPaths]) -> list[str]:
    return [path for operation in plan.mounts if isinstance(operation, kind) for path in operation.paths]


def _binds(plan: types.ContainerPlan) -> list[dict[str, Any]]:
    binds = [operation for operation in plan.mounts if isinstance(operation, types.Bind)]
    return [_mount(bind.target, "bind", bind.source, ["rbind", "rprivate"]) for bind in binds]


def _mount(target: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source, "options": options}
