"""A CNI network's configuration, what one attachment is about, what plugins answer, and how they fail."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crishim.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Plugin:
    """One plugin of a list: its program, the capabilities that it declares, and its part of the conflist."""

    type: str
    capabilities: frozenset[str]
    document: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NetworkList:
    """A parsed conflist; `text` is its canonical JSON, from which `config.parse` gives it back."""

    name: str
    version: str
    plugins: tuple[Plugin, ...]
    disable_check: bool
    disable_gc: bool
    text: str


@dataclass(frozen=True, slots=True)
class Target:
    """One attachment; `runtime_config` is keyed by capability, `netns` is "" for a DEL whose namespace is gone."""

    container_id: str
    netns: str
    ifname: str
    args: Mapping[str, str]
    runtime_config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """The last plugin's result in the list's version, and the interface's addresses out of it (CIDR, in order)."""

    addresses: tuple[str, ...]
    document: Mapping[str, Any]


class CniError(UnavailableError):
    """A plugin failed or lied.

    Args:
        plugin: its type.
        message: what it said.
        code: its number; 0 if it gave none.
        details: more of what it said.
    """

    def __init__(self, plugin: str, message: str, code: int = 0, details: str = "") -> None:
        more = f" ({details})" if details else ""
        super().__init__(f"cni plugin {plugin}: {message}{more}" + (f", code {code}" if code else ""))
        self.plugin = plugin
        self.code = code


class NotRunError(CniError):
    """A plugin's program is not there or cannot be run: this plugin has done nothing that has to be taken back."""
