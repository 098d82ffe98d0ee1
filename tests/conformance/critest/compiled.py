"""What is compiled for the images: Debian's busybox source, and two small C programs, all static.

Debian's busybox-static will not do (it has no pgrep and no ipcs, and runs an applet without looking at the file), so
upstream's default configuration is built, static, without `tc` (which newer kernel headers break).
"""

import glob
import os
import re
import shutil
import tarfile
import tempfile

from tests.conformance.critest.packages import run, say, source
from tests.support.abilities import need_program

_HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "programs")


def configure(text: str) -> str:
    """Return busybox's `.config` with static linking and without `tc`."""
    text = text.replace("# CONFIG_STATIC is not set", "CONFIG_STATIC=y")
    return re.sub(r"^CONFIG_TC=y$", "# CONFIG_TC is not set", text, flags=re.MULTILINE)


def build_busybox(directory: str) -> None:
    """Write `busybox` into `directory` (about a minute on two cores)."""
    make = need_program("make", "make")
    need_program("gcc", "gcc")
    with tempfile.TemporaryDirectory(prefix="busybox-") as scratch:
        with tarfile.open(source("busybox", scratch)) as archive:
            archive.extractall(scratch)  # Debian signed it
        tree = next(path for path in glob.glob(f"{scratch}/busybox-*") if os.path.isdir(path))
        say("building busybox")
        run(make, "-s", "defconfig", directory=tree)
        path = os.path.join(tree, ".config")
        with open(path, encoding="utf-8") as file:
            settings = configure(file.read())
        with open(path, "w", encoding="utf-8") as file:
            file.write(settings)
        run(make, "-s", f"-j{os.cpu_count()}", "busybox", directory=tree)
        shutil.copy2(os.path.join(tree, "busybox"), os.path.join(directory, "busybox"))


def compile_program(name: str, directory: str) -> None:
    """Compile `programs/<name>.c` into `directory`."""
    compiler = need_program("gcc", "gcc")
    run(compiler, "-O2", "-Wall", "-Werror", "-static", "-o", f"{directory}/{name}", f"{_HERE}/{name}.c")
