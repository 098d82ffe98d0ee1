"""The default profile: which system calls a container may use that asks for `RuntimeDefault`.

It allows what the field's default profile allows, so that an image that runs elsewhere runs here: everything that
ordinary programs need, nothing that changes the host or that has been a way out of containers (mounting, namespaces,
keyrings, kernel modules, io_uring, userfaultfd, tracing the kernel) unless a capability of the container says so.
Refused calls give EPERM; calls that the profile could not know, and clone3, ENOSYS (see `compiler`). Names that an
architecture lacks mean nothing there.

Sources: the system calls' man pages; capabilities(7) for the groups by capability.
"""

import errno
from functools import cache

from crishim.linux.seccomp.profile import ACTIONS, Arg, Condition, Profile, Rule

_ALLOW = ACTIONS["SCMP_ACT_ALLOW"]
_ERRNO = ACTIONS["SCMP_ACT_ERRNO"]

_FILES = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 arm_fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat
    fcntl fcntl64 fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
    fstatfs64 fsync ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr getxattrat ioctl lchown
    lchown32 lgetxattr link linkat listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr
    lstat lstat64 mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pread64 preadv preadv2
    pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv removexattr removexattrat rename renameat
    renameat2 rmdir sendfile sendfile64 setxattr setxattrat splice stat stat64 statfs statfs64 statmount statx
    symlink symlinkat sync sync_file_range arm_sync_file_range syncfs tee truncate truncate64 umask
    unlink unlinkat utime utimensat utimensat_time64 utimes vmsplice write writev
"""
_WAITING = """
    epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
    eventfd2 fanotify_mark inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy
    io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit _newselect pause pipe pipe2 poll ppoll
    ppoll_time64 pselect6 pselect6_time64 select signalfd signalfd4
"""
_MEMORY = """
    brk cachestat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mlock mlock2 mlockall mmap
    mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free pkey_mprotect remap_file_pages
"""
_PROCESSES = """
    capget capset execve execveat exit exit_group fork getcpu getegid getegid32 geteuid geteuid32 getgid getgid32
    getgroups getgroups32 getpgid getpgrp getpid getppid getpriority getresgid getresgid32 getresuid getresuid32
    getrlimit getrusage getsid gettid getuid getuid32 ioprio_get ioprio_set kill pidfd_open pidfd_send_signal prctl
    prlimit64 process_mrelease restart_syscall rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn
    rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield
    setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setpgid setpriority setregid
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setuid setuid32
    sigaltstack sigprocmask sigreturn sysinfo tgkill times tkill ugetrlimit uname uretprobe vfork wait4 waitid waitpid
"""
_THREADS = """
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake get_robust_list get_thread_area rseq
    set_robust_list set_thread_area set_tid_address
"""
_SANDBOXES = "landlock_add_rule landlock_create_ruleset landlock_restrict_self seccomp"
_NETWORK = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair
"""
_IPC = """
    ipc mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64
    mq_unlink msgctl msgget msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
_TIME = """
    adjtimex alarm clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 getitimer getrandom gettimeofday nanosleep setitimer time timer_create
    timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create
    timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_MACHINE = "arch_prctl modify_ldt breakpoint cacheflush set_tls"
_OTHER_PROCESSES = "process_vm_readv process_vm_writev ptrace"

_BY_CAPABILITY = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount
        open_tree open_tree_attr perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount
        umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": f"kcmp pidfd_getfd process_madvise {_OTHER_PROCESSES}",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
}

_AF_ALG = 38
_AF_VSOCK = 40
_CLONE_NAMESPACES = 0x7E020000  # NEWNS NEWCGROUP NEWUTS NEWIPC NEWUSER NEWPID NEWNET; NEWTIME only exists for clone3
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # PER_LINUX, PER_LINUX32, each with UNAME26; and a query
_LOW = 0xFFFFFFFF


@cache
def default_profile() -> Profile:
    """Return the profile, the same object each time."""
    allowed = f"{_FILES} {_WAITING} {_MEMORY} {_PROCESSES} {_THREADS} {_NETWORK} {_IPC} {_TIME}".split()
    allowed += _SANDBOXES.split() + _MACHINE.split()
    admin = Condition(caps=("CAP_SYS_ADMIN",))
    rules = [
        Rule(tuple(allowed), _ALLOW),
        # Tracing a process of one's own lets a filter be evaded before Linux 4.8 (seccomp(2), SECCOMP_RET_TRACE).
        Rule(tuple(_OTHER_PROCESSES.split()), _ALLOW, includes=Condition(min_kernel=(4, 8))),
        # A VM's host is no container's business, nor are the kernel's ciphers (AF_ALG), in which holes are found, and
        # which programs can do without. `domain` is an int: only its 32 bits are looked at, so that bits above them,
        # which the kernel drops, cannot hide the family. socketcall stays as it is: its arguments are in memory, where
        # no filter can look, and old 32-bit programs have no other way to a socket.
        *(
            Rule(("socket",), _ERRNO | errno.EAFNOSUPPORT, (Arg(0, _LOW, family, "SCMP_CMP_MASKED_EQ"),))
            for family in (_AF_ALG, _AF_VSOCK)
        ),
        Rule(("socket",), _ALLOW),
        *(Rule(("personality",), _ALLOW, (Arg(0, _LOW, value, "SCMP_CMP_MASKED_EQ"),)) for value in _PERSONALITIES),
        # Threads and processes, but no namespaces. clone3's flags are in memory, where no filter can look.
        Rule(("clone",), _ALLOW, (Arg(0, _CLONE_NAMESPACES, 0, "SCMP_CMP_MASKED_EQ"),), excludes=admin),
        Rule(("clone3",), _ERRNO | errno.ENOSYS, excludes=admin),
    ]
    rules += [
        Rule(tuple(names.split()), _ALLOW, includes=Condition(caps=(cap,))) for cap, names in _BY_CAPABILITY.items()
    ]
    return Profile(_ERRNO | errno.EPERM, (), tuple(rules))
