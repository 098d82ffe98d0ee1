"""The files that a pod's containers see as /etc/hosts, /etc/hostname and /etc/resolv.conf.

They are written into the pod's own tmpfs, through the directory that the keeper handed over, once the pod has its
addresses; the content is `crishim.network.names`'s. Each is written whole before anything can mount it. Out of scope:
that tmpfs, which bounds what containers write into them, and their end (both the keeper's), and mounting (planner).
"""

import errno
import os

from crishim.errors import KernelError
from crishim.network import names
from crishim.network.model import Attachment
from crishim.pods.records import SandboxSpec

HOST_HOSTS = "/etc/hosts"
HOST_RESOLV_CONF = "/etc/resolv.conf"


def write(directory: int, spec: SandboxSpec, hostname: str, attachment: Attachment | None) -> None:
    """Write the three files of a pod.

    Args:
        directory: fd of where they go.
        spec: of the sandbox.
        hostname: the pod's.
        attachment: its addresses; None for a pod of the host's network.

    Raises:
        KernelError: a file cannot be written.
    """
    hosts = _host_file(HOST_HOSTS) if attachment is None else names.hosts_file(hostname, attachment.ips)
    dns = spec.config.dns
    resolver = names.resolv_conf(dns, _host_file(HOST_RESOLV_CONF) if dns is None else "")
    try:
        _write(directory, "hosts", hosts)
        _write(directory, "hostname", names.hostname_file(hostname))
        _write(directory, "resolv.conf", resolver)
    except OSError as error:
        raise KernelError(f"write the files of pod {spec.id}", error.errno or errno.EIO) from None


def _host_file(path: str) -> str:
    """Return a host file's content; a host without it has nothing to say."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _write(directory: int, name: str, content: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(name, flags, 0o644, dir_fd=directory)
    with open(fd, "wb", buffering=0) as file:
        os.fchmod(fd, 0o644)
        file.write(content.encode("utf-8", "surrogateescape"))
