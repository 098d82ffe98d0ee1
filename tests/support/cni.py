"""CNI networks for tests: the project's own plugins, which scripts/install builds, and one that does as it is told."""

import json
import os
import stat
from typing import Any

import pytest

from tests.support.abilities import need_program

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_BIN = os.path.join(os.environ.get("CRISHIM_CACHE") or os.path.join(_ROOT, ".cache"), "cni", "bin")
_STUB = """\
#!/bin/sh
PATH=/usr/bin:/bin
echo "$CNI_COMMAND $CNI_CONTAINERID netns=$CNI_NETNS args=$CNI_ARGS" >>{directory}/calls
cat >{directory}/input-$CNI_COMMAND
if [ -e {directory}/hang-$CNI_COMMAND ]; then sleep 600 & sleep 600; fi
if [ -e {directory}/fail-$CNI_COMMAND ]; then
    echo '{{"cniVersion":"1.1.0","code":107,"msg":"no luck","details":"told so"}}'
    exit 1
fi
case $CNI_COMMAND in
    VERSION) echo '{{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}}' ;;
    ADD) echo '{{"cniVersion":"1.1.0","ips":[{{"address":"192.0.2.77/24"}}]}}' ;;
esac
"""


def need_plugins() -> str:
    """Return the directory of the CNI project's plugins, or skip."""
    if not os.access(os.path.join(_BIN, "bridge"), os.X_OK):
        pytest.skip(f"lacks CNI plugins in {_BIN}; scripts/install builds them")
    need_program("iptables", "iptables")
    return _BIN


def bridge_list(bridge: str, subnet: str, data: str, version: str = "1.1.0") -> dict[str, Any]:
    """Return a conflist of bridge, host-local (leases below `data`) and portmap."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}], "dataDir": data}
    first = {"type": "bridge", "bridge": bridge, "isGateway": True, "hairpinMode": True, "ipam": ipam}
    second = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
    return {"cniVersion": version, "name": "tests", "plugins": [first, second]}


def ptp_list(subnet: str, data: str) -> dict[str, Any]:
    """Return a conflist of ptp, host-local and portmap."""
    document = bridge_list("", subnet, data)
    document["plugins"][0] = {"type": "ptp", "ipam": document["plugins"][0]["ipam"]}
    return document


def write_list(directory: str, document: dict[str, Any], name: str = "10-tests.conflist") -> str:
    """Put a conflist into the directory of networks, whole at once; return its path."""
    os.makedirs(directory, exist_ok=True)
    path = f"{directory}/{name}"
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(document, file)
    os.rename(f"{path}.new", path)
    return path


class Stub:
    """The plugin `stub` in a directory of its own, which notes its calls.

    Args:
        directory: is made; goes with whoever made the one above.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        os.mkdir(directory)
        path = f"{directory}/stub"
        with open(path, "w", encoding="utf-8") as file:
            file.write(_STUB.format(directory=directory))
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)

    def network(self, version: str = "1.1.0", *capabilities: str) -> dict[str, Any]:
        """Return a conflist of this plugin alone."""
        plugin = {"type": "stub", "capabilities": dict.fromkeys(capabilities, True)}
        return {"cniVersion": version, "name": "stubs", "plugins": [plugin]}

    def told(self, behaviour: str, command: str, *, on: bool = True) -> None:
        """Let it `fail` or `hang` when it gets this command, or no longer."""
        path = f"{self.directory}/{behaviour}-{command}"
        if on:
            open(path, "x", encoding="utf-8").close()
        else:
            os.unlink(path)

    def calls(self, command: str) -> list[str]:
        """Return what followed the command in each of its calls."""
        try:
            with open(f"{self.directory}/calls", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except FileNotFoundError:
            return []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{command} ")]

    def given(self, command: str) -> Any:
        """Return the document of its last call with this command."""
        with open(f"{self.directory}/input-{command}", encoding="utf-8") as file:
            return json.load(file)
