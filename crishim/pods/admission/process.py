"""What a container runs: command, environment, working directory, stdin, stop signal."""

from collections.abc import Sequence

from crishim.pods import signals
from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import ContainerConfig


def container(problems: Problems, config: ContainerConfig) -> None:
    """Judge what a container runs; whether there is anything to run is known with the image only."""
    checks.c_strings(problems, "config.command", config.command)
    checks.c_strings(problems, "config.args", config.args)
    checks.c_string(problems, "config.working_dir", config.working_dir)
    _environment(problems, config.envs)
    if config.stdin_once and not config.stdin:
        problems.add("config.stdin_once", "needs stdin")
    if config.stop_signal:
        signals.check(problems, "config.stop_signal", config.stop_signal)


def command(problems: Problems, words: Sequence[str]) -> None:
    """Judge the command of ExecSync."""
    if not words:
        problems.add("cmd", "is missing: give the program and its arguments")
    elif not words[0]:
        problems.add("cmd[0]", "must name a program, is empty")
    checks.c_strings(problems, "cmd", words)


def seconds(problems: Problems, timeout: int) -> None:
    """Judge the timeout of a call."""
    if timeout < 0:
        problems.add("timeout", f"must be a number of seconds from 0 on, is {timeout}")


def _environment(problems: Problems, variables: Sequence[tuple[str, bytes]]) -> None:
    for n, (name, value) in enumerate(variables):
        at = f"config.envs[{n}]"
        checks.given(problems, f"{at}.key", name)
        if "=" in name:
            problems.add(f"{at}.key", f"must not contain '=', is {name!r}")
        if b"\0" in value:
            problems.add(f"{at}.value", f"must not contain a NUL byte ({name})")
