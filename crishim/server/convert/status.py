"""Views of sandboxes and containers → rows of the lists and statuses. Times are nanoseconds since the epoch."""

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.views import ContainerView, SandboxView
from crishim.request import ContainerMetadata, Metadata, NamespaceOptions, ResolvedUser
from crishim.server.convert.container import signal_number
from crishim.server.convert.resources import to_message as resources_message
from crishim.server.convert.sources import image_spec_message, mapping_message, mount_message
from crishim.server.errors import printable


def sandbox_metadata(metadata: Metadata) -> pb.PodSandboxMetadata:
    """Return a sandbox's identity."""
    return pb.PodSandboxMetadata(
        name=metadata.name, uid=metadata.uid, namespace=metadata.namespace, attempt=metadata.attempt
    )


def container_metadata(metadata: ContainerMetadata) -> pb.ContainerMetadata:
    """Return a container's identity."""
    return pb.ContainerMetadata(name=metadata.name, attempt=metadata.attempt)


def sandbox_row(view: SandboxView) -> pb.PodSandbox:
    """Return a row of ListPodSandbox."""
    return pb.PodSandbox(
        id=view.id,
        metadata=sandbox_metadata(view.metadata),
        state=pb.PodSandboxState.ValueType(view.state),
        created_at=view.created_at,
        labels=view.labels,
        annotations=view.annotations,
        runtime_handler=view.runtime_handler,
    )


def sandbox_status(view: SandboxView) -> pb.PodSandboxStatus:
    """Return PodSandboxStatus; kubelet compares the network's mode with what the pod wants now."""
    addresses = [pb.PodIP(ip=ip) for ip in view.ips[1:]]
    network = pb.PodSandboxNetworkStatus(ip=view.ips[0] if view.ips else "", additional_ips=addresses)
    return pb.PodSandboxStatus(
        id=view.id,
        metadata=sandbox_metadata(view.metadata),
        state=pb.PodSandboxState.ValueType(view.state),
        created_at=view.created_at,
        network=network,
        linux=pb.LinuxPodSandboxStatus(namespaces=pb.Namespace(options=_namespaces(view.namespaces))),
        labels=view.labels,
        annotations=view.annotations,
        runtime_handler=view.runtime_handler,
    )


def container_row(view: ContainerView) -> pb.Container:
    """Return a row of ListContainers."""
    return pb.Container(
        id=view.id,
        pod_sandbox_id=view.sandbox_id,
        metadata=container_metadata(view.metadata),
        image=image_spec_message(view.image),
        image_ref=view.image_ref,
        state=pb.ContainerState.ValueType(view.state),
        created_at=view.created_at,
        labels=view.config.labels,
        annotations=view.config.annotations,
        image_id=view.image_id,
    )


def container_status(view: ContainerView) -> pb.ContainerStatus:
    """Return ContainerStatus; labels, annotations and mounts are the request's alone, never the image's or resolved."""
    resources = None if view.resources is None else pb.ContainerResources(linux=resources_message(view.resources))
    return pb.ContainerStatus(
        id=view.id,
        metadata=container_metadata(view.metadata),
        state=pb.ContainerState.ValueType(view.state),
        created_at=view.created_at,
        started_at=view.started_at,
        finished_at=view.finished_at,
        exit_code=view.exit_code,
        image=image_spec_message(view.image),
        image_ref=view.image_ref,
        reason=view.reason,
        message=printable(view.message),
        labels=view.config.labels,
        annotations=view.config.annotations,
        mounts=[mount_message(mount) for mount in view.config.mounts],
        log_path=view.log_path,
        resources=resources,
        image_id=view.image_id,
        user=None if view.user is None else _user(view.user),
        stop_signal=signal_number(view.stop_signal),
    )


def _user(user: ResolvedUser) -> pb.ContainerUser:
    return pb.ContainerUser(linux=pb.LinuxContainerUser(uid=user.uid, gid=user.gid, supplemental_groups=user.groups))


def _namespaces(options: NamespaceOptions) -> pb.NamespaceOption:
    result = pb.NamespaceOption(
        network=pb.NamespaceMode.ValueType(options.network),
        pid=pb.NamespaceMode.ValueType(options.pid),
        ipc=pb.NamespaceMode.ValueType(options.ipc),
        target_id=options.target_id,
    )
    if options.userns is not None:
        result.userns_options.mode = pb.NamespaceMode.ValueType(options.userns.mode)
        result.userns_options.uids.extend(mapping_message(i) for i in options.userns.uids)
        result.userns_options.gids.extend(mapping_message(i) for i in options.userns.gids)
    return result
