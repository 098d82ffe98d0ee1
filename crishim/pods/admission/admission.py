"""The admission: every judgement of a request that needs neither the host nor the image, each made once. Pure.

One module a subject. What it finds goes to the request's one `Problems`, beside what the converter found of its form
and what the planner will find with host and image at hand; a request with a problem is refused before anything is made.
What this version does not have is refused too (`checks.unsupported`), never silently left out.
"""

from collections.abc import Sequence

from crishim.pods.admission import (
    devices,
    handlers,
    mounts,
    names,
    namespaces,
    ports,
    process,
    profiles,
    resources,
    sysctls,
    users,
)
from crishim.pods.admission.abilities import Abilities
from crishim.problems import Problems
from crishim.request import ContainerConfig, Resources, SandboxConfig


def admit_sandbox(problems: Problems, config: SandboxConfig, handler: str, abilities: Abilities) -> None:
    """Judge a sandbox and the runtime handler that it asks for."""
    handlers.judge(problems, "runtime_handler", handler, abilities.handlers)
    names.sandbox(problems, config)
    ports.sandbox(problems, config)
    namespaces.sandbox(problems, config.security.namespaces)
    users.sandbox(problems, config.security)
    profiles.judge(problems, config.security, abilities)
    resources.judge(problems, config.overhead, "config.linux.overhead")
    resources.judge(problems, config.resources, "config.linux.resources")
    sysctls.sandbox(problems, config)


def admit_container(problems: Problems, config: ContainerConfig, sandbox: SandboxConfig, abilities: Abilities) -> None:
    """Judge a container in its sandbox."""
    names.container(problems, config)
    process.container(problems, config)
    mounts.container(problems, config.mounts)
    devices.container(problems, config)
    resources.judge(problems, config.resources, "config.linux.resources", container=True)
    namespaces.container(problems, config.security.namespaces, sandbox.security.namespaces)
    users.container(problems, config.security, sandbox.security)
    profiles.judge(problems, config.security, abilities)


def admit_update(problems: Problems, wanted: Resources) -> None:
    """Judge the limits of UpdateContainerResources, merged with those that hold."""
    resources.judge(problems, wanted, "linux", container=True)


def admit_exec(problems: Problems, command: Sequence[str], timeout: int) -> None:
    """Judge an ExecSync; the timeout is in seconds, 0 for none."""
    process.command(problems, command)
    process.seconds(problems, timeout)


def admit_stop(problems: Problems, timeout: int) -> None:
    """Judge a StopContainer; the timeout is its grace period in seconds."""
    process.seconds(problems, timeout)
