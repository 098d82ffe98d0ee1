"""`crishim COMMAND …`: finds the command and turns every outcome into an exit status.

0: done. 1: it failed. 2: the command line, the configuration or other input is wrong. Only the chosen command's
module is imported. Invariant: an error is a sentence on standard error, never a traceback.
"""

import importlib
import keyword
import os
import sys
from collections.abc import Sequence

from crishim.errors import CrishimError, InvalidArgumentError
from crishim.version import VERSION
from crishim.words import shown

COMMANDS = {
    "serve": "run the daemon",
    "check": "show what this host can and lacks, each with the remedy",
    "config": "print the default or the effective configuration, or check a file",
    "plan": "print the frozen plan that a container is started by",
    "ps": "show containers with their pods",
    "logs": "print what a container has written",
    "events": "follow what happens to pods and containers",
    "stats": "show what containers use",
    "top": "show what pods use, again and again",
    "inspect": "print all that the daemon tells of a container or pod",
    "pull": "get images from their registries",
    "push": "send an image to a registry",
    "images": "show the images that are here",
    "tag": "give an image more names",
    "rmi": "take names of images away, and images with their last name",
    "prune": "remove images that nothing uses",
    "save": "write images to an archive",
    "load": "take in the images of an archive",
    "import": "make an image from the tarball of a root file system",
    "version": "print the version",
}

WHERE = frozenset({"--socket", "--state", "--config"})
"""Options that may stand before the command."""

FAILED = 1
USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    _open_closed()
    try:
        status = _dispatch(words)
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except InvalidArgumentError as error:
        return _fail(str(error), USAGE)
    except CrishimError as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has left (`crishim config default | head`); what is buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except UnicodeEncodeError as error:
        return _fail(f"{error.object!r} is not UTF-8", USAGE)
    except Exception as error:  # noqa: BLE001  the border to the user: one sentence, no traceback
        return _fail(f"internal error: {type(error).__name__}: {error}", FAILED)
    return status


def _open_closed() -> None:
    """Give the streams that the caller has closed (`>&-`) to the null device; Python leaves None in their place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  open as long as the process


def _dispatch(words: list[str]) -> int:
    if not words:
        return _fail("no command given, see 'crishim --help'", USAGE)
    leading, words = _split(words)
    if not words:
        return _fail(f"no command after {leading[0]}, see 'crishim --help'", USAGE)
    name, rest = words[0], [*leading, *words[1:]]
    if name in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0
    if name in {"-V", "--version", "version"}:
        sys.stdout.write(f"crishim {VERSION}\n")
        return 0
    if name not in COMMANDS:
        return _fail(f"unknown command {name!r}, see 'crishim --help'", USAGE)
    module = f"{name}_" if keyword.iskeyword(name) else name
    status: int = importlib.import_module(f"crishim.cli.{module}").run(rest)
    return status


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off the options before the command that tell which daemon is meant; they count as if they came after it."""
    count = 0
    while count < len(words) and words[count].partition("=")[0] in WHERE:
        count += 1 if "=" in words[count] else 2
    return words[:count], words[count:]


def _help() -> str:
    rows = "\n".join(f"  {name:9} {text}" for name, text in COMMANDS.items())
    return (
        "usage: crishim COMMAND [ARGUMENT …]\n\n"
        "A Kubernetes container runtime: one daemon that serves the CRI, with its own engine.\n\n"
        f"commands:\n{rows}\n\n'crishim COMMAND --help' tells more.\n"
    )


def _fail(text: str, status: int) -> int:
    sys.stdout.flush()
    for line in text.split("\n"):
        sys.stderr.write(f"crishim: {shown(line)}\n")
    return status
