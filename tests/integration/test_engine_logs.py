"""Logs outlive their keepers: SIGKILL at any instant under floods, and a state directory that is full."""

import glob
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from crishim.engine.keeper.state import SHORT, State
from crishim.engine.messages import ContainerRecord, Running
from tests.support.log_keepers import STREAMS, line

ROOT = Path(__file__).parents[2]
RECORD = re.compile(rb"\S{30} (stdout|stderr) ([PF]) ([^\n]*\n)")


def streams(path: str) -> dict[str, bytes]:
    """Return what each stream wrote, from a log and the files that it was rotated to."""
    data = b"".join(Path(name).read_bytes() for name in [*sorted(glob.glob(f"{path}.*")), path])
    parts: dict[str, list[bytes]] = {name: [] for name in STREAMS}
    at = 0
    for record in RECORD.finditer(data):
        assert record.start() == at
        at = record.end()
        parts[record[1].decode()].append(record[3] if record[2] == b"F" else record[3][:-1])
    assert at == len(data)
    return {name: b"".join(found) for name, found in parts.items()}


def test_killed_keepers_lose_and_double_no_line_of_flooding_containers(tmp_path: Path) -> None:
    count = 24
    ran = subprocess.run(
        [sys.executable, "-m", "tests.support.log_keepers", str(tmp_path), str(count), "40"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    for number, counts in enumerate(json.loads(ran.stdout)):
        found = streams(f"{tmp_path}/{number}.log")
        for name in STREAMS:
            assert counts[name] > 0
            wanted = b"".join(line(name, n) for n in range(counts[name]))
            assert found[name] == wanted, f"{number} {name}: {len(found[name])} bytes, wanted {len(wanted)}"


@pytest.fixture
def tight(tmp_path: Path) -> Iterator[Path]:
    """Return a tmpfs of eight pages."""
    place = tmp_path / "tight"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tight", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_state_directory_is_an_error_and_never_a_signal(tight: Path) -> None:
    record = cast("ContainerRecord", {"version": 2, "id": "c"})
    state = State.make(str(tight / "c-a"), record)
    State.make(str(tight / "c-b"), record).close()
    with pytest.raises(OSError, match="No space left"):
        State.make(str(tight / "c-c"), cast("ContainerRecord", {**record, "log_path": "x" * 20_000}))
    assert sorted(path.name for path in tight.iterdir()) == ["c-a", "c-b"]
    (tight / "filler").write_bytes(b"x" * 4 * 4096)
    assert not state.room(0)
    for index in (0, 1, 0, 1):
        state.begin(index, 1, (2, 3), 4)
        state.finish(index, b"x" * SHORT)
    state.runs(cast("Running", {"id": "c", "pid": 1, "start_time": 2, "started_at": 3, "user": None}))
    loaded = State.load(str(tight / "c-a"))
    assert loaded.pending == [b"x" * SHORT] * 2
    assert loaded.record == state.record
    loaded.close()
    state.remove()
