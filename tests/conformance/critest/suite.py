"""Runs critest, the real one, against an instance: registry, hosts.toml, processes, report.

critest works from the host's namespaces like kubelet. What it leaves behind is removed here: the System V segments that
it makes with ipcmk(1), known by a wrapper that notes their ids; the mounts of a propagation spec that failed halfway;
and its files, which lie in a directory of ours.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.conformance.critest import report
from tests.support import machine
from tests.support.abilities import need_program
from tests.support.instance import Instance
from tests.support.registry import Registry

HOSTS = ("registry.k8s.io", "gcr.io", "k8s.gcr.io")
_PROCESSES = 2
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
_BIN = os.path.join(os.environ.get("CRISHIM_CACHE") or os.path.join(_ROOT, ".cache"), "bin")
_HOSTS_TOML = """\
server = "http://{host}"

[host."http://{host}"]
  capabilities = ["pull", "resolve"]
"""
_IPCMK = """\
#!/bin/sh
made=$({program} "$@") || exit
printf '%s\\n' "$made"
printf '%s\\n' "$made" >>{notes}
"""


def need_critest() -> str:
    """Return the path of critest, or skip; scripts/install builds it, and ginkgo, which it starts."""
    if os.access(os.path.join(_BIN, "critest"), os.X_OK):
        return os.path.join(_BIN, "critest")
    return need_program("critest", "none; scripts/install builds it from tests/conformance/go.mod")


def serve(registry: Registry, layouts: Mapping[str, str], directory: str) -> str:
    """Push the images, write hosts.toml for the registries that the specs name; return the `certs.d` directory."""
    with ThreadPoolExecutor(_PROCESSES) as pool:
        list(pool.map(lambda item: registry.push(item[1], item[0]), layouts.items()))
    for name in HOSTS:
        os.makedirs(f"{directory}/{name}")
        with open(f"{directory}/{name}/hosts.toml", "w", encoding="utf-8") as file:
            file.write(_HOSTS_TOML.format(host=registry.host))
    return directory


def run(instance: Instance, arguments: Sequence[str] = ()) -> dict[str, report.Outcome]:
    """Run the suite and return what each spec did.

    Args:
        instance: a running daemon that can pull the images.
        arguments: further ones for critest, like `-ginkgo.focus=REGEX` or `-websocket-exec`.
    """
    program = need_critest()
    scratch, tools = f"{instance.base}/critest", f"{instance.base}/tools"
    for path in (scratch, tools):
        os.mkdir(path, 0o711)
    notes = f"{instance.base}/segments"
    _wrap_ipcmk(f"{tools}/ipcmk", notes)
    path = os.pathsep.join((tools, os.path.dirname(program), os.environ.get("PATH", "")))
    junit = f"{instance.base}/junit.xml"
    command = [program, f"-runtime-endpoint=unix://{instance.socket}", f"-image-endpoint=unix://{instance.socket}"]
    command += [f"-config={instance.base}/crictl.yaml", f"-parallel={_PROCESSES}", f"-ginkgo.junit-report={junit}"]
    command += ["-ginkgo.no-color", "-ginkgo.timeout=20m", *arguments]
    try:
        with open(f"{instance.base}/critest.log", "wb") as log:
            environment = {**os.environ, "PATH": path, "TMPDIR": scratch}
            subprocess.run(command, stdout=log, stderr=log, env=environment, cwd=scratch, check=False)
    finally:
        _remove_segments(notes)
        _unmount_below(scratch)
    if not os.path.exists(junit):
        raise AssertionError(f"critest wrote no report:\n{tail(instance)}")
    _keep(junit, f"{instance.base}/critest.log", f"{instance.base}/daemon.log")
    return report.read(junit)


def tail(instance: Instance) -> str:
    """Return the end of critest's output."""
    with open(f"{instance.base}/critest.log", encoding="utf-8", errors="replace") as file:
        return file.read()[-8000:]


def _keep(*paths: str) -> None:
    """Copy the report and both logs to `.cache/critest`, for whoever reads them after the run."""
    kept = os.path.join(os.path.dirname(_BIN), "critest")
    os.makedirs(kept, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, os.path.join(kept, os.path.basename(path)))


def _wrap_ipcmk(path: str, notes: str) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(_IPCMK.format(program=need_program("ipcmk", "util-linux"), notes=notes))
    os.chmod(path, 0o755)


def _remove_segments(notes: str) -> None:
    if not os.path.exists(notes):
        return
    with open(notes, encoding="utf-8") as file:
        for line in file:  # "Shared memory id: 7"
            subprocess.run(["ipcrm", "-m", line.rpartition(":")[2].strip()], check=False, capture_output=True)


def _unmount_below(directory: str) -> None:
    points = [key.rpartition(" #")[0] for key in machine.mounts()]
    for point in sorted((point for point in points if point.startswith(f"{directory}/")), reverse=True):
        subprocess.run(["umount", "-l", point], check=False, capture_output=True)
