"""Which namespaces a pod and its containers share with whom."""

from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import NamespaceMode, NamespaceOptions, UserNamespace

_FIELD = "config.linux.security_context.namespace_options"
_POD_OR_NODE = (NamespaceMode.POD, NamespaceMode.NODE)


def sandbox(problems: Problems, options: NamespaceOptions) -> None:
    """Judge a pod's options."""
    _common(problems, options)
    if options.pid is NamespaceMode.TARGET:
        problems.add(f"{_FIELD}.pid", "must be POD, CONTAINER or NODE, is TARGET: that is for containers")


def container(problems: Problems, options: NamespaceOptions, pod: NamespaceOptions) -> None:
    """Judge a container's options; its network and IPC namespaces are its pod's, so saying otherwise contradicts it."""
    _common(problems, options)
    if options.pid is NamespaceMode.TARGET and not options.target_id:
        problems.add(f"{_FIELD}.target_id", "is missing: pid TARGET joins the container of this id")
    for name in ("network", "ipc"):
        if getattr(options, name) is NamespaceMode.NODE and getattr(pod, name) is not NamespaceMode.NODE:
            problems.add(f"{_FIELD}.{name}", "is NODE, but the sandbox has a namespace of its own")


def _common(problems: Problems, options: NamespaceOptions) -> None:
    for name in ("network", "ipc"):
        _mode(problems, f"{_FIELD}.{name}", getattr(options, name))
    if options.userns is not None:
        _users(problems, f"{_FIELD}.userns_options", options.userns)


def _mode(problems: Problems, field: str, mode: NamespaceMode) -> None:
    if mode not in _POD_OR_NODE:
        problems.add(field, f"must be POD or NODE, is {mode.name}")


def _users(problems: Problems, field: str, users: UserNamespace) -> None:
    """One mapping each, which holds the container's id 0, or none with NODE (KEP-127)."""
    _mode(problems, f"{field}.mode", users.mode)
    for name in ("uids", "gids"):
        ranges = getattr(users, name)
        if users.mode is NamespaceMode.NODE:
            if ranges:
                problems.add(f"{field}.{name}", "must be empty with mode NODE")
        elif len(ranges) != 1:
            problems.add(f"{field}.{name}", f"must hold just one mapping, holds {len(ranges)}")
        elif ranges[0].container_id != 0:
            problems.add(f"{field}.{name}[0].container_id", f"must be 0, is {ranges[0].container_id}")
        checks.id_mappings(problems, f"{field}.{name}", ranges)
    if users.mode is NamespaceMode.POD:
        checks.unsupported(problems, field, "user namespaces", "run the pod with hostUsers: true")
