"""Where control groups are mounted on this host, and which directory belongs to a group.

Two kinds of host exist: cgroup v2 alone (*unified*), and v1 (*legacy*). A v2 mount without controllers may stand
beside v1; pods leave it alone: what it has to offer, v1's freezer can do, and a process gets into a v2 group only by
being born there or by a wait of 5-13 ms. Only the spawner moves there, once (`watched`). A `Layout` describes either
kind, and turns a group's name, like `/kubepods/burstable/pod1/abc`, into the list of its directories. Out of scope:
touching a group (`apply`) and deciding what is written into it (`settings`).

Invariant: `directories()` gives the v2 directory alone, or memory's, then the freezer's, then the rest; `apply`
relies on this order to find its files with few failed opens.

Sources: cgroups(7), proc(5) `/proc/pid/mountinfo`, the kernel's admin-guide/cgroup-v2.rst.
"""

from dataclasses import dataclass

from crishim.errors import FailedPreconditionError

# The v1 controllers that a container's group is made in; the others (net_cls, perf_event…) only cost time.
_SYSTEMD = "name=systemd"
USED = ("memory", "freezer", "cpu", "cpuacct", "cpuset", "devices", "pids", "blkio", "hugetlb")


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One mounted hierarchy.

    Args:
        mountpoint: where it is mounted.
        controllers: its controllers; for v2 those of the mount's `cgroup.controllers`.
        own: path of this process's group in it, from the hierarchy's root.
        root: what part of the hierarchy the mount shows; `/` but for bind mounts into containers.
    """

    mountpoint: str
    controllers: tuple[str, ...]
    own: str = "/"
    root: str = "/"

    def directory(self, group: str) -> str:
        """Return the directory of `group` (an absolute name from the hierarchy's root, or `/`)."""
        name = group.strip("/")
        if self.root != "/" and (f"/{name}" == self.root or f"/{name}/".startswith(f"{self.root}/")):
            name = f"/{name}"[len(self.root) :].strip("/")
        return f"{self.mountpoint}/{name}" if name else self.mountpoint


@dataclass(frozen=True, slots=True)
class Layout:
    """The host's control groups.

    Args:
        version: 2 if the controllers are on the v2 hierarchy, else 1.
        hierarchies: the v1 hierarchies with a controller that crishim uses; empty on version 2.
        unified: the v2 mount; None on version 1.
        watchers: hierarchies without controllers beside v1, where systemd sees which processes belong to a unit; a
            process that none of them may count as the daemon's moves there too.
    """

    version: int
    hierarchies: tuple[Hierarchy, ...] = ()
    unified: Hierarchy | None = None
    watchers: tuple[Hierarchy, ...] = ()

    @property
    def kind(self) -> str:
        """Return `unified` or `legacy`."""
        return "unified" if self.unified else "legacy"

    def directories(self, group: str) -> tuple[str, ...]:
        """Return the group's directory in each hierarchy."""
        return tuple(h.directory(group) for h in ((self.unified,) if self.unified else self.hierarchies))

    def watched(self, group: str) -> tuple[str, ...]:
        """Return the group's directories in the hierarchies by which systemd tells units apart beside v1."""
        return tuple(h.directory(group) for h in self.watchers)

    def hierarchy(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy that holds `controller`; on v2 `devices` and `freezer` are always there."""
        unified = self.unified
        if unified is not None:
            builtin = controller in {"devices", "freezer", "cpuacct"}
            return unified if builtin or controller in unified.controllers else None
        return next((h for h in self.hierarchies if controller in h.controllers), None)

    def has(self, controller: str) -> bool:
        """Tell whether limits of `controller` can be set on this host."""
        return self.hierarchy(controller) is not None

    def directory(self, controller: str, group: str) -> str | None:
        """Return the group's directory that has the files of `controller`, or None."""
        hierarchy = self.hierarchy(controller)
        return hierarchy.directory(group) if hierarchy else None

    def unified_directory(self, group: str) -> str | None:
        """Return the group's v2 directory (for CLONE_INTO_CGROUP, cgroup.kill and pressure files), or None."""
        return self.unified.directory(group) if self.unified else None


def parse(mountinfo: str, membership: str, available: str = "") -> Layout:
    """Return the layout that the texts describe.

    Args:
        mountinfo: content of `/proc/self/mountinfo`.
        membership: content of `/proc/self/cgroup`.
        available: content of the v2 mount's `cgroup.controllers`.

    Raises:
        FailedPreconditionError: no control group hierarchy with controllers is mounted.
    """
    own = _memberships(membership)
    legacy: dict[str, Hierarchy] = {}
    systemd: Hierarchy | None = None
    unified: Hierarchy | None = None
    for line in mountinfo.split("\n"):
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        fields, (kind, _source, options) = left.split(" "), right.split(" ")[:3]
        root, mountpoint = _unescape(fields[3]), _unescape(fields[4])
        if kind == "cgroup2" and unified is None:
            unified = Hierarchy(mountpoint, tuple(available.split()), own.get("", "/"), root)
        elif kind == "cgroup" and _SYSTEMD in options.split(","):
            systemd = systemd or Hierarchy(mountpoint, (), own.get(_SYSTEMD, "/"), root)
        elif kind == "cgroup":
            controllers = tuple(c for c in options.split(",") if c in USED)
            if controllers and controllers[0] not in legacy:
                found = Hierarchy(mountpoint, controllers, own.get(controllers[0], "/"), root)
                legacy.update(dict.fromkeys(controllers, found))
    ordered = tuple(dict.fromkeys(legacy[name] for name in USED if name in legacy))
    if ordered:
        return Layout(1, ordered, None, tuple(h for h in (systemd, unified) if h is not None))
    if unified is None or not unified.controllers:
        raise FailedPreconditionError(
            "no control groups with controllers are mounted; mount cgroup2 on /sys/fs/cgroup (see cgroups(7))"
        )
    return Layout(2, (), unified)


def detect() -> Layout:
    """Return this host's layout.

    Raises:
        FailedPreconditionError: no control group hierarchy with controllers is mounted.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mountinfo = file.read()
    with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        membership = file.read()
    return parse(mountinfo, membership, _available(mountinfo))


def _available(mountinfo: str) -> str:
    """Return the controllers that the first v2 mount offers."""
    for line in mountinfo.split("\n"):
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            try:
                with open(_unescape(left.split(" ")[4]) + "/cgroup.controllers", encoding="ascii") as file:
                    return file.read()
            except OSError:
                return ""
    return ""


def _memberships(text: str) -> dict[str, str]:
    """Return controller → own path; the v2 hierarchy has the key ""."""
    own = {}
    for line in text.split("\n"):
        parts = line.split(":", 2)
        if len(parts) == 3:
            own.update(dict.fromkeys(parts[1].split(","), parts[2]))
    return own


def _unescape(text: str) -> str:
    r"""Undo mountinfo's octal escapes (`\040` is a space)."""
    if "\\" not in text:
        return text
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
