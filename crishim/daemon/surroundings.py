"""What lies around an instance: disks, firewall, directories. For `crishim check`, which judges it.

Invariant: looking changes nothing (no table, module or directory comes into being) and never raises.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass

from crishim.config.model import Config


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What `look` saw. Sizes in bytes; None is "could not be found out".

    Args:
        root_fstype: file system of the root directory, or of the nearest directory above that exists.
        root_free: free bytes there.
        state_fstype: file system of the state directory.
        forward_drop: the name of a firewall chain that drops forwarded packets by default, or "".
        closed: directories above the state that others may not enter (o+x is missing).
    """

    root_fstype: str = ""
    root_free: int | None = None
    state_fstype: str = ""
    forward_drop: str | None = ""
    closed: tuple[str, ...] = ()


def look(config: Config) -> Surroundings:
    """Look at disks, firewall and directories; changes nothing and never raises."""
    root, state = _existing(config.root), _existing(config.state)
    try:
        disk = os.statvfs(root)
        free: int | None = disk.f_bavail * disk.f_frsize
    except OSError:
        free = None
    return Surroundings(_fstype(root), free, _fstype(state), _forward_drop(), _closed(state))


def _existing(path: str) -> str:
    while not os.path.isdir(path) and path != "/":
        path = os.path.dirname(path) or "/"
    return os.path.realpath(path)


def _fstype(path: str) -> str:
    """Return the type of the file system of a directory: of the longest mount point above it."""
    best, kind = "", ""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                left, _, right = line.partition(" - ")
                point = left.split(" ")[4]
                covers = path == point or path.startswith(point.rstrip("/") + "/")
                if covers and len(point) >= len(best):
                    best, kind = point, right.split(" ")[0]
    except OSError:
        return ""
    return kind


def _closed(path: str) -> tuple[str, ...]:
    closed = []
    while True:
        try:
            if not os.stat(path).st_mode & 0o001:
                closed.append(path)
        except OSError:
            pass
        if path == "/":
            return tuple(reversed(closed))
        path = os.path.dirname(path)


def _forward_drop() -> str | None:
    """Return the name of a chain that drops forwarded packets by default, "" if none does, None if unknown."""
    if shutil.which("nft") is None:
        return None
    text = _run("nft", "-j", "list", "chains")
    try:
        items = json.loads(text)["nftables"] if text else []
    except (ValueError, KeyError):
        return None
    for item in items:
        chain = item.get("chain", {})
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            return f"chain {chain.get('family')} {chain.get('table')} {chain.get('name')}"
    return _legacy_forward_drop()


def _legacy_forward_drop() -> str:
    """Ask the old iptables only where its filter table exists already: asking would make it."""
    try:
        with open("/proc/net/ip_tables_names", encoding="ascii") as file:
            if "filter" not in file.read().split():
                return ""
    except OSError:
        return ""
    return "chain FORWARD of iptables-legacy" if "-P FORWARD DROP" in _run("iptables-legacy", "-S", "FORWARD") else ""


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
