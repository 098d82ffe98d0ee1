"""The floor's reader of kernel calls: what it runs and what it refuses. No root is needed for a plain clone3."""

import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.benchlib import floor
from tests.support.surroundings import ABSENT

PLAIN = (
    "[make]\nmkdir\t{dir}\t448\nclone3\t0\n"
    "[child]\nexecve\t/bin/sh\t3\t/bin/sh\t-c\t{command}\n"
    "[delete]\nrmdir\t{dir}\n"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("cc") is None:
        pytest.skip("lacks a C compiler as cc (Debian package gcc; scripts/install brings it)")
    return floor.build(str(tmp_path_factory.mktemp("floor")))


def run(program: str, path: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    path.write_text(text)
    return subprocess.run([program, *options, str(path)], capture_output=True, text=True, check=False)


def test_it_prints_one_time_a_turn_and_leaves_nothing(program: str, tmp_path: Path) -> None:
    text = PLAIN.format(dir=tmp_path / "made", command="test%20-d%20" + str(tmp_path / "made"))
    done = run(program, tmp_path / "calls", text, "--loop", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(int(line) > 0 for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 3
    assert not (tmp_path / "made").exists()


def test_a_loop_of_none_makes_no_call(program: str, tmp_path: Path) -> None:
    done = run(program, tmp_path / "calls", PLAIN.format(dir=f"{ABSENT}/place", command="true"), "--loop", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_failed_call_is_named_with_its_line(program: str, tmp_path: Path) -> None:
    done = run(program, tmp_path / "calls", PLAIN.format(dir=f"{ABSENT}/place", command="true"))
    assert done.returncode == 125
    assert done.stderr == f"{tmp_path / 'calls'}:2: mkdir: No such file or directory\n"


def test_an_optional_call_may_fail(program: str, tmp_path: Path) -> None:
    text = PLAIN.format(dir=tmp_path / "made", command="true")
    text = text.replace("[child]\n", f"[child]\n?rmdir\t{ABSENT}/place\n")
    assert run(program, tmp_path / "calls", text).returncode == 0


def test_a_child_that_fails_is_an_error(program: str, tmp_path: Path) -> None:
    done = run(program, tmp_path / "calls", PLAIN.format(dir=tmp_path / "made", command="exit%203"))
    assert done.returncode == 1
    assert "ended with status 0x300" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[make]\nreboot\n", "2: unknown call"),
        ("mkdir\t/x\t0\n", "1: no section, or too many calls"),
        ("[make]\nmkdir\t/x\t0\n", "[make] must end with clone3"),
        ("[make]\nclone3\t0\n[child]\nsetsid\n", "[child] must end with execve"),
        ("[make]\nmkdir\t/x\nclone3\t0\n[child]\nexecve\t/bin/true\t0\n", "2: too few fields"),
        ("[make]\nclone3\tmany\n[child]\nexecve\t/bin/true\t0\n", "2: not a number"),
    ],
)
def test_what_it_does_not_understand_it_refuses(program: str, tmp_path: Path, text: str, said: str) -> None:
    done = run(program, tmp_path / "calls", text)
    assert done.returncode == 2
    assert said in done.stderr


def test_wrong_usage_is_one_line(program: str) -> None:
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: floor [--loop N] [--pause MS] FILE\n")
