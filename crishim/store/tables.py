"""The other tables: documents by key, names that point to them, leased addresses, and small settings."""

import json
from typing import Any

from crishim.errors import AlreadyExistsError
from crishim.store.database import Database
from crishim.store.objects import Quarantine, Row, unreadable


class Documents:
    """Documents by key: images, layers, attachments to CNI networks."""

    def __init__(self, database: Database, quarantine: Quarantine, table: str) -> None:
        self._database = database
        self._quarantine = quarantine
        self._table = table
        self._put = (
            f"INSERT INTO {table} (key, document) VALUES (?, ?) "  # noqa: S608  our name
            "ON CONFLICT (key) DO UPDATE SET document = excluded.document"
        )
        self._delete = f"DELETE FROM {table} WHERE key = ?"  # noqa: S608  our name
        self._select = f"SELECT key, document FROM {table}"  # noqa: S608  our name

    def put(self, key: str, document: bytes) -> None:
        """Add or replace a document."""
        self._database.change(self._put, (key, document))

    def get(self, key: str) -> bytes | None:
        """Return a document."""
        found = self._database.rows(f"{self._select} WHERE key = ?", (key,))
        return found[0][1] if found else None

    def delete(self, key: str) -> bool:
        """Remove a document; tell whether it was there."""
        return self._database.change(self._delete, (key,)) > 0

    def load(self) -> dict[str, bytes]:
        """Return all documents by key; one that is not JSON goes to quarantine instead."""
        found: dict[str, bytes] = {}
        for key, document in self._database.rows(self._select):
            reason = unreadable(document)
            if reason:
                self.quarantine(key, reason)
            else:
                found[key] = document
        return found

    def quarantine(self, key: str, reason: str) -> bool:
        """Take a document out that cannot be used."""
        with self._database.transaction():
            document = self.get(key)
            if document is not None:
                self._quarantine.add(self._table, Row(key, "", "", document), reason)
            return self.delete(key)


class Names:
    """Names that point to an object's key: image references, holds."""

    def __init__(self, database: Database, table: str) -> None:
        self._database = database
        self._set = (
            f"INSERT INTO {table} (name, target) VALUES (?, ?) "  # noqa: S608  our name
            "ON CONFLICT (name) DO UPDATE SET target = excluded.target"
        )
        self._delete = f"DELETE FROM {table} WHERE name = ?"  # noqa: S608  our name
        self._select = f"SELECT name, target FROM {table}"  # noqa: S608  our name

    def set(self, name: str, target: str) -> None:
        """Point a name to a target, wherever it pointed before."""
        self._database.change(self._set, (name, target))

    def get(self, name: str) -> str | None:
        """Return where a name points."""
        found = self._database.rows(f"{self._select} WHERE name = ?", (name,))
        return str(found[0][1]) if found else None

    def delete(self, name: str) -> bool:
        """Remove a name; tell whether it was there."""
        return self._database.change(self._delete, (name,)) > 0

    def load(self) -> dict[str, str]:
        """Return all names with their targets."""
        return dict(self._database.rows(self._select))


class Leases:
    """Addresses of pools and who has them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, pool: str, address: str, owner: str) -> None:
        """Give an address to an owner; AlreadyExistsError names who has it (the same owner may take it again)."""
        taken = self._database.change(
            "INSERT INTO leases (pool, address, owner) VALUES (?, ?, ?) "
            "ON CONFLICT (pool, address) DO UPDATE SET owner = owner WHERE owner = excluded.owner",
            (pool, address, owner),
        )
        if not taken:
            holder = self.load(pool).get(address)
            raise AlreadyExistsError(f"the address {address} of {pool} is leased to {holder}")

    def release(self, owner: str) -> list[str]:
        """Free all addresses of an owner and return them; unknown owners have none."""
        with self._database.transaction():
            found = self._database.rows("SELECT address FROM leases WHERE owner = ? ORDER BY pool", (owner,))
            if found:
                self._database.change("DELETE FROM leases WHERE owner = ?", (owner,))
        return [address for (address,) in found]

    def load(self, pool: str) -> dict[str, str]:
        """Return the pool's leases: address → owner."""
        return dict(self._database.rows("SELECT address, owner FROM leases WHERE pool = ?", (pool,)))

    def pools(self) -> list[str]:
        """Return the pools that have a lease."""
        return [str(pool) for (pool,) in self._database.rows("SELECT DISTINCT pool FROM leases ORDER BY pool")]


class Values:
    """Small settings of the instance itself, as JSON values."""

    def __init__(self, database: Database, quarantine: Quarantine) -> None:
        self._documents = Documents(database, quarantine, "settings")

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, or the default if there is none that can be read."""
        document = self._documents.get(key)
        if document is None:
            return default
        reason = unreadable(document)
        if reason:
            self._documents.quarantine(key, reason)
            return default
        return json.loads(document)

    def set(self, key: str, value: Any) -> None:
        """Keep a value; None removes it."""
        if value is None:
            self._documents.delete(key)
        else:
            self._documents.put(key, json.dumps(value, separators=(",", ":")).encode())
