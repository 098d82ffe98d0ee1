"""Checks of single values of the configuration: each returns what is wrong as the rest of a sentence, or "".

They are pure: nothing on the host is looked at here (that is `crishim check`'s subject).
"""

import ipaddress
import re

IFNAME_LENGTH = 15
"""Longest name of a network link (IFNAMSIZ less the terminating zero, netdevice(7))."""

BRIDGE_LENGTH = 11
"""Longest bridge name: the links of pods start with a part of it and need room for the pod's part."""

RLIMITS = (
    "as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue",
    "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip
"""Names of the resource limits of getrlimit(2), without `RLIMIT_`, in lower case."""

_RLIMIT = re.compile(r"([a-z]+)=(\d+|unlimited)(?::(\d+|unlimited))?")
_BRIDGE = re.compile(r"[A-Za-z0-9_-]+")
_REFERENCE = re.compile(
    r"(?:[A-Za-z0-9.-]+(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?"
    r"(?:@sha(?:256:[0-9a-f]{64}|512:[0-9a-f]{128}))?"
)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SYSCTL = re.compile(r"net[./][A-Za-z0-9_.:@/-]*[A-Za-z0-9_]")
_HOST = re.compile(r"[A-Za-z0-9_.-]+")


def path(value: str) -> str:
    """Check an absolute path without control characters and without `..`."""
    if not value.startswith("/"):
        return f"must be an absolute path, is {value!r}"
    if any(ord(c) < 0x20 or ord(c) == 0x7F for c in value):
        return f"must not hold control characters, is {value!r}"
    if ".." in value.split("/"):
        return f"must not hold '..', is {value!r}"
    return ""


def optional_path(value: str) -> str:
    """Check a path that may be empty."""
    return path(value) if value else ""


def directory(value: str) -> str:
    """Check a path that becomes a directory of ours: not the root of the file system."""
    return path(value) or ("must not be '/'" if not value.strip("/") else "")


def reference(value: str) -> str:
    """Check an image's name with tag, digest, both or neither."""
    if _REFERENCE.fullmatch(value):
        return ""
    return f"must be an image's name like 'registry.k8s.io/pause:3.10', is {value!r}"


def optional_directory(value: str) -> str:
    """Check a directory of ours that may be left empty."""
    return directory(value) if value else ""


def listen(value: str) -> str:
    """Check `host:port`, `[v6 address]:port` or ""."""
    if not value:
        return ""
    host, colon, port = value.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > 0xFFFF:
        return f"must be HOST:PORT with a port from 0 to 65535, or empty, is {value!r}"
    if host.startswith("[") and host.endswith("]"):
        return _address(host[1:-1], value)
    if ":" in host:
        return f"an IPv6 address needs brackets, like '[::1]:9539', is {value!r}"
    return "" if _HOST.fullmatch(host) else f"needs a host name or address before the port, is {value!r}"


def host(value: str) -> str:
    """Check a host's name or IPv4 address."""
    return "" if _HOST.fullmatch(value) else f"must be a host name without port, like 'node1.example', is {value!r}"


def _address(text: str, value: str) -> str:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return f"{text!r} in {value!r} is no IPv6 address"
    return ""


def bridge(value: str) -> str:
    """Check the bridge's name: it names links and the nftables table of the instance."""
    if not _BRIDGE.fullmatch(value):
        return f"must consist of letters, digits, '-' and '_', is {value!r}"
    if len(value) > BRIDGE_LENGTH:
        return f"must have at most {BRIDGE_LENGTH} characters (links of pods are named after it), is {value!r}"
    return ""


def subnet(value: str) -> str:
    """Check an IPv4 or IPv6 network with room for a gateway and at least one pod."""
    try:
        network = ipaddress.ip_network(value)
    except ValueError as error:
        return f"must be a network like '10.119.0.0/16': {error}"
    if network.is_multicast or network.is_loopback or network.is_link_local or network.is_unspecified:
        return f"must be a unicast network of its own, is {value!r}"
    if network.num_addresses < 4:
        return f"has no room for a gateway and a pod, use at most /{network.max_prefixlen - 2}, is {value!r}"
    return ""


def handler(value: str) -> str:
    """Check the name of a runtime handler: what a RuntimeClass may name (RFC 1123, a label in lower case)."""
    if _LABEL.fullmatch(value):
        return ""
    return f"must be 1 to 63 lower-case letters, digits and '-', neither first nor last a '-', is {value!r}"


def pod_sysctl(value: str) -> str:
    """Check `net.KEY=VALUE`: what a pod's network namespace keeps for itself, on one line."""
    key, equals, setting = value.partition("=")
    if not equals or not _SYSCTL.fullmatch(key) or ".." in key or not setting.isprintable() or not setting:
        return f"must be KEY=VALUE with a key that begins with 'net.', like 'net.core.somaxconn=4096', is {value!r}"
    return ""


def mtu(value: int) -> str:
    """Check an MTU: 0, or from the least that IPv6 allows (RFC 8200) to the most that fits an IP packet."""
    return "" if value == 0 or 1280 <= value <= 65535 else f"must be 0 or from 1280 to 65535, is {value}"


def cgroup(value: str) -> str:
    """Check an absolute cgroup path without `..`, below the root group."""
    return directory(value)


def rlimit(value: str) -> str:
    """Check `name=soft[:hard]`, like `nofile=1024:524288`; `unlimited` is a value."""
    match = _RLIMIT.fullmatch(value)
    if match is None:
        return f"must be NAME=SOFT or NAME=SOFT:HARD, like 'nofile=1024:524288', is {value!r}"
    name, soft, hard = match.groups()
    if name not in RLIMITS:
        return f"{name!r} is no resource limit, known are {', '.join(RLIMITS)}"
    if limit(soft) > limit(hard or soft):
        return f"the soft limit must not be above the hard limit, is {value!r}"
    return ""


def limit(text: str) -> int:
    """Return a limit as a number; `unlimited` is RLIM_INFINITY as an unsigned 64-bit number (getrlimit(2))."""
    return 0xFFFF_FFFF_FFFF_FFFF if text == "unlimited" else int(text)
