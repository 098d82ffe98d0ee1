"""Runs a network's plugins: ADD along the list, DEL back, CHECK, STATUS and GC (CNI's SPEC.md, sections 2 to 5).

Out of scope: when, and what is kept of it (`network`). Invariant: a plugin gets runtimeConfig only for capabilities
that it declares, and the configuration in a version that it supports.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crishim.constants import DEFAULT_PATH
from crishim.network.cni import program, result
from crishim.network.cni.model import CniError, NetworkList, NotRunError, Plugin, Result, Target

_FILE_VERSIONS = ("0.1.0", "0.2.0")
_NO_VERSION = "unknown CNI_COMMAND: VERSION"


class Client:
    """Runs plugins.

    Args:
        bin_dirs: where they are looked for, in order.
        seconds: that one run may take.
    """

    def __init__(self, bin_dirs: Sequence[str], seconds: float) -> None:
        self._bin_dirs = tuple(bin_dirs)
        self._seconds = seconds
        self._supported: dict[tuple[str, int, int, int], frozenset[str]] = {}

    def missing(self, network: NetworkList) -> str:
        """Say which plugin's program is not there or cannot be run, "" if all can."""
        try:
            for plugin in network.plugins:
                self._find(plugin.type)
        except NotRunError as error:
            return str(error)
        return ""

    async def prepare(self, network: NetworkList) -> None:
        """Find every plugin, and learn that it knows the network's version; each is asked for that once.

        Raises:
            CniError: no ADD can succeed.
        """
        for plugin in network.plugins:
            await self._locate(network, plugin)

    async def add(
        self, network: NetworkList, target: Target, reached: Callable[[int], object] = lambda _: None
    ) -> Result:
        """ADD to each plugin in order, each with the result of the one before.

        `reached` is told how many plugins may have done something, before each of them does.

        Raises:
            CniError: a plugin failed; those before it have worked, DEL is the caller's.
        """
        found = Result((), {})
        for number, plugin in enumerate(network.plugins):
            path = await self._locate(network, plugin)
            reached(number + 1)
            try:
                output = await self._run("ADD", path, network, plugin, target, _previous(found.document or None))
            except NotRunError:
                reached(number)
                raise
            found = result.parse(plugin.type, output, target.ifname, network.version)
        return found

    async def delete(
        self, network: NetworkList, target: Target, previous: Mapping[str, Any] | None, count: int | None = None
    ) -> None:
        """DEL to the first `count` plugins, or all, in the opposite order; all are tried, then the first error goes."""
        more = _previous(previous) if _at_least(network, (0, 4, 0)) else {}
        await self._all("DEL", network, network.plugins[:count][::-1], target, more)

    async def check(self, network: NetworkList, target: Target, previous: Mapping[str, Any]) -> None:
        """CHECK to each plugin, for networks from 0.4.0 on that do not disable it."""
        if network.disable_check or not _at_least(network, (0, 4, 0)):
            return
        for plugin in network.plugins:
            path = await self._locate(network, plugin)
            await self._run("CHECK", path, network, plugin, target, _previous(previous))

    async def status(self, network: NetworkList) -> None:
        """STATUS to each plugin, for networks from 1.1.0 on; raises what the first says that is not ready."""
        if _at_least(network, (1, 1, 0)):
            for plugin in network.plugins:
                await self._run("STATUS", await self._locate(network, plugin), network, plugin, None, {})

    async def gc(self, network: NetworkList, valid: Sequence[tuple[str, str]]) -> None:
        """GC to each plugin, for networks from 1.1.0 on that do not disable it; `valid` are (container id, ifname)."""
        if network.disable_gc or not _at_least(network, (1, 1, 0)):
            return
        entries = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        more = {"cni.dev/valid-attachments": entries, "cni.dev/attachments": entries}
        await self._all("GC", network, network.plugins, None, more)

    async def _all(
        self,
        command: str,
        network: NetworkList,
        plugins: Sequence[Plugin],
        target: Target | None,
        more: Mapping[str, Any],
    ) -> None:
        first: CniError | None = None
        for plugin in plugins:
            try:
                await self._run(command, await self._locate(network, plugin), network, plugin, target, more)
            except CniError as error:
                first = first or error
        if first is not None:
            raise first

    async def _locate(self, network: NetworkList, plugin: Plugin) -> str:
        """Return the path of a plugin that knows the network's version."""
        path = self._find(plugin.type)
        await self._need_version(path, network.version)
        return path

    async def _run(
        self,
        command: str,
        path: str,
        network: NetworkList,
        plugin: Plugin,
        target: Target | None,
        more: Mapping[str, Any],
    ) -> bytes:
        document = {**plugin.document, "cniVersion": network.version, "name": network.name, **more}
        document.pop("capabilities", None)
        if target is not None:
            wanted = {key: value for key, value in target.runtime_config.items() if key in plugin.capabilities}
            if wanted:
                document["runtimeConfig"] = wanted
        environment = self._environment(command, target)
        return await program.run(path, json.dumps(document).encode(), environment, self._seconds)

    def _environment(self, command: str, target: Target | None) -> dict[str, str]:
        found = {key: value for key, value in os.environ.items() if not key.startswith(("CNI_", "NOTIFY_"))}
        found.setdefault("PATH", DEFAULT_PATH)
        found |= {"CNI_COMMAND": command, "CNI_PATH": ":".join(self._bin_dirs)}
        if target is not None:
            found |= {
                "CNI_CONTAINERID": target.container_id,
                "CNI_NETNS": target.netns,
                "CNI_IFNAME": target.ifname,
                "CNI_ARGS": ";".join(f"{key}={value}" for key, value in target.args.items()),
            }
        return found

    def _find(self, kind: str) -> str:
        paths = [os.path.join(directory, kind) for directory in self._bin_dirs]
        for path in paths:
            if os.access(path, os.X_OK) and os.path.isfile(path):
                return path
        if unfit := next((path for path in paths if os.path.lexists(path)), ""):
            raise NotRunError(kind, f"{unfit} is no program that can be run; install it there anew")
        raise NotRunError(kind, f"no such program in {', '.join(self._bin_dirs) or 'no directory'}; install it there")

    async def _need_version(self, path: str, version: str) -> None:
        """Ask a plugin once which versions it has; a changed file is asked again."""
        try:
            status = os.stat(path)
        except OSError as error:
            raise NotRunError(os.path.basename(path), f"{path} cannot be read: {error.strerror}") from None
        key = (path, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._supported:
            self._supported[key] = await self._versions(path)
        if version not in self._supported[key]:
            known = ", ".join(sorted(self._supported[key]))
            raise CniError(os.path.basename(path), f"does not support CNI {version}, only {known}", 1)

    async def _versions(self, path: str) -> frozenset[str]:
        plugin = os.path.basename(path)
        # VERSION needs no target, but plugins built with the skeletons of old ask for one.
        environment = self._environment("VERSION", None)
        environment |= {"CNI_NETNS": "none", "CNI_IFNAME": "none", "CNI_CONTAINERID": "none"}
        try:
            output = await program.run(path, b'{"cniVersion":"1.1.0"}', environment, self._seconds)
        except CniError as error:
            if _NO_VERSION in str(error):  # what the CNI project's own skeleton of 0.1.0 says
                return frozenset({"0.1.0"})
            raise
        try:
            found = json.loads(output)
            supported = found.get("supportedVersions", _FILE_VERSIONS)
            return frozenset(str(version) for version in supported)
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise CniError(plugin, "answers VERSION with something else than JSON of CNI") from None


def _previous(document: Mapping[str, Any] | None) -> dict[str, Any]:
    return {} if document is None else {"prevResult": document}


def _at_least(network: NetworkList, version: tuple[int, ...]) -> bool:
    return tuple(int(part) for part in network.version.split(".")) >= version
