"""The runtimes as processes: a fresh private instance each, with root, state, socket, cgroup and network of its own.

`System` knows how to start, kill, restart and end a daemon; `Crishim`, `Containerd` and `Crio` say with which command
and configuration. All get the same environment and the same cage. Out of scope: what is measured.
Invariant: `stop` leaves no process, mount, control group or directory, whatever happened before.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from typing import Self

from crishim.constants import DEFAULT_PATH
from scripts.benchlib import memory, mounts
from scripts.benchlib.cage import Cage, working_directories
from scripts.benchlib.cri import Client, wait_listening
from scripts.benchlib.peers import Peers
from scripts.benchlib.registry import Registry, free_port

CHECKOUT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
ANSWER = 30.0


class System(ABC):
    """One private instance of a runtime, started by `with`."""

    name: str

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.root, self.state = working_directories(self.name)
        self.logs = os.path.join(self.root, "logs")
        self.socket = os.path.join(self.state, "cri.sock")
        self.cage = Cage(self.name.replace("+", "-"))
        self.client = self._connect()
        self.resident: set[int] = set()
        self._daemon: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the daemon's command, after writing the configuration it names."""

    def environment(self) -> dict[str, str]:
        """Return the daemon's environment."""
        return {"PATH": DEFAULT_PATH, "LC_ALL": "C.UTF-8"}

    def __enter__(self) -> Self:
        try:
            self.start()
            self.client.pull(self.registry.reference("busybox"))
        except BaseException:
            self.stop()
            raise
        self.resident = self.cage.processes()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemon and wait for its first answer.

        Raises:
            RuntimeError: it does not answer; the message ends with its log's last lines.
        """
        with open(self.log, "ab") as log:
            self._daemon = subprocess.Popen(
                self.cage.enter(self.command()),
                env=self.environment(),
                cwd=CHECKOUT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_listening(self.socket, ANSWER, self._alive)
            self.client.close()
            self.client = self._connect()
            self.client.wait_ready(ANSWER)
        except Exception as error:
            raise RuntimeError(f"{self.name} does not answer: {error}\n{self.tail()}") from error

    def _alive(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    @property
    def log(self) -> str:
        """The file with the daemon's output."""
        return os.path.join(self.root, "daemon.log")

    def tail(self) -> str:
        """Return the end of the daemon's output."""
        with contextlib.suppress(OSError), open(self.log, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-8:])
        return ""

    def kill(self) -> None:
        """SIGKILL the daemon, and only it: its pods go on."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGKILL)
            self._daemon.wait()

    def per_pod(self) -> set[int]:
        """Return the processes that pods brought, without the daemon's own and without the user's programs."""
        return {pid for pid in self.cage.processes() - self.resident if memory.command(pid) not in {"sh", "sleep"}}

    def stop(self) -> None:
        """End all processes, then take away mounts, groups and directories."""
        self.client.close()
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGKILL)
        self.cage.close()
        if self._daemon is not None:
            self._daemon.wait()
        for directory in (self.root, self.state):
            mounts.detach_below(directory)
            shutil.rmtree(directory, ignore_errors=True)

    def _connect(self) -> Client:
        return Client(self.socket, self.registry.reference("busybox"), self.cage.pods, self.logs)


class Crishim(System):
    """This checkout's daemon."""

    name = "crishim"
    bridge = "cbench0"
    metrics = ""

    def command(self) -> list[str]:
        """See System."""
        paths = ["--root", f"{self.root}/data", "--state", f"{self.state}/run", "--socket", self.socket]
        network = ["--bridge", self.bridge, "--subnet", "10.201.0.0/16", "--cni-conf-dir", f"{self.state}/net.d"]
        self.metrics = f"127.0.0.1:{free_port()}"
        listen = ["--metrics-listen", self.metrics]
        return [
            sys.executable, "-m", "crishim", "serve", *paths, *network, *listen, "--cgroup-parent", self.cage.own,
        ]  # fmt: skip

    def stop(self) -> None:
        """See System; the bridge of a daemon that was killed would keep the next instance out."""
        super().stop()
        subprocess.run(["ip", "link", "delete", self.bridge], check=False, capture_output=True)


class CrishimCni(Crishim):
    """The same with containerd's network: the same conflist on a bridge of its own, the same plugins."""

    def __init__(self, registry: Registry, plugins: str) -> None:
        self._plugins = plugins
        super().__init__(registry)

    def command(self) -> list[str]:
        """See System."""
        _write_network(self.state, "cbench2", "10.203.0.0/16")
        config = os.path.join(self.state, "config.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[network]\ncni_bin_dirs = ['{self._plugins}']\n")
        return [*super().command(), "--config", config]


class Containerd(System):
    """containerd with runc, as the Kubernetes world runs it: CRI plugin, overlay snapshots, CNI's bridge plugin."""

    name = "containerd+runc"

    def __init__(self, registry: Registry, peers: Peers) -> None:
        self.peers = peers
        super().__init__(registry)

    def environment(self) -> dict[str, str]:
        """The cache's programs first; decompression in the daemon itself, as everywhere without pigz installed."""
        path = f"{self.peers.directory}:{DEFAULT_PATH}"
        return super().environment() | {"PATH": path, "CONTAINERD_DISABLE_PIGZ": "1", "CONTAINERD_DISABLE_IGZIP": "1"}

    def command(self) -> list[str]:
        """See System."""
        _write_network(self.state, "cbench1", "10.202.0.0/16")
        config = os.path.join(self.state, "config.toml")
        text = _CONFIG_2X if "containerd/v2 " in self.peers.versions.get("containerd", "") else _CONFIG_1X
        values = {
            "root": self.root,
            "state": self.state,
            "socket": self.socket,
            "plugins": self.peers.plugins or "",
            "runc": self.peers.runc or "runc",
            "pause": self.registry.reference("pause"),
        }
        with open(config, "w", encoding="utf-8") as file:
            file.write(text.format(**values))
        return [str(self.peers.containerd), "--config", config]


class ContainerdPigz(Containerd):
    """The same with unpigz on its PATH, which containerd then starts for each gzip layer."""

    name = "containerd+pigz"

    def environment(self) -> dict[str, str]:
        """See System."""
        found = super().environment()
        del found["CONTAINERD_DISABLE_PIGZ"]
        return found | {"PATH": f"{self.peers.pigz}:{found['PATH']}"}


class Crio(System):
    """CRI-O with conmon and runc: overlay storage, cgroupfs, pods without a pause process, CNI's bridge plugin."""

    name = "cri-o+runc"

    def __init__(self, registry: Registry, peers: Peers) -> None:
        self.peers = peers
        super().__init__(registry)

    def environment(self) -> dict[str, str]:
        """The cache's programs first (pinns); its libraries' own files instead of those that the host may have."""
        files = {"CONTAINERS_STORAGE_CONF": "storage.conf", "CONTAINERS_REGISTRIES_CONF": "registries.conf"}
        paths = {variable: os.path.join(self.state, name) for variable, name in files.items()}
        return super().environment() | paths | {"PATH": f"{self.peers.directory}:{DEFAULT_PATH}"}

    def command(self) -> list[str]:
        """See System."""
        _write_network(self.state, "cbench3", "10.204.0.0/16")
        os.makedirs(os.path.join(self.root, "temporary"), exist_ok=True)
        values = {
            "root": self.root,
            "state": self.state,
            "socket": self.socket,
            "registry": self.registry.reference("").partition("/")[0],
            "plugins": self.peers.plugins,
            "runc": self.peers.runc,
            "conmon": self.peers.conmon,
            "pause": self.registry.reference("pause"),
        }
        for name, text in _CRIO_FILES.items():
            with open(os.path.join(self.state, name), "w", encoding="utf-8") as file:
                file.write(text % values)
        own = ["--config", f"{self.state}/crio.conf", "--config-dir", f"{self.state}/crio.conf.d"]
        return [str(self.peers.crio), *own]


def _write_network(state: str, bridge_name: str, subnet: str) -> None:
    """Put the conflist where the runtime looks for it; leases lie beside it."""
    ranges = [[{"subnet": subnet}]]
    ipam = {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}], "dataDir": f"{state}/ipam"}
    # without the per-pod masquerade rules of ipMasq, which cost 20-70 ms a pod: in containerd's favour
    bridge = {"type": "bridge", "bridge": bridge_name, "isGateway": True, "ipMasq": False, "hairpinMode": True}
    plugins = [bridge | {"ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    directory = os.path.join(state, "net.d")
    os.makedirs(directory, exist_ok=True)
    with open(os.path.join(directory, "10-bench.conflist"), "w", encoding="utf-8") as file:
        json.dump({"cniVersion": "1.0.0", "name": "bench", "plugins": plugins}, file)


_CONFIG_2X = """\
version = 3
root = '{root}/data'
state = '{state}/run'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs', 'io.containerd.snapshotter.v1.erofs']
[grpc]
address = '{socket}'
[ttrpc]
address = '{socket}.ttrpc'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{pause}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{runc}'
SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{plugins}']
conf_dir = '{state}/net.d'
[plugins.'io.containerd.internal.v1.opt']
path = '{state}/opt'
[plugins.'io.containerd.shim.v1.manager']
socket_dir = '{state}/s'
"""

_CONFIG_1X = """\
version = 2
root = '{root}/data'
state = '{state}/run'
disabled_plugins = ['io.containerd.nri.v1.nri', 'io.containerd.snapshotter.v1.devmapper',
  'io.containerd.snapshotter.v1.btrfs', 'io.containerd.snapshotter.v1.zfs']
[grpc]
address = '{socket}'
[plugins.'io.containerd.grpc.v1.cri']
sandbox_image = '{pause}'
restrict_oom_score_adj = true
[plugins.'io.containerd.grpc.v1.cri'.cni]
bin_dir = '{plugins}'
conf_dir = '{state}/net.d'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]
BinaryName = '{runc}'
[plugins.'io.containerd.internal.v1.opt']
path = '{state}/opt'
"""

_CRIO_FILES = {
    "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}\n',
    "registries.conf": "[[registry]]\nlocation = '%(registry)s'\ninsecure = true\n",
    "storage.conf": "[storage]\ndriver = 'overlay'\ngraphroot = '%(root)s/data'\nrunroot = '%(state)s/run'\n",
    "crio.conf": """\
[crio]
root = '%(root)s/data'
runroot = '%(state)s/run'
storage_driver = 'overlay'
log_dir = '%(root)s/logs'
version_file = '%(state)s/version'
clean_shutdown_file = '%(root)s/clean.shutdown'
[crio.api]
listen = '%(socket)s'
[crio.runtime]
default_runtime = 'runc'
cgroup_manager = 'cgroupfs'
conmon_cgroup = 'pod'
cdi_spec_dirs = []
hooks_dir = []
irqbalance_config_restore_file = 'disable'
container_exits_dir = '%(state)s/exits'
container_attach_socket_dir = '%(state)s/attach'
namespaces_dir = '%(state)s/ns'
[crio.runtime.runtimes.runc]
runtime_path = '%(runc)s'
runtime_root = '%(state)s/runc'
monitor_path = '%(conmon)s'
monitor_cgroup = 'pod'
[crio.image]
pause_image = '%(pause)s'
signature_policy = '%(state)s/policy.json'
signature_policy_dir = '%(state)s/policies'
big_files_temporary_dir = '%(root)s/temporary'
[crio.network]
network_dir = '%(state)s/net.d'
plugin_dirs = ['%(plugins)s']
[crio.nri]
enable_nri = false
""",
}
