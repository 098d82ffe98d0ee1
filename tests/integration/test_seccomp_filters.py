"""Filters in force in real processes of this kernel."""

import ctypes
import errno
import json
import mmap
import os
import platform
import shutil
import signal
import sys
from collections.abc import Callable

import pytest

from crishim.linux import calls, capabilities
from crishim.linux.arch import native
from crishim.linux.facts import parse_version
from crishim.linux.seccomp import tables
from crishim.linux.seccomp.compiler import compile_profile
from crishim.linux.seccomp.default import default_profile
from crishim.linux.seccomp.profile import Profile, parse_profile

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def program(profile: Profile, caps: int = capabilities.DEFAULT_MASK) -> bytes:
    return compile_profile(profile, caps, native(), parse_version(platform.release()))


def can_filter() -> bool:
    return under(b"", lambda: 0) == 0 and under(program(Profile(0x7FFF0000)), lambda: 0) == 0


def under(filter_code: bytes, work: Callable[[], int]) -> int:
    """Run `work` in a child under a filter; return its number, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        status = 250
        try:
            if filter_code:
                buffer = calls.seccomp_buffer(filter_code)
                calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
                calls.seccomp_filter(buffer)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(autouse=True)
def filters() -> None:
    if native().audit == 0 or not can_filter():
        pytest.skip("lacks seccomp filters")


def call(name: str | int, *args: int) -> Callable[[], int]:
    """Return work that makes one system call and returns its errno, 0 for none."""
    number = tables.numbers(native().machine)[name] if isinstance(name, str) else name

    def work() -> int:
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(arg) for arg in args))
        return ctypes.get_errno() if result == -1 else 0

    return work


@pytest.mark.parametrize(
    ("name", "args", "error"),
    [
        ("getpid", (), 0),
        ("umask", (0o22,), 0),
        ("mount", (0, 0, 0, 0, 0), errno.EPERM),
        ("unshare", (0x10000000,), errno.EPERM),
        ("setns", (0, 0), errno.EPERM),
        ("keyctl", (0, 0), errno.EPERM),
        ("bpf", (0, 0, 0), errno.EPERM),
        ("io_uring_setup", (1, 0), errno.EPERM),
        ("userfaultfd", (0,), errno.EPERM),
        ("clone", (0x10000000 | 17, 0, 0, 0, 0), errno.EPERM),
        ("clone3", (0, 0), errno.ENOSYS),
        ("socket", (40, 1, 0), errno.EAFNOSUPPORT),
        ("socket", (38, 5, 0), errno.EAFNOSUPPORT),
        ("socket", (38 | 1 << 32, 5, 0), errno.EAFNOSUPPORT),
        ("socket", (2, 1, 0), 0),
        ("personality", (0xFFFFFFFF,), 0),
        ("personality", (0x40000,), errno.EPERM),
        (600, (), errno.ENOSYS),
        (468, (), errno.ENOSYS),
    ],
)
def test_default_profile(name: str | int, args: tuple[int, ...], error: int) -> None:
    assert under(program(default_profile()), call(name, *args)) == error


def test_capabilities_open_their_calls() -> None:
    admin = program(default_profile(), capabilities.ALL)
    assert under(admin, call("setns", -1, 0)) == errno.EBADF
    assert under(admin, call("clone3", 0, 0)) in {errno.EFAULT, errno.EINVAL}


def int80(number: int, first: int = 0, second: int = 0) -> Callable[[], int]:
    """Return work that makes a 32-bit call by machine code: mov eax, ebx, ecx; xor edx; int 0x80; ret."""

    def work() -> int:
        code = b"\x53\xb8" + number.to_bytes(4, "little") + b"\xbb" + first.to_bytes(4, "little")
        code += b"\xb9" + second.to_bytes(4, "little") + b"\x31\xd2\xcd\x80\x5b\xc3"
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(code)
        function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        result = int(function())
        return -result if result < 0 else 0

    return work


def can_call_32_bit() -> bool:
    return native().machine == "x86_64" and under(b"", int80(20)) == 0


@pytest.mark.parametrize(
    ("name", "error"),
    [("getpid", 0), ("mount", errno.EPERM), ("keyctl", errno.EPERM), ("clone3", errno.ENOSYS), ("500", errno.ENOSYS)],
)
def test_default_profile_for_32_bit_programs(name: str, error: int) -> None:
    if not can_call_32_bit():
        pytest.skip("lacks 32-bit system calls (CONFIG_IA32_EMULATION)")
    number = int(name) if name.isdigit() else tables.numbers("i386")[name]
    assert under(program(default_profile()), int80(number)) == error


def low_words(*words: int) -> int:
    """Return the address of 32-bit words where a 32-bit call can reach them."""
    map_32bit, anonymous, private = 0x40, 0x20, 0x02
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), 3, private | anonymous | map_32bit, -1, ctypes.c_long(0))
    ctypes.memmove(address, b"".join(word.to_bytes(4, "little") for word in words), 4 * len(words))
    return int(address)


def test_sockets_of_32_bit_programs() -> None:
    """socketcall(2) is how old ones make every socket; socket(2) of newer ones is filtered by its family."""
    if not can_call_32_bit():
        pytest.skip("lacks 32-bit system calls (CONFIG_IA32_EMULATION)")
    default, numbers = program(default_profile()), tables.numbers("i386")
    sys_socket = 1
    assert under(default, int80(numbers["socketcall"], sys_socket, low_words(2, 1, 0))) == 0
    assert under(default, int80(numbers["socket"], 2, 1)) == 0
    assert under(default, int80(numbers["socket"], 38, 5)) == errno.EAFNOSUPPORT


def test_an_architecture_that_is_not_listed_ends_the_process() -> None:
    if not can_call_32_bit():
        pytest.skip("lacks 32-bit system calls (CONFIG_IA32_EMULATION)")
    profile = parse_profile({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}, "test")
    assert under(program(profile), int80(20)) == -signal.SIGSYS


def test_x32_calls_do_not_slip_through() -> None:
    if native().machine != "x86_64":
        pytest.skip("lacks the x32 ABI")
    mount = tables.numbers("x32")["mount"]
    assert under(program(default_profile()), call(mount, 0, 0, 0, 0, 0)) in {errno.EPERM, errno.ENOSYS}


def execs(*argv: str) -> Callable[[], int]:
    def work() -> int:
        os.execv(argv[0], argv)

    return work


def test_programs_run_under_the_default_profile() -> None:
    assert under(program(default_profile()), execs(shutil.which("true") or "/bin/true")) == 0
    shell = "for i in 1 2 3; do /bin/ls / | /bin/cat >/dev/null || exit 9; done; umask; id >/dev/null"
    assert under(program(default_profile()), execs("/bin/sh", "-c", f"exec >/dev/null; {shell}")) == 0


def test_threads_and_subprocesses_run_under_the_default_profile() -> None:
    code = """
import subprocess, threading, socket, tempfile, select, os
done = []
threads = [threading.Thread(target=done.append, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert sorted(done) == list(range(8))
assert subprocess.run(['/bin/echo', 'hi'], capture_output=True).stdout == b'hi\\n'
a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'
poll = select.epoll(); poll.close()
with tempfile.TemporaryFile() as f: f.write(b'x'); os.fsync(f.fileno())
"""
    assert under(program(default_profile()), execs(sys.executable, "-c", code)) == 0


def test_a_profile_from_json_with_errno_and_arguments() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EADDRINUSE},
            {
                "names": ["getpriority"],
                "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_GE"}],
            },
        ],
    }
    code = program(parse_profile(json.loads(json.dumps(document)), "test"))
    assert under(code, call("sethostname", 0, 0)) == errno.EADDRINUSE
    assert under(code, call("getpriority", 0, 0)) == 0
    assert under(code, call("getpriority", 1, 0)) == errno.EPERM
    assert under(code, call("getpriority", 2, 0)) == errno.EPERM
    assert under(code, call(600)) == errno.ENOSYS


@pytest.mark.parametrize(
    ("action", "result"),
    [("SCMP_ACT_KILL_PROCESS", -signal.SIGSYS), ("SCMP_ACT_TRAP", -signal.SIGSYS), ("SCMP_ACT_LOG", 0)],
)
def test_other_actions(action: str, result: int) -> None:
    document = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getpriority"], "action": action}]}
    assert under(program(parse_profile(document, "test")), call("getpriority", 0, 0)) == result


def test_filters_survive_exec_and_are_seen_in_status() -> None:
    script = 'while read key value; do [ "$key" = Seccomp: ] && exit "$value"; done </proc/self/status; exit 9'
    assert under(program(default_profile()), execs("/bin/sh", "-c", script)) == 2
