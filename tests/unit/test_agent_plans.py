"""Golden batches: plans of tests/golden/plans → the calls, as they are printed (tests/golden/batches).

A change is looked at, then written with CRISHIM_GOLDEN=write. The numbers of calls, which differ between machines, are
not in the text; the bytes for both are compared with it elsewhere (`test_agent_batch`).
"""

import dataclasses
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from crishim import codec
from crishim.engine.agent import layout, lowering, pods, shapes, starts
from crishim.engine.agent.batch import Batch
from crishim.engine.agent.passage import with_passage
from crishim.engine.agent.show import show
from crishim.engine.plan.container import plan_container
from crishim.engine.plan.host import HostView
from crishim.engine.plan.types import ContainerPlan, ExecPlan, MaskPaths
from crishim.engine.users import Identity
from crishim.linux.arch import ARCHES
from crishim.linux.seccomp.outcome import run as outcome_of
from crishim.linux.seccomp.tables import numbers
from crishim.problems import Problems
from crishim.request import ContainerConfig, ImageConfig, SandboxConfig
from tests.unit import test_engine_plans as plans

GOLDEN = Path(__file__).parent.parent / "golden" / "batches"
ROOT = Identity(0, 0, [0], b"/root", b"root")
USER = Identity(1000, 100, [100, 77], b"/home/me", b"me")


def json_of(plan: ContainerPlan | ExecPlan) -> Any:
    return json.loads(codec.frozen(plan))


def plan_of(name: str, tmp_path: Path) -> Any:
    """Return the plan of a case of tests/golden/plans, without its filter."""
    text = (plans.GOLDEN / f"{name}.json").read_text(encoding="utf-8").replace("$TMP", str(tmp_path))
    case = json.loads(text)
    base = plans.settings(case["host"])
    pod = codec.from_value(SandboxConfig, case["pod"])
    config = codec.from_value(ContainerConfig, case["container"])
    image = codec.from_value(ImageConfig, case["image"])
    wanted = plans.container_input(pod, config, image, base)
    host = HostView(frozenset(case.get("directories", ())))
    return json_of(plan_container(Problems(), dataclasses.replace(wanted, host=host), base))


def compare(name: str, batches: list[Batch]) -> None:
    path = GOLDEN / f"{name}.txt"
    found = "\n\n--- what follows is another batch\n\n".join("\n".join(show(batch)) for batch in batches) + "\n"
    if os.environ.get("CRISHIM_GOLDEN") == "write":
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


def second(plan: Any, first: starts.First, identity: Identity, **flags: bool) -> list[Batch]:
    base = layout.SLOT + 0x10000
    if not first.inside:
        return [lowering.lower("x86_64", base, plan, identity, **flags).batch]
    lowered = lowering.lower_inside("x86_64", base, plan, identity, 0x40000, layout.SLOT, 0x1234, **flags)
    assert lowered.inner is not None
    return [lowered.batch, lowered.inner]


CASES = sorted(path.stem for path in plans.GOLDEN.glob("*.json"))


@pytest.mark.parametrize(
    ("name", "pid"),
    [
        ("masked-and-readonly", "new"),
        ("default-v2", "new"),
        ("terminal", "new"),
        ("mounts", "pod"),
        ("default", "host"),
    ],
)
def test_batches_of_containers(name: str, pid: str, tmp_path: Path) -> None:
    plan = plan_of(name, tmp_path) | {"pid": pid}
    first = starts.container("x86_64", plan, "/run/crishim/empty")
    terminal = plan["stdio"]["terminal"]
    plan["process"]["seccomp"] = ""
    compare(name, [first.batch, *second(plan["process"], first, USER, terminal=terminal, own_terminal=terminal)])


def test_every_plan_compiles_on_both_machines_within_its_room(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(plans.LOCALHOST), encoding="utf-8")
    for name in CASES:
        plan = plan_of(name, tmp_path)
        known = {}
        for machine in ("x86_64", "aarch64"):
            ready = shapes.Shapes(machine).container(plan, "/run/crishim/empty")
            known[machine] = [call.name for call in ready.first.batch.calls]
            for identity in (ROOT, USER):
                inside = lowering.lower_inside(machine, layout.SLOT, plan["process"], identity, 0x40000, layout.SLOT, 1)
                direct = lowering.lower(machine, layout.SLOT, plan["process"], identity)
                for lowered in (inside, direct):
                    assert len(lowered.batch.finish().content) <= lowering.room(plan["process"]), name
        assert known["x86_64"] == known["aarch64"]


def test_a_shape_serves_containers_that_differ_by_their_ids(tmp_path: Path) -> None:
    known = shapes.Shapes("x86_64")
    text = json.dumps(plan_of("seccomp-default", tmp_path)).replace("c1", "1" * 64).replace("p1", "2" * 64)
    one = known.container(json.loads(text), "/empty")
    other = known.container(json.loads(text.replace("1" * 64, "3" * 64)), "/empty")
    assert one.first is other.first
    assert one.content.replace(b"1" * 64, b"3" * 64) == other.content
    assert b"~~~" not in one.content
    assert starts.container("x86_64", json.loads(text), "/empty").batch.finish().content == one.content
    assert known.container(json.loads(text), "/other").first is not one.first


def test_process_1_of_a_shared_namespace() -> None:
    compare("process-1", [pods.first_process("x86_64", "/run/crishim/empty").batch])


def test_what_an_agent_does_for_its_pod() -> None:
    batches = [
        pods.settled("x86_64"),
        pods.namespaces("x86_64", ("net", "ipc", "uts"), 64 << 20),
        pods.names("x86_64", "web-0", "/run/crishim/ns/p1/net"),
        *pods.sysctls("x86_64", {"net/ipv4/ip_forward": "1"}),
    ]
    compare("pod", batches)
    room = layout.AREA_SIZE - layout.FIRST
    many = pods.sysctls("x86_64", {f"net/ipv4/conf/{'x' * 15}/a_rather_long_name_{n}": "1" * 20 for n in range(20)})
    assert max(len(batch.finish().content) for batch in [*batches, *many]) <= room
    assert len(starts.bear("x86_64", range(24, 33), 0).content) <= room


def test_the_filter_stands_where_it_needs_least(tmp_path: Path) -> None:
    plan = plan_of("seccomp-default", tmp_path)["process"]
    assert plan["seccomp"]
    for no_new_privs, order in (
        (False, ["seccomp", "capset", "execve"]),
        (True, ["prctl", "capset", "seccomp", "execve"]),
    ):
        plan["no_new_privs"] = no_new_privs
        calls = [call.name for call in lowering.lower("x86_64", layout.SLOT, plan, ROOT).batch.calls]
        last = calls[len(calls) - 1 - calls[::-1].index("setresuid") :]
        positions = [last.index(name) if name != "capset" else len(last) - 1 - last[::-1].index(name) for name in order]
        assert positions == sorted(positions)
        assert set(last[last.index("seccomp") + 1 :]) <= {"capset", "execve", "write", "faccessat"}


def test_masks_before_devices_are_refused(tmp_path: Path) -> None:
    plan = plan_of("seccomp-default", tmp_path)
    plan["mounts"] = [json.loads(codec.frozen(MaskPaths(("/proc/kcore",)))) | {"type": "MaskPaths"}]
    with pytest.raises(ValueError, match="masked before /dev"):
        starts.container("x86_64", plan, "/empty")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_clone_with_the_cookie_passes_a_filter_and_nothing_else_does(machine: str) -> None:
    refuse = struct.pack("<HBBI", 6, 0, 0, 0x00050001)
    cookie = 0x1234_5678_9ABC_DEF0
    program = with_passage(refuse, machine, cookie)
    number, audit = numbers(machine)["clone"], ARCHES[machine].audit

    def outcome(call: int, arch: int, value: int) -> int:
        return outcome_of(program, call, arch, (0, 0, 0, 0, value, 0))[0]

    assert outcome(number, audit, cookie) == 0x7FFF0000
    for call, arch, value in (
        (number, audit, cookie + 1),
        (number, audit, cookie ^ 1 << 40),
        (number + 1, audit, cookie),
        (number, 0x40000003, cookie),
    ):
        assert outcome(call, arch, value) == 0x00050001
