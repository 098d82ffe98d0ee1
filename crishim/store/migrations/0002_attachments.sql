-- What was asked of CNI plugins for a pod and is not yet taken back; a row is there before the first plugin runs.

CREATE TABLE attachments (
    key      TEXT PRIMARY KEY, -- id of the pod
    document BLOB NOT NULL
) WITHOUT ROWID;
