"""The container's root: an overlay mounted in the container's own mount namespace only, then pivot_root(2).

The host's mount table never shows a container's root. The overlay is `volatile`: a container is never started
twice, so what it wrote needs no sync at its end (kernel: Documentation/filesystems/overlayfs.rst, "Volatile mount").
"""

import errno
import os
from typing import Any

from crishim.engine.execute.report import StepError
from crishim.linux import calls


def mount_overlay(plan: dict[str, Any]) -> int:
    """Return the detached mount of an OverlayRoot (see `engine.plan.types`).

    Layers are named relative to `base`, so that their paths stay short. Where the kernel takes layers one by one
    there is no limit but its own (500); else all of them must fit into one page of options.

    Raises:
        OSError: the kernel refused; the text names the option.
    """
    os.chdir(plan["base"])
    if not plan["append"]:
        return _mount_by_options(plan)
    context = calls.fsopen("overlay")
    for layer in plan["lower"]:
        calls.fsconfig(context, "lowerdir+", layer)
    calls.fsconfig(context, "upperdir", plan["upper"])
    calls.fsconfig(context, "workdir", plan["work"])
    for option in plan["options"]:
        key, separator, value = option.partition("=")
        calls.fsconfig(context, key, value if separator else None)
    calls.fscreate(context, "root overlay")
    tree = calls.fsmount(context, 0, "root overlay")
    _refuse_readonly(tree)
    return tree


def _mount_by_options(plan: dict[str, Any]) -> int:
    """Kernels before 6.8: mount(2) with one option string, on the read/write layer's own directory."""
    lower = ":".join(layer.replace("\\", "\\\\").replace(":", "\\:") for layer in plan["lower"])
    options = [f"lowerdir={lower}", f"upperdir={_comma(plan['upper'])}", f"workdir={_comma(plan['work'])}"]
    data = ",".join([_comma(options[0]), *options[1:], *plan["options"]])
    if len(data) > 4095:
        raise OSError(
            errno.E2BIG, f"mount root overlay: {len(plan['lower'])} layers need {len(data)} bytes of options, max 4095"
        )
    place = os.path.dirname(plan["upper"])
    calls.mount("overlay", place, "overlay", 0, data)
    tree = calls.open_tree(calls.AT_FDCWD, place, 0)
    _refuse_readonly(tree)
    return tree


def _refuse_readonly(tree: int) -> None:
    """Refuse an overlay that the kernel made read-only, because there was no space for its working directory.

    It says so in its log alone (fs/overlayfs/super.c, `ovl_make_workdir`).
    """
    if os.fstatvfs(tree).f_flag & os.ST_RDONLY:
        raise StepError("root overlay: no space is left for what the container writes", errno.ENOSPC, "upper")


def _comma(text: str) -> str:
    return text.replace(",", "\\,")


def attach(root: int, place: str, *, attached: bool) -> int:
    """Attach the root at `place`, an empty directory, in this mount namespace; return an fd of its top directory."""
    if not attached:
        calls.move_mount(root, calls.AT_FDCWD, "root", place)
    return root


def pivot(root: int, *, readonly: bool) -> None:
    """Make `root` the root of this mount namespace and let the host's mounts go (pivot_root(2), NOTES)."""
    if readonly:
        calls.mount_setattr(root, "", calls.MOUNT_ATTR_RDONLY)
    os.fchdir(root)
    calls.pivot_root(".", ".")
    calls.umount(".", calls.MNT_DETACH)
    os.chdir("/")
