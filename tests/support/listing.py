"""Print what is in the working directory as JSON, for comparing trees: `python listing.py`, standard library only.

Path → type and mode, owner, link target, digest of the content, mtime (not of directories), xattrs as hex, and all
names of a file with several.
"""

import hashlib
import json
import os
import stat
import sys
from typing import Any


def main() -> None:
    """Print the tree."""
    found: dict[str, dict[str, Any]] = {}
    links: dict[int, list[str]] = {}
    for directory, directories, files in os.walk("."):
        for name in (*directories, *files):
            path = os.path.relpath(os.path.join(directory, name), ".")
            info = os.lstat(path)
            entry: dict[str, Any] = {"mode": oct(info.st_mode), "owner": [info.st_uid, info.st_gid]}
            entry["xattrs"] = {
                key: os.getxattr(path, key, follow_symlinks=False).hex()
                for key in sorted(os.listxattr(path, follow_symlinks=False))
                if not key.startswith("trusted.overlay.")
            }
            if stat.S_ISLNK(info.st_mode):
                entry["target"] = os.readlink(path)
            if stat.S_ISREG(info.st_mode):
                with open(path, "rb") as file:
                    entry["content"] = hashlib.sha256(file.read()).hexdigest()
            if not stat.S_ISDIR(info.st_mode):
                entry["mtime"] = int(info.st_mtime)
                if info.st_nlink > 1:
                    links.setdefault(info.st_ino, []).append(path)
                    entry["links"] = links[info.st_ino]
            found[path] = entry
    for names in links.values():
        names.sort()
    json.dump(found, sys.stdout, sort_keys=True)


if __name__ == "__main__":
    main()
