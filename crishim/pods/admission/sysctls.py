"""Which sysctls a pod may set, and in what form they come.

Only keys that the kernel keeps per namespace, and only when the pod has that namespace for itself: anything else
would change the host (CVE-2022-0532). Both spellings are understood, `net.ipv4.conf.eth0.rp_filter` and
`net/ipv4/conf/eth0.1/rp_filter`; in the second a dot belongs to the name. A value is written as it stands into one
file, so no line break may hide a second setting, and a key never leaves /proc/sys (CVE-2022-0811).

Source: sysctl(8), namespaces(7), and the kernel's Documentation/admin-guide/sysctl.
"""

import re

from crishim.problems import Problems
from crishim.request import NamespaceMode, NamespaceOptions, SandboxConfig

FIELD = "config.linux.sysctls"
_IPC = frozenset({"auto_msgmni", "msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"})
_IPC |= {"msg_next_id", "sem_next_id", "shm_next_id"}
_UTS = frozenset({"domainname", "hostname"})
_PART = re.compile(r"[A-Za-z0-9_.:@-]+")


def parts(key: str) -> tuple[str, ...] | None:
    """Return the key's path components below /proc/sys, or None if it is no key."""
    names = tuple(key.split("/")) if "/" in key else tuple(key.split("."))
    if len(names) < 2 or any(name in {".", ".."} or not _PART.fullmatch(name) for name in names):
        return None
    return names


def sandbox(problems: Problems, config: SandboxConfig) -> None:
    """Judge each sysctl of the request."""
    for key, value in config.sysctls.items():
        sentence = _problem(config.security.namespaces, key, value)
        if sentence:
            problems.add(f"{FIELD}[{key!r}]", sentence)


def _problem(options: NamespaceOptions, key: str, value: str) -> str:
    names = parts(key)
    if names is None:
        return "is no sysctl key; a name like net.ipv4.ip_forward is wanted"
    if any(ord(c) < 32 and c != "\t" for c in value):
        return "has a value with a control character; one line is wanted"
    if names[0] == "net":
        return "would change the host: the pod uses the host's network" if _host(options.network) else ""
    if (names[0] == "kernel" and names[1] in _IPC) or names[:2] == ("fs", "mqueue"):
        return "would change the host: the pod uses the host's IPC namespace" if _host(options.ipc) else ""
    if names[0] == "kernel" and names[1] in _UTS:
        return "is not set as a sysctl; use the pod's hostname"
    return "is not kept per namespace and would change the host; set it on the node"


def _host(mode: NamespaceMode) -> bool:
    return mode is NamespaceMode.NODE
