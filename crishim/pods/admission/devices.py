"""Device nodes of a request; whether the host has them is the planner's to find."""

from collections.abc import Sequence
from os.path import normpath

from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import ContainerConfig, Device


def container(problems: Problems, config: ContainerConfig) -> None:
    """Judge a container's devices."""
    _nodes(problems, config.devices)
    for n, name in enumerate(config.cdi_devices):
        field = f"config.CDI_devices[{n}].name"
        checks.given(problems, field, name)
        checks.unsupported(problems, field, "CDI devices", "give device nodes by config.devices")


def _nodes(problems: Problems, devices: Sequence[Device]) -> None:
    for n, device in enumerate(devices):
        at = f"config.devices[{n}]"
        if not device.permissions or set(device.permissions) - set("rwm"):
            problems.add(f"{at}.permissions", f"must be some of r, w and m, is {device.permissions!r}")
        checks.absolute(problems, f"{at}.host_path", device.host_path)
        checks.absolute(problems, f"{at}.container_path", device.container_path)
        if not normpath(device.container_path).startswith("/dev/"):
            problems.add(f"{at}.container_path", f"must be below /dev, is {device.container_path!r}")
