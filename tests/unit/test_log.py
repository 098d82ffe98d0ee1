"""The log's forms, levels and what it hides."""

import json
import os
import subprocess
import sys

import pytest

PRELUDE = """
import logging, sys, threading
from crishim.log import configure, get_logger, structlog
log = get_logger("crishim.test")
"""


def run(code: str, form: str = "console", level: str = "info") -> list[str]:
    text = f"{PRELUDE}\nconfigure({level!r}, {form!r})\n{code}"
    done = subprocess.run([sys.executable, "-W", "error", "-c", text], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    return done.stderr.split("\n")[:-1]


def test_console_line() -> None:
    (line,) = run("""
with structlog.contextvars.bound_contextvars(rpc="StartContainer"):
    log.info("started it", ms=1.5, path="/a b", n=None, tags=["x"], bare="a/b:c", empty="", quote='"', nl="a\\nb")
""")
    moment, rest = line.split(" ", 1)
    assert len(moment) == len("2026-11-25T10:32:47.123456Z")
    assert rest == (
        'info    crishim.test  started it  ms=1.5 path="/a b" tags=["x"] bare=a/b:c empty="" quote="\\""'
        ' nl="a\\nb" rpc=StartContainer'
    )


def test_json_line() -> None:
    (line,) = run('log.warning("odd\\nname", data=b"\\xff\\x00", who={"a": {1}}, error=ValueError("no"))', "json")
    document = json.loads(line)
    assert document.pop("time").endswith("Z")
    assert document == {
        "level": "warning",
        "logger": "crishim.test",
        "event": "odd\nname",
        "data": "\\xff\x00",
        "who": {"a": [1]},
        "error": "no",
    }


def test_a_line_stays_one_line() -> None:
    assert len(run('log.error("a\\nb", c="d\\ne\\r")')) == 1


def test_levels_change_at_run_time() -> None:
    lines = run("""
log.debug("1"); log.info("2")
configure("debug", "console"); log.debug("3")
configure("error", "json"); log.warning("4"); log.error("5")
""")
    assert [line.split()[-1] for line in lines[:2]] == ["2", "3"]
    assert json.loads(lines[2])["event"] == "5"
    assert len(lines) == 3


def test_exceptions_bring_their_stack_once() -> None:
    lines = run("""
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed", at="x")
""")
    assert lines[0].endswith("failed  at=x")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_what_goes_past_the_log_is_caught() -> None:
    lines = run(
        """
logging.getLogger("urllib3").warning("retry %s", "http://u:pw@h/")
logging.getLogger("grpc").info("chatter")
def die(): raise RuntimeError("in a thread")
t = threading.Thread(target=die); t.start(); t.join()
raise KeyError("the end")
""",
        "json",
    )
    events = [json.loads(line) for line in lines]
    assert [(e["level"], e["logger"], e["event"]) for e in events] == [
        ("warning", "urllib3", "retry http://u:***@h/"),
        ("error", "crishim", "unhandled in a thread"),
        ("critical", "crishim", "unhandled"),
    ]
    assert "RuntimeError: in a thread" in events[1]["stack"]
    assert "KeyError: 'the end'" in events[2]["stack"]


@pytest.mark.parametrize("form", ["console", "json"])
def test_secrets_are_hidden(form: str) -> None:
    lines = run(
        """
from dataclasses import dataclass
@dataclass
class Login:
    username: str
    password: str
    identity_token: str = "hunter2"
log.info("GET https://me:hunter2@host/v2/?service=x&access_token=hunter2&n=1", login=Login("me", "hunter2"),
         registry_token="hunter2", headers={"Authorization": "Bearer hunter2hunter2"}, auth="hunter2",
         text="sent Authorization: Basic aHVudGVyMjpodW50ZXIy to h", url="https://s3/x?X-Amz-Signature=hunter2",
         tokens=3, author="jane")
try:
    raise ValueError("https://me:hunter2@host/")
except ValueError:
    log.exception("failed")
""",
        form,
    )
    text = "\n".join(lines)
    assert "hunter2" not in text
    assert "aHVudGVy" not in text
    assert "n=1" in text
    assert "jane" in text
    assert "me" in text


def test_file_and_rotation(tmp_path: object) -> None:
    path = f"{tmp_path}/d.log"
    assert (
        run(f"""
configure("info", "console", {path!r}); log.info("one")
import os
os.rename({path!r}, {path + ".1"!r}); log.info("two")
configure("info", "console", {path!r}); log.info("three")
try:
    configure("debug", "console", "/proc/none/x.log")
except FileNotFoundError:
    log.debug("not written"); log.info("four")
""")
        == []
    )
    with open(path + ".1", encoding="utf-8") as file:
        assert [line.split()[-1] for line in file] == ["one", "two"]
    with open(path, encoding="utf-8") as file:
        assert [line.split()[-1] for line in file] == ["three", "four"]
    assert os.stat(path).st_mode & 0o777 == 0o640


def test_a_log_that_cannot_be_written_fails_nothing() -> None:
    code = f"{PRELUDE}\nconfigure('info', 'json', '/dev/full')\nlog.info('lost')\nprint('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("alive\n", "")


def test_no_console_library_is_loaded() -> None:
    code = "import sys, crishim.log; print('rich' in sys.modules, 'crishim.config' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
