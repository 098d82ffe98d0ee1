"""A corrupt database is moved aside, and what can still be read of it goes into a new one.

Invariant: the daemon always gets a database that works; the broken file stays under another name for a person to
look at, and every report says which. Out of scope: repairing documents (a row is taken as it is or not at all).
"""

import os
import sqlite3
import time

from crishim.errors import DataLossError
from crishim.store.database import Database, connect

TABLES = (
    "sandboxes",
    "containers",
    "images",
    "layers",
    "image_references",
    "holds",
    "leases",
    "attachments",
    "settings",
    "quarantine",
)
_SUFFIXES = ("", "-wal", "-shm", "-journal")


def corruption(database: Database) -> str:
    """Return what SQLite finds wrong with a file (PRAGMA quick_check), or "" if it is sound."""
    try:
        found = str(database.rows("PRAGMA quick_check(1)")[0][0])
    except DataLossError as error:
        return str(error.__cause__)
    return "" if found == "ok" else found


def move_aside(path: str) -> str:
    """Rename a database with all its files to `<path>.corrupt-<UTC time>` and return the new path."""
    target = f"{path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    number = 1
    while os.path.lexists(target):
        number += 1
        target = f"{target.rpartition('Z')[0]}Z-{number}"
    for suffix in _SUFFIXES:
        if os.path.lexists(path + suffix):
            os.rename(path + suffix, target + suffix)
    return target


def salvage(broken: str, database: Database) -> int:
    """Copy the rows that can still be read into a new database; return how many there were."""
    source = connect(broken)
    try:
        with database.transaction():
            return sum(_copy(source, database, table) for table in TABLES)
    finally:
        source.close()


def _copy(source: sqlite3.Connection, database: Database, table: str) -> int:
    """Copy one table until its first unreadable page."""
    columns = [row[1] for row in database.rows(f"PRAGMA table_info({table})")]
    names = ", ".join(columns)
    insert = f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608  our names
    count = 0
    try:
        for row in source.execute(f"SELECT {names} FROM {table}"):  # noqa: S608  our names
            count += database.change(insert, row)
    except sqlite3.DatabaseError:
        return count  # the rest of the table cannot be read: that is why we are here
    return count
