"""The command line: what it prints, and how it ends when something is wrong."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from crishim.cli.main import COMMANDS
from crishim.cli.plan import plan_of
from crishim.config.load import OPTIONS
from crishim.errors import NotFoundError
from crishim.version import VERSION
from tests.support.surroundings import ABSENT


def crishim(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-m", "crishim", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ([], 2, "crishim: no command given, see 'crishim --help'"),
        (["frob"], 2, "crishim: unknown command 'frob', see 'crishim --help'"),
        (["serve", "--rot", "/x"], 2, "crishim serve: unrecognized arguments: --rot /x (see 'crishim serve --help')"),
        (["serve", "--root"], 2, "crishim serve: argument --root: expected one argument (see 'crishim serve --help')"),
        (["serve", "--root", "x"], 2, "crishim: --root: must be an absolute path, is 'x'"),
        (["serve", "--log-level", "x"], 2, "crishim: --log-level: must be one of debug, info, warning, error, is 'x'"),
        (["config"], 2, "crishim config: the following arguments are required: default|show|check "),
        (["config", "frob"], 2, "crishim config: argument default|show|check: invalid choice: 'frob' "),
        (["config", "check", ABSENT], 2, f"crishim: {ABSENT}: cannot be read: No such file or directory"),
        (["serve", "--config", ABSENT], 2, f"crishim: {ABSENT}: cannot be read: No such file or directory"),
        (["plan"], 2, "crishim plan: the following arguments are required: ID (see 'crishim plan --help')"),
        (["plan", "--socket", f"{ABSENT}/s", "x"], 1, f"crishim: no daemon serves on {ABSENT}/s: start "),
    ],
)
def test_errors_are_one_line_and_a_status(words: list[str], status: int, text: str) -> None:
    done = crishim(*words)
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr.startswith(text)
    assert done.stderr.count("\n") == 1


def test_unknown_key_of_a_file_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('[log]\nlevle = "info"\n')
    for words in (
        ["config", "check", str(path)],
        ["config", "show", "--config", str(path)],
        ["serve", "--config", str(path)],
    ):
        done = crishim(*words)
        assert done.returncode == 2
        assert done.stderr == f"crishim: {path}:2: log.levle: unknown key, did you mean 'log.level'?\n"


def test_config_commands(tmp_path: Path) -> None:
    default = crishim("config", "default")
    assert default.returncode == 0
    path = tmp_path / "c.toml"
    path.write_text(default.stdout)
    assert crishim("config", "check", str(path)).stdout == f"{path}: ok\n"
    show = crishim("config", "show", "--config", str(path), "--subnet", "10.9.0.0/16", "--subnet", "fd00::/64")
    assert tomllib.loads(show.stdout)["network"]["subnets"] == ["10.9.0.0/16", "fd00::/64"]


def test_help_and_version() -> None:
    assert crishim("version").stdout == crishim("--version").stdout == f"crishim {VERSION}\n"
    text = crishim("--help")
    assert text.returncode == 0
    for command in COMMANDS:
        assert f"\n  {command} " in text.stdout
        assert command == "version" or crishim(command, "--help").stdout.startswith(f"usage: crishim {command} ")


def test_every_flag_of_serve_has_the_help_of_its_option() -> None:
    text = " ".join(crishim("serve", "--help").stdout.split())
    flags = [item.spec for item in OPTIONS.values() if item.spec.flag]
    assert {spec.flag for spec in flags} == {
        "--root", "--state", "--socket", "--metrics-listen", "--cgroup-parent",
        "--bridge", "--subnet", "--cni-conf-dir", "--log-level", "--log-format",
    }  # fmt: skip
    for spec in flags:
        assert f"{spec.flag} " in text
        assert spec.help.split(".")[0].split("-")[0] in text


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "crishim", "config", "default"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


def test_short_commands_import_nothing_heavy() -> None:
    heavy = ("grpc", "asyncio", "sqlite3", "structlog", "google.protobuf", "urllib3", "rich")
    code = (
        "import sys; from crishim.cli.main import main\n"
        "assert main(['config', 'default']) == 0\n"
        f"sys.stderr.write(str([m for m in {heavy} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]"


def test_plan_of_verbose_info() -> None:
    assert plan_of({"plan": '{"argv":["/bin/true"]}'}, "x") == {"argv": ["/bin/true"]}
    assert plan_of({"info": '{"pid":3,"plan":{"a":1}}'}, "x") == {"a": 1}
    with pytest.raises(NotFoundError, match="knows no plan of container x"):
        plan_of({"info": "{}"}, "x")


def test_check_names_what_is_lacking_with_its_remedy(tmp_path: Path) -> None:
    done = crishim("check", "--json", "--state", str(tmp_path / "state"), "--root", str(tmp_path / "root"))
    found = json.loads(done.stdout)
    assert {row["level"] for row in found} <= {"ok", "warn", "error"}
    assert all(row["remedy"] for row in found if row["level"] != "ok")
    assert done.returncode == (1 if any(row["level"] == "error" for row in found) else 0)
    text = crishim("check", "--state", str(tmp_path / "state"), "--root", str(tmp_path / "root"))
    assert text.stdout.rstrip().split("\n")[-1].startswith("this host can")
    for row in found:
        assert f"{row['level']:5} {row['name']} " in text.stdout
    assert os.listdir(tmp_path) == []


def test_check_with_a_wrong_flag() -> None:
    done = crishim("check", "--root", "relative")
    assert (done.returncode, done.stderr) == (2, "crishim: --root: must be an absolute path, is 'relative'\n")


@pytest.mark.parametrize(("words", "status"), [("version >&-", 0), ("nothing >&- 2>&-", 2), ("--help >&-", 0)])
def test_closed_streams(words: str, status: int) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {sys.executable} -m crishim {words}"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (status, "")
