"""The write side of the registry in this process: uploads whole and in pieces, whose faults a test chooses.

Follows the distribution-spec: a piece at a wrong offset is answered with 416, an unknown upload with 404, a body whose
digest is another with 400. `kept` says how much of a piece that is being received is taken (None: all).
"""

import hashlib
import itertools
import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from tests.fakes.registry import FakeRegistry, Handler

_UPLOAD = re.compile(r"/v2/(.+)/blobs/uploads/([0-9a-z]*)$")
_MANIFEST = re.compile(r"/v2/.+/manifests/([^/]+)$")


class PushRegistry(FakeRegistry):
    """A registry that can be pushed to; `pieces` holds method, offset and size of each body."""

    def __init__(self, certificate: str = "") -> None:
        super().__init__(certificate)
        self.uploads: dict[str, bytearray] = {}
        self.pieces: list[tuple[str, int, int]] = []
        self.kept: Callable[[int], int | None] = lambda _number: None
        self.minimum = 0
        self.location = ""
        self._count = itertools.count()
        self.rules.append(self._write)
        for method in ("PUT", "PATCH", "DELETE"):
            setattr(self._server.RequestHandlerClass, f"do_{method}", lambda handler: handler.registry.handle(handler))

    def _write(self, handler: Handler) -> bool:
        parts = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if upload := _UPLOAD.match(parts.path):
            return self._upload(handler, upload[1], upload[2], query)
        if handler.command == "PUT" and (named := _MANIFEST.match(parts.path)):
            data = _body(handler)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            for name in {named[1], digest}:
                self.manifests[name] = (handler.headers["Content-Type"], data)
            return handler.answer(201, headers={"Docker-Content-Digest": digest})
        return False

    def _upload(self, handler: Handler, repository: str, name: str, query: dict[str, str]) -> bool:
        if handler.command == "POST":
            if query.get("mount", "") in self.blobs:
                return handler.answer(201, headers={"Location": f"/v2/{repository}/blobs/{query['mount']}"})
            name = f"u{next(self._count)}"
            self.uploads[name] = bytearray()
            more = {"OCI-Chunk-Min-Length": str(self.minimum)} if self.minimum else {}
            return handler.answer(202, headers=self._status(repository, name) | more)
        held = self.uploads.get(name)
        if held is None:
            if handler.command != "GET":
                handler.close_connection = True
            return handler.answer(404, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}')
        if handler.command == "GET":
            return handler.answer(204, headers=self._status(repository, name))
        if handler.command == "DELETE":
            del self.uploads[name]
            return handler.answer(204)
        return self._piece(handler, repository, name, held, query)

    def _piece(self, handler: Handler, repository: str, name: str, held: bytearray, query: dict[str, str]) -> bool:
        first = handler.headers.get("Content-Range", f"{len(held)}-").partition("-")[0]
        length = int(handler.headers["Content-Length"])
        self.pieces.append((handler.command, int(first), length))
        kept = self.kept(len(self.pieces))
        if kept is not None:
            held += handler.rfile.read(kept)
            handler.close_connection = True
            return True
        data = _body(handler)
        if int(first) != len(held):
            return handler.answer(416, headers=self._status(repository, name))
        held += data
        if handler.command == "PATCH":
            return handler.answer(202, headers=self._status(repository, name))
        digest = f"sha256:{hashlib.sha256(held).hexdigest()}"
        if digest != query["digest"]:
            return handler.answer(400, b'{"errors":[{"code":"DIGEST_INVALID","message":"no such bytes"}]}')
        del self.uploads[name]
        self.blobs[digest] = bytes(held)
        return handler.answer(201, headers={"Docker-Content-Digest": digest})

    def _status(self, repository: str, name: str) -> dict[str, str]:
        last = max(len(self.uploads[name]) - 1, 0)
        return {"Location": f"{self.location}/v2/{repository}/blobs/uploads/{name}?state=x", "Range": f"0-{last}"}


def _body(handler: Handler) -> bytes:
    return handler.rfile.read(int(handler.headers["Content-Length"]))
