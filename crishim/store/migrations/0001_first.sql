-- The first schema. Documents are JSON (crishim.codec) kept as blobs: the store looks into none of them.

CREATE TABLE sandboxes (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE, -- namespace, name, uid and attempt: what a retry comes with
    parent   TEXT NOT NULL,
    document BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE containers (
    id       TEXT PRIMARY KEY,
    name     TEXT NOT NULL UNIQUE,
    parent   TEXT NOT NULL, -- id of the sandbox
    document BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE images (
    key      TEXT PRIMARY KEY, -- digest of the image's config
    document BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE layers (
    key      TEXT PRIMARY KEY, -- diff id or chain id; a row is the mark that the layer is whole and synced
    document BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE image_references (
    name   TEXT PRIMARY KEY, -- tag or digest reference, normalised
    target TEXT NOT NULL     -- key of the image
) WITHOUT ROWID;

CREATE TABLE holds (
    name   TEXT PRIMARY KEY, -- who keeps the layers: a container's id
    target TEXT NOT NULL     -- key of the image
) WITHOUT ROWID;

CREATE TABLE leases (
    pool    TEXT NOT NULL,
    address TEXT NOT NULL,
    owner   TEXT NOT NULL,
    PRIMARY KEY (pool, address)
) WITHOUT ROWID;

CREATE INDEX leases_by_owner ON leases (owner);

CREATE TABLE settings (
    key      TEXT PRIMARY KEY,
    document BLOB NOT NULL
) WITHOUT ROWID;

-- Rows that could not be read, kept for a person to look at. Their names and ids are free again.
CREATE TABLE quarantine (
    number   INTEGER PRIMARY KEY,
    kind     TEXT NOT NULL, -- the table that it came from
    key      TEXT NOT NULL,
    name     TEXT NOT NULL,
    parent   TEXT NOT NULL,
    document BLOB,
    reason   TEXT NOT NULL,
    moved_at TEXT NOT NULL  -- UTC, ISO 8601
);
