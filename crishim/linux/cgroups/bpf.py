"""Attaching a device program to a v2 group by bpf(2).

Used by the keeper, so it imports only ctypes and os. The program comes compiled (`devices.compile_rules`).

Invariant: replacing is atomic (BPF_F_REPLACE): at no moment does the group have no program, which would allow all,
or two, which would refuse what only one allows.

Sources: bpf(2), linux/bpf.h (`union bpf_attr`), the kernel's cgroup-v2.rst "Device controller".
"""

import ctypes
import errno
import os

_NUMBERS = {"x86_64": 321, "aarch64": 280}
_NR = _NUMBERS.get(os.uname().machine, 280)
_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH = 5, 8, 9
_PROG_GET_FD_BY_ID, _PROG_QUERY = 13, 16
_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
_MAX_PROGRAMS = 64


class _Load(ctypes.Structure):
    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    ]


class _Attach(ctypes.Structure):
    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("replace_bpf_fd", ctypes.c_uint32),
    ]


class _Query(ctypes.Structure):
    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("query_flags", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
        ("prog_ids", ctypes.c_uint64),
        ("prog_cnt", ctypes.c_uint32),
    ]


class _ById(ctypes.Structure):
    _fields_ = [("prog_id", ctypes.c_uint32), ("next_id", ctypes.c_uint32), ("open_flags", ctypes.c_uint32)]


_syscall = ctypes.CDLL(None, use_errno=True)["syscall"]
_syscall.restype = ctypes.c_long


def _bpf(command: int, attributes: ctypes.Structure, what: str) -> int:
    result: int = _syscall(
        ctypes.c_long(_NR),
        ctypes.c_long(command),
        ctypes.byref(attributes),
        ctypes.c_ulong(ctypes.sizeof(attributes)),
    )
    if result < 0:
        raise OSError(ctypes.get_errno(), f"bpf {what}")
    return result


def load(program: bytes) -> int:
    """Load a device program; return its fd (close-on-exec by the kernel's choice).

    Raises:
        OSError: EINVAL or EACCES if the verifier refuses it, EPERM without CAP_BPF and CAP_NET_ADMIN/CAP_SYS_ADMIN.
    """
    code = ctypes.create_string_buffer(program, len(program))
    name = ctypes.create_string_buffer(b"GPL")
    attributes = _Load(
        prog_type=_TYPE_CGROUP_DEVICE,
        insn_cnt=len(program) // 8,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(name),
        prog_name=b"crishim_devices",
    )
    return _bpf(_PROG_LOAD, attributes, "load device program")


def attach(directory: str, program: bytes) -> None:
    """Make `program` the device program of the group, in place of the one that it has.

    Raises:
        OSError: the call that failed and errno; the old program is still in force then.
    """
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    new = -1
    old: list[int] = []
    try:
        new = load(program)
        old = [_by_id(number) for number in _attached(group)]
        request = _Attach(group, new, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI)
        if old:
            request.attach_flags |= _REPLACE
            request.replace_bpf_fd = old[0]
        _bpf(_PROG_ATTACH, request, f"attach device program to {directory}")
        for surplus in old[1:]:
            _bpf(_PROG_DETACH, _Attach(group, surplus, _ATTACH_CGROUP_DEVICE), f"detach device program of {directory}")
    finally:
        for fd in (group, new, *old):
            if fd >= 0:
                os.close(fd)


def attached(directory: str) -> list[int]:
    """Return the ids of the device programs attached to the group itself."""
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _attached(group)
    finally:
        os.close(group)


def _attached(group: int) -> list[int]:
    ids = (ctypes.c_uint32 * _MAX_PROGRAMS)()
    query = _Query(group, _ATTACH_CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), _MAX_PROGRAMS)
    _bpf(_PROG_QUERY, query, "query device programs")
    return list(ids[: query.prog_cnt])


def _by_id(number: int) -> int:
    try:
        return _bpf(_PROG_GET_FD_BY_ID, _ById(prog_id=number), f"open device program {number}")
    except OSError as error:
        if error.errno == errno.ENOENT:  # went in between; attach without replacing would then fail visibly
            raise OSError(errno.EAGAIN, f"bpf open device program {number}") from None
        raise
