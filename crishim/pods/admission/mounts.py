"""Mounts of a request, as far as they can be judged without looking at the host or the image."""

from collections.abc import Sequence
from os.path import normpath

from crishim.pods.admission import checks
from crishim.problems import Problems
from crishim.request import Mount, Propagation


def container(problems: Problems, mounts: Sequence[Mount]) -> None:
    """Judge a container's mounts."""
    for n, mount in enumerate(mounts):
        at = f"config.mounts[{n}]"
        _target(problems, f"{at}.container_path", mount.container_path)
        _source(problems, at, mount)
        _options(problems, at, mount)


def _target(problems: Problems, field: str, path: str) -> None:
    checks.absolute(problems, field, path)
    # POSIX lets two leading slashes stand, and normpath keeps them: `//proc` is /proc all the same.
    place = normpath("/" + path.lstrip("/"))
    if place == "/":
        problems.add(field, "is the container's root; a path below it is wanted")
    elif place == "/proc" or place.startswith("/proc/"):
        problems.add(field, f"{place}: nothing may be mounted over procfs (it would hide what protects the host)")


def _source(problems: Problems, at: str, mount: Mount) -> None:
    """A mount shows a host path or an image, never both."""
    if mount.image is None:
        checks.absolute(problems, f"{at}.host_path", mount.host_path)
        if mount.image_sub_path:
            problems.add(f"{at}.image_sub_path", "needs an image: this is a mount of a host path")
        return
    if mount.host_path:
        problems.add(f"{at}.host_path", f"must be empty when image is given, is {mount.host_path!r}")
    checks.given(problems, f"{at}.image.image", mount.image.image)
    if not mount.readonly:
        problems.add(f"{at}.readonly", "must be true when image is given: an image is never written to")
    checks.inside(problems, f"{at}.image_sub_path", mount.image_sub_path)
    checks.unsupported(problems, f"{at}.image", "image volumes", "copy the files into a host path")


def _options(problems: Problems, at: str, mount: Mount) -> None:
    if mount.propagation is not Propagation.PRIVATE:
        checks.unsupported(problems, f"{at}.propagation", mount.propagation.name, "use PROPAGATION_PRIVATE")
    if mount.recursive_read_only:
        field = f"{at}.recursive_read_only"
        if not mount.readonly:
            problems.add(field, "needs readonly too")
        if mount.propagation is not Propagation.PRIVATE:
            problems.add(field, f"needs propagation PRIVATE, is {mount.propagation.name}")
        checks.unsupported(problems, field, "recursive read-only mounts", "use readonly alone")
    for name in ("uid_mappings", "gid_mappings"):
        ranges, field = getattr(mount, name), f"{at}.{name.replace('_m', 'M')}"
        checks.id_mappings(problems, field, ranges)
        if ranges:
            checks.unsupported(problems, field, "idmapped mounts", "leave the mappings out")
    if mount.mount_options:
        checks.unsupported(problems, f"{at}.mount_options", "options of a mount", "leave them out")
