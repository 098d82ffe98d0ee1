"""Plugins' results of every version of CNI: checked, and the pod's addresses out of them.

Source: SPEC.md of 0.2.0, 0.3.1, 0.4.0 and 1.1.0, section "Result". Pure.
"""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from crishim.network.cni.config import VERSIONS
from crishim.network.cni.model import CniError, Result


def parse(plugin: str, output: bytes, ifname: str, version: str) -> Result:
    """Return a plugin's result; one that names no version is of the network's.

    Raises:
        CniError: it is no result of any version.
    """
    try:
        document = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise CniError(plugin, f"its result is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CniError(plugin, "its result is not a JSON object")
    document = {**document, "cniVersion": document.get("cniVersion") or version}
    if document["cniVersion"] not in VERSIONS:
        raise CniError(plugin, f"its result is of the unknown version {document['cniVersion']!r}")
    return Result(tuple(_text(plugin, value) for value in _addresses(plugin, document, ifname)), document)


def _addresses(plugin: str, document: Mapping[str, Any], ifname: str) -> list[Any]:
    if "ip4" in document or "ip6" in document:  # 0.2.0 and before
        old = [document[key] for key in ("ip4", "ip6") if document.get(key)]
        return [_entry(plugin, entry).get("ip") for entry in old]
    entries = document.get("ips") or []
    interfaces = document.get("interfaces") or []
    if not isinstance(entries, list) or not isinstance(interfaces, list):
        raise CniError(plugin, "its result's ips and interfaces must be lists")
    found = []
    for entry in (_entry(plugin, entry) for entry in entries):
        index = entry.get("interface")
        if index is not None:
            if not isinstance(index, int) or not 0 <= index < len(interfaces):
                raise CniError(
                    plugin, f"its result has an address of interface {index!r} and {len(interfaces)} of them"
                )
            owner = _entry(plugin, interfaces[index])
            if not owner.get("sandbox") or owner.get("name") != ifname:
                continue
        found.append(entry.get("address"))
    return found


def _entry(plugin: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise CniError(plugin, f"its result has {value!r} where an object must be")
    return value


def _text(plugin: str, value: Any) -> str:
    try:
        return ipaddress.ip_interface(value).with_prefixlen if isinstance(value, str) else _bad(plugin, value)
    except ValueError:
        return _bad(plugin, value)


def _bad(plugin: str, value: Any) -> str:
    raise CniError(plugin, f"its result has the address {value!r}")
