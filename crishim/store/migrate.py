"""Numbered migrations: file NNNN in `store.migrations` brings the schema from version NNNN-1 to NNNN.

The version stands in the file's header (`user_version`). Each step is one transaction, so that a crash in the
middle leaves the version before it. A file of a newer crishim is refused before anything is written to it.
"""

import os

from crishim.errors import FailedPreconditionError, InternalError
from crishim.store.database import Database

FOLDER = os.path.join(os.path.dirname(__file__), "migrations")


def migrations(folder: str = FOLDER) -> dict[int, str]:
    """Return the migrations' paths by number: 1, 2, 3 without a gap."""
    found = {int(name[:4]): os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".sql")}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise InternalError(f"{folder}: the migrations are not numbered 1 to {len(found)}, install crishim anew")
    return found


def version(database: Database) -> int:
    """Return the schema's version; 0 for a new file."""
    return int(database.rows("PRAGMA user_version")[0][0])


def refuse_newer(database: Database, folder: str = FOLDER) -> None:
    """Raise FailedPreconditionError if the file was written by a crishim that knows more migrations."""
    known, found = len(migrations(folder)), version(database)
    if found > known:
        raise FailedPreconditionError(
            f"{database.path} has schema version {found} and this crishim knows {known}: "
            "it was written by a newer crishim, start that one, or use another --root; the file was not changed"
        )


def migrate(database: Database, folder: str = FOLDER) -> None:
    """Bring the schema to the newest version."""
    steps = migrations(folder)
    for number in range(version(database) + 1, len(steps) + 1):
        with open(steps[number], encoding="utf-8") as file:
            text = file.read()
        database.script(f"BEGIN IMMEDIATE;\n{text}\nPRAGMA user_version = {number};\nCOMMIT;")
