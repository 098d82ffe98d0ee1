"""What else decides over requests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Abilities:
    """The host's security modules, and the runtime handlers that have a name."""

    apparmor: bool = False
    selinux: bool = False
    handlers: tuple[str, ...] = ()
