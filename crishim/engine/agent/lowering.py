"""A child's second batch, once the keeper knows the ids: a ProcessPlan's JSON form → calls up to execve. Pure.

The order is what security hangs on, and is this: standard streams, rlimits → working directory → bounding set → groups,
gid, uid → no_new_privs → capabilities → (a new process in a PID namespace that others are in) → terminal → seccomp →
execve. Without no_new_privs the filter needs CAP_SYS_ADMIN, so it goes in just before the capabilities drop, and so
before the namespace; with it, last.

Who may see a process in a PID namespace may trace it, and write what it has mapped. So the last calls are copied to
private memory, the slot is not passed on, and only then the new process is made (CVE-2016-9962's class).
"""

import binascii
import errno
import os
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple

from crishim.constants import DEFAULT_PATH
from crishim.engine.agent.batch import Batch, Distance, Label, Result
from crishim.engine.agent.kernel import CWD, Kernel
from crishim.engine.agent.layout import PAGE, PRIVATE, RECORD, SLOT, Own
from crishim.engine.agent.passage import with_passage
from crishim.engine.users import Identity
from crishim.linux import calls

MAX_CANDIDATES = 256
_SIGN = 1 << 63
_RLIMIT_STACK = 3
_STACK = 8 << 20  # the kernel's first process has this limit
_LEAST_ARGUMENTS, _MOST_ARGUMENTS = 128 << 10, 6 << 20  # bytes that execve takes, whatever the limit of the stack
_LONG_NAME = 100  # of a variable, as it is told
_PATH_MAX = 4096
_FIXED = 300  # calls that every process makes, with all capabilities and limits
_LAST_CAPABILITY = 63
_CAPABILITY_VERSION_3 = 0x20080522
_SETPCAP, _SYS_ADMIN = 1 << 8, 1 << 21
_TIOCSCTTY = 0x540E
_CLONE_PARENT_SETTID = 0x00100000
_MADV_DONTFORK = 10
_PRIVATE_MAPPING = 0x2 | 0x20 | 0x100000  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_READ_WRITE = 3
_DEFAULT_PATH = DEFAULT_PATH.encode()
_IS_A_FILE = {errno.ENOTDIR: "is a file", errno.ENOENT: "a symbolic link of the image on the way leads nowhere"}
_OUTSIDE = {0: "is outside the container's root", errno.ENOENT: "is outside the container's root"}
_EXECUTE = {
    errno.ENOEXEC: "exec format error (another architecture, or a script without #!)",
}
_TRY_NEXT = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG)


def room(plan: dict[str, Any]) -> int:
    """Return how many bytes a second batch takes at most, groups aside: known before the ids are."""
    words = [*plan["argv"], *plan["env"]]
    text = sum([4 * len(word) for word in words])  # of UTF-8
    records: int = _FIXED + MAX_CANDIDATES + 2 * (plan["cwd"].count("/") + 1)
    # of candidates: each has a name, and all of them together the search path
    paths = MAX_CANDIDATES * (4 * len(plan["argv"][0]) + 8) + len(_DEFAULT_PATH)
    filters: int = len(plan["seccomp"])
    rest: int = paths + 2 * filters + 4 * len(plan["cwd"]) + _PATH_MAX
    rest += 2 * text + 24 * len(words)
    return records * RECORD + rest


class Lowered(NamedTuple):
    """A second batch, and the calls of the new process that it makes, if it makes one."""

    batch: Batch
    inner: Batch | None


def lower(
    machine: str,
    base: int,
    plan: dict[str, Any],
    identity: Identity,
    *,
    terminal: bool = False,
    own_terminal: bool = False,
) -> Lowered:
    """Return the calls of a process that goes on to execve as it is.

    Args:
        machine: as `uname -m` names it.
        base: address in the child at which the batch will stand.
        plan: the JSON form of a ProcessPlan.
        identity: what the keeper found.
        terminal: the standard streams are a terminal.
        own_terminal: and it is to be the controlling one.
    """
    batch = Batch(machine, base)
    steps = _Steps(batch, plan, identity)
    steps.prepare(Own.REPORT + 1, terminal=terminal)
    steps.last_session(own_terminal=own_terminal, leader=True)
    steps.rights()
    steps.confine()
    steps.execute()
    return Lowered(batch, None)


def lower_inside(
    machine: str,
    base: int,
    plan: dict[str, Any],
    identity: Identity,
    slot_size: int,
    pid: int,
    cookie: int,
    *,
    terminal: bool = False,
    own_terminal: bool = False,
) -> Lowered:
    """Return the calls of a process that ends as a new one in the PID namespace that it chose for its children.

    The new one is a child of the agent's like itself, made by legacy clone, which filters let pass (clone3 they often
    do not). It counts for RLIMIT_NPROC and pids.max.

    Args:
        machine: as `uname -m` names it.
        base: address in the child at which the batch will stand, in a slot.
        plan: the JSON form of a ProcessPlan.
        identity: what the keeper found.
        slot_size: of the slot, which is `Own.SLOT` too.
        pid: address in the slot at which the new process's pid is to stand.
        cookie: random, of 64 bits, for a filter that is in force before the new process is made (`passage`).
        terminal: the standard streams are a terminal.
        own_terminal: and it is to be the controlling one.
    """
    inner = Batch(machine, PRIVATE)
    last = _Steps(inner, plan, identity)
    last.last_session(own_terminal=own_terminal, leader=False)
    last.confine()
    last.execute()
    content = inner.finish().content

    batch = Batch(machine, base)
    steps = _Steps(batch, plan, identity)
    steps.passage = machine, cookie
    steps.prepare(Own.FREE, terminal=terminal)
    batch.reason("its last calls, in memory that nobody shares")
    batch.call("mmap", PRIVATE, -(-len(content) // PAGE) * PAGE, _READ_WRITE, _PRIVATE_MAPPING, -1, 0)
    copied = Distance(batch.data(content, f"{{{len(inner.calls)} calls}}"), SLOT)
    batch.call("pread64", Own.SLOT, PRIVATE, len(content), copied)
    batch.call("madvise", SLOT, slot_size, _MADV_DONTFORK)
    steps.kernel.close_from(Own.REPORT + 1)
    steps.kernel.prctl(calls.PR_SET_DUMPABLE, 0)
    steps.rights()
    batch.reason("a new process in the PID namespace")
    batch.call("clone", calls.CLONE_PARENT | _CLONE_PARENT_SETTID, 0, pid, 0, cookie, result="pid")
    batch.child(PRIVATE)
    batch.call("exit_group", 0)
    return Lowered(batch, inner)


class _Steps:
    """Stretches of a process's end, each added to a batch."""

    def __init__(self, batch: Batch, plan: dict[str, Any], identity: Identity) -> None:
        self.batch = batch
        self.kernel = Kernel(batch)
        self._plan = plan
        self._identity = identity
        self.passage: tuple[str, int] | None = None

    def prepare(self, first_closed: int, *, terminal: bool) -> None:
        """All that needs rights which are about to go."""
        self.kernel.close_from(first_closed)
        self._own_streams(terminal=terminal)
        self._limits()
        opened, entered = self._enter_directory()
        self._ids()
        self._check_directory(opened, entered)

    def _own_streams(self, *, terminal: bool) -> None:
        """Let a process that is not root reopen /dev/stdout: the pipe becomes its own; devices stay whose they are."""
        uid = self._identity.uid
        if not uid:
            return
        self.batch.reason("its standard streams are its own")
        for fd in (0, 1, 2):
            end = Label()
            if not terminal:
                self.kernel.expect_mode(fd, stat.S_IFIFO, end)
            self.batch.call("fchown", fd, uid, -1, allow=(errno.EPERM, errno.EROFS))
            self.batch.place(end)

    def _limits(self) -> None:
        batch = self.batch
        batch.reason("limits")
        for limit in self._plan["rlimits"]:
            soft, hard = limit["soft"], limit["hard"]
            pair = batch.words(soft, hard, note=f"{{{soft}, {hard}}}")
            batch.call("prlimit64", 0, limit["resource"], pair, 0, what=f"limit {limit['resource']}={soft}:{hard}")

    # --- the working directory -------------------------------------------------------------------

    def _enter_directory(self) -> tuple[Result, Result]:
        """Enter the working directory as root, made if it is missing; root may be refused (it lacks DAC_OVERRIDE).

        Returns what opening and entering it gave.
        """
        batch, kernel, cwd = self.batch, self.kernel, self._plan["cwd"]
        batch.reason(f"working directory {cwd}", f"working directory {cwd}")
        there, done = Label(), Label()
        flags = os.O_PATH | os.O_DIRECTORY
        kernel.openat2(CWD, cwd, flags, allow=(errno.ENOENT, errno.EACCES), hints=_IS_A_FILE)
        batch.then(there)
        kernel.make(cwd, directory=True, refused=there, hints=_IS_A_FILE)
        batch.place(there)
        opened = kernel.openat2(CWD, cwd, flags, allow=(errno.EACCES,), other=done, hints=_IS_A_FILE)
        entered = batch.call("fchdir", opened, allow=(errno.EACCES,), what=cwd)
        batch.place(done)
        batch.call("umask", self._plan["umask"])
        return opened, entered

    def _check_directory(self, opened: Result, entered: Result) -> None:
        """Enter with the user's ids what root could not, and refuse a directory outside the root."""
        batch, kernel, cwd = self.batch, self.kernel, self._plan["cwd"]
        title = f"working directory {cwd}"
        batch.reason("with the user's own rights, where root's did not do", title)
        again, check = Label(), Label()
        batch.call("getpid", expect=(opened, _SIGN, 0))
        batch.otherwise(again)
        batch.call("getpid", expect=(entered, _SIGN, _SIGN))
        batch.otherwise(check)
        batch.place(again)
        batch.call("fchdir", kernel.openat2(CWD, cwd, os.O_PATH | os.O_DIRECTORY), what=cwd)
        batch.place(check)
        batch.reason("it is inside the root", title)
        name = batch.room(_PATH_MAX)
        batch.call("getcwd", name, _PATH_MAX, expect=(name, 0xFF, ord("/")), hints=_OUTSIDE)

    # --- rights ----------------------------------------------------------------------------------

    def _ids(self) -> None:
        batch, kernel, identity = self.batch, self.kernel, self._identity
        bounding = self._plan["capabilities"]["bounding"]
        batch.reason("no capability beyond these")
        for number in range(_LAST_CAPABILITY + 1):
            if not bounding >> number & 1:
                kernel.prctl(calls.PR_CAPBSET_DROP, number, allow=(errno.EINVAL,))
        batch.reason("groups, gid, uid")
        kernel.prctl(calls.PR_SET_KEEPCAPS, 1)
        groups = b"".join([group.to_bytes(4, "little") for group in identity.groups])
        batch.call("setgroups", len(identity.groups), batch.data(groups, str(identity.groups)))
        batch.call("setresgid", identity.gid, identity.gid, identity.gid)
        batch.call("setresuid", identity.uid, identity.uid, identity.uid)
        kernel.prctl(calls.PR_SET_KEEPCAPS, 0)

    def rights(self) -> None:
        """Put no_new_privs and the final capabilities in force, and a filter that needs rights before these go."""
        plan, batch = self._plan, self.batch
        permitted, ambient = plan["capabilities"]["permitted"], plan["capabilities"]["ambient"]
        if plan["no_new_privs"]:
            batch.reason("no new privileges")
            self.kernel.prctl(calls.PR_SET_NO_NEW_PRIVS, 1)
        elif plan["seccomp"]:
            # setresuid emptied the effective set; the permitted one still has all (PR_SET_KEEPCAPS)
            batch.reason("the filter, while it may still be set")
            kept = permitted | _SYS_ADMIN | _SETPCAP
            self._capset(kept, kept, 0)
            self._filter()
        batch.reason("capabilities")
        self._capset(permitted, permitted, ambient)
        for number in range(_LAST_CAPABILITY + 1):
            if ambient >> number & 1:
                self.kernel.prctl(calls.PR_CAP_AMBIENT, calls.PR_CAP_AMBIENT_RAISE, number)

    def last_session(self, *, own_terminal: bool, leader: bool) -> None:
        """A process that was made just now needs a session of its own; it outlives its agent as all do that exec'd."""
        batch = self.batch
        if not leader:
            batch.reason("a session of its own")
            batch.call("setsid")
        if own_terminal:
            batch.reason("its controlling terminal")
            batch.call("ioctl", 0, _TIOCSCTTY, 0, what="TIOCSCTTY")
        if leader:
            batch.reason("outlives its agent")  # a new process has no such signal (clone(2))
            self.kernel.prctl(calls.PR_SET_PDEATHSIG, 0)

    def confine(self) -> None:
        """Put the filter in force that needs no rights."""
        if self._plan["no_new_privs"] and self._plan["seccomp"]:
            self.batch.reason("the filter")
            self._filter()

    def _filter(self) -> None:
        program = binascii.a2b_base64(self._plan["seccomp"])
        if self.passage is not None:
            program = with_passage(program, *self.passage)
        note = f"{{{len(program) // 8} instructions}}"
        argument = self.batch.words(len(program) // 8, self.batch.data(program), note=note)
        self.batch.call("seccomp", calls.SECCOMP_SET_MODE_FILTER, self._plan.get("seccomp_flags", 0), argument)

    def _capset(self, effective: int, permitted: int, inheritable: int) -> None:
        sets = (effective, permitted, inheritable)
        data = b"".join([(value & 0xFFFFFFFF).to_bytes(4, "little") for value in sets])
        data += b"".join([(value >> 32).to_bytes(4, "little") for value in sets])
        note = f"{{effective={effective:#x}, permitted={permitted:#x}, inheritable={inheritable:#x}}}"
        self.batch.call("capset", self.batch.words(_CAPABILITY_VERSION_3), self.batch.data(data, note))

    # --- execve ----------------------------------------------------------------------------------

    def execute(self) -> None:
        """Try the candidates as execvp(3) does; if none runs, tell what each said: the keeper remembers EACCES."""
        batch, plan = self.batch, self._plan
        argv = [os.fsencode(word) for word in plan["argv"]]
        environment = _environment(plan["env"], self._identity.home)
        batch.reason("the program")
        vector = batch.words(*[batch.text(word) for word in argv], 0, note=_vector(plan["argv"]))
        variables = [batch.text(b"%b=%b" % pair) for pair in environment.items()]
        environ = batch.words(*variables, 0, note=f"{{{len(variables)} variables}}")
        paths = candidates(argv[0], environment.get(b"PATH", _DEFAULT_PATH))
        first = len(batch.calls)
        for path in paths:
            what = os.fsdecode(path)
            batch.call("execve", batch.text(path), vector, environ, allow=_TRY_NEXT, what=what, hints=_EXECUTE)
        if len(paths) == 1:  # ENOENT may mean the file, or an interpreter that it names
            batch.call("faccessat", CWD, batch.text(paths[0]), 0, allow=_TRY_NEXT, what=os.fsdecode(paths[0]))
        batch.reason("none was to be had: tell what each said")
        batch.call("write", Own.REPORT, batch.address(first), (len(batch.calls) - first) * RECORD)


def candidates(name: bytes, search: bytes) -> list[bytes]:
    """Return the paths to try for a program; what is too long to be a path is left out.

    Only the first `MAX_CANDIDATES` entries of PATH count: it is the image's, and may be as long as it likes.
    """
    if b"/" in name:
        return [name]
    found: list[bytes] = []
    start = 0
    for _ in range(MAX_CANDIDATES):
        if start > len(search):
            break
        end = search.find(b":", start)
        end = len(search) if end < 0 else end
        path = b"%b/%b" % (search[start:end] or b".", name)
        if len(path) < _PATH_MAX and path not in found:
            found.append(path)
        start = end + 1
    return found


def excess(plan: dict[str, Any], home: bytes) -> str:
    """Return which part of a process's arguments and environment is more than execve(2) takes: after it has said so."""
    longest = 32 * os.sysconf("SC_PAGE_SIZE") - 1  # MAX_ARG_STRLEN, less the NUL
    argv = [os.fsencode(word) for word in plan["argv"]]
    environment = _environment(plan["env"], home)
    variables = [(os.fsdecode(name), len(name) + 1 + len(value)) for name, value in environment.items()]
    named = [(f"environment variable {name[:_LONG_NAME]}", size) for name, size in variables]
    named += [(f"argument {number}", len(word)) for number, word in enumerate(argv)]
    for name, size in named:
        if size > longest:
            return f"{name} has {size} bytes, and execve(2) takes no more than {longest} in one"
    together = sum([size + 1 + 8 for _, size in named])
    texts = f"{len(variables)} environment variables and {len(argv) - 1} arguments have {together} bytes together"
    stack = next((limit["soft"] for limit in plan["rlimits"] if limit["resource"] == _RLIMIT_STACK), _STACK)
    most = max(min(stack // 4, _MOST_ARGUMENTS), _LEAST_ARGUMENTS)  # `bprm_stack_limits` in fs/exec.c
    return f"{texts}, and execve(2) takes no more than a quarter of the stack limit, here {most}"


def _environment(entries: list[str], home: bytes) -> dict[bytes, bytes]:
    """Return the environment; HOME comes from the image's passwd unless it was given, even if given empty."""
    environment = {}
    for entry in entries:
        name, _, value = entry.encode("latin-1").partition(b"=")
        environment[name] = value
    environment.setdefault(b"HOME", home)
    return environment


def _vector(words: Sequence[str]) -> str:
    return "[" + ", ".join([f'"{word}"' for word in words]) + "]"
