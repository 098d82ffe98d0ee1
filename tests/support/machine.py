"""What the kernel holds right now: one pure reader for each kind of thing that a test could leave behind.

Readers never raise because something went away while they looked. Keys are stable while the thing lives, values are
for the report. Out of scope: whose a thing is (`ownership`) and what changed (`leaks`).
"""

import json
import os
import re
import shutil
import socket
import stat
import subprocess
from collections import Counter
from dataclasses import dataclass

_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `start` is its start time in clock ticks since boot (proc(5), stat field 22)."""

    pid: int
    start: int
    parent: int
    state: str
    name: str

    @property
    def key(self) -> str:
        """Return what tells this process from a later one with the same pid."""
        return f"{self.pid}@{self.start}"


def read(path: str) -> bytes:
    """Return a file's bytes; empty if it is gone or may not be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def link(path: str) -> str:
    """Return a symbolic link's target; "" if it is gone."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def mounts() -> dict[str, str]:
    """Return this mount namespace's mounts: `<mount point> #<n>` (n counts stacked ones) → type, source and root."""
    seen: Counter[str] = Counter()
    found = {}
    for line in read("/proc/self/mountinfo").decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(" ")
        point = unescape(fields[4])
        dash = fields.index("-")
        seen[point] += 1
        found[f"{point} #{seen[point]}"] = f"{fields[dash + 1]} {unescape(fields[dash + 2])} root={unescape(fields[3])}"
    return found


def unescape(text: str) -> str:
    """Undo mountinfo's octal escapes."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), text)


def cgroup_mounts() -> list[str]:
    """Return the mount points of all cgroup hierarchies, v1 and v2, each hierarchy once."""
    found: dict[str, str] = {}
    for line in read("/proc/self/mountinfo").decode().splitlines():
        fields = line.split(" ")
        if fields[fields.index("-") + 1] in {"cgroup", "cgroup2"}:
            found.setdefault(fields[2], unescape(fields[4]))
    return sorted(found.values())


def cgroups() -> dict[str, str]:
    """Return all cgroup directories below the hierarchies' roots."""
    found = {}
    for top in cgroup_mounts():
        for parent, directories, _ in os.walk(top):
            if os.path.basename(parent) == "process_api":  # the machine's own service, none of ours
                directories.clear()
                continue
            found.update({os.path.join(parent, name): "cgroup" for name in directories})
    return found


def links() -> dict[str, str]:
    """Return the network interfaces of this network namespace: name → index."""
    try:
        return {name: f"index {index}" for index, name in socket.if_nameindex()}
    except OSError:
        return {}


def tables() -> dict[str, str]:
    """Return the nftables tables of this network namespace; none where nft(8) is not installed."""
    if shutil.which("nft") is None:
        return {}
    output = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, check=False).stdout
    try:
        rows = json.loads(output)["nftables"]
    except (ValueError, KeyError):
        return {}
    return {f"{row['table']['family']} {row['table']['name']}": "nftables table" for row in rows if "table" in row}


def ipc() -> dict[str, str]:
    """Return the System V objects of this IPC namespace: `shm 5` → its key and owner."""
    found = {}
    for kind in ("shm", "msg", "sem"):
        for line in read(f"/proc/sysvipc/{kind}").decode().splitlines()[1:]:
            fields = line.split()
            found[f"{kind} {fields[1]}"] = f"key {fields[0]}"
    return found


def descriptors() -> dict[str, str]:
    """Return this process's open descriptors by number and target, without the ones that libraries keep for good."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        target = link(f"/proc/self/fd/{name}")
        if target and not target.startswith(("anon_inode:[event", "/proc/", "/dev/pts/")):
            found[f"{name} {target}"] = "descriptor"
    return found


def peer(fd: int) -> int:
    """Return the process that made the other end of this process's socket `fd`; 0 for anything else (unix(7))."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return 0
    with socket.socket(fileno=os.dup(fd)) as sock:
        try:
            return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], "little")
        except OSError:
            return 0


def process(pid: int) -> Process | None:
    """Return one process; None if it is gone."""
    data = read(f"/proc/{pid}/stat")
    if not data:
        return None
    head, _, tail = data.rpartition(b")")
    fields = tail.split()
    name = head.partition(b"(")[2].decode("utf-8", "replace")
    return Process(pid, int(fields[19]), int(fields[1]), fields[0].decode(), name)


def processes() -> dict[str, Process]:
    """Return all processes by `pid@start`."""
    rows = (process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {row.key: row for row in rows if row is not None}


def namespaces(kind: str, among: dict[str, Process]) -> dict[str, str]:
    """Return the namespaces of one kind that processes are in: `net:[4026…]` → one of its processes."""
    found: dict[str, str] = {}
    for row in among.values():
        target = link(f"/proc/{row.pid}/ns/{kind}")
        if target:
            found.setdefault(target, f"held by pid {row.pid} ({row.name})")
    return found
