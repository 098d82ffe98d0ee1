"""The test image: Debian's static busybox with its applets as hard links, curl with its libraries, and a web page.

Hard links, not symbolic ones: a mask over /bin/ls must not mask the shell. Run as a program, this writes the image
as an OCI layout (`python -m tests.support.busybox DIRECTORY`), which is how scripts/quickstart makes its image.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable

from tests.support.layout import Entry, ImagePlan, directory, hardlink, symlink, write

PAGE = b"Hello from crishim.\n"
"""What the image's web server answers at /."""

_PASSWD = b"""\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
www-data:x:33:33:www-data:/var/www:/bin/sh
tester:x:1000:1000:tester:/home/tester:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP = b"""\
root:x:0:
daemon:x:1:
www-data:x:33:
tester:x:1000:
extra:x:50000:tester
nogroup:x:65534:
"""
_HTTPD = ["httpd", "-f", "-p", "8080", "-h", "/www"]


def find_busybox() -> str:
    """Return the path of a static busybox."""
    path = shutil.which("busybox") or "/bin/busybox"
    if not os.path.exists(path):
        raise FileNotFoundError("busybox is not installed: apt-get install busybox-static")
    return path


def base_entries() -> list[Entry]:
    """Return the entries of the base system: busybox, users, usual directories."""
    path = find_busybox()
    with open(path, "rb") as file:
        program = file.read()
    applets = subprocess.run([path, "--list"], check=True, capture_output=True, text=True).stdout.split()
    folders = ("bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "usr/sbin", "var", "www")
    entries = [directory(name) for name in folders]
    entries += [
        directory("tmp", 0o1777),
        directory("home/tester", 0o750, 1000, 1000),
        symlink("sbin", "bin"),
        symlink("var/run", "/run"),
        Entry("bin/busybox", program, 0o755),
        Entry("etc/passwd", _PASSWD),
        Entry("etc/group", _GROUP),
        Entry("www/index.html", PAGE),
    ]
    entries += [hardlink(f"bin/{name}", "bin/busybox") for name in applets if name != "busybox"]
    return entries


def curl_entries() -> list[Entry]:
    """Return the machine's curl with the libraries that it loads; busybox's wget under that name where it has none."""
    path = shutil.which("curl")
    if path is None:
        return [Entry("usr/bin/curl", b'#!/bin/sh\nfor url; do :; done\nexec wget -q -O - "$url"\n', 0o755)]
    entries = [Entry("usr/bin/curl", _bytes(path), 0o755)]
    for library in _libraries(path):
        entries += _with_parents(library)
    return entries


def _libraries(path: str) -> Iterable[str]:
    output = subprocess.run(["ldd", path], check=True, capture_output=True, text=True).stdout
    for line in output.splitlines():
        words = [word for word in line.split() if word.startswith("/")]
        if words:
            yield words[0]


def _with_parents(path: str) -> list[Entry]:
    parts = path.lstrip("/").split("/")
    parents = [directory("/".join(parts[:n])) for n in range(1, len(parts))]
    return [p for p in parents if p.path not in {"usr", "usr/bin"}] + [Entry(path.lstrip("/"), _bytes(path), 0o755)]


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def plan() -> ImagePlan:
    """Return the test image: the system in one layer, curl in a second one."""
    return ImagePlan(
        layers=[base_entries(), curl_entries()],
        config={"Env": ["PATH=/bin:/usr/bin:/usr/sbin", "IMAGE_VARIABLE=from the image"], "Cmd": _HTTPD},
    )


if __name__ == "__main__":
    print(write(sys.argv[1], plan()))
