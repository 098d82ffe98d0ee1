"""The bench's ground: a new file system for each pull, and nothing of it afterwards."""

import os
import subprocess
from pathlib import Path

import pytest

from scripts.benchlib import ground
from tests.support.abilities import can_mount


def test_a_fresh_file_system_comes_and_goes(tmp_path: Path) -> None:
    if not can_mount():
        pytest.skip("lacks the ability to mount file systems (CAP_SYS_ADMIN)")
    root, scratch = tmp_path / "root", tmp_path / "scratch"
    root.mkdir()
    scratch.mkdir()
    for _ in range(2):
        with ground.fresh(str(root), str(scratch)) as made:
            if not made:
                pytest.skip("lacks the ability to make loop devices or ext4 (/dev/loop-control, mkfs.ext4)")
            assert os.stat(root).st_dev != os.stat(scratch).st_dev
            assert os.listdir(root) == ["lost+found"]
            assert os.stat(root).st_mode & 0o777 == 0o711
            (root / "file").write_bytes(b"x" * 100_000)
        assert os.listdir(root) == []
        assert os.listdir(scratch) == []
    loops = subprocess.run(["losetup", "-a"], check=False, capture_output=True, text=True).stdout
    assert str(tmp_path) not in loops


def test_without_loop_devices_the_directory_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "kept").touch()
    with ground.fresh(str(tmp_path / "root"), str(tmp_path)) as made:
        assert made is False
        assert os.listdir(tmp_path / "root") == ["kept"]
    assert os.listdir(tmp_path) == ["root"]
