"""The last part of every container process: limits, ids, capabilities, seccomp, and execve(2).

Runs in the finished root (of the container itself or of the one that an exec joined). The order is what security
hangs on, and is this: bounding set → groups, gid, uid → no_new_privs → working directory → program found and all
arguments built → seccomp → capabilities → exec. Without no_new_privs the filter needs CAP_SYS_ADMIN, so it goes in
just before the capabilities drop; with it, after them. Python ignores SIGPIPE and SIGXFSZ, the keeper some more, and
exec keeps that, so these signals are put back first; what whoever started the daemon ignored, the spawner has put back
(`linux.inheritance`). The process may share the keeper's memory until it execs (`linux.vfork` says what it must not do
then).
"""

import _signal  # type: ignore[import-not-found]  # typeshed describes only what wraps it
import binascii
import contextlib
import errno
import fcntl
import os
import resource
from typing import Any, NoReturn

from crishim.constants import DEFAULT_PATH
from crishim.engine import users
from crishim.engine.execute import null, paths, terminal, user
from crishim.engine.execute.report import Report, Reporter, StepError
from crishim.linux import calls, inheritance
from crishim.linux.vfork import STATUS, Program

_LAST_CAPABILITY = 63
_MUST_FORK = "beside a container with CAP_SYS_PTRACE the seccomp profile must allow clone"
_LONGEST_STRING = 32 * resource.getpagesize()  # MAX_ARG_STRLEN
_LEAST_STRINGS, _MOST_STRINGS = 128 << 10, 6 << 20  # ARG_MAX; three quarters of _STK_LIM
# `_signal` is what `signal` wraps in enums, which costs a forked child many page copies. Handled ones exec puts back.
_IGNORED = (_signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP)


def prepare(plan: dict[str, Any]) -> None:
    """Leave what must not be inherited; runs in the container's group while the host's /proc is still in sight."""
    inheritance.leave_keeper()
    adjustment = plan["oom_score_adj"]
    if adjustment is not None:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(fd, str(adjustment).encode())
    os.setsid()
    calls.join_session_keyring()
    for number in _IGNORED:
        calls.default_signal(number)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def wire_stdio(stdin: int, stdout: int, stderr: int, report: Report) -> None:
    """Make the three fds 0, 1 and 2, and close every other one but the report's.

    Close-on-exec is not enough (CVE-2024-21626): the image names the working directory and the program, and through
    /proc/self/fd it could name what lies below a mask or a read-only path, by an fd from before these were mounted.
    """
    fds = [fd if fd > 3 else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 4) for fd in (stdin, stdout, stderr)]
    first = report.keep(3)
    for number, fd in enumerate(fds):
        os.dup2(fd, number, inheritable=True)
    calls.close_from(first)


def screen(target: int) -> None:
    """Have the next child in the PID namespace of the pidfd `target`; this process stays where nobody there sees it."""
    calls.setns(target, calls.CLONE_NEWPID, "the container's PID namespace")


def step_inside(reporter: Reporter, program: Program, *, own_terminal: bool) -> Program:
    """Go on, with nothing left to do but to exec `program`, as a new process in the namespace that `screen` chose.

    What one there may look into by CAP_SYS_PTRACE is born with the program's rights and the container's root, without
    a descriptor of the host's (CVE-2016-9962). Its filter is in force already: it has to let a process fork. It goes
    on only when the keeper has been told of it.
    """
    reporter.step = "namespaces"
    waiting, told = os.pipe2(os.O_CLOEXEC)
    try:
        pid = calls.clone_sibling()
    except OSError as error:
        number = error.errno or 0
        raise StepError(f"clone: {os.strerror(number).lower()}; {_MUST_FORK}", number) from None
    if pid:
        reporter.moved(pid)
        os.write(told, b"1")
        os._exit(0)
    os.close(told)
    if not os.read(waiting, 1):
        os._exit(1)
    os.close(waiting)
    os.setsid()
    if own_terminal:
        reporter.step = "terminal"
        terminal.make_controlling(0)
    reporter.step = "exec"
    return program


def lower(plan: dict[str, Any], report: Report, *, own_terminal: bool) -> Program:
    """Lower the process to what the plan allows it, and return the program that it must exec now.

    `own_terminal`: fd 0 is a terminal to take as controlling, here and now.
    """
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    report.step = "user"
    identity = user.resolve(plan["user"], root)
    report.user(identity.uid, identity.gid, identity.groups)
    environment = _environment(plan["env"], identity.home)
    if own_terminal:
        report.step = "terminal"
        terminal.make_controlling(0)
    _own_stdio(identity)
    report.step = "rlimits"
    for limit in plan["rlimits"]:
        _set_rlimit(limit)
    os.umask(plan["umask"])
    cwd = plan["cwd"]
    report.step = "working directory"
    entered = _enter(root, cwd)
    _drop_ids(plan["capabilities"], identity, report)
    report.step = "working directory"
    _check_entered(root, cwd, entered=entered)
    report.step = "exec"
    program = _find_program(plan["argv"][0], environment)
    argv = [os.fsencode(word) for word in plan["argv"]]
    _confine(plan, report)
    report.step = "exec"
    return os.fsencode(program), argv, environment


def become(program: Program | None, report: Report) -> NoReturn:
    """Exec, in a process with memory of its own; without a program, or if the kernel refuses it, end."""
    try:
        if program is not None:
            path, argv, environment = program
            os.execve(path, list(argv), environment)  # noqa: S606  this is what a runtime is for
    except OSError as error:
        report_refusal(program, report, error.errno or 0)
    finally:
        os._exit(STATUS)


def report_refusal(program: Program | None, report: Report, number: int) -> None:
    """Report with which errno execve(2) refused the program, and what that means."""
    if program is not None:
        path, name = os.fsdecode(program[0]), os.fsdecode(program[1][0])
        reason = _too_big(program) if number == errno.E2BIG else _reason(OSError(number, ""), path)
        report.fail(StepError(f"exec {name}: {reason}", number, path))


def _too_big(program: Program) -> str:
    """Say which of an execve's strings are more than it takes (execve(2), "Limits on size of arguments")."""
    _, argv, environment = program
    strings = [(f"args[{number}]", len(word) + 1) for number, word in enumerate(argv)]
    strings += [(f"env {os.fsdecode(key)}", len(key) + len(value) + 2) for key, value in environment.items()]
    longest, size = max(strings, key=lambda string: string[1])
    if size > _LONGEST_STRING:
        return f"{longest} is too large: {size} bytes, and the kernel takes {_LONGEST_STRING} of one string"
    words = sum(len(word) + 1 for word in argv)
    total = sum(length for _, length in strings) + 8 * len(strings)
    stack = resource.getrlimit(resource.RLIMIT_STACK)[0]
    limit = _MOST_STRINGS if stack == resource.RLIM_INFINITY else min(max(stack // 4, _LEAST_STRINGS), _MOST_STRINGS)
    return (
        f"the environment (env, {len(environment)} variables) and the arguments ({words} bytes) are too large together:"
        f" {total} bytes with their pointers, and the kernel takes {limit}; the largest is {longest} of {size} bytes"
    )


def _environment(entries: list[str], home: bytes) -> dict[bytes, bytes]:
    """Return the environment; HOME comes from the image's passwd unless it was given, even if given empty."""
    environment = {}
    for entry in entries:
        name, _, value = entry.encode("latin-1").partition(b"=")
        environment[name] = value
    environment.setdefault(b"HOME", home)
    return environment


def _own_stdio(identity: users.Identity) -> None:
    """Let a process that is not root reopen /dev/stdout: the pipe becomes its own; /dev/null stays root's."""
    if identity.uid == 0:
        return
    for fd in (0, 1, 2):
        status = os.fstat(fd)
        if null.is_null(status) or status.st_uid == identity.uid:
            continue
        with contextlib.suppress(OSError):
            os.fchown(fd, identity.uid, -1)


def _set_rlimit(limit: dict[str, int]) -> None:
    try:
        resource.setrlimit(limit["resource"], (limit["soft"], limit["hard"]))
    except ValueError:
        raise StepError(
            f"rlimit {limit['resource']}={limit['soft']}:{limit['hard']} is above what this host allows", errno.EPERM
        ) from None


def _enter(root: int, cwd: str) -> bool:
    """Enter the working directory as root, making it if it is missing; tell whether that worked."""
    try:
        _change_directory(root, cwd)
    except PermissionError:
        return False  # it may be the user's own, and root may lack DAC_OVERRIDE: tried again with its ids
    except (OSError, StepError) as error:
        raise _bad_directory(cwd, error) from None
    return True


def _change_directory(root: int, cwd: str, *, make: bool = True) -> None:
    """Change to a directory below the root; never through a link of /proc/<pid>/{fd,cwd,root}, which leads anywhere."""
    directory = paths.ensure(root, cwd, directory=True) if make else paths.open_path(root, cwd)
    try:
        os.fchdir(directory)
    finally:
        os.close(directory)


def _bad_directory(cwd: str, error: OSError | StepError) -> StepError:
    number = error.number if isinstance(error, StepError) else error.errno or 0
    if number == errno.ENOTDIR:
        return StepError(f"working directory {cwd}: is a file", number, cwd)
    return StepError(f"working directory {cwd}: {os.strerror(number).lower()}", number, cwd)


def _check_entered(root: int, cwd: str, *, entered: bool) -> None:
    """Enter with the user's ids what root could not, and refuse a directory outside the root."""
    if not entered:
        try:
            _change_directory(root, cwd, make=False)
        except OSError as error:
            raise _bad_directory(cwd, error) from None
    try:
        inside = os.getcwd().startswith("/")
    except OSError:
        inside = False
    if not inside:
        raise StepError(f"working directory {cwd}: is outside the container's root", errno.EPERM, cwd)


def _drop_ids(plan: dict[str, int], identity: users.Identity, report: Report) -> None:
    """Take on groups, gid and uid, and lower the bounding set; the capabilities themselves drop later."""
    report.step = "capabilities"
    bounding = plan["bounding"]
    for number in range(_LAST_CAPABILITY + 1):
        if not bounding >> number & 1 and not _drop_bound(number):
            break
    report.step = "user"
    calls.prctl(calls.PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    calls.prctl(calls.PR_SET_KEEPCAPS, 0)


def _drop_bound(number: int) -> bool:
    """Drop one capability from the bounding set; False beyond the last one the kernel knows."""
    try:
        calls.prctl(calls.PR_CAPBSET_DROP, number)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _confine(plan: dict[str, Any], report: Report) -> None:
    """Put no_new_privs, the filter and the final capabilities in force, in the order that each needs."""
    sets = plan["capabilities"]
    program = calls.seccomp_buffer(binascii.a2b_base64(plan["seccomp"])) if plan["seccomp"] else None
    flags = plan.get("seccomp_flags", 0)  # a daemon from before the field does not send it
    permitted = sets["permitted"]
    if plan["no_new_privs"]:
        report.step = "no_new_privs"
        calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
        report.step = "capabilities"
        _set_capabilities(permitted, sets["ambient"])
        report.step = "seccomp"
        if program is not None:
            calls.seccomp_filter(program, flags)
        return
    report.step = "seccomp"
    if program is not None:
        # setresuid emptied the effective set; the permitted one still has all (PR_SET_KEEPCAPS)
        calls.capset(permitted | _SYS_ADMIN | _SETPCAP, permitted | _SYS_ADMIN | _SETPCAP, 0)
        calls.seccomp_filter(program, flags)
    report.step = "capabilities"
    _set_capabilities(permitted, sets["ambient"])


_SETPCAP = 1 << 8
_SYS_ADMIN = 1 << 21


def _set_capabilities(permitted: int, ambient: int) -> None:
    calls.capset(permitted, permitted, ambient)
    for number in range(_LAST_CAPABILITY + 1):
        if ambient >> number & 1:
            calls.prctl(calls.PR_CAP_AMBIENT, calls.PR_CAP_AMBIENT_RAISE, number)


def _find_program(name: str, environment: dict[bytes, bytes]) -> str:
    """Return the path to execute, searched in the container's PATH as execvp(3) does.

    Raises:
        StepError: ENOENT or EACCES, with the sentence that kubelet shows.
    """
    if "/" in name:
        try:
            os.stat(name)
        except OSError as error:
            raise StepError(f"exec {name}: {_reason(error, name)}", error.errno or 0, name) from None
        return name
    refused = False
    search = os.fsdecode(environment.get(b"PATH", DEFAULT_PATH.encode()))
    for directory in search.split(":"):
        candidate = f"{directory or '.'}/{name}"
        if os.access(candidate, os.X_OK, effective_ids=False) and not os.path.isdir(candidate):
            return candidate
        refused = refused or os.path.isfile(candidate)
    if refused:
        raise StepError(f"exec {name}: permission denied (not executable)", errno.EACCES, name)
    raise StepError(f"exec {name}: executable file not found in $PATH", errno.ENOENT, name)


def _reason(error: OSError, program: str) -> str:
    """Say what execve's errno means for the one who reads it."""
    number = error.errno or 0
    if number == errno.ENOENT and os.path.exists(program):
        return "its interpreter (the #! line's, or the dynamic loader) does not exist in the image"
    if number == errno.EACCES and os.path.isdir(program):
        return "is a directory"
    if number == errno.ENOEXEC:
        return "exec format error (another architecture, or a script without #!)"
    return os.strerror(number).lower()
