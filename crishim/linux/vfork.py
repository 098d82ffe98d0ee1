"""Start a program by way of a child that runs Python code in this process's own memory (vfork(2), taken further).

A forked child of a Python process copies every page that it touches, and its parent copies those that it touches
afterwards: some 900 pages, 3 ms, for a container's set-up. A child made with CLONE_VM copies none. CLONE_VFORK stops
the parent until the child has exec'd or ended, so the two never run at once and the interpreter's lock, frames and
allocator stay whole, on one condition: the child must leave the interpreter by returning, not by an exec in the
middle of it. So the child runs a chain of contexts (makecontext(3)), each on a stack of its own:

    body (Python; returns) → execve → failed (Python; returns) → _exit

Files, working directory, umask, signal handlers, credentials, limits and namespaces are the child's own, as after
fork(2). What the body must not do, since it happens in the parent's memory too: let an object go that closes a
descriptor, set Python's signal handlers, keep anything that is only true of the child.

A child that is killed in the middle of its body leaves the interpreter in the middle of something: the parent then
ends at once rather than go on with it. Nothing kills it by design: the OOM killer spares a child of vfork (`in_vfork`
in mm/oom_kill.c), and there is nobody else yet in its PID namespace. Only for a process with one thread.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Mapping, Sequence

from crishim.linux.calls import CLONE_PIDFD

STATUS = 128
"""Exit status of a child that did not come to run its program."""

BROKEN = 70
"""Exit status of a parent whose child was killed in its body (sysexits.h, EX_SOFTWARE)."""

Program = tuple[bytes, Sequence[bytes], Mapping[bytes, bytes]]
"""Path, arguments and environment for execve(2)."""

_CLONE_VM = 0x00000100
_CLONE_VFORK = 0x00004000
_SIGCHLD = 17
_SMALL = 16 * 1024
_FAILED = 128 * 1024
_BODY = 512 * 1024
_SIZE = 3 * _SMALL + _FAILED + _BODY

_pointer = ctypes.c_void_p


class _Context(ctypes.Structure):
    """The beginning of `ucontext_t` (ucontext.h), alike on x86-64 and arm64, with room for the rest (at most 4,560)."""

    _fields_ = [
        ("flags", ctypes.c_ulong),
        ("link", _pointer),
        ("stack", _pointer),
        ("stack_flags", ctypes.c_int),
        ("stack_size", ctypes.c_size_t),
        ("rest", ctypes.c_char * 8192),
    ]


class Unsupported(Exception):  # noqa: N818  an answer, not a fault
    """The C library or the interpreter cannot do it; a fork does the same, slower."""


class Vfork:
    """A place for one such child at a time: its stacks and contexts.

    Raises:
        Unsupported: the C library has no contexts (musl).
    """

    def __init__(self) -> None:
        # the interpreter lock must stay held: the child is this very thread
        libc = ctypes.PyDLL(None, use_errno=True)
        try:
            self._getcontext, self._makecontext, self._clone = libc.getcontext, libc.makecontext, libc.clone
            self._setcontext, self._execve, self._exit = map(_address, (libc.setcontext, libc.execve, libc["_exit"]))
            self._errno = libc["__errno_location"]
        except AttributeError as error:
            raise Unsupported(str(error)) from None
        self._clone.argtypes = (_pointer, _pointer, ctypes.c_int, _pointer, _pointer, _pointer, _pointer)
        self._errno.restype = ctypes.POINTER(ctypes.c_int)
        self._makecontext.restype = None
        # Contexts are resumed on stacks, which a fork of this process must be able to use too: private memory
        self._memory = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._contexts = [_Context() for _ in range(4)]
        callback = ctypes.PYFUNCTYPE(None)
        self._callbacks = callback(self._run_body), callback(self._run_failed)
        self._body: Callable[[], Program | None] = _nothing
        self._failed: Callable[[int], None] = _ignored
        self._arguments: object = None
        self._left = self._prepared = False

    def start(self, flags: int, body: Callable[[], Program | None], failed: Callable[[int], None]) -> tuple[int, int]:
        """Make the child, wait until it runs its program or has ended, and return (pid, pidfd).

        Args:
            flags: CLONE_NEW* flags.
            body: run in the child; returns the program, or None to end with `STATUS`. It must not raise.
            failed: run in the child with execve's errno, if that fails; it ends with `STATUS` then.
        """
        self._body, self._failed, self._left = body, failed, False
        self.prepare()
        self._prepared = False
        pidfd = ctypes.c_int(-1)
        flags |= CLONE_PIDFD | _CLONE_VM | _CLONE_VFORK | _SIGCHLD
        top = self._base + _SIZE
        first = ctypes.addressof(self._contexts[0])
        pid = self._clone(self._setcontext, top, flags, first, ctypes.addressof(pidfd), None, None)
        if pid < 0:
            raise OSError(ctypes.get_errno(), f"clone flags={flags:#x}")
        if not self._left:
            os._exit(BROKEN)
        self._body, self._failed, self._arguments = _nothing, _ignored, None
        return pid, pidfd.value

    def prepare(self) -> None:
        """Make the chain anew, from its end, if that was not done since the last child."""
        if self._prepared:
            return
        self._prepared = True
        body, execve, failed, leave = self._contexts
        run, report = map(_address, self._callbacks)
        base = self._base
        self._make(leave, base, _SMALL, None, self._exit, STATUS)
        self._make(failed, base + _SMALL, _FAILED, leave, report)
        self._make(execve, base + _SMALL + _FAILED, _SMALL, leave, self._exit, STATUS)
        self._make(body, base + 2 * _SMALL + _FAILED, _BODY, execve, run)

    def _make(
        self, context: _Context, stack: int, size: int, link: _Context | None, function: int, *arguments: object
    ) -> None:
        """Let `context` call `function` on its own stack, and go on with `link` when that returns."""
        self._getcontext(ctypes.byref(context))
        context.stack, context.stack_size = stack, size
        context.link = None if link is None else ctypes.addressof(link)
        self._makecontext(ctypes.byref(context), _pointer(function), len(arguments), *arguments)

    def _run_body(self) -> None:
        program = self._body()
        if program is not None:
            self._lead_to(program)
        self._left = True

    def _lead_to(self, program: Program) -> None:
        """Let the context after the body's call execve(2)."""
        path, argv, environment = program
        variables = [b"%b=%b" % entry for entry in environment.items()]
        arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
        envp = (ctypes.c_char_p * (len(variables) + 1))(*variables, None)
        self._arguments = (path, arguments, envp, variables)
        _, execve, failed, _ = self._contexts
        stack = self._base + _SMALL + _FAILED
        self._make(execve, stack, _SMALL, failed, self._execve, ctypes.c_char_p(path), arguments, envp)

    def _run_failed(self) -> None:
        self._failed(self._errno().contents.value)


def supported() -> bool:
    """Tell whether this interpreter and C library can do it, by starting a program that is not there."""
    try:
        place = Vfork()
    except Unsupported:
        return False
    seen: list[int] = []
    pid, pidfd = place.start(0, lambda: (b"/dev/null/none", [b"none"], {}), seen.append)
    os.close(pidfd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == STATUS and seen == [20]


def _address(function: object) -> int:
    return ctypes.cast(function, _pointer).value or 0  # type: ignore[arg-type]


def _nothing() -> None:
    """No body is set."""


def _ignored(_number: int) -> None:
    """Nobody wants to hear of it."""
