"""What we push, others read: Debian's registry with TLS and passwords, skopeo and umoci, and back again."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crishim.errors import FailedPreconditionError, UnauthenticatedError
from crishim.images.model import Credentials
from crishim.images.progress import Item
from tests.fakes.registry import FakeRegistry
from tests.fakes.registry_images import Service, overlay
from tests.support.abilities import need_program
from tests.support.ownership import SCOPE
from tests.support.registry import PASSWORD, USER, Registry

LISTING = os.path.join(os.path.dirname(__file__), "..", "support", "listing.py")
NET_RAW = struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)
"""The xattr security.capability of a file with cap_net_raw=ep (linux/capability.h, VFS_CAP_REVISION_2)."""


async def silent(_items: Any) -> None:
    """Watch nothing."""


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = kind, 1_600_000_000, 0o755 if kind == tarfile.DIRTYPE else 0o644
    xattrs = more.pop("xattrs", {})
    info.pax_headers = {
        f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape") for key, value in xattrs.items()
    }
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


BELOW = layer(
    member("etc", kind=tarfile.DIRTYPE),
    member("etc/owned", b"owned", uid=1000, gid=2000, mode=0o640),
    member("etc/gone", b"gone"),
    member("bin", kind=tarfile.DIRTYPE),
    member("bin/tool", b"tool", mode=0o755, xattrs={"user.note": b"a note", "security.capability": NET_RAW}),
    member("bin/same", kind=tarfile.LNKTYPE, linkname="bin/tool"),
    member("bin/link", kind=tarfile.SYMTYPE, linkname="/bin/tool"),
    member("bin/setuid", b"s", mode=0o4755),
    member("dir", kind=tarfile.DIRTYPE, mode=0o1777),
    member("dir/deep", b"deep"),
)
ABOVE = layer(
    member("etc", kind=tarfile.DIRTYPE),
    member("etc/.wh.gone"),
    member("etc/new", b"new" * 1000),
    member("dir", kind=tarfile.DIRTYPE, mode=0o700),
    member("dir/.wh..wh..opq"),
    member("dir/fresh", b"fresh"),
)


def skopeo(*words: str) -> None:
    program = need_program("skopeo", "skopeo")
    done = subprocess.run([program, "--insecure-policy", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def listing(tree: str) -> Any:
    done = subprocess.run([sys.executable, LISTING], cwd=tree, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


async def test_skopeo_and_umoci_see_our_tree(fake: FakeRegistry, registry: Registry, tmp_path: Path) -> None:
    umoci = need_program("umoci", "umoci")
    made = fake.image("t", [BELOW, ABOVE], config={"Cmd": ["/bin/tool"]})
    first, again = f"{registry.host}/trip/one:1", f"{registry.host}/trip/two:2"
    async with Service(str(tmp_path / "a")) as service:
        ours = json.loads(overlay(await service.layers(f"{fake.host}/a:t"), f"{sys.executable} {LISTING}"))
        pushed = await service.images.push(f"{fake.host}/a:t", first, None, silent)
    assert pushed.digest == made["digest"]
    skopeo("copy", "--src-tls-verify=false", f"docker://{first}", f"oci:{tmp_path}/layout:t")
    index = json.loads((tmp_path / "layout/index.json").read_text())
    assert index["manifests"][0]["digest"] == made["digest"]
    subprocess.run([umoci, "unpack", "--image", f"{tmp_path}/layout:t", f"{tmp_path}/bundle"], check=True)
    assert listing(f"{tmp_path}/bundle/rootfs") == ours
    assert ours["bin/tool"]["xattrs"] == {"security.capability": NET_RAW.hex(), "user.note": b"a note".hex()}
    assert ours["bin/tool"]["links"] == ["bin/same", "bin/tool"]
    assert "etc/gone" not in ours
    assert "dir/deep" not in ours
    skopeo("copy", "--dest-tls-verify=false", f"oci:{tmp_path}/layout:t", f"docker://{again}")
    async with Service(str(tmp_path / "b")) as other:
        assert json.loads(overlay(await other.layers(again), f"{sys.executable} {LISTING}")) == ours
        found = other.images.find(again)
        assert found is not None
        assert (found.id, found.repo_digests) == (made["id"], (f"{registry.host}/trip/two@{made['digest']}",))


def raw_manifest(name: str) -> bytes:
    command = [need_program("skopeo", "skopeo"), "inspect", "--raw", "--tls-verify=false", f"docker://{name}"]
    return subprocess.run(command, capture_output=True, check=True).stdout


@pytest.mark.parametrize("form", ["v2s2", "oci"])
async def test_a_manifest_goes_on_as_it_came(fake: FakeRegistry, registry: Registry, tmp_path: Path, form: str) -> None:
    fake.image("t", [BELOW])
    first, source, target = (f"{registry.host}/form/{form}-{name}:1" for name in ("first", "source", "target"))
    items: dict[str, Item] = {}

    async def watch(changed: Any) -> None:
        items.update({item.id: item for item in changed})

    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        await service.images.push(f"{fake.host}/a:t", first, None, silent)
        skopeo(
            *("copy", "--format", form, "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"docker://{first}", f"docker://{source}"),
        )
        pulled = await service.images.pull_watched(source, None, silent)
        pushed = await service.images.push(source, target, None, watch)
    assert pushed.digest == pulled.digest
    mounts = [line for line in registry.requests() if f"/v2/form/{form}-target/" in line and "mount=" in line]
    assert len(mounts) == 2
    assert sorted(item.state.name for item in items.values()) == ["DONE", "MOUNTED", "MOUNTED"]
    assert raw_manifest(source) == raw_manifest(target)
    assert b"docker.distribution.manifest.v2" in raw_manifest(target) or form == "oci"


async def test_a_large_blob_goes_in_pieces(fake: FakeRegistry, registry: Registry, tmp_path: Path) -> None:
    made = fake.image("t", [layer(member("big", os.urandom(3 << 20)))], pack=bytes)
    target = f"{registry.host}/large/blob:1"
    async with Service(str(tmp_path / "a"), chunk_bytes=1 << 20) as service:
        await service.images.pull(f"{fake.host}/a:t")
        pushed = await service.images.push(f"{fake.host}/a:t", target, None, silent)
    assert sum(line.startswith("PATCH /v2/large/blob/") for line in registry.requests()) == 4
    async with Service(str(tmp_path / "b")) as other:
        pulled = await other.images.pull_watched(target, None, silent)
    assert (pulled.id, pulled.digest) == (made["id"], pushed.digest)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Registry]:
    """Return a registry with TLS and a password, and its hosts.toml below `certs`."""
    directory = tmp_path / "registry"
    directory.mkdir()
    made = Registry(str(directory), private=True)
    SCOPE.live.append(made)
    hosts = tmp_path / "certs" / made.host
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "https://{made.host}"\nca = "{made.certificate}"\n')
    yield made
    SCOPE.live.remove(made)
    made.close()


async def test_a_private_registry(fake: FakeRegistry, private: Registry, tmp_path: Path) -> None:
    made = fake.image("t", [BELOW])
    target = f"{private.host}/secret/app:1"
    login = Credentials(username=USER, password=PASSWORD)
    async with Service(str(tmp_path / "a"), certs_d=(str(tmp_path / "certs"),)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        for wrong in (None, Credentials(username=USER, password="no")):
            with pytest.raises(UnauthenticatedError, match=f"{private.host}: access denied"):
                await service.images.push(f"{fake.host}/a:t", target, wrong, silent)
        pushed = await service.images.push(f"{fake.host}/a:t", target, login, silent)
    assert pushed.digest == made["digest"]
    async with Service(str(tmp_path / "b"), certs_d=(str(tmp_path / "certs"),)) as other:
        assert await other.images.pull(f"{private.host}/secret/app@{made['digest']}", login) == made["id"]
    async with Service(str(tmp_path / "c")) as stranger:
        await stranger.images.pull(f"{fake.host}/a:t")
        with pytest.raises(FailedPreconditionError, match=f'server = "https://{private.host}"'):
            await stranger.images.push(f"{fake.host}/a:t", target, login, silent)
