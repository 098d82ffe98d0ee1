"""Reading profiles: both forms, and every way to be wrong."""

import copy
import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import InvalidArgumentError, NotFoundError, UnimplementedError
from crishim.linux.seccomp.profile import Arg, Condition, Rule, load_profile, parse_profile

GOOD: dict[str, Any] = {
    "comment": "a profile",
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 38,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_S390X", "subArchitectures": None},
    ],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": [], "includes": {}, "excludes": {}},
        {
            "name": "clone",
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
            "includes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["amd64"], "minKernel": "4.8"},
        },
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
        {"names": ["kcmp"], "action": "SCMP_ACT_ERRNO"},
        {"names": ["acct"], "action": "SCMP_ACT_KILL_PROCESS"},
        {"names": ["swapon"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
    ],
}


def test_a_profile() -> None:
    profile = parse_profile(GOOD, "p")
    assert profile.default_action == 0x50000 | errno.ENOSYS
    assert profile.architectures == ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
    assert profile.flags == 2
    assert profile.rules[0] == Rule(("read", "write"), 0x7FFF0000)
    assert profile.rules[1] == Rule(
        ("clone",),
        0x7FFF0000,
        (Arg(0, 2114060288, 0, "SCMP_CMP_MASKED_EQ"),),
        Condition(("CAP_SYS_ADMIN",), ("amd64",), (4, 8)),
    )
    assert [rule.action for rule in profile.rules[2:]] == [0x50001, 0x50001, 0x80000000, 0x7FF00007]


def test_the_shortest_profile() -> None:
    profile = parse_profile({"defaultAction": "SCMP_ACT_ALLOW"}, "p")
    assert (profile.default_action, profile.rules, profile.architectures) == (0x7FFF0000, (), ())


def changed(path: list[Any], value: Any) -> Any:
    document = copy.deepcopy(GOOD)
    at: Any = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ([], ""),
        ("text", ""),
        ({}, "defaultAction"),
        (changed(["defaultAction"], "ALLOW"), "defaultAction"),
        (changed(["defaultErrnoRet"], 5000), "defaultErrnoRet"),
        (changed(["defaultErrnoRet"], "EPERM"), "defaultErrnoRet"),
        (changed(["archMap"], {}), "archMap"),
        (changed(["archMap"], [{"architecture": 1}]), "archMap[0].architecture"),
        (changed(["archMap"], [{"architecture": "SCMP_ARCH_S390X"}]), "architectures"),
        (changed(["architectures"], ["amd64"]), "architectures"),
        (changed(["flags"], ["SECCOMP_FILTER_FLAG_NEW_LISTENER"]), "flags[0]"),
        (changed(["flags"], [["SECCOMP_FILTER_FLAG_LOG"]]), "flags[0]"),
        (changed(["syscall"], []), "syscall"),
        (changed(["syscalls"], {}), "syscalls"),
        (changed(["syscalls", 0], 1), "syscalls[0]"),
        (changed(["syscalls", 0, "names"], []), "syscalls[0].names"),
        (changed(["syscalls", 0, "names"], [""]), "syscalls[0].names[0]"),
        (changed(["syscalls", 0, "names"], "read"), "syscalls[0].names"),
        (changed(["syscalls", 0, "action"], "allow"), "syscalls[0].action"),
        (changed(["syscalls", 0, "arg"], []), "syscalls[0].arg"),
        (changed(["syscalls", 1, "args", 0, "index"], 6), "syscalls[1].args[0].index"),
        (changed(["syscalls", 1, "args", 0, "index"], True), "syscalls[1].args[0].index"),
        (changed(["syscalls", 1, "args", 0, "op"], "=="), "syscalls[1].args[0].op"),
        (changed(["syscalls", 1, "args", 0, "value"], -1), "syscalls[1].args[0].value"),
        (changed(["syscalls", 1, "args", 0, "value"], 1 << 64), "syscalls[1].args[0].value"),
        (changed(["syscalls", 1, "args", 0, "valueTwo"], "1"), "syscalls[1].args[0].valueTwo"),
        (changed(["syscalls", 1, "includes", "minKernel"], "four"), "syscalls[1].includes.minKernel"),
        (changed(["syscalls", 1, "includes", "cap"], []), "syscalls[1].includes.cap"),
        (changed(["syscalls", 2, "errnoRet"], -1), "syscalls[2].errnoRet"),
    ],
)
def test_what_is_wrong_is_named_by_key(document: Any, key: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_profile(document, "/etc/p.json")
    assert caught.value.field == (f"/etc/p.json: {key}" if key else "/etc/p.json")


@pytest.mark.parametrize(
    ("document", "key"),
    [
        (changed(["defaultAction"], "SCMP_ACT_NOTIFY"), "defaultAction"),
        (changed(["syscalls", 0, "action"], "SCMP_ACT_NOTIFY"), "syscalls[0].action"),
        (changed(["listenerPath"], "/x"), "listenerPath"),
    ],
)
def test_a_listener_is_not_there_yet(document: Any, key: str) -> None:
    with pytest.raises(UnimplementedError, match=f"^/etc/p.json: {re.escape(key)}: .* not supported yet; "):
        parse_profile(document, "/etc/p.json")


def test_loading(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    with pytest.raises(NotFoundError, match=r"p\.json does not exist"):
        load_profile(str(path))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        load_profile(str(path))
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        load_profile(str(path))
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    assert load_profile(str(path)) == parse_profile(GOOD, str(path))
    with pytest.raises(InvalidArgumentError, match="cannot be read"):
        load_profile(str(tmp_path))


def test_a_profile_that_is_nested_too_deep_is_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match="is not JSON"):
        load_profile(str(path))
