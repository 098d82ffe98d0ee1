"""Names of pods and containers, and what of a request becomes lines of a pod's files or paths of its logs."""

import re

from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import ContainerConfig, ContainerMetadata, DnsConfig, Metadata, SandboxConfig

MAX_HOSTNAME = 64
"""Bytes (`__NEW_UTS_LEN`, sethostname(2))."""
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


def sandbox(problems: Problems, config: SandboxConfig) -> None:
    """Judge a pod's identity, hostname, resolver settings and log directory."""
    _identity(problems, config.metadata)
    _hostname(problems, config.hostname)
    if config.log_directory:
        checks.absolute(problems, "config.log_directory", config.log_directory)
        checks.no_climbing(problems, "config.log_directory", config.log_directory)
    if config.dns is not None:
        _dns(problems, config.dns)
    checks.no_climbing(problems, "config.linux.cgroup_parent", config.cgroup_parent)
    checks.one_line(problems, "config.linux.cgroup_parent", config.cgroup_parent)


def container(problems: Problems, config: ContainerConfig) -> None:
    """Judge a container's identity, image and log path."""
    _container_identity(problems, config.metadata)
    checks.given(problems, "config.image.image", config.image.image, "name an image, or give its id")
    _log_path(problems, config.log_path)


def _identity(problems: Problems, metadata: Metadata) -> None:
    remedy = "a sandbox is known by its name, namespace, uid and attempt"
    checks.given(problems, "config.metadata.name", metadata.name, remedy)
    checks.c_string(problems, "config.metadata.uid", metadata.uid)
    checks.c_string(problems, "config.metadata.namespace", metadata.namespace)


def _container_identity(problems: Problems, metadata: ContainerMetadata) -> None:
    checks.given(problems, "config.metadata.name", metadata.name, "a container is known by its name and attempt")


def _hostname(problems: Problems, value: str) -> None:
    """What neither the kernel nor a resolver would take; "" is fine (the pod then has the host's name)."""
    if value and (len(value) > MAX_HOSTNAME or not _HOSTNAME.fullmatch(value)):
        problems.add(
            "config.hostname",
            f"must be 1 to {MAX_HOSTNAME} letters, digits, '-' and '.', with neither of the last two at an end, "
            f"is {value!r}",
        )


def _dns(problems: Problems, dns: DnsConfig) -> None:
    """No value may hold white space: it would be a line or a word of the caller's choice in resolv.conf."""
    for field in ("servers", "searches", "options"):
        for n, value in enumerate(getattr(dns, field)):
            checks.one_word(problems, f"config.dns_config.{field}[{n}]", value)


def _log_path(problems: Problems, value: str) -> None:
    """A file's path below the sandbox's log directory (CRI `ContainerConfig.log_path`)."""
    checks.inside(problems, "config.log_path", value)
    if value and value.rpartition("/")[2] in {"", "."}:
        problems.add("config.log_path", f"must name a file, is {value!r}")
