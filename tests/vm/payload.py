"""What a guest gets on its second disk, a tar archive: crishim as a wheel with its dependencies, crictl, the checks.

Made anew at each run, which takes seconds: the dependencies, fetched for the guest's own Python, are kept below .cache.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib

_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_SOURCES = ("crishim", "pyproject.toml", "README.md", "LICENSE")
# pip does not derive older platforms from newer ones; Debian 12 has glibc 2.36
_PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{n}_x86_64" for n in range(17, 37)), "linux_x86_64")


class PayloadError(Exception):
    """Something that the guest needs could not be had, and why."""


def make(path: str, suite: str, python: str, cache: str) -> None:
    """Write the archive for a run of `suite`.

    Args:
        path: of the archive.
        suite: name of the module of checks below `inside` that is run.
        python: version of the guest's interpreter, like `3.13`.
        cache: the checkout's .cache, which has crictl.

    Raises:
        PayloadError: what could not be had.
    """
    crictl = f"{cache}/bin/crictl"
    if not os.access(crictl, os.X_OK):
        raise PayloadError(f"there is no {crictl}: scripts/install brings it")
    with tempfile.TemporaryDirectory() as scratch:
        with open(f"{scratch}/start", "w", encoding="ascii") as file:
            file.write(f'#!/bin/sh\ncd "$(dirname "$0")" && exec /usr/bin/python3 -m tests.vm.inside.main {suite}\n')
            os.fchmod(file.fileno(), 0o755)
        wheels = [_own_wheel(scratch), *_dependencies(python, cache)]
        with tarfile.open(path, "w", dereference=True) as archive:
            archive.add(f"{scratch}/start", "start")
            archive.add(crictl, "crictl")
            archive.add(f"{_ROOT}/manifests", "manifests")
            archive.add(f"{_ROOT}/tests/vm/inside", "tests/vm/inside", filter=_no_cache)
            for wheel in wheels:
                archive.add(wheel, f"wheels/{os.path.basename(wheel)}")


def _no_cache(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if "__pycache__" in entry.name else entry


def _own_wheel(scratch: str) -> str:
    """Build crishim's wheel from a copy of its sources: setuptools would leave its work in the checkout."""
    sources = f"{scratch}/sources"
    os.mkdir(sources)
    for name in _SOURCES:
        place = f"{_ROOT}/{name}"
        if os.path.isdir(place):
            shutil.copytree(place, f"{sources}/{name}", ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, sources)
    _pip("wheel", "--no-deps", "-w", f"{scratch}/wheels", sources)
    return _wheels(f"{scratch}/wheels")[0]


def _dependencies(python: str, cache: str) -> list[str]:
    with open(f"{_ROOT}/pyproject.toml", "rb") as file:
        wanted: list[str] = tomllib.load(file)["project"]["dependencies"]
    name = hashlib.sha256(repr((wanted, python, _PLATFORMS)).encode()).hexdigest()[:12]
    place = f"{cache}/vm/wheels-{name}"
    if not os.path.isdir(place):
        with tempfile.TemporaryDirectory(dir=f"{cache}/vm", prefix="new-") as scratch:
            platforms = [f"--platform={name}" for name in _PLATFORMS]
            _pip(
                "download",
                f"--python-version={python}",
                "--only-binary=:all:",
                *platforms,
                "-d",
                f"{scratch}/w",
                *wanted,
            )
            os.rename(f"{scratch}/w", place)
    return _wheels(place)


def _wheels(directory: str) -> list[str]:
    return sorted(entry.path for entry in os.scandir(directory) if entry.name.endswith(".whl"))


def _pip(*words: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PayloadError(f"pip {words[0]}: {done.stderr.strip()[-2000:]}")
