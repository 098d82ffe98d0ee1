"""The configuration of one instance: every option, its default and its documentation.

Frozen; made by `load`, handed down to every part. An option that is not read by any part does not belong here.
"""

from dataclasses import dataclass, field, replace

from crishim.config import checks
from crishim.config.options import SECTION, Spec, option
from crishim.constants import MESSAGE_BYTES
from crishim.paths import Paths

DEFAULT_FILE = "/etc/crishim/config.toml"
"""Read when it exists and no `--config` is given."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What the daemon writes about itself."""

    level: str = option(
        "info",
        Spec(
            help="Least important level that is written.",
            flag="--log-level",
            choices=("debug", "info", "warning", "error"),
            reload=True,
        ),
    )
    format: str = option(
        "console",
        Spec(
            help="`console` is one readable line an event, `json` one JSON object an event.",
            flag="--log-format",
            choices=("console", "json"),
            reload=True,
        ),
    )
    file: str = option(
        "",
        Spec(
            help="File that the log is appended to; empty: standard error. SIGHUP opens it anew, after a rotation.",
            check=checks.optional_path,
            reload=True,
        ),
    )


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The embedded network, and where CNI takes its place."""

    enabled: bool = option(
        True,
        Spec(
            help="Whether pods get a network of their own. Without it NetworkReady is false, and kubelet places only"
            " pods with the host's network."
        ),
    )
    bridge: str = option(
        "crishim0",
        Spec(
            help="The bridge that pods are connected to; made if it is missing. Links of pods and the nftables table"
            " are named after it, so each instance on a machine needs its own.",
            flag="--bridge",
            check=checks.bridge,
        ),
    )
    subnets: tuple[str, ...] = option(
        ("10.119.0.0/16",),
        Spec(
            help="Networks that pods get their addresses from: one IPv4, one IPv6, or both. The first address of each"
            " is the bridge's. Left at the default, kubelet's pod CIDR (UpdateRuntimeConfig) takes its place.",
            flag="--subnet",
            check=checks.subnet,
        ),
    )
    mtu: int = option(
        0,
        Spec(
            help="MTU of the pods' links in bytes; 0: that of the host's link with the default route.",
            check=checks.mtu,
        ),
    )
    pod_sysctls: tuple[str, ...] = option(
        ("net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647"),
        Spec(
            help="Sysctls of every pod with a network of its own, embedded or CNI, as KEY=VALUE with keys of `net.`;"
            " the request's own win. Router advertisements and redirects are off as well, unless their keys"
            " (net.ipv6.conf.default.accept_ra=1) stand here.",
            check=checks.pod_sysctl,
        ),
    )
    cni_conf_dir: str = option(
        "/etc/cni/net.d",
        Spec(
            help="Directory of CNI networks. While it holds a *.conflist, *.conf or *.json, new pods get the first by"
            " name instead of the embedded network; empty: never.",
            flag="--cni-conf-dir",
            check=checks.optional_path,
        ),
    )
    cni_bin_dirs: tuple[str, ...] = option(
        ("/opt/cni/bin",),
        Spec(help="Directories that CNI plugins are looked for in, the first that has one counts.", check=checks.path),
    )
    cni_seconds: int = option(
        60,
        Spec(
            help="Seconds that one run of a CNI plugin may take; then it is killed and the call fails.",
            minimum=1,
            maximum=600,
        ),
    )


@dataclass(frozen=True, slots=True)
class ImagesConfig:
    """Registries, pulls and layers."""

    path: str = option(
        "",
        Spec(
            help="Directory of blobs and unpacked layers, for a file system of their own; empty: the root. What another"
            " path held is not moved: pull again.",
            check=checks.optional_directory,
        ),
    )
    pinned: tuple[str, ...] = option(
        (),
        Spec(
            help="Images that kubelet's garbage collection and prune leave alone, as names with tag or digest.",
            check=checks.reference,
            reload=True,
        ),
    )
    certs_d: tuple[str, ...] = option(
        ("/etc/crishim/certs.d", "/etc/containerd/certs.d"),
        Spec(
            help="Directories with `<host>/hosts.toml` (mirrors, certificates), in containerd's format. The first that"
            " has a directory for the host counts.",
            check=checks.path,
            reload=True,
        ),
    )
    parallel_pulls: int = option(
        4, Spec(help="Images pulled at a time; further pulls wait.", minimum=1, maximum=64, reload=True)
    )
    parallel_layers: int = option(
        4,
        Spec(help="Layers of one image that are loaded and unpacked at a time.", minimum=1, maximum=32, reload=True),
    )
    stall_seconds: int = option(
        60,
        Spec(
            help="Seconds without a byte after which a registry connection is given up and tried again.",
            minimum=1,
            maximum=3600,
            reload=True,
        ),
    )
    max_layer_bytes: int = option(
        64 * 1024**3,
        Spec(help="Largest unpacked size of one layer in bytes; a larger one is refused.", minimum=1, reload=True),
    )
    max_ratio: int = option(
        1100,
        Spec(
            help="Largest ratio of unpacked to packed size of a layer, above which it is taken for a bomb (gzip's own"
            " limit is 1032).",
            minimum=2,
            reload=True,
        ),
    )


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """What containers get where neither the request nor the image says otherwise."""

    default_rlimits: tuple[str, ...] = option(
        ("nofile=1024:524288",),
        Spec(
            help="Resource limits of every container, NAME=SOFT or NAME=SOFT:HARD, names of getrlimit(2) in lower"
            " case. Limits that are not named here are the kernel's, not the daemon's.",
            check=checks.rlimit,
        ),
    )
    seccomp_profile: str = option(
        "",
        Spec(
            help="Path of the profile (OCI JSON) that RuntimeDefault stands for; empty: the built-in one.",
            check=checks.optional_path,
        ),
    )
    pids_limit: int = option(
        0,
        Spec(help="Processes and threads allowed in each container; 0: as many as the pod's cgroup allows.", minimum=0),
    )
    exec_output_limit: int = option(
        MESSAGE_BYTES - 64 * 1024,
        Spec(
            help="Bytes of output that ExecSync keeps, both streams together; what follows is read and dropped. The"
            " reply must fit a message of 16 MiB.",
            minimum=1024,
            maximum=MESSAGE_BYTES - 64 * 1024,
        ),
    )
    exec_output_total: int = option(
        64 * 1024 * 1024,
        Spec(
            help="Bytes of output that all ExecSync calls under way keep together, beyond 64 KiB for each; what a call"
            " has no room for is read and dropped, its exit code is not.",
            minimum=0,
        ),
    )
    handlers: tuple[str, ...] = option(
        (),
        Spec(
            help="Named runtime handlers, for Kubernetes' RuntimeClass: each behaves as the default one, and its pods"
            " show its name. The default one, which has no name, is always there.",
            check=checks.handler,
            table=True,
        ),
    )
    keeper_seconds: int = option(
        30,
        Spec(
            help="Seconds that a pod's keeper gets to make the pod, and to answer when the daemon meets it again; one"
            " that does not is given up and its containers are killed.",
            minimum=1,
            maximum=600,
        ),
    )


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Bounds of the daemon itself."""

    shutdown_seconds: int = option(
        10,
        Spec(help="Seconds that calls in flight get to finish when the daemon stops.", minimum=0, maximum=600),
    )


@dataclass(frozen=True, slots=True)
class Config:
    """One instance. Two on a machine differ in root, state, metrics_listen, cgroup_parent, bridge and subnets."""

    root: str = option(
        "/var/lib/crishim",
        Spec(
            help="Directory of what survives a reboot: state.db, images, layers.", flag="--root", check=checks.directory
        ),
    )
    state: str = option(
        "/run/crishim",
        Spec(
            help="Directory of what a reboot voids: sockets, namespaces. It belongs on a tmpfs, not below root.",
            flag="--state",
            check=checks.directory,
        ),
    )
    socket: str = option(
        "",
        Spec(
            help="Unix socket of the CRI; empty: `crishim.sock` in the state directory.",
            flag="--socket",
            check=checks.optional_path,
        ),
    )
    metrics_listen: str = option(
        "127.0.0.1:9539",
        Spec(
            help="HOST:PORT of /metrics, /healthz and /readyz; port 0: any free one; empty: off.",
            flag="--metrics-listen",
            check=checks.listen,
        ),
    )
    metrics_hosts: tuple[str, ...] = option(
        (),
        Spec(
            help="Names of this machine that clients of metrics_listen may use, as in http://node1:9539. The address"
            " that they reached, the one in metrics_listen and names of the loopback always work; other Host headers"
            " are refused (DNS rebinding).",
            check=checks.host,
        ),
    )
    cgroup_parent: str = option(
        "/crishim",
        Spec(
            help="Cgroup of pods whose request names no parent; the keepers' group lies below it too.",
            flag="--cgroup-parent",
            check=checks.cgroup,
        ),
    )
    cgroup_driver: str = option(
        "cgroupfs",
        Spec(help="Who makes cgroups; kubelet is told and follows. This version has cgroupfs.", choices=("cgroupfs",)),
    )
    log: LogConfig = field(default_factory=LogConfig, metadata={SECTION: "The daemon's own log."})
    network: NetworkConfig = field(
        default_factory=NetworkConfig,
        metadata={SECTION: "Pods' networks: the embedded one (a bridge with NAT), or CNI."},
    )
    images: ImagesConfig = field(default_factory=ImagesConfig, metadata={SECTION: "Registries, pulls and layers."})
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig, metadata={SECTION: "Containers."})
    limits: LimitsConfig = field(default_factory=LimitsConfig, metadata={SECTION: "Bounds of the daemon itself."})

    @property
    def paths(self) -> Paths:
        """Every path of the instance."""
        return Paths(root=self.root, state=self.state, images=self.images.path)

    @property
    def socket_path(self) -> str:
        """The CRI's socket with the default filled in."""
        return self.socket or f"{self.state}/crishim.sock"

    def problems(self) -> list[tuple[str, str]]:
        """Return what is wrong between options: (path of the option, problem)."""
        found = []
        root, state = f"{self.root}/", f"{self.state}/"
        if root.startswith(state) or state.startswith(root):
            found.append(("state", f"must not lie in root {self.root!r} nor hold it, is {self.state!r}"))
        families = [":" in subnet for subnet in self.network.subnets]
        if not families and self.network.enabled:
            found.append(("network.subnets", "must name at least one network, or set network.enabled = false"))
        if len(set(families)) != len(families):
            found.append(("network.subnets", "must name at most one IPv4 and one IPv6 network"))
        name = self.socket_path.rpartition("/")[2]
        if name.endswith(("crio.sock", "containerd.sock")):
            found.append(("socket", f"kubelet takes a socket named {name!r} for another runtime, use another name"))
        return found


def normal(config: Config) -> Config:
    """Return the configuration with paths in one form: no double and no trailing slashes."""
    return replace(
        config,
        root=_slashes(config.root),
        state=_slashes(config.state),
        socket=_slashes(config.socket),
        cgroup_parent=_slashes(config.cgroup_parent),
    )


def _slashes(path: str) -> str:
    parts = [part for part in path.split("/") if part not in {"", "."}]
    return "/" + "/".join(parts) if path else ""
