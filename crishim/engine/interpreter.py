"""How the spawner's interpreter is started so that no container can ever write to the host's (CVE-2019-5736).

A process of the engine is for a moment inside a container before it execs, and /proc/<pid>/exe and map_files then
name its files. So all of them are loaded in a mount namespace of the spawner's own in which everything is read-only
(`linux.mountns`); only then it moves to the host's mounts. Besides, the executable is a sealed memfd copy: writing to
it is impossible, and the copy is nobody's file. There is no copy where the interpreter is a stub of a shared libpython,
or where vm.memfd_noexec refuses; its files are read-only then like all libraries. (The unpacker loads more later, from
the host's mounts: it never enters a container.) Nothing of the user's environment goes along; paths are passed in.
"""

import errno
import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from crishim.errors import InternalError
from crishim.linux import mountns
from crishim.linux.memfd import seal
from crishim.log import get_logger

log = get_logger("crishim.engine")

_MFD_EXEC = 0x10
_DECOMPRESSORS = ("isal", "zstandard")  # see `unpack.decompress`
# The kernel refuses executable memfds (vm.memfd_noexec=2: EACCES), or somebody held on to a page of the copy (EBUSY).
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EBUSY}


def start(load: str, code: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a protected interpreter, inheriting the fds `keep`.

    Args:
        load: statements that import all that is ever needed, run where everything is read-only.
        code: statements that are run after the return to this process' mounts.
        arguments: become sys.argv.
        keep: fds that are inherited.

    Raises:
        InternalError: it cannot be protected here; the text says why.
    """
    # The namespace is that of a thread, which passes it on to its child and ends.
    with ThreadPoolExecutor(1, "interpreter") as thread:
        return thread.submit(_start, load, code, arguments, keep).result()


def _start(load: str, code: str, arguments: Sequence[str], keep: Sequence[int]) -> subprocess.Popen[bytes]:
    copy = -1 if _is_stub() else _copy_if_allowed()
    own = [] if copy < 0 else [copy]
    try:
        own.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        own.append(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        try:
            mountns.make_read_only()
        except OSError as error:
            raise InternalError(
                f"the spawner's interpreter cannot be protected: {error}; crishim needs CAP_SYS_ADMIN and a root "
                "directory that is a mount"
            ) from None
        # A child closes what is not passed on before it execs, so the copy is passed, and the program closes it.
        close = f"import os; os.close({copy}); " if copy >= 0 else ""
        home = f"from crishim.linux import mountns; mountns.enter({own[-2]}, {own[-1]})"
        return subprocess.Popen(
            _command(f"{close}{load}; {home}; {code}", arguments, _search_path()),
            executable=f"/proc/self/fd/{copy}" if copy >= 0 else executable(),
            env=_environment(sys.base_prefix, shared=copy < 0),
            stdin=subprocess.DEVNULL,
            pass_fds=[*keep, *own],
            cwd="/",
            process_group=0,
        )
    finally:
        for fd in own:
            os.close(fd)


def _copy_if_allowed() -> int:
    """Return a sealed copy of the interpreter, or -1 where there can be none."""
    try:
        return _sealed_copy(executable())
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise  # a fault, not a refusal
        log.warning("no sealed copy of the interpreter; it runs from a read-only mount", error=str(error))
        return -1


def executable() -> str:
    """Return the real interpreter behind a virtual environment's link."""
    return os.path.realpath(sys.executable)


def _is_stub() -> bool:
    """Tell whether the interpreter's code is in a shared libpython (how it was configured does not tell)."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        return any("/libpython" in line for line in file)


def _search_path() -> list[str]:
    """Return the directories of the standard library, of crishim itself and of the packages that unpack layers.

    The last come last: they are where the user's other packages are too.
    """
    paths = sysconfig.get_paths()
    dynload = os.path.join(paths["platstdlib"], "lib-dynload")
    stdlib = sysconfig.get_paths(vars={"installed_base": sys.base_prefix, "base": sys.base_prefix})["stdlib"]
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    candidates = [stdlib, os.path.join(stdlib, "lib-dynload"), paths["stdlib"], dynload, own, *_homes(_DECOMPRESSORS)]
    return [path for path in dict.fromkeys(candidates) if os.path.isdir(path)]


def _homes(packages: Sequence[str]) -> list[str]:
    """Return the directories that packages are installed in; one that is not installed has none."""
    found = [find_spec(name) for name in packages]
    return [os.path.dirname(os.path.dirname(spec.origin)) for spec in found if spec and spec.origin]


def _command(code: str, arguments: Sequence[str], search: Sequence[str]) -> list[str]:
    boot = f"import sys; sys.path[:] = {list(search)!r}; sys.dont_write_bytecode = True; {code}"
    return ["crishim-spawner", "-s", "-S", "-P", "-c", boot, *arguments]


def _environment(home: str, *, shared: bool = False) -> dict[str, str]:
    """Return the environment; `shared`: a libpython may have to be found."""
    environment = {"PYTHONHOME": home, "LC_ALL": "C.UTF-8", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    # LD_BIND_NOW (ld.so(8)): what is bound on first use would be bound by every keeper again, on pages of its own
    environment["LD_BIND_NOW"] = "1"
    return environment | {"LD_LIBRARY_PATH": f"{home}/lib"} if shared else environment


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
