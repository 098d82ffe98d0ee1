"""From a pod's request to what CNI plugins are given: CNI_ARGS, and a value for each capability.

Pure. Names and forms are those of the CNI project's CONVENTIONS.md; annotations are kubernetes' own for bandwidth.
Which plugin gets which value is for the client: only those that declare the capability. Invariant: a value that
cannot be right is refused with the annotation's name before any plugin runs.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from crishim.errors import InvalidArgumentError
from crishim.network.model import AttachRequest

INGRESS = "kubernetes.io/ingress-bandwidth"
EGRESS = "kubernetes.io/egress-bandwidth"
MAC = "cni.crishim/mac"
IPS = "cni.crishim/ips"
"""Annotation with addresses for the capability `ips`: parted by commas, with or without a prefix length."""

_LEAST, _MOST = 1000, 10**15  # bit/s, as in kubernetes' pkg/util/bandwidth
_BURST = 0xFFFF_FFFF  # bits: what containerd gives as well
_QUANTITY = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|[eE][+-]?\d{1,2})?")
_FACTORS = {"": Decimal(1), "m": Decimal("0.001")}
_FACTORS |= {unit: Decimal(1000) ** power for power, unit in enumerate("kMGTPE", 1)}
_FACTORS |= {f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", 1)}
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")


def arguments(request: AttachRequest) -> dict[str, str]:
    """Return the pairs of CNI_ARGS that plugins for Kubernetes look for, in order.

    Raises:
        InvalidArgumentError: a name would end its pair.
    """
    for field, value in (("name", request.name), ("namespace", request.namespace), ("uid", request.uid)):
        if ";" in value or "\0" in value:
            raise InvalidArgumentError(f"config.metadata.{field}", f"must not hold ';' for CNI plugins, is {value!r}")
    return {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": request.namespace,
        "K8S_POD_NAME": request.name,
        "K8S_POD_INFRA_CONTAINER_ID": request.pod_id,
        "K8S_POD_UID": request.uid,
    }


def capabilities(request: AttachRequest, pod_cidrs: Sequence[str]) -> dict[str, Any]:
    """Return capability → value, for those that the pod has a value for.

    Raises:
        InvalidArgumentError: an annotation is wrong; names it.
    """
    found: dict[str, Any] = {}
    if request.ports:
        found["portMappings"] = [
            {
                "hostPort": port.host_port,
                "containerPort": port.container_port,
                "protocol": port.protocol.word,
                "hostIP": port.host_ip,
            }
            for port in request.ports
        ]
    if bandwidth := _bandwidth(request.annotations):
        found["bandwidth"] = bandwidth
    if request.dns is not None:
        dns = request.dns
        found["dns"] = {"servers": [*dns.servers], "searches": [*dns.searches], "options": [*dns.options]}
    if pod_cidrs:
        found["ipRanges"] = [[{"subnet": subnet}] for subnet in pod_cidrs]
    if request.cgroup_parent:
        found["cgroupPath"] = request.cgroup_parent
    if mac := request.annotations.get(MAC, ""):
        if not _MAC.fullmatch(mac):
            raise InvalidArgumentError(f"config.annotations[{MAC}]", f"must be like '0a:58:0a:00:00:02', is {mac!r}")
        found["mac"] = mac
    if texts := request.annotations.get(IPS, ""):
        found["ips"] = [_address(text.strip()) for text in texts.split(",")]
    return found


def _bandwidth(annotations: Mapping[str, str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for key, name in ((INGRESS, "ingress"), (EGRESS, "egress")):
        if key in annotations:
            found |= {f"{name}Rate": _rate(key, annotations[key]), f"{name}Burst": _BURST}
    return found


def _rate(key: str, text: str) -> int:
    """Return bit/s of a Kubernetes quantity, rounded up as its Value() does."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise InvalidArgumentError(f"config.annotations[{key}]", f"must be a quantity like '10M' (bit/s), is {text!r}")
    number, unit = match[1], match[2] or ""
    factor = Decimal(f"1{unit}") if unit[:1] in {"e", "E"} and unit[1:] not in {"", "i"} else _FACTORS[unit]
    rate = int(-(-(Decimal(number) * factor) // 1))
    if not _LEAST <= rate <= _MOST:
        raise InvalidArgumentError(f"config.annotations[{key}]", f"must be from 1k to 1P (bit/s), is {text!r}")
    return rate


def _address(text: str) -> str:
    try:
        ipaddress.ip_interface(text)
    except ValueError:
        raise InvalidArgumentError(
            f"config.annotations[{IPS}]", f"must be addresses parted by commas, {text!r} is none"
        ) from None
    return text
