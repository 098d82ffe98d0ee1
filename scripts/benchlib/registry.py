"""A private registry on the loopback interface: Debian's docker-registry, its storage in the bench's cache.

Images are pushed by the distribution API itself (two requests a blob), so no other tool is needed. Out of scope: TLS,
authentication. Invariant: the registry ends with `close`.
"""

import http.client
import os
import socket
import subprocess
import time
from typing import Self

from scripts.benchlib import oci
from scripts.benchlib.cage import Cage

CONFIG = """\
version: 0.1
log: {{accesslog: {{disabled: true}}, level: error}}
storage: {{filesystem: {{rootdirectory: {storage}}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Registry:
    """A running registry; `reference(name)` is what a runtime pulls."""

    def __init__(self, storage: str, scratch: str) -> None:
        self.port = free_port()
        self._storage = storage
        os.makedirs(storage, exist_ok=True)
        config = os.path.join(scratch, "registry.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(CONFIG.format(storage=storage, port=self.port))
        self._cage = Cage("registry")  # so that a run that was killed leaves none to the next one's sweep
        command = self._cage.enter(["docker-registry", "serve", config])
        with open(os.path.join(scratch, "registry.log"), "wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def reference(self, name: str) -> str:
        """Return the full reference of an image that was pushed here."""
        return f"127.0.0.1:{self.port}/bench/{name}:1"

    def holds(self, name: str) -> bool:
        """Tell whether the image is there already (from an earlier run, in the cache)."""
        return self._request("HEAD", f"/v2/bench/{name}/manifests/1", headers={"Accept": oci.MANIFEST})[0] == 200

    def push(self, name: str, image: oci.Image) -> None:
        """Upload an image's blobs, then its manifest."""
        for digest, blob in image.blobs.items():
            status, place = self._request("POST", f"/v2/bench/{name}/blobs/uploads/")
            _expect(status, 202, "start an upload")
            path = place[place.index("/v2/") :]
            joined = f"{path}{'&' if '?' in path else '?'}digest={digest}"
            status, _ = self._request("PUT", joined, blob, {"Content-Type": "application/octet-stream"})
            _expect(status, 201, f"upload {digest}")
        path = f"/v2/bench/{name}/manifests/1"
        status, _ = self._request("PUT", path, image.manifest, {"Content-Type": oci.MANIFEST})
        _expect(status, 201, f"upload the manifest of {name}")

    def warm(self) -> None:
        """Read everything that is stored, so that the first pull does not wait for the disk below the registry."""
        for directory, _, names in os.walk(self._storage):
            for name in names:
                with open(os.path.join(directory, name), "rb") as file:
                    while file.read(1 << 20):
                        pass

    def close(self) -> None:
        """End the registry."""
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._cage.close()

    def _request(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.getheader("Location") or ""
        finally:
            connection.close()

    def _wait(self) -> None:
        for _ in range(200):
            if self._process.poll() is not None:
                raise RuntimeError("docker-registry ended at once")
            try:
                if self._request("GET", "/v2/")[0] == 200:
                    return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("docker-registry does not answer")


def free_port() -> int:
    """Return a loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _expect(status: int, wanted: int, what: str) -> None:
    if status != wanted:
        raise RuntimeError(f"registry: {what}: HTTP {status}, expected {wanted}")
