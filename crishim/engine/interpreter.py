"""How the spawner's interpreter is started so that no container can ever write to the host's (CVE-2019-5736).

A process of the engine is for a moment inside a container before it execs, and /proc/<pid>/exe then names its
executable. So the executable is a sealed memfd copy: writing to it is impossible, and the copy is nobody's file.
Where the interpreter is a stub of a shared libpython, or vm.memfd_noexec refuses, it runs from a detached read-only
bind of its installation instead. Nothing of the user's environment goes along; paths are passed in.
"""

import errno
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence

from crishim.errors import InternalError
from crishim.linux import calls
from crishim.linux.memfd import seal
from crishim.log import get_logger

log = get_logger("crishim.engine")

_MFD_EXEC = 0x10
# The kernel refuses executable memfds (vm.memfd_noexec=2: EACCES), or somebody held on to a page of the copy (EBUSY).
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EBUSY}


def start(code: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a protected interpreter that runs `code` with `arguments` in sys.argv, inheriting the fds `keep`.

    Raises:
        InternalError: neither way of protection works here; the text says why.
    """
    if not _is_stub():
        try:
            return _from_memfd(code, arguments, keep)
        except OSError as error:
            if error.errno not in _REFUSALS:
                raise  # a fault, not a refusal
            log.warning("no sealed copy of the interpreter; it runs from a read-only bind", error=str(error))
    try:
        return _from_bind(code, arguments, keep)
    except OSError as error:
        raise InternalError(
            f"the spawner's interpreter cannot be protected: {error}; allow executable memfds (vm.memfd_noexec < 2)"
        ) from None


def executable() -> str:
    """Return the real interpreter behind a virtual environment's link."""
    return os.path.realpath(sys.executable)


def _is_stub() -> bool:
    """Tell whether the interpreter's code is in a shared libpython (how it was configured does not tell)."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        return any("/libpython" in line for line in file)


def _search_path() -> list[str]:
    """Return the directories of the standard library and of crishim itself; nothing else is loaded."""
    paths = sysconfig.get_paths()
    dynload = os.path.join(paths["platstdlib"], "lib-dynload")
    stdlib = sysconfig.get_paths(vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})["stdlib"]
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    candidates = [stdlib, os.path.join(stdlib, "lib-dynload"), paths["stdlib"], dynload, own]
    return [path for path in dict.fromkeys(candidates) if os.path.isdir(path)]


def _command(code: str, arguments: Sequence[str], search: Sequence[str]) -> list[str]:
    boot = f"import sys; sys.path[:] = {list(search)!r}; sys.dont_write_bytecode = True; {code}"
    return ["crishim-spawner", "-s", "-S", "-P", "-c", boot, *arguments]


def _environment(home: str) -> dict[str, str]:
    # LD_BIND_NOW (ld.so(8)): what is bound on first use would be bound by every keeper again, on pages of its own
    return {"PYTHONHOME": home, "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LD_BIND_NOW": "1"}


def _from_memfd(code: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
    fd = _sealed_copy(executable())
    try:
        # The child closes what is not passed on before it execs, so the copy is passed, and the program closes it.
        return subprocess.Popen(
            _command(f"import os; os.close({fd}); {code}", arguments, _search_path()),
            executable=f"/proc/self/fd/{fd}",
            env=_environment(sys.base_prefix),
            stdin=subprocess.DEVNULL,
            pass_fds=[*keep, fd],
            cwd="/",
            process_group=0,
        )
    finally:
        os.close(fd)


def _sealed_copy(path: str) -> int:
    try:
        fd = os.memfd_create("crishim-python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_EXEC)
    except OSError:  # before Linux 6.3 there is no MFD_EXEC, and every memfd is executable
        fd = os.memfd_create("crishim-python", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(path, "rb", buffering=0) as source:
        size = os.fstat(source.fileno()).st_size
        offset = 0
        while offset < size:
            offset += os.sendfile(fd, source.fileno(), offset, size - offset)
    seal(fd, "the interpreter's copy")
    return fd


def _from_bind(code: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
    prefix = sys.base_prefix
    tree = calls.open_tree(calls.AT_FDCWD, prefix, calls.OPEN_TREE_CLONE | calls.AT_RECURSIVE)
    try:
        calls.mount_setattr(tree, "", calls.MOUNT_ATTR_RDONLY, 0, calls.MS_PRIVATE, recursive=True)
        inside = f"/proc/self/fd/{tree}"
        search = [path.replace(prefix, inside, 1) if path.startswith(prefix + "/") else path for path in _search_path()]
        environment = _environment(inside) | {"LD_LIBRARY_PATH": f"{inside}/lib"}
        program = os.path.relpath(executable(), prefix)
        return subprocess.Popen(
            _command(code, arguments, search),
            executable=f"{inside}/{program}",
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[*keep, tree],
            cwd="/",
            process_group=0,
        )
    finally:
        os.close(tree)
