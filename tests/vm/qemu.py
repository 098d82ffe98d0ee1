"""A guest's life: QEMU without acceleration, so that it runs wherever tests run, with its console as lines of text.

The disk is a snapshot: what the guest writes is thrown away. A guest has no network.
"""

import os
import selectors
import subprocess
import time
from collections.abc import Iterator

from tests.vm.base import Base

PROGRAM = "qemu-system-x86_64"
_MEMORY = "2048"


def command(base: Base, payload: str) -> list[str]:
    """Return the command that boots a guest whose first serial line is the standard output."""
    append = "root=/dev/vda rw console=ttyS0 quiet loglevel=1 systemd.show_status=0 panic=-1 net.ifnames=0 "
    append += "modprobe.blacklist=kvm_amd,kvm_intel,powernow_k8 "
    append += "crishim.guest"  # what must not run on any other machine looks for this word
    drives = [f"file={base.disk},format=raw,if=virtio,snapshot=on", f"file={payload},format=raw,if=virtio,readonly=on"]
    machine = ["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", _MEMORY, "-nodefaults", "-nic", "none"]
    console = ["-display", "none", "-serial", "stdio", "-no-reboot"]
    boot = ["-kernel", base.kernel, "-initrd", base.initrd, "-append", append]
    return [PROGRAM, *machine, *console, *boot, *(word for drive in drives for word in ("-drive", drive))]


def console(base: Base, payload: str, seconds: float) -> Iterator[str]:
    """Boot a guest and give its console's lines until it is off; one that takes longer than `seconds` is ended."""
    until = time.monotonic() + seconds
    with subprocess.Popen(
        command(base, payload), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        try:
            yield from _lines(process.stdout.fileno(), until)
        finally:
            process.kill()  # it has closed its console, has been too long, or nobody wants to hear of it any more


def _lines(fd: int, until: float) -> Iterator[str]:
    kept = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while (left := until - time.monotonic()) > 0:
            if not selector.select(left):
                continue
            data = os.read(fd, 65536)
            if not data:
                break
            *whole, kept = (kept + data).split(b"\n")
            for line in whole:
                yield _text(line)
    if kept:
        yield _text(kept)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")
