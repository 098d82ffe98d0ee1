"""One layer's blob becomes a directory in overlayfs's form: the child that the unpacker forks for each layer.

It decompresses, digests and unpacks in one go. It runs as root, but locked down: in a mount namespace of its own whose
only mount is the layer's directory (nodev, nosuid, noexec), with the six capabilities that owners, modes and nodes
need. So every path that the archive names, through whatever links, is resolved by the kernel inside the layer, and a
fault in a decompressor has nothing but the layer; the host cannot be reached.

Nothing is imported after the root has changed: it would be the image's code. Out of scope: the blob's digest, renaming
the finished layer into place.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crishim.errors import CrishimError
from crishim.linux import calls
from crishim.unpack.ahead import ahead
from crishim.unpack.layerstream import Growing, LayerStream
from crishim.unpack.layerwriter import LayerWriter
from crishim.unpack.tarstream import TarError, TarStream

# capabilities(7): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, MKNOD and SETFCAP
_CAPABILITIES = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31
_LARGE = 1 << 20  # bytes of a blob that are worth a second thread


def run(fds: Sequence[int], options: Mapping[str, Any]) -> None:
    """Unpack a blob into a directory and write the report: an empty line at once, and one of JSON in the end.

    The process is used up afterwards: its root, namespaces and capabilities are the layer's. The report is either
    `{"ok": true, bytes, inodes, lists_root, parents, opaque, links, skipped_xattrs}` or
    `{"error": sentence, "kind": "tar" | "os" | "fault" | name of a class of `crishim.errors`, "errno": n}`: "os" is a
    call for one of the layer's files, "fault" is ours, whatever the layer.

    Args:
        fds: the packed layer, a file that may still grow; what says how far it is (see `layerstream.Growing`); an
            empty directory (O_DIRECTORY; O_PATH will do); where the report goes.
        options: `size` of the blob; those of `layerstream.LayerStream`; `renames` (name → name, see `LayerWriter`);
            `max_entries` (0: no limit); `ahead`: a thread may decompress while another one writes.
    """
    blob_fd, progress_fd, dest_fd, report_fd = fds
    report: dict[str, Any]
    confined = False
    try:
        os.write(report_fd, b"\n")
        os.umask(0)
        renames = {os.fsencode(k): os.fsencode(v) for k, v in (options.get("renames") or {}).items()}
        size = int(options["size"])
        pieces: Iterable[bytes] = LayerStream(Growing(blob_fd, progress_fd, size), options)
        if options.get("ahead") and size >= _LARGE:
            pieces = ahead(pieces)
        confine(dest_fd, (blob_fd, progress_fd, report_fd))
        sys.meta_path.clear()
        sys.path.clear()
        confined = True
        report = LayerWriter(TarStream(pieces), renames).run(int(options.get("max_entries") or 0))
    except TarError as error:
        report = _refusal(str(error), "tar")
    except CrishimError as error:
        report = _refusal(str(error), type(error).__name__)
    except OSError as error:
        # Only a call that names one of the layer's files can be the layer's fault.
        report = _refusal(_reason(error), "os" if confined and error.filename else "fault", error.errno or 0)
    except Exception as error:  # noqa: BLE001  an unforeseen fault must reach the daemon, not a traceback with imports
        report = _refusal(f"{type(error).__name__}: {error}", "fault")
    data = memoryview(json.dumps(report).encode() + b"\n")
    while data:
        data = data[os.write(report_fd, data) :]


def _reason(error: OSError) -> str:
    """Return what failed and why; a path comes last, since it may be as long as it likes, and the daemon cuts."""
    why = os.strerror(error.errno or 0)
    call = error.strerror if error.strerror != why else ""  # `linux.calls` puts the call where Python has the reason
    return ": ".join(part for part in (call, why, os.fsdecode(error.filename or "")) if part)


def _refusal(sentence: str, kind: str, number: int = 0) -> dict[str, Any]:
    return {"error": sentence, "kind": kind, "errno": number}


def confine(dest_fd: int, keep: tuple[int, ...]) -> None:
    """Make the layer's directory the only thing that this process can reach.

    The detached copy of the mount is made before the namespace: open_tree(2) takes only mounts of the caller's own. It
    is a peer of the mount that it was made from, and shared if that is; pivot_root(2) wants a private one.
    pivot_root(".", ".") stacks the old root on the new one, and the detach takes it off again (pivot_root(2), notes).
    """
    tree = calls.open_tree(dest_fd, "", calls.OPEN_TREE_CLONE | calls.AT_EMPTY_PATH)
    attributes = calls.MOUNT_ATTR_NODEV | calls.MOUNT_ATTR_NOSUID | calls.MOUNT_ATTR_NOEXEC
    calls.mount_setattr(tree, "", attributes, 0, calls.MS_PRIVATE)
    calls.unshare(calls.CLONE_NEWNS)
    calls.mount("none", "/", "", calls.MS_REC | calls.MS_PRIVATE)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    calls.move_mount(tree, root, "the layer's directory")
    os.fchdir(tree)
    calls.pivot_root(".", ".")
    calls.umount(".", calls.MNT_DETACH)
    os.chdir("/")
    _close_others({0, 1, 2, *keep})
    calls.prctl(calls.PR_SET_NO_NEW_PRIVS, 1, what="no_new_privs")
    calls.capset(_CAPABILITIES, _CAPABILITIES, 0)


def _close_others(keep: set[int]) -> None:
    low = 0
    for fd in sorted(keep):
        if fd > low:  # an empty range would be taken for all fds
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 20)


def main() -> None:
    """Run as a program: `python -m crishim.unpack.extract BLOB_FD PROGRESS_FD DEST_FD REPORT_FD OPTIONS`."""
    run([int(word) for word in sys.argv[1:5]], json.loads(sys.argv[5]))
    os._exit(0)


if __name__ == "__main__":
    main()
