"""Runs of plugins: one that hangs, lies, fails or says what it was given."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from crishim.network.cni import config, program
from crishim.network.cni.client import Client
from crishim.network.cni.model import CniError, NetworkList, Target
from tests.support import machine
from tests.support.cni import Stub
from tests.support.waiting import wait_for

TARGET = Target("id", "/n", "eth0", {"A": "1", "B": "2"}, {"mac": "m", "other": 1})
VERSION = """case $CNI_COMMAND in VERSION) echo '{"supportedVersions":["1.0.0","1.1.0"]}'; exit;; esac\n"""


@pytest.fixture
def stub(tmp_path: Path) -> Stub:
    return Stub(str(tmp_path / "stubs"))


def network(stub: Stub, *types: str, **more: Any) -> NetworkList:
    document: dict[str, Any] = {"cniVersion": "1.1.0", "name": "n", **more}
    document["plugins"] = [{"type": name, "capabilities": {"mac": True}} for name in types or ("stub",)]
    return config.parse(json.dumps(document))


def plugin(stub: Stub, name: str, script: str) -> None:
    path = f"{stub.directory}/{name}"
    with open(path, "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n{VERSION}{script}\n")
    os.chmod(path, 0o755)


def client(stub: Stub, seconds: float = 20) -> Client:
    return Client([f"{stub.directory}/none", stub.directory], seconds)


def failure(call: Awaitable[Any]) -> CniError:
    async def run() -> None:
        await call

    with pytest.raises(CniError) as caught:
        asyncio.run(run())
    return caught.value


def test_add_and_delete(stub: Stub) -> None:
    async def both() -> Any:
        runs = client(stub)
        found = await runs.add(network(stub), TARGET)
        await runs.check(network(stub), TARGET, found.document)
        await runs.check(network(stub, disableCheck=True), TARGET, found.document)
        await runs.delete(network(stub), TARGET, found.document)
        return found

    found = asyncio.run(both())
    assert found.addresses == ("192.0.2.77/24",)
    assert stub.calls("ADD") == ["id netns=/n args=A=1;B=2"]
    assert (len(stub.calls("CHECK")), len(stub.calls("VERSION"))) == (1, 1)
    given = stub.given("ADD")
    assert (given["cniVersion"], given["name"], given["runtimeConfig"]) == ("1.1.0", "n", {"mac": "m"})
    assert "capabilities" not in given
    assert stub.given("DEL")["prevResult"] == found.document


def test_results_are_handed_on_and_deletes_go_back(stub: Stub) -> None:
    note = f'echo "{{}}" >/dev/null; echo "$CNI_COMMAND $0" >>{stub.directory}/order'
    plugin(stub, "second", f"{note}; [ $CNI_COMMAND = DEL ] && exit 3; cat")
    plugin(stub, "third", f"{note}; cat >{stub.directory}/third-input; echo '{{}}'")

    async def add() -> None:
        await client(stub).add(network(stub, "stub", "second", "third"), TARGET)

    asyncio.run(add())
    with open(f"{stub.directory}/third-input", encoding="utf-8") as file:
        assert json.load(file)["prevResult"]["name"] == "n"
    error = failure(client(stub).delete(network(stub, "stub", "second", "third"), TARGET, None))
    assert (error.plugin, "status 3" in str(error)) == ("second", True)
    assert len(stub.calls("DEL")) == 1  # the first is reached, whatever the second does


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 0", "cni plugin bad: its result is not JSON"),
        ("echo garbage; echo 'why not' >&2; exit 4", "ended with status 4 and no error object: why not"),
        ('echo \'{"code":11,"msg":"later","details":"d"}\'; exit 1', "cni plugin bad: later (d), code 11"),
        ('echo \'{"code":"x"}\'; exit 1', "ended with status 1 and no error object"),
        ("kill -9 $$", "ended with status -9"),
        ("while :; do cat /proc/self/maps /proc/self/maps; done", "printed more than 1048576 bytes"),
    ],
)
def test_what_bad_plugins_do(stub: Stub, script: str, message: str) -> None:
    plugin(stub, "bad", script)
    assert message in str(failure(client(stub).add(network(stub, "bad"), TARGET)))


def test_a_result_with_an_empty_version_is_of_the_networks_version(stub: Stub) -> None:
    plugin(stub, "old", 'echo \'{"cniVersion":"","ips":[{"address":"192.0.2.9/24"}]}\'')
    found = asyncio.run(client(stub).add(network(stub, "old"), TARGET))
    assert (found.addresses, found.document["cniVersion"]) == (("192.0.2.9/24",), "1.1.0")


def test_a_plugin_that_wants_a_target_even_for_its_version(stub: Stub) -> None:
    plugin(stub, "old", "echo '{\"ips\":[]}'")
    path = f"{stub.directory}/old"
    with open(path, encoding="utf-8") as file:
        script = file.read()
    wants = '[ -n "$CNI_NETNS" ] && [ -n "$CNI_IFNAME" ] && [ -n "$CNI_PATH" ] || exit 9\n'
    with open(path, "w", encoding="utf-8") as file:
        file.write(script.replace("#!/bin/sh\n", f"#!/bin/sh\n{wants}"))
    asyncio.run(client(stub).add(network(stub, "old"), TARGET))


def test_a_plugin_that_is_just_being_installed_is_waited_for(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy("/bin/true", f"{stub.directory}/copied")

    async def add() -> str:
        writer = os.open(f"{stub.directory}/copied", os.O_WRONLY)  # a shell script would be read, not run
        asyncio.get_running_loop().call_later(0.3, os.close, writer)
        try:
            await client(stub).add(network(stub, "copied"), TARGET)
        except CniError as error:
            return str(error)
        return ""

    assert "answers VERSION with something else" in asyncio.run(add())  # it ran
    monkeypatch.setattr(program, "_BUSY_ATTEMPTS", 2)
    writer = os.open(f"{stub.directory}/copied", os.O_WRONLY)
    try:
        assert "Text file busy" in str(failure(client(stub).add(network(stub, "copied"), TARGET)))
    finally:
        os.close(writer)


def test_a_plugin_that_vanishes_is_named_and_the_others_are_still_deleted(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = client(stub)
    asyncio.run(runs.add(network(stub), TARGET))
    find = runs._find
    monkeypatch.setattr(runs, "_find", lambda kind: "/nowhere/gone" if kind == "gone" else find(kind))
    error = failure(runs.delete(network(stub, "stub", "gone"), TARGET, None))
    assert "/nowhere/gone cannot be read: No such file" in str(error)
    assert len(stub.calls("DEL")) == 1


def test_a_hang_is_ended_with_its_children(stub: Stub) -> None:
    plugin(stub, "bad", f"sleep 600 & echo $! >{stub.directory}/child; echo stuck >&2; sleep 600")
    error = failure(client(stub, 0.5).add(network(stub, "bad"), TARGET))
    assert "did not end within 0.5 s and was killed: stuck" in str(error)
    child = int(Path(f"{stub.directory}/child").read_text(encoding="utf-8"))
    wait_for(lambda: not machine.read(f"/proc/{child}/cmdline"), 10)  # a zombie has none


def test_a_grandchild_that_keeps_the_output_open_holds_nobody_up(stub: Stub) -> None:
    answer = '{"ips":[{"address":"192.0.2.9/24"}]}'
    plugin(stub, "good", f"sleep 600 & echo $! >{stub.directory}/child; echo '{answer}'")

    async def add() -> Any:
        return await client(stub).add(network(stub, "good"), TARGET)

    try:
        assert asyncio.run(add()).addresses == ("192.0.2.9/24",)
    finally:
        os.kill(int(Path(f"{stub.directory}/child").read_text(encoding="utf-8")), signal.SIGKILL)


def test_missing_programs_and_versions(stub: Stub) -> None:
    assert "no such program in" in str(failure(client(stub).add(network(stub, "none"), TARGET)))
    old = network(stub, cniVersion="0.3.1")
    assert "does not support CNI 0.3.1, only 0.4.0" in str(failure(client(stub).add(old, TARGET)))


def test_status_and_gc_are_for_networks_that_have_them(stub: Stub) -> None:
    async def ask(version: str, **more: Any) -> None:
        runs = client(stub)
        await runs.status(network(stub, cniVersion=version))
        await runs.gc(network(stub, cniVersion=version, **more), [("id", "eth0")])

    asyncio.run(ask("1.0.0"))
    assert (stub.calls("STATUS"), stub.calls("GC")) == ([], [])
    asyncio.run(ask("1.1.0", disableGC=True))
    assert (len(stub.calls("STATUS")), stub.calls("GC")) == (1, [])
    asyncio.run(ask("1.1.0"))
    assert stub.given("GC")["cni.dev/valid-attachments"] == [{"containerID": "id", "ifname": "eth0"}]
