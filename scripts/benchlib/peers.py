"""The runtimes that crishim is measured beside, built once into a cache.

containerd, its shim and ctr, runc and the CNI plugins come from the Go module proxy, in the versions below, where Go
>= 1.26 is there; otherwise Debian's packages stand in, and the report says so. CRI-O and its pinns come from the proxy
alone, its conmon from Debian, as crun does. A peer that cannot be had is named and its cells stay empty; nothing here
ends the run.

Out of scope: starting them. Invariant: a program in the cache is whole (built aside, then renamed).
"""

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

CONTAINERD = "v2.4.2"
RUNC = "v1.5.2"
PLUGINS = "v1.9.1"
CRIO = "v1.34.0"
CRIO_MODULE = "github.com/cri-o/cri-o"
CRIO_TAGS = (
    "containers_image_openpgp containers_image_ostree_stub btrfs_noversion exclude_graphdriver_btrfs"
    " exclude_graphdriver_devicemapper libsqlite3 seccomp"
)
GO = (1, 26)
CONTAINERD_PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr")
PLUGIN_PATHS = {"bridge": "main/bridge", "loopback": "main/loopback", "host-local": "ipam/host-local"}
PLUGIN_PATHS |= {"portmap": "meta/portmap"}
DEBIAN_PLUGINS = "/usr/lib/cni"


@dataclass(slots=True)
class Peers:
    """Where each program is (None: not to be had), where CNI plugins lie, and what the reader should know."""

    directory: str
    containerd: str | None = None
    runc: str | None = None
    crun: str | None = None
    crio: str | None = None
    conmon: str | None = None
    plugins: str | None = None
    pigz: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def prepare(cache: str, seeds: list[str], *, build: bool = True) -> Peers:
    """Return the peers, building into `cache` what is missing there.

    Args:
        cache: directory that lives from run to run.
        seeds: directories with programs that were built before, taken as they are.
        build: False takes only what is there already.
    """
    peers = Peers(os.path.join(cache, "bin"))
    os.makedirs(peers.directory, exist_ok=True)
    for seed in seeds:
        _take(seed, peers.directory)
    go = _go() if build else None
    if build and go is None:
        peers.notes.append(f"no Go >= {GO[0]}.{GO[1]}: Debian's containerd, runc and plugins are taken where they are")
    peers.containerd = _find(
        peers, "containerd", CONTAINERD[1:], go, lambda tool: _build_containerd(tool, peers.directory)
    )
    peers.runc = _find(peers, "runc", RUNC[1:], go, lambda tool: _build_runc(tool, cache, peers.directory))
    peers.crun = _found_or_installed(peers, "crun", build=build)
    peers.crio = _find(peers, "crio", CRIO[1:], go, lambda tool: _build_crio(tool, peers.directory))
    peers.conmon = _found_or_installed(peers, "conmon", build=build) if peers.crio else None
    peers.plugins = _plugins(peers, go)
    peers.pigz = _pigz(os.path.join(cache, "pigz"), build=build)
    if peers.pigz is None:
        peers.notes.append("unpigz cannot be had here: the cells of containerd with it stay empty")
    for name in ("containerd", "runc", "crun", "crio", "conmon"):
        path = getattr(peers, name)
        if path:
            peers.versions[name] = _version([path, "--version"])
    return peers


def _find(peers: Peers, name: str, version: str, go: str | None, make: Callable[[str], None]) -> str | None:
    """Look in the cache, else build, else take Debian's; one of Debian's in the cache gives way to a built one."""
    own = os.path.join(peers.directory, name)
    if go and version not in _version([own, "--version"]):
        try:
            make(go)
        except subprocess.CalledProcessError as error:
            peers.notes.append(f"{name} could not be built: {_last_line(error.stderr)}")
    return own if os.path.exists(own) else _found_or_installed(peers, name, build=go is None)


def _found_or_installed(peers: Peers, name: str, *, build: bool) -> str | None:
    path = shutil.which(name)
    if path is None and build and shutil.which("apt-get"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            if name == "containerd":
                _extract(name, CONTAINERD_PROGRAMS, peers.directory)
            else:
                _run(
                    ["apt-get", "install", "-y", "--no-install-recommends", name], {"DEBIAN_FRONTEND": "noninteractive"}
                )
        path = shutil.which(name, path=f"{peers.directory}:{os.environ['PATH']}")
    if path is None:
        peers.notes.append(f"{name} cannot be installed here: its cells stay empty")
    return path


def _pigz(directory: str, *, build: bool) -> str | None:
    """Return a directory with Debian's unpigz and nothing else, for the one PATH that shall have it."""
    program = os.path.join(directory, "unpigz")
    if not os.path.exists(program) and build and shutil.which("apt-get"):
        os.makedirs(directory, exist_ok=True)
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            _extract("pigz", ["unpigz"], directory)
    return directory if os.path.exists(program) else None


def _extract(package: str, programs: Iterable[str], directory: str) -> None:
    """Take programs out of a Debian package; installing it would start its service on the host."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(["apt-get", "-o", "APT::Sandbox::User=root", "download", package], {}, scratch)
        _run(["sh", "-c", "dpkg-deb -x *.deb tree"], {}, scratch)
        for program in programs:
            shutil.copy2(os.path.join(scratch, "tree/usr/bin", program), os.path.join(directory, program))


def _plugins(peers: Peers, go: str | None) -> str | None:
    missing = [name for name in PLUGIN_PATHS if not os.path.exists(os.path.join(peers.directory, name))]
    if missing and go:
        base = "github.com/containernetworking/plugins/plugins"
        try:
            for name in missing:
                _install(go, f"{base}/{PLUGIN_PATHS[name]}@{PLUGINS}", name, peers.directory)
        except subprocess.CalledProcessError as error:
            peers.notes.append(f"the CNI plugins could not be built: {_last_line(error.stderr)}")
    for directory in (peers.directory, DEBIAN_PLUGINS):
        if all(os.path.exists(os.path.join(directory, name)) for name in PLUGIN_PATHS):
            return directory
    peers.notes.append("no CNI bridge plugin: containerd's pods run without a network")
    return None


def _build_containerd(go: str, directory: str) -> None:
    for name in reversed(CONTAINERD_PROGRAMS):  # containerd itself last: its presence means that all are there
        _install(go, f"github.com/containerd/containerd/v2/cmd/{name}@{CONTAINERD}", name, directory)


def _install(go: str, package: str, name: str, directory: str) -> None:
    """`go install` into a directory aside, then rename."""
    aside = os.path.join(directory, ".new")
    os.makedirs(aside, exist_ok=True)
    arguments = [go, "install", "-trimpath", "-ldflags", "-s -w", package]
    _run(arguments, {"GOBIN": aside, "CGO_ENABLED": "0"})
    os.replace(os.path.join(aside, name), os.path.join(directory, name))
    os.rmdir(aside)


def _build_runc(go: str, cache: str, directory: str) -> None:
    """runc's commands cannot be installed by version (its module has replacements): a small module of ours uses it."""
    if not os.path.exists("/usr/include/seccomp.h"):
        _apt("libseccomp-dev", "pkg-config", "gcc", "libc6-dev")
    module = os.path.join(cache, "runc")
    os.makedirs(module, exist_ok=True)
    if not os.path.exists(os.path.join(module, "go.mod")):
        _run([go, "mod", "init", "crishim.invalid/peers"], {}, module)
    _run([go, "get", "-tool", f"github.com/opencontainers/runc@{RUNC}"], {}, module)
    aside = os.path.join(directory, ".runc")
    flags = ["-trimpath", "-tags", "seccomp", "-ldflags", f"-s -w -X main.version={RUNC[1:]}"]
    _run([go, "build", *flags, "-o", aside, "github.com/opencontainers/runc"], {"CGO_ENABLED": "1"}, module)
    os.replace(aside, os.path.join(directory, "runc"))


def _build_crio(go: str, directory: str) -> None:
    """CRI-O in its module's own directory, with the sums that lie there; before it pinns, which makes pods' namespaces.

    `go install` of a version would ask for more than the module itself, which not every proxy has.
    """
    if not all(os.path.exists(f"/usr/include/{name}") for name in ("seccomp.h", "sqlite3.h")):
        _apt("libseccomp-dev", "libsqlite3-dev", "pkg-config", "gcc", "libc6-dev")
    module = json.loads(_run([go, "mod", "download", "-json", f"{CRIO_MODULE}@{CRIO}"], {}))["Dir"]
    aside = os.path.join(directory, ".crio")
    sources = sorted(glob.glob(f"{module}/pinns/src/*.c"))
    _run(["cc", "-std=c99", "-Os", "-static", "-s", "-o", aside, *sources], {})
    os.replace(aside, os.path.join(directory, "pinns"))
    flags = ["-mod=readonly", "-trimpath", "-tags", CRIO_TAGS, "-ldflags", "-s -w"]
    _run([go, "build", *flags, "-o", aside, "./cmd/crio"], {"CGO_ENABLED": "1"}, module)
    os.replace(aside, os.path.join(directory, "crio"))


def _run(command: list[str], environment: dict[str, str], directory: str | None = None) -> bytes:
    done = subprocess.run(
        command, env=os.environ | environment, cwd=directory, check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    return done.stdout


def _apt(*packages: str) -> None:
    _run(["apt-get", "install", "-y", "--no-install-recommends", *packages], {"DEBIAN_FRONTEND": "noninteractive"})


def _take(seed: str, directory: str) -> None:
    for name in (*CONTAINERD_PROGRAMS, "runc", "crio", "pinns", *PLUGIN_PATHS):
        source, target = os.path.join(seed, name), os.path.join(directory, name)
        if os.path.isfile(source) and not os.path.exists(target):
            os.symlink(os.path.abspath(source), target)


def _go() -> str | None:
    path = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin:/usr/lib/go/bin")
    if path is None:
        return None
    found = re.search(r"go(\d+)\.(\d+)", _version([path, "version"]))
    return path if found and (int(found[1]), int(found[2])) >= GO else None


def _version(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.split("\n", 1)[0].strip()


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else "no message"
