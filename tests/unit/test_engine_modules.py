"""What the tiny processes load, and whether the numbers of system calls are the kernel's, on both machines."""

import ctypes
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from crishim.engine import interpreter
from crishim.linux import calls

FORBIDDEN = {
    "asyncio",
    "ctypes.util",
    "concurrent",
    "cryptography",
    "dataclasses",
    "google",
    "grpc",
    "http",
    "inspect",
    "isal",
    "logging",
    "multiprocessing",
    "prometheus_client",
    "sqlite3",
    "ssl",
    "structlog",
    "subprocess",
    "tempfile",
    "threading",
    "typing_extensions",
    "urllib",
    "urllib3",
    "zstandard",
}


def loaded(statement: str) -> set[str]:
    """Return the modules of an interpreter that is started as the spawner's is."""
    code = f"{statement}; import json; print(json.dumps(sorted(sys.modules)))"
    command = interpreter._command(code, [], interpreter._search_path())
    output = subprocess.run(
        command,
        executable=interpreter.executable(),
        env=interpreter._environment(sys.base_prefix),
        capture_output=True,
        check=True,
    ).stdout
    return set(json.loads(output))


def test_spawner_and_keepers_stay_small() -> None:
    modules = loaded("from crishim.engine import spawner")
    assert "crishim.engine.keeper.main" in modules
    assert "crishim.engine.execute.join" in modules
    assert {name for name in modules if name in FORBIDDEN or name.partition(".")[0] in FORBIDDEN} == set()
    assert {name for name in modules if name.startswith("crishim.")} <= {
        name
        for name in modules
        if name.startswith(("crishim.engine", "crishim.linux", "crishim.constants", "crishim.outlet"))
    }
    assert not any(name.startswith("crishim.engine.plan") for name in modules)


def test_nothing_of_the_environment_goes_along() -> None:
    environment = interpreter._environment("/usr")
    assert set(environment) == {"PYTHONHOME", "LC_ALL", "PATH", "LD_BIND_NOW"}
    paths = interpreter._search_path()
    assert all(os.path.isabs(path) and os.path.isdir(path) for path in paths)
    assert "" not in paths


# --- numbers and structures -----------------------------------------------------------------------

X86 = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
ARM = ("/usr/aarch64-linux-gnu/include/asm-generic/unistd.h", "/usr/include/asm-generic/unistd.h")
NUMBER = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)")


def header(*candidates: str) -> str:
    for path in candidates:
        if os.path.exists(path):
            return Path(path).read_text(encoding="utf-8")
    pytest.skip("lacks the kernel's headers (Debian package linux-libc-dev; scripts/install brings it with libc6-dev)")


@pytest.mark.parametrize(("machine", "paths"), [("x86_64", (X86,)), ("aarch64", ARM)])
def test_numbers_are_the_kernels(machine: str, paths: tuple[str, ...]) -> None:
    numbers = {name: int(value) for name, value in NUMBER.findall(header(*paths))}
    ours = calls.SYS_COMMON | calls.SYS[machine]
    known = {name: number for name, number in ours.items() if name in numbers}
    assert known == {name: numbers[name] for name in known}
    assert set(ours) - set(known) <= {"mount_setattr"}  # the oldest headers lack it
    assert set(calls.SYS["x86_64"]) == set(calls.SYS["aarch64"])


CONSTANTS = {
    "sched.h": ("CLONE_NEWTIME", "CLONE_PIDFD", "CLONE_NEWNS", "CLONE_NEWCGROUP", "CLONE_NEWUTS", "CLONE_NEWIPC"),
    "mount.h": ("OPEN_TREE_CLONE", "MOVE_MOUNT_F_EMPTY_PATH", "MOVE_MOUNT_T_EMPTY_PATH", "MOUNT_ATTR_RDONLY"),
    "openat2.h": (
        "RESOLVE_NO_XDEV",
        "RESOLVE_NO_MAGICLINKS",
        "RESOLVE_NO_SYMLINKS",
        "RESOLVE_BENEATH",
        "RESOLVE_IN_ROOT",
    ),
    "prctl.h": ("PR_SET_PDEATHSIG", "PR_SET_DUMPABLE", "PR_SET_KEEPCAPS", "PR_SET_NAME", "PR_CAPBSET_DROP"),
    "seccomp.h": ("SECCOMP_SET_MODE_FILTER",),
    "keyctl.h": ("KEYCTL_JOIN_SESSION_KEYRING",),
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_are_the_kernels(name: str) -> None:
    defined = dict(
        re.findall(r"#\s*define\s+(\w+)\s+\(?(0x[0-9a-fA-F]+|\d+)(?:ULL|U)?\)?", header(f"/usr/include/linux/{name}"))
    )
    for constant in CONSTANTS[name]:
        assert int(defined[constant], 0) == getattr(calls, constant), constant


PROGRAM = """
#include <stdio.h>
#include <stddef.h>
#include <linux/sched.h>
#include <linux/openat2.h>
#include <linux/mount.h>
#include <linux/capability.h>
#include <linux/filter.h>
int main(void) {
    printf("%zu %zu %zu %zu %zu %zu\\n", sizeof(struct clone_args), sizeof(struct open_how), sizeof(struct mount_attr),
           sizeof(struct __user_cap_header_struct), sizeof(struct __user_cap_data_struct), sizeof(struct sock_fprog));
    printf("%zu %zu %zu\\n", offsetof(struct clone_args, cgroup), offsetof(struct open_how, resolve),
           offsetof(struct mount_attr, userns_fd));
    return 0;
}
"""


def test_structures_are_the_kernels(tmp_path: Path) -> None:
    source = tmp_path / "sizes.c"
    source.write_text(PROGRAM, encoding="ascii")
    try:
        built = subprocess.run(["cc", "-o", tmp_path / "sizes", source], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("lacks a C compiler (Debian package gcc; scripts/install brings it)")
    if built.returncode:
        pytest.skip("lacks the kernel's headers (Debian package linux-libc-dev)")
    sizes, offsets = subprocess.run([tmp_path / "sizes"], capture_output=True, check=True, text=True).stdout.split(
        "\n"
    )[:2]
    structures = (
        calls._CloneArgs,
        calls._OpenHow,
        calls._MountAttr,
        calls._CapHeader,
        calls._CapData,
        calls._SockFprog,
    )
    assert [int(size) for size in sizes.split()] == [ctypes.sizeof(structure) for structure in structures]
    ours = [calls._CloneArgs.cgroup.offset, calls._OpenHow.resolve.offset, calls._MountAttr.userns_fd.offset]
    assert [int(offset) for offset in offsets.split()] == ours


def test_structures_are_the_same_on_both_machines() -> None:
    # of fixed-width members only (clone3(2), openat2(2), mount_setattr(2), capset(2)), but for the filter's pointer
    for structure in (calls._CloneArgs, calls._OpenHow, calls._MountAttr, calls._CapHeader, calls._CapData):
        kinds = {member[1] for member in structure._fields_}
        assert kinds <= {ctypes.c_uint64, ctypes.c_uint32, ctypes.c_int}
    assert ctypes.sizeof(ctypes.c_void_p) == 8
