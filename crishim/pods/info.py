"""What the verbose answers tell: JSON texts by key, for `crictl inspect`, `crishim plan` and people who look.

Computed only when asked. `info` holds what users of other runtimes look for there (pid, sandboxID, config, cgroup,
namespaces); `plan` the frozen container plan as it was (or will be) executed. No secret of a request is hidden or
added: the socket is root's. Out of scope: the CRI messages.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from crishim import codec
from crishim.config.model import Config
from crishim.errors import CrishimError
from crishim.network.inspect import look_inside
from crishim.pods.context import Context
from crishim.pods.objects import Container, Sandbox
from crishim.pods.plans import container_plan, recompute, stored_plan
from crishim.pods.sandboxes import own_network
from crishim.version import VERSION

HOST_NETNS = "/proc/1/ns/net"


async def sandbox_info(context: Context, sandbox: Sandbox) -> Mapping[str, str]:
    """Return a sandbox's info; its network is read from the kernel while it runs."""
    config = sandbox.spec.config
    status = sandbox.status
    document: dict[str, Any] = {
        "pid": status.keeper_pid if sandbox.keeper is not None else 0,
        "keeperStartTime": status.keeper_start,
        "networkNamespace": context.paths.pinned_netns(sandbox.id) if own_network(config) else HOST_NETNS,
        "directory": context.paths.pod(sandbox.id),
        "cgroup": context.planner.pod_group(sandbox.id, config),
        "runtimeHandler": sandbox.spec.handler,
        "stage": status.stage.name,
        "reason": status.reason,
        "network": await _network(context, sandbox),
        "networkHeld": status.network_held,
        "kernelHeld": status.kernel_held,
        "containers": list(sandbox.containers),
        "config": codec.to_value(config),
    }
    return {"info": dumps(document)}


async def container_info(context: Context, container: Container) -> Mapping[str, str]:
    """Return a container's info and plan."""
    spec, status = container.spec, container.status
    document: dict[str, Any] = {
        "pid": status.pid,
        "startTime": status.start_time,
        "sandboxID": spec.sandbox_id,
        "cgroup": context.planner.container_group(spec.id, spec.sandbox_id, container.sandbox.spec.config),
        "imageID": spec.image_id,
        "imageRef": spec.image_ref,
        "layers": list(spec.layers),
        "upper": context.layers.upper(spec.id),
        "logPath": spec.log_path,
        "mounts": codec.to_value(spec.mounts),
        "stopSignal": spec.stop_signal,
        "resources": codec.to_value(status.resources),
        "user": codec.to_value(status.user),
        "config": codec.to_value(spec.config),
    }
    texts = {"info": dumps(document)}
    plan = await _plan(context, container)
    if plan is not None:
        texts["plan"] = dumps(plan)
    return texts


def runtime_info(config: Config, host: object) -> Mapping[str, str]:
    """Return Status(verbose)'s info; `stateDir` is what critest looks at, `apparmor` what RuntimeDefault means here."""
    document = codec.to_value(config, full=True)
    document["stateDir"] = config.state
    document["rootDir"] = config.root
    document["version"] = VERSION
    apparmor = {"runtimeDefault": "unconfined", "localhost": "refused"}
    return {"config": dumps(document), "host": dumps(codec.to_value(host, full=True)), "apparmor": dumps(apparmor)}


def dumps(document: Any) -> str:
    """Return JSON text; bytes that are no UTF-8 are escaped so that they fit a protobuf string."""
    return json.dumps(document, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")


async def _network(context: Context, sandbox: Sandbox) -> dict[str, Any]:
    """Return what the pod was given, what it publishes, and what its namespace holds now."""
    config, attachment = sandbox.spec.config, sandbox.status.attachment
    ports = [
        {
            "protocol": port.protocol.word,
            "hostIP": port.host_ip,
            "hostPort": port.host_port,
            "containerPort": port.container_port,
        }
        for port in config.port_mappings
        if port.host_port
    ]
    if not own_network(config):
        return {"kind": "host", "namespace": HOST_NETNS, "ports": []}
    path = context.paths.pinned_netns(sandbox.id)
    document: dict[str, Any] = {
        "kind": attachment.kind if attachment is not None else "",
        "namespace": path,
        "attachment": codec.to_value(attachment),
        "ports": ports if sandbox.status.network_held else [],
    }
    if sandbox.keeper is None:
        return document
    try:
        document |= codec.to_value(await asyncio.to_thread(look_inside, path), full=True)
    except CrishimError as error:
        document["error"] = str(error)  # the pod may end while we look
    return document


async def _plan(context: Context, container: Container) -> Any:
    """Return the plan's JSON value; None if its image is gone and so is the file."""
    try:
        if container.running:
            return codec.to_value(await container_plan(context, container))
        return codec.to_value(container.plan or stored_plan(context, container) or await recompute(context, container))
    except CrishimError:
        return None
