"""A program: unpack a layer of very many entries on a tmpfs of its own; print the report and the child's peak memory.

usage: unshare -m python -m tests.support.many_entries DIRECTORY ENTRIES

On a tmpfs, since a disk's file system is slow for minutes after so many files; in a mount namespace of its own, so
that it goes with the program.
"""

import gzip
import hashlib
import json
import os
import sys

from crishim.linux import calls
from crishim.unpack import extract
from crishim.unpack.layerstream import TOTAL
from tests.support.tars import header

_AT_ONCE = 1000
_PER_DIRECTORY = 5000


def _blob(path: str, entries: int) -> tuple[int, str]:
    """Write a layer of empty files; return its size and its diff id."""
    digest = hashlib.sha256()
    with gzip.open(path, "wb", 1) as file:
        for first in range(0, entries, _AT_ONCE):
            numbers = range(first, min(first + _AT_ONCE, entries))
            part = b"".join(header(b"d%03d/f%07d" % (number // _PER_DIRECTORY, number)) for number in numbers)
            digest.update(part)
            file.write(part)
        digest.update(bytes(1024))
        file.write(bytes(1024))
    return os.path.getsize(path), f"sha256:{digest.hexdigest()}"


def main() -> None:
    """Do it."""
    directory, entries = sys.argv[1], int(sys.argv[2])
    calls.mount("none", directory, "tmpfs", 0, f"nr_inodes={2 * entries + 1000}")
    size, diff_id = _blob(f"{directory}/blob", entries)
    os.mkdir(f"{directory}/layer")
    blob, dest = os.open(f"{directory}/blob", os.O_RDONLY), os.open(f"{directory}/layer", os.O_RDONLY | os.O_DIRECTORY)
    told, tell = os.pipe()
    os.write(tell, size.to_bytes(TOTAL, "little"))
    report = os.memfd_create("report")
    pid = os.fork()
    if pid == 0:
        try:
            extract.run((blob, told, dest, report), {"size": size, "diff_id": diff_id, "max_entries": entries})
        finally:
            os._exit(0)
    _, _, used = os.wait4(pid, 0)
    found = json.loads(os.pread(report, 1 << 20, 0))
    files = sum(len(names) for _, _, names in os.walk(f"{directory}/layer"))
    print(json.dumps({**found, "files": files, "peak_bytes": used.ru_maxrss << 10}))


if __name__ == "__main__":
    main()
