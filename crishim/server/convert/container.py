"""ContainerConfig, container filters and ExecSync: protobuf → request records, and an exec's outcome back."""

from collections.abc import Sequence

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.engine.plan.request import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    Device,
    ImageSpec,
    Resources,
)
from crishim.errors import InvalidArgumentError
from crishim.pods.views import ContainerFilter, ContainerState, ExecResult
from crishim.server.convert import resources, security
from crishim.server.convert.fields import Problems
from crishim.server.convert.mounts import image_spec, mounts

SIGNAL_PREFIX = "SIGNAL_"
MAX_OUTPUT = 16 * 1024 * 1024 - 4096
"""Bytes of output in one answer: 16 MiB less the message's own fields."""


def config(message: pb.ContainerConfig) -> ContainerConfig:
    """Return the configuration of a container.

    Raises:
        InvalidArgumentError: with every problem found.
    """
    problems = Problems()
    linux = message.linux
    result = ContainerConfig(
        metadata=_metadata(problems, message),
        image=_image(problems, message),
        command=_arguments(problems, message.command, "config.command"),
        args=_arguments(problems, message.args, "config.args"),
        working_dir=problems.c_string("config.working_dir", message.working_dir),
        envs=_environment(problems, message.envs),
        mounts=mounts(problems, message.mounts, "config.mounts"),
        devices=_devices(problems, message.devices),
        labels=dict(message.labels),
        annotations=dict(message.annotations),
        log_path=problems.inside("config.log_path", message.log_path),
        stdin=message.stdin,
        stdin_once=message.stdin_once,
        tty=message.tty,
        cdi_devices=tuple(
            problems.given(f"config.CDI_devices[{n}].name", item.name) for n, item in enumerate(message.CDI_devices)
        ),
        stop_signal=stop_signal(problems, message.stop_signal, "config.stop_signal"),
        resources=resources.from_message(problems, linux.resources, "config.linux.resources")
        if linux.HasField("resources")
        else Resources(),
        security=security.container(problems, linux.security_context, "config.linux.security_context")
        if linux.HasField("security_context")
        else ContainerSecurity(),
    )
    problems.check()
    return result


def wanted(message: pb.ContainerFilter) -> ContainerFilter:
    """Return the conditions of ListContainers."""
    state = None
    if message.HasField("state"):
        problems = Problems()
        state = problems.choice("filter.state.state", ContainerState, message.state.state)
        problems.check()
    return ContainerFilter(
        id=message.id, sandbox_id=message.pod_sandbox_id, state=state, labels=dict(message.label_selector)
    )


def wanted_stats(message: pb.ContainerStatsFilter) -> ContainerFilter:
    """Return the conditions of ListContainerStats."""
    return ContainerFilter(id=message.id, sandbox_id=message.pod_sandbox_id, labels=dict(message.label_selector))


def command(words: Sequence[str]) -> tuple[str, ...]:
    """Return the command of ExecSync.

    Raises:
        InvalidArgumentError: it is empty or not a list of C strings.
    """
    problems = Problems()
    if not words:
        problems.add("cmd", "is missing: give the program and its arguments")
    elif not words[0]:
        problems.add("cmd[0]", "must name a program, is empty")
    result = _arguments(problems, words, "cmd")
    problems.check()
    return result


def exec_answer(result: ExecResult) -> pb.ExecSyncResponse:
    """Return the outcome of ExecSync, cut so that it fits a message of 16 MiB; each stream may have half at least."""
    stdout, stderr = result.stdout, result.stderr
    if len(stdout) + len(stderr) > MAX_OUTPUT:
        half = MAX_OUTPUT // 2
        stdout = stdout[: max(half, MAX_OUTPUT - len(stderr))]
        stderr = stderr[: MAX_OUTPUT - len(stdout)]
    return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=result.exit_code)


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


def _metadata(problems: Problems, message: pb.ContainerConfig) -> ContainerMetadata:
    if not message.HasField("metadata"):
        raise InvalidArgumentError("config.metadata", "is missing: a container is known by its name and attempt")
    return ContainerMetadata(problems.given("config.metadata.name", message.metadata.name), message.metadata.attempt)


def _image(problems: Problems, message: pb.ContainerConfig) -> ImageSpec:
    problems.given("config.image.image", message.image.image)
    return image_spec(message.image)


def _arguments(problems: Problems, words: Sequence[str], path: str) -> tuple[str, ...]:
    return tuple(problems.c_string(f"{path}[{n}]", word) for n, word in enumerate(words))


def _environment(problems: Problems, messages: Sequence[pb.KeyValue]) -> tuple[tuple[str, bytes], ...]:
    for n, item in enumerate(messages):
        at = f"config.envs[{n}]"
        if "=" in problems.given(f"{at}.key", item.key):
            problems.add(f"{at}.key", f"must not contain '=', is {item.key!r}")
        if b"\0" in item.value:
            problems.add(f"{at}.value", f"must not contain a NUL byte ({item.key})")
    return tuple((item.key, item.value) for item in messages)


def _devices(problems: Problems, messages: Sequence[pb.Device]) -> tuple[Device, ...]:
    result = []
    for n, item in enumerate(messages):
        at = f"config.devices[{n}]"
        permissions = item.permissions or "rwm"
        if set(permissions) - set("rwm"):
            problems.add(f"{at}.permissions", f"must be some of r, w and m, is {permissions!r}")
        result.append(
            Device(
                container_path=problems.absolute(f"{at}.container_path", item.container_path),
                host_path=problems.absolute(f"{at}.host_path", item.host_path),
                permissions=permissions,
            )
        )
    return tuple(result)
