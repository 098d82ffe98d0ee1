"""The interpreter that the engine runs from: a sealed copy, which nobody can write to."""

import ctypes
import errno
import mmap
import os
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from crishim.engine import interpreter
from crishim.errors import InternalError
from crishim.linux import memfd, mountns

WRITE_AND_SEAL = 0x8 | 0x1
SHOW = (
    "import fcntl; print(os.readlink('/proc/self/exe')); "
    "print(fcntl.fcntl(os.open('/proc/self/exe', 0), 1034)); print(os.listdir('/proc/self/fd'))"
)


def test_a_static_interpreter_runs_from_a_sealed_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreter._is_stub():
        pytest.skip("lacks a static interpreter (this one is a stub of a shared libpython)")
    reading, writing = os.pipe()
    real: Any = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: real(*a, stdout=writing, **k))
    process = interpreter.start("pass", SHOW, (), ())
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        exe, seals, fds = file.read().splitlines()
    assert process.wait() == 0
    assert exe.startswith("/memfd:crishim-python")
    assert int(seals) & WRITE_AND_SEAL == WRITE_AND_SEAL
    assert len(fds.split(",")) <= 5  # 0-2, /proc/self/exe, and the directory being listed: the copy's own fd is closed


def test_a_fault_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreter._is_stub():
        pytest.skip("lacks a static interpreter (this one is a stub of a shared libpython)")

    def broken(_path: str) -> int:
        raise FileNotFoundError(2, "no such file")

    monkeypatch.setattr(interpreter, "_sealed_copy", broken)
    with pytest.raises(FileNotFoundError):
        interpreter.start("pass", "pass", (), ())


@pytest.fixture
def pinned() -> Iterator[tuple[int, int]]:
    """Return a memfd of which a pipe holds a page, and the pipe's end that gives it up when it is read."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    fd = os.memfd_create("pinned", os.MFD_ALLOW_SEALING)
    os.write(fd, bytes(mmap.PAGESIZE))
    address = libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    reading, writing = os.pipe()
    vector = (ctypes.c_void_p * 2)(address, mmap.PAGESIZE)
    assert libc.vmsplice(writing, vector, 1, 0) == mmap.PAGESIZE
    libc.munmap(ctypes.c_void_p(address), mmap.PAGESIZE)
    yield fd, reading
    for end in (reading, writing):
        os.close(end)


def test_a_copy_that_somebody_holds_on_to_is_refused_and_closed(pinned: tuple[int, int]) -> None:
    fd, _reading = pinned
    with pytest.raises(OSError, match="seal the copy") as caught:
        memfd.seal(fd, "the copy")
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_hold_that_passes_is_waited_for(pinned: tuple[int, int]) -> None:
    fd, reading = pinned
    timer = threading.Timer(0.2, lambda: os.read(reading, mmap.PAGESIZE))
    timer.start()
    memfd.seal(fd, "the copy")
    timer.join()
    with pytest.raises(PermissionError):
        os.write(fd, b"x")
    os.close(fd)


def test_the_engine_starts_also_without_a_sealed_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreter._is_stub():
        pytest.skip("lacks a static interpreter (this one is a stub of a shared libpython)")

    def busy(_path: str) -> int:
        raise OSError(errno.EBUSY, "seal the interpreter's copy")

    monkeypatch.setattr(interpreter, "_sealed_copy", busy)
    assert interpreter.start("pass", "pass", (), ()).wait() == 0


def test_what_is_loaded_is_on_read_only_mounts_and_the_host_has_none_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stub of a shared libpython starts: the executable itself is on such a mount."""
    monkeypatch.setattr(interpreter, "_is_stub", lambda: True)
    load = (
        "import os; fd = os.open('/', os.O_RDONLY); mine = os.readlink('/proc/self/ns/mnt'); "
        "inside = os.fstatvfs(fd).f_flag & os.ST_RDONLY"
    )
    code = (
        "exe = os.fstatvfs(os.open('/proc/self/exe', 0)).f_flag & os.ST_RDONLY; "
        "outside = os.readlink('/proc/self/ns/mnt'); "
        f"os._exit(0 if inside and exe and mine != outside == {os.readlink('/proc/self/ns/mnt')!r} else 3)"
    )
    before = os.stat("/proc/self/ns/mnt").st_ino, os.statvfs("/").f_flag
    assert interpreter.start(load, code, (), ()).wait() == 0
    assert (os.stat("/proc/self/ns/mnt").st_ino, os.statvfs("/").f_flag) == before


def test_a_refused_namespace_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise OSError(errno.EINVAL, "mount_setattr /")

    monkeypatch.setattr(mountns, "make_read_only", refused)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InternalError, match=r"cannot be protected: .*mount_setattr /; crishim needs CAP_SYS_ADMIN"):
        interpreter.start("pass", "pass", (), ())
    assert len(os.listdir("/proc/self/fd")) == len(before)
