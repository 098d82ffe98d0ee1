"""ContainerConfig, container filters and ExecSync: protobuf → request records, and an exec's outcome back."""

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.views import ContainerFilter, ContainerState, ExecResult
from crishim.problems import Problems
from crishim.request import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    Device,
    Resources,
)
from crishim.server.convert import resources, security
from crishim.server.convert.fields import choice
from crishim.server.convert.sources import image_spec, mounts

SIGNAL_PREFIX = "SIGNAL_"


def config(problems: Problems, message: pb.ContainerConfig) -> ContainerConfig:
    """Return the configuration of a container."""
    linux = message.linux
    return ContainerConfig(
        metadata=ContainerMetadata(message.metadata.name, message.metadata.attempt),
        image=image_spec(message.image),
        command=tuple(message.command),
        args=tuple(message.args),
        working_dir=message.working_dir,
        envs=tuple((item.key, item.value) for item in message.envs),
        mounts=mounts(problems, message.mounts, "config.mounts"),
        devices=tuple(_device(item) for item in message.devices),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        log_path=message.log_path,
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        cdi_devices=tuple(item.name for item in message.CDI_devices),
        stop_signal=stop_signal(problems, message.stop_signal, "config.stop_signal"),
        resources=resources.from_message(linux.resources) if linux.HasField("resources") else Resources(),
        security=security.container(problems, linux.security_context, "config.linux.security_context")
        if linux.HasField("security_context")
        else ContainerSecurity(),
    )


def wanted(message: pb.ContainerFilter) -> ContainerFilter:
    """Return the conditions of ListContainers."""
    state = None
    if message.HasField("state"):
        problems = Problems()
        state = choice(problems, "filter.state.state", ContainerState, message.state.state)
        problems.check()
    return ContainerFilter(
        id=message.id, sandbox_id=message.pod_sandbox_id, state=state, labels=dict(message.label_selector)
    )


def wanted_stats(message: pb.ContainerStatsFilter) -> ContainerFilter:
    """Return the conditions of ListContainerStats."""
    return ContainerFilter(id=message.id, sandbox_id=message.pod_sandbox_id, labels=dict(message.label_selector))


def exec_answer(result: ExecResult) -> pb.ExecSyncResponse:
    """Return the outcome of ExecSync; what is kept of the output fits a message (`runtime.exec_output_limit`)."""
    return pb.ExecSyncResponse(stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code)


def stop_signal(problems: Problems, number: int, path: str) -> str:
    """Return the name of a signal like `SIGTERM`, or "" for the image's choice."""
    if number == pb.SIGNAL_RUNTIME_DEFAULT:
        return ""
    value = pb.Signal.DESCRIPTOR.values_by_number.get(number)
    if value is None:
        problems.add(path, f"must be a value of the enum Signal, is {number}")
        return ""
    return str(value.name).removeprefix(SIGNAL_PREFIX)


def signal_number(name: str) -> "pb.Signal.ValueType":
    """Return the CRI's number of a signal's name; what it does not know reads as the default."""
    name = name.replace("MIN+", "MINPLUS").replace("MAX-", "MAXMINUS")
    value = pb.Signal.DESCRIPTOR.values_by_name.get(SIGNAL_PREFIX + name)
    return pb.SIGNAL_RUNTIME_DEFAULT if value is None else pb.Signal.ValueType(value.number)


def _device(item: pb.Device) -> Device:
    return Device(item.container_path, item.host_path, item.permissions or "rwm")
