"""Pod and container configs as plain dictionaries with the CRI's field names: for crictl's files and for gRPC alike.

Like kubelet's, they ask for a process namespace of each container's own; the CRI's default is one for the whole pod.
"""

import base64
import secrets
from collections.abc import Sequence
from typing import Any

Config = dict[str, Any]


def linux(more: Config | None = None) -> Config:
    """Return the `linux` part of a config with `more` in it; a security context keeps the namespaces it names."""
    part = dict(more or {})
    part["security_context"] = {"namespace_options": {"pid": 1}, **part.get("security_context", {})}
    return part


def pod_config(name: str, *, log_directory: str = "", attempt: int = 0, **more: Any) -> Config:
    """Return a PodSandboxConfig with a fresh uid; `more` are further fields (labels, linux, hostname…)."""
    config: Config = {
        "metadata": {"name": name, "uid": secrets.token_hex(8), "namespace": "test", "attempt": attempt},
        "log_directory": log_directory,
        "linux": linux(more.pop("linux", None)),
    }
    config.update(more)
    return config


def container_config(name: str, image: str, command: Sequence[str] = (), *, attempt: int = 0, **more: Any) -> Config:
    """Return a ContainerConfig that logs to `<name>.log`; `more` are further fields (args, envs, mounts, linux…)."""
    config: Config = {
        "metadata": {"name": name, "attempt": attempt},
        "image": {"image": image},
        "command": list(command),
        "log_path": f"{name}.log",
        "linux": linux(more.pop("linux", None)),
    }
    config.update(more)
    return config


def env(key: str, value: str) -> Config:
    """Return one environment variable; the CRI's values are bytes, which JSON spells in base64."""
    return {"key": key, "value": base64.b64encode(value.encode()).decode()}


def shell(name: str, image: str, script: str, **more: Any) -> Config:
    """Return a container that runs a shell script."""
    return container_config(name, image, ["/bin/sh", "-c", script], **more)
