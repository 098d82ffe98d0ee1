"""What the runtime says of itself: version, conditions, features, cgroup driver."""

from collections.abc import Mapping, Sequence

from crishim._proto.runtime.v1 import api_pb2 as pb
from crishim.pods.api import Condition
from crishim.server.errors import printable
from crishim.version import CRI_VERSION, RUNTIME_NAME, VERSION

KUBELET_API_VERSION = "0.1.0"
"""kubelet accepts no other value in VersionResponse.version."""


def version() -> pb.VersionResponse:
    """Return the version; no field may be empty and runtime_version must parse as a semantic version."""
    return pb.VersionResponse(
        version=KUBELET_API_VERSION,
        runtime_name=RUNTIME_NAME,
        runtime_version=VERSION,
        runtime_api_version=CRI_VERSION,
    )


def status(conditions: Sequence[Condition], handlers: Sequence[str], info: Mapping[str, str]) -> pb.StatusResponse:
    """Return Status; features say what this version really has, and every handler has the same."""
    features = pb.RuntimeHandlerFeatures(recursive_read_only_mounts=False, user_namespaces=False)
    return pb.StatusResponse(
        status=pb.RuntimeStatus(conditions=[_condition(item) for item in conditions]),
        info=info,
        runtime_handlers=[pb.RuntimeHandler(name=name, features=features) for name in handlers],
        features=pb.RuntimeFeatures(
            supplemental_groups_policy=True, user_namespaces_host_network=False, mount_options=False
        ),
    )


def runtime_config(driver: str) -> pb.RuntimeConfigResponse:
    """Return RuntimeConfig. The enum's 0 is SYSTEMD, so the driver must be named."""
    value = {"systemd": pb.SYSTEMD, "cgroupfs": pb.CGROUPFS}[driver]
    return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=value))


def _condition(item: Condition) -> pb.RuntimeCondition:
    return pb.RuntimeCondition(type=item.kind, status=item.status, reason=item.reason, message=printable(item.message))
