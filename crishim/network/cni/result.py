"""Plugins' results of every version of CNI: checked, and the pod's addresses out of them.

Source: SPEC.md of 0.2.0, 0.3.1, 0.4.0 and 1.1.0, section "Result". Pure.
"""

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

from crishim.network.cni.config import VERSIONS
from crishim.network.cni.model import CniError, Result
from crishim.words import unreadable

_FLAT = ("0.1.0", "0.2.0")
_WITH_FAMILY = ("0.3.0", "0.3.1", "0.4.0")
_INTERFACE = ("name", "mac", "sandbox")
_ROUTE = ("dst", "gw")


def converted(document: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Return a checked result in another version; what that version cannot say is left out."""
    ips, routes = _entries(document)
    found: dict[str, Any] = {"cniVersion": version}
    if document.get("dns"):
        found["dns"] = document["dns"]
    if version in _FLAT:
        for family in (4, 6):
            first = next((entry for entry in ips if _family(entry["address"]) == family), None)
            if first is not None:
                own = [_only(_ROUTE, route) for route in routes if _family(route.get("dst", "")) == family]
                gateway = {"gateway": first["gateway"]} if first.get("gateway") else {}
                found[f"ip{family}"] = {"ip": first["address"], **gateway, "routes": own}
        return found
    is_latest = version == VERSIONS[-1]
    interfaces = document.get("interfaces") or []
    found["interfaces"] = [entry if is_latest else _only(_INTERFACE, entry) for entry in interfaces]
    found["ips"] = [
        {"version": str(_family(entry["address"])), **entry} if version in _WITH_FAMILY else entry for entry in ips
    ]
    found["routes"] = [route if is_latest else _only(_ROUTE, route) for route in routes]
    return found


def _entries(document: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[Mapping[str, Any]]]:
    """Return addresses without their family, and routes, of any version."""
    if document["cniVersion"] not in _FLAT:
        ips = [{key: value for key, value in entry.items() if key != "version"} for entry in document.get("ips") or []]
        return ips, list(document.get("routes") or [])
    old = [document[key] for key in ("ip4", "ip6") if document.get(key)]
    ips = [{"address": entry["ip"], **({"gateway": entry["gateway"]} if entry.get("gateway") else {})} for entry in old]
    return ips, [route for entry in old for route in entry.get("routes") or []]


def _only(keys: tuple[str, ...], entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in keys if key in entry}


def _family(text: str) -> int:
    return 6 if ":" in text else 4


def parse(plugin: str, output: bytes, ifname: str, version: str) -> Result:
    """Return a plugin's result, in the list's version whatever version the plugin answers in.

    Raises:
        CniError: it is no result of any version.
    """
    try:
        document = json.loads(output)
    except (ValueError, RecursionError) as error:
        raise CniError(plugin, f"its result {unreadable(error)}") from None
    if not isinstance(document, dict):
        raise CniError(plugin, "its result is not a JSON object")
    # Old plugins say no version, or an empty one: it is the one that they were asked in (libcni does the same).
    given = document["cniVersion"] = document.get("cniVersion") or version
    if given not in VERSIONS:
        raise CniError(plugin, f"its result is of the unknown version {given!r}", 1)
    addresses = tuple(_text(plugin, value) for value in _addresses(plugin, document, ifname))
    try:
        return Result(addresses, document if given == version else converted(document, version))
    except (AttributeError, KeyError, TypeError) as error:
        raise CniError(plugin, f"its result cannot be read as one of CNI {given}: {error!r}") from None


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
