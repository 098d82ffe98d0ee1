"""Fuzzing the extraction: whatever a layer holds, nothing outside of its directory changes, and the end is a known one.

The archives are made of a few names that meet again and again: links to directories outside and inside, climbing
names, whiteouts, hard links, devices, entries below links and files. The extracting child is the real one; what it
reports goes through the same settling on a lower layer as in a pull.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import CrishimError
from crishim.images.settle import mark_opaque, settle, stands_alone
from crishim.linux.trees import remove_tree
from crishim.unpack import extract
from crishim.unpack.layerstream import TOTAL
from tests.support.abilities import need_extraction
from tests.support.fuzzing import fuzzed
from tests.support.tars import archive, info

_PARTS = ["a", "b", "c", "..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", ".wh..", "\n", "\udcff", "l" * 256]
_NAMES = st.lists(st.sampled_from(_PARTS[:3] * 12 + _PARTS[:9] * 2 + _PARTS), min_size=1, max_size=4).map("/".join)
_KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"Z"]
_XATTRS = [
    "user.x",
    "trusted.overlay.opaque",
    "user.overlay.redirect",
    "security.capability",
    "system.posix_acl_default",
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `outside`, which links lead to, and room for layers beside it."""
    need_extraction()
    top = tmp_path_factory.mktemp("fuzz")
    (top / "outside" / "a").mkdir(parents=True)
    (top / "outside" / "a" / "b").write_text("kept", encoding="utf-8")
    (top / "outside" / "c").symlink_to("a")
    return top


@st.composite
def _entries(draw: st.DrawFn) -> list[dict[str, Any]]:
    kinds = st.sampled_from(_KINDS[:4] * 12 + _KINDS)
    entries = []
    for _ in range(draw(st.integers(1, 8))):
        kind = draw(kinds)
        entry: dict[str, Any] = {"name": draw(_NAMES), "type": kind, "mode": draw(st.sampled_from([0o755, 0o4777, 0]))}
        if kind == tarfile.SYMTYPE:
            # `OUTSIDE` is replaced by the absolute path of the directory that must not change.
            targets = st.sampled_from(["OUTSIDE", "OUTSIDE/a", "/", "..", "../outside", "a", "/a", "b/../..", "x"])
            entry["linkname"] = draw(targets | _NAMES)
        elif kind == tarfile.LNKTYPE:
            entry["linkname"] = draw(_NAMES | st.sampled_from(["a", "b", "a/b", "OUTSIDE/a/b", "../outside/a/b"]))
        elif kind == tarfile.REGTYPE:
            entry["data"] = b"!" * draw(st.sampled_from([0, 1, 5000]))
        if draw(st.integers(0, 9)) == 0:
            entry["pax_headers"] = {f"SCHILY.xattr.{name}": "y" for name in draw(st.sets(st.sampled_from(_XATTRS)))}
        entries.append(entry)
    return entries


def _layer(entries: Sequence[Mapping[str, Any]], outside: str) -> bytes:
    def fill(file: tarfile.TarFile) -> None:
        for entry in entries:
            more = {key: value for key, value in entry.items() if key not in {"name", "data"}}
            if "linkname" in more:
                more["linkname"] = more["linkname"].replace("OUTSIDE", outside)
            data = entry.get("data", b"")
            file.addfile(info(entry["name"], len(data), **more), io.BytesIO(data))

    return archive(fill)


def _extracted(data: bytes, directory: str, renames: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the child as the spawner does, by fork; return its report."""
    remove_tree(directory)
    os.mkdir(directory, 0o755)
    source, report = os.memfd_create("layer"), os.memfd_create("report")
    os.write(source, data)
    told, tell = os.pipe()
    os.write(tell, len(data).to_bytes(TOTAL, "little"))
    dest = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pid = os.fork()
        if pid == 0:
            try:
                diff_id = f"sha256:{hashlib.sha256(data).hexdigest()}"
                options = {"size": len(data), "diff_id": diff_id, "renames": dict(renames or {}), "max_entries": 100}
                extract.run((source, told, dest, report), options)
            finally:
                os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        found: dict[str, Any] = json.loads(os.pread(report, 1 << 20, 0))
        return found
    finally:
        for fd in (source, report, dest, told, tell):
            os.close(fd)


def _state(top: Path) -> list[tuple[Any, ...]]:
    """Return all that can be seen of what must not change."""
    places = [top, Path("/"), Path("/tmp"), *sorted((top / "outside").rglob("*")), top / "outside"]
    seen: list[tuple[Any, ...]] = []
    for place in places:
        stat = place.lstat()
        ours = top in place.parents
        # Of the machine's own directories only the names that the archives use: others work here too.
        names = sorted(os.listdir(place)) if ours and place.is_dir() else [n for n in "abcx" if (place / n).exists()]
        about = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_nlink, stat.st_ino)
        times = (stat.st_mtime_ns, stat.st_ctime_ns) if ours else ()
        seen.append((str(place), *(about if ours else ()), *times, names, os.listxattr(place, follow_symlinks=False)))
    return seen


def _settled(report: Mapping[str, Any], data: bytes, directory: str, below: Sequence[str]) -> None:
    """What `assemble` does with a layer, in short; any error of the disk or of the layer is fine."""
    renames: dict[str, str] = {}
    for _ in range(20):
        more = {} if stands_alone(report) else settle(directory, report, below)[0]
        if not more or not more.keys() - renames.keys():
            break
        renames |= more
        report = _extracted(data, directory, renames)
        if not report.get("ok"):
            return
    mark_opaque(directory, report)


@fuzzed(60)
@given(layers=st.lists(_entries(), min_size=1, max_size=3))
def test_nothing_outside_of_a_layer_changes(ground: Path, layers: list[list[dict[str, Any]]]) -> None:
    before = _state(ground)
    below: list[str] = []
    for number, entries in enumerate(layers):
        data = _layer(entries, str(ground / "outside"))
        directory = str(ground / f"layer{number}")
        report = _extracted(data, directory)
        assert report.get("ok") or report["kind"] in {"tar", "os"}, report
        assert _state(ground) == before
        if not report.get("ok"):
            break
        try:
            _settled(report, data, directory, below)
        except CrishimError:
            break
        finally:
            assert _state(ground) == before
        below.append(directory)
    for directory in below:
        remove_tree(directory)
    assert _state(ground) == before
