"""What is kept of each pod that a CNI network was asked to attach, and the attachment that a result gives.

A record is committed before the first plugin runs and deleted when DEL has worked, so that whatever a plugin made is
taken back, by this daemon or the next. Out of scope: when that happens (`network`).
"""

import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from crishim.network.cni.model import Result, Target
from crishim.network.model import Attachment

KIND = "cni"


class Records(Protocol):
    """A table of JSON documents by pod id."""

    def put(self, key: str, document: bytes) -> None:
        """Add or replace a document; committed on return."""

    def delete(self, key: str) -> bool:
        """Remove a document; tell whether it was there."""

    def load(self) -> dict[str, bytes]:
        """Return all documents."""

    def quarantine(self, key: str, reason: str) -> bool:
        """Take a document out that cannot be used."""


@dataclass(frozen=True, slots=True)
class Record:
    """One pod's ADD: the network's configuration as text, what the plugins were given, and the last one's result.

    `result` is None until the ADD is through. `reached` is how many of the plugins may have done something; None is
    all, as after a daemon's death in the middle.
    """

    network: str
    text: str
    target: Target
    result: Mapping[str, Any] | None = None
    reached: int | None = None

    def finished(self, result: Result) -> "Record":
        """Return the record with a result."""
        return replace(self, result=result.document)

    @property
    def host_interface(self) -> str:
        """Name of the host's end of the pod's link, "" if the plugins tell of none."""
        return "" if self.result is None else _host_interface(self.result, self.target.ifname)


def dumps(record: Record) -> bytes:
    """Return the record's document."""
    target = record.target
    document = {
        "network": record.network,
        "text": record.text,
        "target": {
            "container_id": target.container_id,
            "netns": target.netns,
            "ifname": target.ifname,
            "args": dict(target.args),
            "runtime_config": dict(target.runtime_config),
        },
        "reached": record.reached,
        "result": record.result,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def loads(document: bytes) -> Record:
    """Return the record of a document.

    Raises:
        ValueError: the document is none of ours.
    """
    try:
        found = json.loads(document)
        return Record(found["network"], found["text"], Target(**found["target"]), found["result"], found.get("reached"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"no record of an attachment: {error!r}") from None


def attachment(record: Record, result: Result) -> Attachment:
    """Return what the pod got, as its sandbox's record keeps it."""
    document = result.document
    inside = next((entry for entry in _interfaces(document) if _is_inside(entry, record.target.ifname)), {})
    mtu = inside.get("mtu")
    return Attachment(
        ips=tuple(str(ipaddress.ip_interface(text).ip) for text in result.addresses),
        interface=record.target.ifname,
        host_interface=_host_interface(document, record.target.ifname),
        mac=str(inside.get("mac") or ""),
        gateway=_gateway(document),
        mtu=mtu if isinstance(mtu, int) and mtu > 0 else 0,
        kind=KIND,
    )


def _interfaces(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the result's interfaces in the plugins' order: host's ends come before the pod's (CNI 0.3.0 and later)."""
    found = document.get("interfaces")
    return [entry for entry in found if isinstance(entry, Mapping)] if isinstance(found, list) else []


def _is_inside(entry: Mapping[str, Any], ifname: str) -> bool:
    return bool(entry.get("sandbox")) and entry.get("name") == ifname


def _host_interface(document: Mapping[str, Any], ifname: str) -> str:
    """Return the host's link that stands right before the pod's: bridge, veth, eth0, or veth, eth0."""
    name = ""
    for entry in _interfaces(document):
        if _is_inside(entry, ifname):
            return name
        if not entry.get("sandbox"):
            name = str(entry.get("name") or "")
    return ""


def _gateway(document: Mapping[str, Any]) -> str:
    entries = document.get("ips")
    if not isinstance(entries, list):  # 0.2.0 and before
        entries = [document.get("ip4"), document.get("ip6")]
    return next((str(entry["gateway"]) for entry in entries if isinstance(entry, Mapping) and entry.get("gateway")), "")
