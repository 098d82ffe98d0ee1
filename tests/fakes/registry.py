"""An HTTP registry in this process, for what a real one cannot be made to do: faults, odd auth, counting requests.

Content is put in as bytes; `rules` are asked first for each request and may answer in its place. Threads, because
several requests hang at once in some tests.
"""

import gzip
import hashlib
import http.server
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self

from tests.support import layout

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    registry: "FakeRegistry"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class's name
        return

    def do_GET(self) -> None:
        self.registry.handle(self)

    def do_HEAD(self) -> None:
        self.registry.handle(self)

    def do_POST(self) -> None:
        self.registry.handle(self)

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bool:
        """Send a whole answer; True, for rules."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def chunked(self, pieces: Iterable[bytes], status: int = 200, headers: Mapping[str, str] | None = None) -> bool:
        """Send a body without saying its length; a peer that has had enough ends it. True, for rules."""
        self.send_response(status)
        for name, value in {**(headers or {}), "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for piece in pieces:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.close_connection = True
        return True

    def break_off(self, body: bytes, length: int, headers: Mapping[str, str] | None = None, status: int = 200) -> None:
        """Promise `length` bytes, send fewer, and close the connection."""
        self.answer(status, body, {"Content-Length": str(length), **(headers or {})})
        self.wfile.flush()
        self.close_connection = True


Rule = Callable[[Handler], bool]
"""Answers a request and returns True, or returns False."""


class FakeRegistry:
    """A context manager; `host` is `127.0.0.1:PORT`. With a PEM file of certificate and key it speaks TLS.

    `bodies` counts the answers with a whole blob, by digest; `sent` the bytes of all answers with a part of one.
    """

    def __init__(self, certificate: str = "") -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.rules: list[Rule] = []
        self.requests: list[str] = []
        self.bodies: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.ranges = True
        self._lock = threading.Lock()
        handler = type("BoundHandler", (Handler,), {"registry": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=lambda: self._server.serve_forever(0.02), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # --- content -------------------------------------------------------------------------------------------------

    def blob(self, data: bytes, media_type: str = LAYER, **more: Any) -> dict[str, Any]:
        """Add a blob; return its descriptor."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data), **more}

    def document(self, document: Mapping[str, Any], tag: str = "", media_type: str = MANIFEST) -> dict[str, Any]:
        """Add a manifest or index under its digest and a tag; return its descriptor."""
        data = json.dumps({"schemaVersion": 2, "mediaType": media_type, **document}).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        for name in filter(None, (digest, tag)):
            self.manifests[name] = (media_type, data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(
        self,
        tag: str,
        layers: Sequence[bytes],
        *,
        pack: Callable[[bytes], bytes] = lambda data: gzip.compress(data, 1, mtime=0),
        media_type: str = LAYER,
        **config: Any,
    ) -> dict[str, Any]:
        """Add an image of plain tar layers; return its manifest's descriptor with `id` and `layers`."""
        described = [self.blob(pack(layer), media_type) for layer in layers]
        document = {
            "architecture": layout.architecture(),
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(x).hexdigest()}" for x in layers]},
            **config,
        }
        made = self.blob(json.dumps(document).encode(), CONFIG)
        manifest = self.document({"config": made, "layers": described}, tag)
        return {**manifest, "id": made["digest"], "layers": described}

    # --- serving -------------------------------------------------------------------------------------------------

    def count(self, part: str) -> int:
        """Return how many requests had `part` in "METHOD path"."""
        return sum(part in request for request in self.requests)

    def handle(self, handler: Handler) -> None:
        """Answer one request."""
        with self._lock:
            self.requests.append(f"{handler.command} {handler.path}")
        if any(rule(handler) for rule in list(self.rules)):
            return
        path = handler.path.partition("?")[0]
        kind, _, name = path.rpartition("/")
        if kind.endswith("/manifests") and name in self.manifests:
            media_type, data = self.manifests[name]
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            handler.answer(200, data, {"Content-Type": media_type, "Docker-Content-Digest": digest})
        elif kind.endswith("/blobs") and name in self.blobs:
            self._blob(handler, name)
        else:
            handler.answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"no such thing"}]}')

    def _blob(self, handler: Handler, digest: str) -> None:
        data = self.blobs[digest]
        start = handler.headers.get("Range", "")
        if start and self.ranges:
            first = int(start.removeprefix("bytes=").partition("-")[0])
            span = f"bytes {first}-{len(data) - 1}/{len(data)}"
            with self._lock:
                self.sent[digest] += len(data) - first
            handler.answer(206, data[first:], {"Content-Range": span})
            return
        with self._lock:
            self.bodies[digest] += 1
            self.sent[digest] += len(data)
        handler.answer(200, data)
