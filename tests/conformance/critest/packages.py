"""Debian packages as files: downloaded with apt, unpacked below the cache, never installed.

apt verifies what it downloads against Debian's keys. Sources come from the machine's own mirrors: its lists are read
as if they said `deb-src`, into a directory of ours, so that the machine's configuration stays as it is.
"""

import glob
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
CACHE = os.path.join(os.environ.get("CRISHIM_CACHE") or os.path.join(_ROOT, ".cache"), "critest")
"""Where everything that takes long to make is kept between runs."""

_LISTS = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources")
_DEBIAN = re.compile(r"https?://[^\s]*debian[^\s]*")


def run(*command: str, directory: str = "") -> str:
    """Run a program and return its stdout; a failure shows what it wrote."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory or None)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: exit status {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def say(text: str) -> None:
    """Tell the person who waits what is done now."""
    print(f"critest images: {text}", file=sys.stderr, flush=True)


def need_debian() -> None:
    """Skip where packages cannot be had: the images are made of Debian's."""
    if not os.path.exists("/etc/debian_version") or os.geteuid() != 0:
        pytest.skip("lacks the ability to fetch Debian packages (Debian, and root for apt)")


def unpack(names: Sequence[str], directory: str) -> None:
    """Download packages and unpack them, one over the other, into `directory`."""
    say(f"fetching {' '.join(names)}")
    downloads = os.path.join(directory, ".packages")
    os.makedirs(downloads)
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *names]
    try:
        run(*command, directory=downloads)
    except RuntimeError:  # no lists yet, or they name versions that the mirror no longer has
        run("apt-get", "-qq", "update")
        run(*command, directory=downloads)
    for package in sorted(glob.glob(f"{downloads}/*.deb")):
        run("dpkg-deb", "-x", package, directory)


def source(name: str, directory: str) -> str:
    """Download a source package into `directory`; return the path of its upstream tarball."""
    say(f"fetching the source of {name}")
    lists = os.path.join(directory, "lists")
    os.makedirs(os.path.join(lists, "partial"))
    written = os.path.join(directory, "sources.list")
    with open(written, "w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in source_lines(_machine_lists()))
    options = ["-qq", "-o", f"Dir::Etc::sourcelist={written}", "-o", "Dir::Etc::sourceparts=-"]
    options += ["-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root"]
    run("apt-get", *options, "update")
    run("apt-get", *options, "source", "--download-only", name, directory=directory)
    found = glob.glob(f"{glob.escape(directory)}/*.orig.tar.*")
    return next(path for path in found if not path.endswith(".asc"))


def _machine_lists() -> list[str]:
    texts = []
    for pattern in _LISTS:
        for path in sorted(glob.glob(pattern)):
            with open(path, encoding="utf-8") as file:
                texts.append(file.read())
    return texts


def source_lines(texts: Sequence[str]) -> list[str]:
    """Return `deb-src` lines for the Debian archives that apt's files (both formats, sources.list(5)) name."""
    lines = []
    for text in texts:
        for stanza in re.split(r"\n\s*\n", text):
            fields = dict(re.findall(r"^([A-Za-z-]+):[ \t]*(.*)$", stanza, re.MULTILINE))
            if "URIs" in fields and fields.get("Enabled", "yes") != "no":
                lines += _lines(fields)
            lines += re.sub(r"(?m)^\s*deb(-src)?\s", "deb-src ", stanza).splitlines() if "URIs" not in fields else []
    return sorted({line for line in lines if line.startswith("deb-src ") and _DEBIAN.search(line)})


def _lines(fields: dict[str, str]) -> list[str]:
    signed = f"[signed-by={fields['Signed-By']}] " if fields.get("Signed-By", "").startswith("/") else ""
    return [
        f"deb-src {signed}{uri} {suite} {fields.get('Components', '')}".rstrip()
        for uri in fields["URIs"].split()
        for suite in fields.get("Suites", "").split()
    ]
