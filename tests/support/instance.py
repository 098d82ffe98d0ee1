"""A private crishim daemon for tests: its own root, state, socket, port, bridge, subnet and cgroup parent.

Names carry the run's id, so the leak check knows them. `kill` is SIGKILL of the daemon alone (containers live on),
`stop` the graceful end; neither removes pods: `close` does, and then asserts that the daemon ends with status 0.
"""

import itertools
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from tests.support import machine
from tests.support.abilities import need_program
from tests.support.ownership import SCOPE, run_id
from tests.support.ports import free_port
from tests.support.programs import Program

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_COUNT = itertools.count()
_POD_GROUP = re.compile(r"[0-9a-f]{13,}")
_CRICTL = (
    "runtime-endpoint: unix://{socket}\nimage-endpoint: unix://{socket}\ntimeout: 60\npull-image-on-create: false\n"
)


def python() -> str:
    """Return the interpreter that the daemon runs on: this one."""
    return sys.executable


def crictl_path() -> str:
    """Return crictl: $CRISHIM_CRICTL, the checkout's cache, or PATH; skips when there is none."""
    for candidate in (os.environ.get("CRISHIM_CRICTL", ""), os.path.join(_ROOT, ".cache", "bin", "crictl")):
        if candidate and os.access(candidate, os.X_OK):
            return candidate
    return need_program("crictl", "none; go install")


class Instance:
    """One instance of crishim.

    Args:
        config: text of a configuration file to serve with, or "".
        launcher: argv of a program that becomes the daemon, whose argv is added to it.
    """

    def __init__(self, config: str = "", launcher: Sequence[str] = ()) -> None:
        self._crictl = crictl_path()  # where there is none, skip before anything is made
        self._launcher = list(launcher)
        self.name = f"{run_id()}{next(_COUNT):02x}"
        self.base = tempfile.mkdtemp(prefix=f"ct{self.name}-")
        os.chmod(self.base, 0o711)  # what the tests themselves do as other users passes here
        self.root = f"{self.base}/root"
        self.state = f"{self.base}/state"
        self.socket = f"{self.base}/cri.sock"
        self.logs = f"{self.base}/logs"
        os.mkdir(self.logs)
        self.networks = f"{self.base}/net.d"
        """Directory of CNI networks; not there, so that the embedded one is used and the host's do not matter."""
        self.metrics = f"127.0.0.1:{free_port()}"
        self.bridge = f"ct{self.name}"
        self.subnet = f"10.{100 + secrets.randbelow(90)}.{secrets.randbelow(256)}.0/24"
        self.cgroup_parent = f"/crishim-test-{self.name}"
        self.config = f"{self.base}/config.toml" if config else ""
        if config:
            _write(self.config, config)
        _write(f"{self.base}/crictl.yaml", _CRICTL.format(socket=self.socket))
        self.stderr = -1
        """Descriptor that the daemon gets as its standard error; -1 for the log."""
        self._program: Program | None = None
        SCOPE.directories.add(self.base)
        SCOPE.words.update({self.bridge, self.cgroup_parent.lstrip("/")})

    # --- the daemon ---------------------------------------------------------------------------
    @property
    def program(self) -> Program:
        """Return the running daemon's program."""
        if self._program is None:
            raise AssertionError("the instance is not running")
        return self._program

    @property
    def pid(self) -> int:
        """Return the daemon's process id."""
        return self.program.pid

    def command(self) -> list[str]:
        """Return the daemon's argv."""
        command = [python(), "-m", "crishim", "serve", "--root", self.root, "--state", self.state]
        command += ["--socket", self.socket, "--metrics-listen", self.metrics]
        command += ["--cgroup-parent", self.cgroup_parent, "--bridge", self.bridge, "--subnet", self.subnet]
        command += ["--cni-conf-dir", self.networks]
        return command + (["--config", self.config] if self.config else [])

    def start(self) -> None:
        """Start the daemon and wait until its socket answers."""
        if self not in SCOPE.live:
            SCOPE.live.append(self)
        command = [*self._launcher, *self.command()]
        self._program = Program(command, f"{self.base}/daemon.log", {"PYTHONPATH": _ROOT}, self.stderr)
        self._program.wait_until(self._answers)

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(self.socket) != 0:
                return False
        return self.crictl("version", check=False).returncode == 0

    def kill(self) -> None:
        """SIGKILL the daemon; its containers go on."""
        self.program.stop(signal.SIGKILL)
        self._program = None

    def stop(self) -> None:
        """End the daemon gracefully and assert its exit status."""
        program, self._program = self.program, None
        status = program.stop(signal.SIGTERM)
        if status != 0:
            raise AssertionError(f"the daemon ended with {status}:\n{program.output()[-8000:]}")

    def restart(self) -> None:
        """Kill the daemon without warning and start it again."""
        self.kill()
        self.start()

    def log(self) -> str:
        """Return what the daemon logged since the instance was made."""
        with open(f"{self.base}/daemon.log", encoding="utf-8", errors="replace") as file:
            return file.read()

    def close(self) -> None:
        """Remove all pods, end the daemon, remove the directories; nothing may be left after this."""
        try:
            if self._program is None:
                self.start()
            self.crictl("rmp", "-a", "-f", check=False)
            self.stop()
        finally:
            if self._program is not None and self._program.running():
                self.kill()
            if self in SCOPE.live:
                SCOPE.live.remove(self)
            if not any(self.base in point for point in machine.mounts()):
                shutil.rmtree(self.base, ignore_errors=True)

    def keeps(self, kind: str, name: str) -> bool:
        """Tell whether the thing is part of the running instance itself and not of a pod (leak check)."""
        if kind == "process":
            return self._keeps_process(int(name.partition("@")[0]))
        if kind == "cgroup":
            tail = name.partition(self.cgroup_parent)
            return bool(tail[1]) and not _POD_GROUP.search(tail[2])
        if kind == "mount":
            return name.rpartition(" #")[0] in {f"{self.state}/ns", self.state}
        if kind in {"link", "nft table"}:
            return name.rsplit(" ", maxsplit=1)[-1].endswith(self.bridge)
        return False

    def _keeps_process(self, pid: int) -> bool:
        if self._program is None:
            return False
        row = machine.process(pid)
        if row is None or self.pid in {row.pid, row.parent}:
            return True  # one that has ended since it was seen (an idle unpacker) is not left either
        parent = machine.process(row.parent)
        return parent is not None and parent.parent == self.pid and _is_spare(pid)

    # --- crictl -------------------------------------------------------------------------------
    def crictl(
        self, *arguments: str, check: bool = True, data: str | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run crictl against this instance; a failure shows both outputs and the daemon's last log lines."""
        command = [self._crictl, "--config", f"{self.base}/crictl.yaml", *arguments]
        result = subprocess.run(
            command, input=data, capture_output=True, text=True, check=False, errors="replace", timeout=180
        )
        if check and result.returncode != 0:
            tail = self.log()[-4000:]
            raise AssertionError(f"{' '.join(arguments)}: {result.returncode}\n{result.stdout}{result.stderr}\n{tail}")
        return result

    def json(self, *arguments: str) -> Any:
        """Run crictl with `-o json` and return the document."""
        return json.loads(self.crictl(arguments[0], "-o", "json", *arguments[1:]).stdout)

    def config_file(self, document: Any) -> str:
        """Write a pod or container config for crictl and return its path."""
        path = f"{self.base}/{secrets.token_hex(4)}.json"
        _write(path, json.dumps(document))
        return path

    def run_pod(self, config: dict[str, Any]) -> str:
        """`crictl runp`; return the pod's id."""
        return self.crictl("runp", self.config_file(config)).stdout.strip()

    def run(self, pod: str, config: dict[str, Any], sandbox: dict[str, Any]) -> str:
        """`crictl create` and `crictl start`; return the container's id."""
        files = self.config_file(config), self.config_file(sandbox)
        container = self.crictl("create", "--no-pull", pod, *files).stdout.strip()
        self.crictl("start", container)
        return container


def _is_spare(pid: int) -> bool:
    """Tell whether a child of the spawner waits for a pod; one that has or had a pod is named after it."""
    title = machine.read(f"/proc/{pid}/cmdline").decode("utf-8", "replace")
    return "(spare)" in title or not title.startswith("crishim-keeper")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
