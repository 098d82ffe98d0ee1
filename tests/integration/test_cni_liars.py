"""Stub plugins that flood, hang, lie or are older than VERSION: an error in time, bounded memory, nobody left."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from crishim.network.cni import config
from crishim.network.cni.client import Client
from crishim.network.cni.model import CniError, NetworkList, Result, Target

_VERSIONS = 'if [ "$CNI_COMMAND" = VERSION ]; then echo \'{"supportedVersions":["0.4.0","1.0.0","1.1.0"]}\'; exit; fi'
_GOOD = 'echo \'{"cniVersion":"1.0.0","ips":[{"address":"10.9.0.2/24"}]}\''
TARGET = Target("c1", "", "eth0", {}, {})


def plugin(directory: Path, *lines: str, name: str = "stub") -> None:
    path = directory / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def network(*kinds: str, version: str = "1.0.0") -> NetworkList:
    return config.parse(
        json.dumps({"cniVersion": version, "name": "net", "plugins": [{"type": kind} for kind in kinds or ["stub"]]})
    )


async def add(directory: Path, *kinds: str, version: str = "1.0.0", seconds: float = 30.0) -> Result:
    return await Client([str(directory)], seconds).add(network(*kinds, version=version), TARGET)


def _is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] not in {"Z", "X"}


async def _wait_gone(pid: int) -> None:
    for _ in range(500):
        if not _is_alive(pid):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{pid} lives on")


@pytest.mark.parametrize("redirection", ["", ">&2"])
async def test_a_flood_is_bounded(tmp_path: Path, redirection: str) -> None:
    plugin(tmp_path, _VERSIONS, f"yes 0123456789 {redirection}")
    with pytest.raises(CniError, match="printed more than" if not redirection else "did not end within"):
        await add(tmp_path, seconds=0.5)


async def test_a_hang_ends_with_its_children(tmp_path: Path) -> None:
    plugin(tmp_path, _VERSIONS, f"sleep 1000 & echo $! > {tmp_path}/child; echo waiting >&2; wait")
    with pytest.raises(CniError, match=r"did not end within 0\.5 s and was killed: waiting"):
        await add(tmp_path, seconds=0.5)
    await _wait_gone(int((tmp_path / "child").read_text()))


async def test_a_cancelled_call_ends_the_plugin(tmp_path: Path) -> None:
    plugin(
        tmp_path, _VERSIONS, f"echo $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 1000"
    )
    call = asyncio.create_task(add(tmp_path))
    while not (tmp_path / "pid").exists():
        await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await _wait_gone(int((tmp_path / "pid").read_text()))


async def test_a_grandchild_that_keeps_the_output_holds_nobody_up(tmp_path: Path) -> None:
    plugin(tmp_path, _VERSIONS, f"sleep 1000 & echo $! > {tmp_path}/child", _GOOD)
    try:
        assert (await add(tmp_path)).addresses == ("10.9.0.2/24",)
        assert _is_alive(int((tmp_path / "child").read_text()))
    finally:
        os.kill(int((tmp_path / "child").read_text()), 9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("true", "is not JSON"),
        ('echo \'{"cniVersion":"9.9.9"}\'', "unknown version '9.9.9', code 1"),
        ("printf '\\377\\376'", "is not JSON"),
        ("head -c 100000 /dev/zero | tr '\\0' '['", "is not JSON"),
        ('echo \'{"code":"x","msg":"y"}\'; echo why >&2; exit 2', "ended with status 2 and no error object: why"),
        ('echo \'{"code":7,"msg":"no room","details":"10.9.0.0/24"}\'; exit 1', r"no room \(10.9.0.0/24\), code 7"),
        ("kill -9 $$", "ended with status -9"),
    ],
)
async def test_a_lie_is_an_error_that_names_the_plugin(tmp_path: Path, line: str, message: str) -> None:
    plugin(tmp_path, _VERSIONS, line)
    with pytest.raises(CniError, match=f"cni plugin stub: .*{message}"):
        await add(tmp_path)


async def test_a_plugin_older_than_version_is_of_0_1_0(tmp_path: Path) -> None:
    plugin(
        tmp_path,
        '[ "$CNI_COMMAND" = VERSION ] && { echo \'{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}\'; exit 1; }',
        'echo \'{"ip4":{"ip":"10.9.0.2/24"}}\'',
    )
    assert (await add(tmp_path, version="0.1.0")).addresses == ("10.9.0.2/24",)
    with pytest.raises(CniError, match=r"does not support CNI 1.0.0, only 0.1.0, code 1"):
        await add(tmp_path)


async def test_the_next_plugin_gets_the_result_in_the_lists_version(tmp_path: Path) -> None:
    plugin(tmp_path, _VERSIONS, 'echo \'{"cniVersion":"0.2.0","ip4":{"ip":"10.9.0.2/24"}}\'', name="first")
    plugin(tmp_path, _VERSIONS, f"cat > {tmp_path}/given", _GOOD, name="second")
    await add(tmp_path, "first", "second")
    given = json.loads((tmp_path / "given").read_text())["prevResult"]
    assert (given["cniVersion"], given["ips"]) == ("1.0.0", [{"address": "10.9.0.2/24"}])
