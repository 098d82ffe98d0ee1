"""The interpreter that the engine runs from: a sealed copy, which nobody can write to."""

import os
import subprocess
from typing import Any

import pytest

from crishim.engine import interpreter

WRITE_AND_SEAL = 0x8 | 0x1
SHOW = (
    "import fcntl; print(os.readlink('/proc/self/exe')); "
    "print(fcntl.fcntl(os.open('/proc/self/exe', 0), 1034)); print(os.listdir('/proc/self/fd'))"
)


def test_a_static_interpreter_runs_from_a_sealed_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreter._is_stub():
        pytest.skip("this interpreter is a stub of a shared libpython: it runs from a read-only bind")
    reading, writing = os.pipe()
    real: Any = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: real(*a, stdout=writing, **k))
    process = interpreter.start(SHOW, (), ())
    os.close(writing)
    with open(reading, encoding="utf-8") as file:
        exe, seals, fds = file.read().splitlines()
    assert process.wait() == 0
    assert exe.startswith("/memfd:crishim-python")
    assert int(seals) & WRITE_AND_SEAL == WRITE_AND_SEAL
    assert len(fds.split(",")) <= 5  # 0-2, /proc/self/exe, and the directory being listed: the copy's own fd is closed


def test_a_fault_is_not_taken_for_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    if interpreter._is_stub():
        pytest.skip("this interpreter is a stub of a shared libpython: it runs from a read-only bind")

    def broken(_path: str) -> int:
        raise FileNotFoundError(2, "no such file")

    monkeypatch.setattr(interpreter, "_sealed_copy", broken)
    with pytest.raises(FileNotFoundError):
        interpreter.start("pass", (), ())
