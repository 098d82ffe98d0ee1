"""Mounts and image specs, both ways."""

from collections.abc import Sequence

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.problems import Problems
from crishim.request import IdMapping, ImageSpec, Mount, Propagation
from crishim.server.convert.fields import choice
from crishim.server.convert.security import id_mappings


def mounts(problems: Problems, messages: Sequence[pb.Mount], path: str) -> tuple[Mount, ...]:
    """Return the mounts of a request in their order."""
    return tuple(_mount(problems, item, f"{path}[{n}]") for n, item in enumerate(messages))


def _mount(problems: Problems, item: pb.Mount, path: str) -> Mount:
    is_image = item.HasField("image") and item.image.ByteSize() > 0
    return Mount(
        container_path=item.container_path,
        host_path=item.host_path,
        readonly=item.readonly,
        selinux_relabel=item.selinux_relabel,
        propagation=choice(problems, f"{path}.propagation", Propagation, item.propagation),
        uid_mappings=id_mappings(item.uidMappings),
        gid_mappings=id_mappings(item.gidMappings),
        recursive_read_only=item.recursive_read_only,
        image=image_spec(item.image) if is_image else None,
        image_sub_path=item.image_sub_path,
        mount_options=tuple(item.mount_options),
    )


def image_spec(message: pb.ImageSpec) -> ImageSpec:
    """Return an image spec as it came."""
    return ImageSpec(
        image=message.image,
        annotations=dict(message.annotations),
        user_specified_image=message.user_specified_image,
        runtime_handler=message.runtime_handler,
        image_ref=message.image_ref,
    )


def image_spec_message(spec: ImageSpec) -> pb.ImageSpec:
    """Return an image spec as a message."""
    return pb.ImageSpec(
        image=spec.image,
        annotations=spec.annotations,
        user_specified_image=spec.user_specified_image,
        runtime_handler=spec.runtime_handler,
        image_ref=spec.image_ref,
    )


def mount_message(mount: Mount) -> pb.Mount:
    """Return a mount as ContainerStatus shows it."""
    return pb.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        selinux_relabel=mount.selinux_relabel,
        propagation=pb.MountPropagation.ValueType(mount.propagation),
        uidMappings=[mapping_message(i) for i in mount.uid_mappings],
        gidMappings=[mapping_message(i) for i in mount.gid_mappings],
        recursive_read_only=mount.recursive_read_only,
        image=image_spec_message(mount.image) if mount.image is not None else None,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.mount_options,
    )


def mapping_message(item: IdMapping) -> pb.IDMapping:
    """Return a range of ids as a message."""
    return pb.IDMapping(host_id=item.host_id, container_id=item.container_id, length=item.length)
