"""Who may pull from where: tokens, credentials, origins, mirrors, TLS."""

import subprocess
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from crishim.errors import (
    CrishimError,
    UnauthenticatedError,
    UnavailableError,
)
from crishim.images.model import Credentials
from tests.fakes.registry import FakeRegistry, Handler
from tests.fakes.registry_images import Service
from tests.support.abilities import need_program
from tests.support.layout import Entry, tar
from tests.support.ports import free_port
from tests.support.surroundings import ABSENT

SMALL = tar([Entry("small", b"x")])


class TokenAuth:
    """Wants a bearer token that it gives to one user; each token is good for `uses` requests."""

    def __init__(self, registry: FakeRegistry, uses: int, user: str = "") -> None:
        self.registry = registry
        self.uses = uses
        self.user = user
        self.left: dict[str, int] = {}
        self.lock = threading.Lock()
        registry.rules.append(self.rule)

    def rule(self, handler: Handler) -> bool:
        if handler.path.startswith("/token"):
            query = parse_qs(urlsplit(handler.path).query)
            assert query["scope"] == ["repository:a:pull", "repository:b:pull"]
            if self.user and handler.headers.get("Authorization", "") != self.user:
                handler.answer(401)
                return True
            with self.lock:
                token = f"token{len(self.left)}"
                self.left[token] = self.uses
            handler.answer(200, b'{"access_token": "%s"}' % token.encode())
            return True
        with self.lock:
            token = handler.headers.get("Authorization", "").removeprefix("Bearer ")
            if self.left.get(token, 0) > 0:
                self.left[token] -= 1
                return False
        scope = "repository:a:pull repository:b:pull"
        realm = f"http://{self.registry.host}/token"
        handler.answer(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="s",scope="{scope}"'})
        return True


@pytest.mark.parametrize("uses", [1, 1000])
async def test_tokens_that_last_long_and_for_one_request(fake: FakeRegistry, tmp_path: Path, uses: int) -> None:
    fake.image("t", [tar([Entry(f"f{n}")]) for n in range(6)])
    auth = TokenAuth(fake, uses)
    async with Service(str(tmp_path)) as service:
        await service.images.pull(f"{fake.host}/a:t")
        before = len(fake.requests)
        await service.images.pull(f"{fake.host}/a:t")
    assert uses == 1 or (len(auth.left), len(fake.requests) - before) == (1, 1)


async def test_credentials_and_their_absence(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [SMALL])
    TokenAuth(fake, 1000, "Basic dTpw")
    async with Service(str(tmp_path)) as service:
        for wrong in (None, Credentials(username="u", password="no")):
            with pytest.raises(UnauthenticatedError, match=fake.host):
                await service.images.pull(f"{fake.host}/a:t", wrong)
        await service.images.pull(f"{fake.host}/a:t", Credentials(auth="dTpw"))
        # What one may pull, the other still may not, though the image is here.
        with pytest.raises(UnauthenticatedError):
            await service.images.pull(f"{fake.host}/a:t")


async def test_authorization_stays_with_its_origin(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [SMALL])
    seen = []
    with FakeRegistry() as store:

        def refuse(handler: Handler) -> bool:
            seen.append(handler.headers.get("Authorization"))
            return bool(handler.headers.get("Authorization")) and handler.answer(400)

        store.rules.append(refuse)
        store.blobs = fake.blobs

        def redirect(handler: Handler) -> bool:
            if handler.headers.get("Authorization") != "Basic dTpw":
                handler.answer(401, headers={"WWW-Authenticate": "Basic realm=x"})
            elif "/blobs/" in handler.path:
                handler.answer(307, headers={"Location": f"http://{store.host}{handler.path}"})
            else:
                return False
            return True

        fake.rules.append(redirect)
        async with Service(str(tmp_path)) as service:
            await service.images.pull(f"{fake.host}/a:t", Credentials(username="u", password="p"))
    assert seen
    assert set(seen) == {None}


async def test_mirrors_are_tried_in_order_and_named(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [SMALL])
    hosts = tmp_path / "certs" / "registry.example"
    hosts.mkdir(parents=True)
    dead = f"127.0.0.1:{free_port()}"
    text = f'server = "http://127.0.0.1:1"\n[host."http://{dead}"]\n[host."http://{fake.host}"]\n'
    (hosts / "hosts.toml").write_text(text, encoding="utf-8")
    async with Service(str(tmp_path / "root"), certs_d=(str(tmp_path / "certs"),)) as service:
        await service.images.pull("registry.example/a:t")
        assert fake.requests[0] == "GET /v2/a/manifests/t?ns=registry.example"
        (image,) = service.images.list()
        assert image.repo_tags == ("registry.example/a:t",)
        with pytest.raises(UnavailableError) as caught:
            await service.images.pull("registry.example/a:absent")
    for name in (dead, fake.host, "127.0.0.1:1"):
        assert name in str(caught.value)


async def test_tls_with_an_own_authority(tmp_path: Path) -> None:
    openssl = need_program("openssl", "openssl")
    pem = str(tmp_path / "server.pem")
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *names, "-keyout", pem, "-out", f"{pem}.crt"], check=True, capture_output=True)
    with open(pem, "a", encoding="utf-8") as file, open(f"{pem}.crt", encoding="utf-8") as certificate:
        file.write(certificate.read())
    with FakeRegistry(pem) as fake:
        fake.image("t", [SMALL])
        hosts = tmp_path / "certs" / fake.host
        hosts.mkdir(parents=True)

        def configure(text: str) -> None:
            (hosts / "hosts.toml").write_text(f'server = "https://{fake.host}"\n{text}', encoding="utf-8")

        async with Service(str(tmp_path / "root"), certs_d=(str(tmp_path / "certs"),)) as service:
            configure("")
            with pytest.raises(UnavailableError, match=r"TLS.*hosts\.toml"):
                await service.images.pull(f"{fake.host}/a:t")
            configure(f'ca = "{ABSENT}/file"')
            with pytest.raises(CrishimError, match=f"{ABSENT}/file"):
                await service.images.pull(f"{fake.host}/a:t")
            configure(f'ca = "{pem}.crt"')
            await service.images.pull(f"{fake.host}/a:t")
            configure("skip_verify = true")
            await service.images.pull(f"{fake.host}/a:t")
