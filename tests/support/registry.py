"""A real registry (Debian's docker-registry) on a loopback port, with its own directory, and skopeo to fill it."""

import os
import re
import socket
import subprocess
from typing import NamedTuple

from tests.support.abilities import need_program
from tests.support.ports import free_port
from tests.support.programs import Program

_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {directory}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
"""
_TLS = "  tls: {{certificate: {0}.crt, key: {0}.key}}\n"
_PASSWORDS = "auth: {{htpasswd: {{realm: test, path: {0}}}}}\n"
USER, PASSWORD = "tester", "hunter-7x"
_HASH = "$2y$05$abcdefghijklmnopqrstuu9Jnh3DEfXDfKo5St8IpyPYwqhfA2dZm"


class PushedImage(NamedTuple):
    """An image in the registry; `id` is what the CRI calls it (its config's digest)."""

    reference: str
    id: str


class Registry:
    """A registry that lives for one or more tests; `host` is `127.0.0.1:PORT`.

    Args:
        directory: holds all of it; `registry.log` there names every request.
        private: speak TLS, with the authority of `certificate`, and let in USER with PASSWORD only.
    """

    def __init__(self, directory: str, *, private: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        program = need_program("docker-registry", "docker-registry")
        config = os.path.join(directory, "config.yml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(_CONFIG.format(directory=os.path.join(directory, "data"), port=self.port))
            if private:
                file.write(_TLS.format(_certificate(directory)) + _PASSWORDS.format(f"{directory}/htpasswd"))
        with open(os.path.join(directory, "htpasswd"), "w", encoding="utf-8") as file:
            file.write(f"{USER}:{_HASH}\n")
        self.certificate = os.path.join(directory, "server.crt")
        self._program = Program([program, "serve", config], os.path.join(directory, "registry.log"))
        self._program.wait_until(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def requests(self) -> list[str]:
        """Return the request lines so far, like `GET /v2/ HTTP/1.1`."""
        with open(os.path.join(self.directory, "registry.log"), encoding="utf-8", errors="replace") as file:
            return re.findall(r'"([A-Z]+ /v2/[^"]*)"', file.read())

    def push(self, layout: str, name: str) -> str:
        """Push an OCI layout (a directory) as `name` (like `demo:1`) and return the full reference."""
        skopeo = need_program("skopeo", "skopeo")
        reference = f"{self.host}/{name}"
        subprocess.run(
            [skopeo, "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{reference}"],
            check=True,
            capture_output=True,
        )
        return reference

    def keeps(self, kind: str, name: str) -> bool:
        """Tell whether the process of this name is the registry (leak check)."""
        return kind == "process" and name.startswith(f"{self._program.pid}@")

    def close(self) -> None:
        """End the registry."""
        self._program.stop()


def _certificate(directory: str) -> str:
    """Make a key and a certificate of its own for 127.0.0.1; return their path without `.key` and `.crt`."""
    openssl = need_program("openssl", "openssl")
    path = os.path.join(directory, "server")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, *names, "-keyout", f"{path}.key", "-out", f"{path}.crt"], check=True, capture_output=True)
    return path
