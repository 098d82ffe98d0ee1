"""The disks that guests boot from: a Debian suite by debootstrap, made once and kept below .cache.

A base holds the system alone. What is tested comes with the payload (`payload`), so a change of crishim makes none
anew; its name carries the hash of all that went into it (suite, packages, this file). Out of scope: booting.
"""

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from typing import IO

PACKAGES = (
    "linux-image-cloud-amd64",
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "python3",
    "python3-venv",
    "nftables",
    "iproute2",
    "procps",
    "util-linux",
    "busybox-static",
    "docker-registry",
)
"""What a node has that runs crishim, busybox for an image to run, and a registry to pull it from."""
SUITES = {"trixie": "3.13"}
"""Debian's suites, each with the version of its Python."""
PAYLOAD = "/opt/payload"
SIZE = "3G"
_MIRROR = "http://deb.debian.org/debian"
_USELESS = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man", "boot")
_UNIT = f"""[Unit]
Description=What this guest was booted for
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'mkdir {PAYLOAD}; tar -xf /dev/vdb -C {PAYLOAD}; exec {PAYLOAD}/start'
ExecStopPost=/usr/bin/systemctl --force --force poweroff
"""
# Nothing else is to start by itself: the registry is run by the checks, the rest takes time.
_MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "docker-registry.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "systemd-timesyncd.service",
)


class BuildError(Exception):
    """The disk could not be made, and why."""


@dataclass(frozen=True, slots=True)
class Base:
    """One suite's disk, kernel and initial file system."""

    suite: str
    directory: str

    @property
    def disk(self) -> str:
        """Raw ext4 file system."""
        return f"{self.directory}/disk"

    @property
    def kernel(self) -> str:
        """Path of the kernel."""
        return f"{self.directory}/vmlinuz"

    @property
    def initrd(self) -> str:
        """Path of the initial file system."""
        return f"{self.directory}/initrd"


def key(suite: str) -> str:
    """Return what names a base: a hash of what goes into it."""
    with open(__file__, "rb") as file:
        return hashlib.sha256(f"{suite} {PACKAGES}\n".encode() + file.read()).hexdigest()[:12]


def ensure(suite: str, cache: str) -> Base:
    """Return the suite's base, made if there is none yet; older ones of the suite are removed.

    Raises:
        BuildError: which program failed; its output is below `cache`.
    """
    base = Base(suite, f"{cache}/vm/{suite}-{key(suite)}")
    if os.path.isdir(base.directory):
        return base
    os.makedirs(f"{cache}/vm", exist_ok=True)
    for name in os.listdir(f"{cache}/vm"):
        if name.startswith(f"{suite}-") and os.path.isdir(f"{cache}/vm/{name}"):
            shutil.rmtree(f"{cache}/vm/{name}")
    with tempfile.TemporaryDirectory(dir=f"{cache}/vm", prefix="new-") as scratch:
        new = Base(suite, f"{scratch}/base")
        os.mkdir(new.directory)
        with open(f"{cache}/vm/{suite}.log", "w", encoding="utf-8") as log:
            _build(new, f"{scratch}/tree", log)
        os.rename(new.directory, base.directory)
    return base


def mirror() -> str:
    """Return the Debian mirror that this machine uses itself."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    rows = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = re.search(r"^Debian\|Debian\|(\S+)$", rows, re.MULTILINE)
    return found[1].rstrip("/") if found else _MIRROR


def _build(base: Base, tree: str, log: IO[str]) -> None:
    # A mount namespace of its own: whatever a package's script mounts goes with it
    bootstrap = ["unshare", "-m", "--propagation", "private", "debootstrap", "--variant=minbase"]
    _run([*bootstrap, f"--include={','.join(PACKAGES)}", base.suite, tree, mirror()], log)
    _write(f"{tree}/etc/initramfs-tools/conf.d/small", "MODULES=list\nCOMPRESS=lz4\n")
    _write(f"{tree}/etc/initramfs-tools/modules", "virtio_blk\n")
    _run(["chroot", tree, "update-initramfs", "-u", "-k", "all"], log)
    for name in os.listdir(f"{tree}/boot"):
        for start, place in (("vmlinuz-", base.kernel), ("initrd.img-", base.initrd)):
            if name.startswith(start):
                shutil.move(f"{tree}/boot/{name}", place)
    _configure(tree)
    for path in _USELESS:
        shutil.rmtree(f"{tree}/{path}")
    _run(["truncate", "-s", SIZE, base.disk], log)
    # No journal: what is written to a snapshot is thrown away
    _run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-d", tree, base.disk], log)


def _configure(tree: str) -> None:
    units = f"{tree}/etc/systemd/system"
    _write(f"{units}/guest.service", _UNIT)
    os.makedirs(f"{units}/multi-user.target.wants", exist_ok=True)
    os.symlink("/etc/systemd/system/guest.service", f"{units}/multi-user.target.wants/guest.service")
    for name in _MASKED:
        if not os.path.lexists(f"{units}/{name}"):
            os.symlink("/dev/null", f"{units}/{name}")
    _write(f"{tree}/etc/hostname", "guest\n")
    _write(f"{tree}/etc/hosts", "127.0.0.1 localhost guest\n")
    # Neither a first boot nor one after an upgrade: systemd would make the hardware database anew, for a minute
    _write(f"{tree}/etc/machine-id", f"{hashlib.sha256(tree.encode()).hexdigest()[:32]}\n")
    for name in ("etc", "var"):
        _write(f"{tree}/{name}/.updated", "")


def _run(command: list[str], log: IO[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "TMPDIR": "/tmp"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False, env=environment)
    if done.returncode:
        raise BuildError(f"{command[0]} {' '.join(command[1:3])}: status {done.returncode}")


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
