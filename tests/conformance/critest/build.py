"""The images as OCI layouts below the cache: made once, and again when what they are made of changes.

Run as a program (`python -m tests.conformance.critest.build`) this prepares them; scripts/install does. A build is
complete or absent: it is made beside its final name and renamed.
"""

import fcntl
import glob
import hashlib
import os
import platform
import shutil

from tests.conformance.critest import compiled, images
from tests.conformance.critest.packages import CACHE, need_debian, say, unpack
from tests.support import layout


def layouts() -> dict[str, str]:
    """Return name:tag → directory of the OCI layout, building what the cache does not have."""
    os.makedirs(CACHE, exist_ok=True)
    with open(os.path.join(CACHE, "lock"), "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _written(_parts())


def _parts() -> str:
    final = os.path.join(CACHE, f"parts-{_digest('packages.py', 'compiled.py', 'programs/*', packages=True)}")
    if os.path.isdir(final):
        return final
    need_debian()
    made = _fresh(f"{final}.new")
    for name in ("pause", "nonewprivs"):
        compiled.compile_program(name, made)
    unpack(images.NGINX_PACKAGES, os.path.join(made, "nginx"))
    unpack(images.HTTPD_PACKAGES, os.path.join(made, "httpd"))
    compiled.build_busybox(made)
    _forget("parts-*", made)
    os.rename(made, final)
    return final


def _written(parts: str) -> dict[str, str]:
    key = _digest("images.py", "../../support/layout.py")
    final = os.path.join(CACHE, f"images-{key}-{parts.rpartition('-')[2]}")
    plans = images.plans(parts) if not os.path.isdir(final) else {}
    if plans:
        say("writing layouts")
        made = _fresh(f"{final}.new")
        for name, plan in plans.items():
            layout.write(os.path.join(made, _folder(name)), plan)
        _forget("images-*", made)
        os.rename(made, final)
    names = os.listdir(final)
    return {name.replace("+", "/").replace("=", ":"): os.path.join(final, name) for name in names}


def _folder(name: str) -> str:
    return name.replace("/", "+").replace(":", "=")


def _fresh(path: str) -> str:
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    return path


def _forget(pattern: str, keep: str) -> None:
    """Remove what earlier versions of these modules made."""
    for path in glob.glob(os.path.join(CACHE, pattern)):
        if path != keep:
            shutil.rmtree(path)


def _digest(*patterns: str, packages: bool = False) -> str:
    here = os.path.dirname(os.path.abspath(__file__))
    digest = hashlib.sha256(platform.machine().encode())
    if packages:
        digest.update(" ".join((*images.NGINX_PACKAGES, *images.HTTPD_PACKAGES)).encode())
    for path in sorted(path for pattern in patterns for path in glob.glob(os.path.join(here, pattern))):
        with open(path, "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    for reference, path in sorted(layouts().items()):
        print(f"{reference}\t{path}")
