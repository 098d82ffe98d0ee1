"""The files that a pod's containers see as /etc/hosts, /etc/hostname and /etc/resolv.conf.

They are written to `<state>/pods/<id>/` once the pod has its addresses; the content is `crishim.network.names`'s.
Each is written whole before anything can mount it. Out of scope: mounting them (planner), and their end (engine).
"""

import errno
import os

from crishim.errors import KernelError
from crishim.network import names
from crishim.network.model import Attachment
from crishim.paths import Paths
from crishim.pods.records import SandboxSpec

HOST_HOSTS = "/etc/hosts"
HOST_RESOLV_CONF = "/etc/resolv.conf"


def write(paths: Paths, spec: SandboxSpec, hostname: str, attachment: Attachment | None) -> None:
    """Write the three files of a pod.

    Args:
        paths: of the instance.
        spec: of the sandbox.
        hostname: the pod's, "" for the host's.
        attachment: its addresses; None for a pod of the host's network.

    Raises:
        KernelError: a file cannot be written.
    """
    directory = paths.pod(spec.id)
    name = hostname or os.uname().nodename
    hosts = _host_file(HOST_HOSTS) if attachment is None else names.hosts_file(name, attachment.ips)
    dns = spec.config.dns
    resolver = names.resolv_conf(dns, _host_file(HOST_RESOLV_CONF) if dns is None else "")
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        _write(f"{directory}/hosts", hosts)
        _write(f"{directory}/hostname", names.hostname_file(name))
        _write(f"{directory}/resolv.conf", resolver)
    except OSError as error:
        raise KernelError(f"write the files of pod {spec.id} in {directory}", error.errno or errno.EIO) from None


def _host_file(path: str) -> str:
    """Return a host file's content; a host without it has nothing to say."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, content: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb", buffering=0) as file:
        os.fchmod(fd, 0o644)
        file.write(content.encode("utf-8", "surrogateescape"))
