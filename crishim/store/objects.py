"""Objects with an id and a unique name (sandboxes, containers), and the quarantine for what cannot be read.

Documents are opaque JSON bytes of `crishim.codec`. A row whose document is not JSON is taken out of its table into
`quarantine`, reported, and never stops the daemon: the others are loaded. Out of scope: what documents mean.
"""

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from crishim import words
from crishim.errors import AlreadyExistsError, NotFoundError
from crishim.store.database import Database


@dataclass(frozen=True, slots=True)
class Row:
    """One object as stored."""

    id: str
    name: str
    parent: str
    document: bytes


class Quarantine:
    """Rows that could not be read, and what was said about them since the store was opened."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reports: list[str] = []

    def add(self, kind: str, row: Row, reason: str) -> None:
        """Keep a row that its table gives up; part of the caller's transaction."""
        self._database.change(
            "INSERT INTO quarantine (kind, key, name, parent, document, reason, moved_at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (kind, row.id, row.name, row.parent, row.document, reason, time.strftime("%FT%TZ", time.gmtime())),
        )
        self.reports.append(f"{kind} {row.id}: {reason}; the record is in quarantine")

    def load(self) -> list[tuple[str, Row, str]]:
        """Return (table, row, reason) of all, oldest first."""
        found = self._database.rows("SELECT kind, key, name, parent, document, reason FROM quarantine ORDER BY number")
        return [(kind, Row(*rest), reason) for kind, *rest, reason in found]


class Objects:
    """Objects with an id, a unique name and a parent: sandboxes, containers."""

    def __init__(self, database: Database, quarantine: Quarantine, table: str) -> None:
        self._database = database
        self._quarantine = quarantine
        self._table = table
        self._insert = f"INSERT INTO {table} (id, name, parent, document) VALUES (?, ?, ?, ?)"  # noqa: S608  our name
        self._update = f"UPDATE {table} SET document = ? WHERE id = ?"  # noqa: S608  our name
        self._delete = f"DELETE FROM {table} WHERE id = ?"  # noqa: S608  our name
        self._owner = f"SELECT id FROM {table} WHERE name = ?"  # noqa: S608  our name
        self._select = f"SELECT id, name, parent, document FROM {table}"  # noqa: S608  our name

    def insert(self, id: str, name: str, document: bytes, parent: str = "") -> None:  # noqa: A002  the column's name
        """Add an object.

        Raises:
            AlreadyExistsError: the name belongs to another object, which the message names, or the id is taken.
        """
        try:
            self._database.change(self._insert, (id, name, parent, document))
        except sqlite3.IntegrityError:
            owner = self.owner(name)
            text = f"the name {name!r} is taken by {owner}" if owner else f"the id {id} is taken"
            raise AlreadyExistsError(text) from None

    def update(self, id: str, document: bytes) -> None:  # noqa: A002  the column's name
        """Replace an object's document; NotFoundError if it is gone."""
        if not self._database.change(self._update, (document, id)):
            raise NotFoundError(f"no record of {id} in {self._table}")

    def delete(self, id: str) -> bool:  # noqa: A002  the column's name
        """Remove an object; tell whether it was there."""
        return self._database.change(self._delete, (id,)) > 0

    def load(self) -> list[Row]:
        """Return all objects; a row whose document is not JSON goes to quarantine instead."""
        return [row for row in (Row(*found) for found in self._database.rows(self._select)) if self._sound(row)]

    def owner(self, name: str) -> str | None:
        """Return the id of the object that has the name."""
        found = self._database.rows(self._owner, (name,))
        return str(found[0][0]) if found else None

    def quarantine(self, id: str, reason: str) -> bool:  # noqa: A002  the column's name
        """Take an object out whose document cannot be used; its id and name are free again."""
        with self._database.transaction():
            found = self._database.rows(f"{self._select} WHERE id = ?", (id,))
            for row in found:
                self._quarantine.add(self._table, Row(*row), reason)
            return self.delete(id)

    def _sound(self, row: Row) -> bool:
        reason = unreadable(row.document)
        if reason:
            self.quarantine(row.id, reason)
        return not reason


def unreadable(document: Any) -> str:
    """Return why a document is no JSON object, array or value, or "" if it is one."""
    if not isinstance(document, bytes):
        return f"the document is {type(document).__name__}, not bytes"
    try:
        json.loads(document.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        return f"the document {words.unreadable(error)}"
    return ""
