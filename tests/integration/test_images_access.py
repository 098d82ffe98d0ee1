"""Who may pull from where: tokens, credentials, origins, mirrors, TLS."""

import contextlib
import re
import socket
import subprocess
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from crishim.errors import (
    CrishimError,
    InternalError,
    RegistryUnavailableError,
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


@pytest.mark.parametrize("between", ["\\", "\t@", "\\@", "/\\@"])
@pytest.mark.parametrize("where", ["/blobs/", "/manifests/"])
async def test_an_address_that_reads_as_two_hosts_takes_no_secret_along(
    fake: FakeRegistry, tmp_path: Path, between: str, where: str
) -> None:
    fake.image("t", [SMALL])
    seen: list[str | None] = []
    with FakeRegistry() as thief:

        def catch(handler: Handler) -> bool:
            seen.append(handler.headers.get("Authorization"))
            return handler.answer(404)

        def redirect(handler: Handler) -> bool:
            if handler.headers.get("Authorization") != "Basic dTpw":
                return handler.answer(401, headers={"WWW-Authenticate": "Basic realm=x"})
            place = f"http://{thief.host}{between}{fake.host}{handler.path}"
            return where in handler.path and handler.answer(307, headers={"Location": place})

        thief.rules.append(catch)
        fake.rules.append(redirect)
        async with Service(str(tmp_path), attempts=1) as service:
            with pytest.raises(CrishimError):
                await service.images.pull(f"{fake.host}/a:t", Credentials(username="u", password="p"))
    assert not any(seen)


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


def certificate(directory: Path) -> str:
    """Make a key with its certificate for 127.0.0.1 and return their file; the certificate alone ends in `.crt`."""
    openssl = need_program("openssl", "openssl")
    pem = str(directory / "server.pem")
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*command, *names, "-keyout", pem, "-out", f"{pem}.crt"], check=True, capture_output=True)
    with open(pem, "a", encoding="utf-8") as file, open(f"{pem}.crt", encoding="utf-8") as made:
        file.write(made.read())
    return pem


async def test_tls_with_an_own_authority(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
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


@pytest.mark.parametrize("secret", ["refresh token", "password"])
@pytest.mark.parametrize("status", [302, 307, 308])
async def test_a_token_servers_redirect_to_another_origin_takes_no_secret_along(
    fake: FakeRegistry, tmp_path: Path, secret: str, status: int
) -> None:
    fake.image("t", [SMALL])
    seen: list[str] = []

    def catch(handler: Handler) -> bool:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        seen.append(f"{handler.path} {body!r} {handler.headers}")
        return handler.answer(200, b'{"token": "t"}')

    with FakeRegistry() as thief:
        thief.rules.append(catch)

        def rule(handler: Handler) -> bool:
            if handler.path.startswith("/token"):
                handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                return handler.answer(status, headers={"Location": f"http://{thief.host}{handler.path}"})
            realm = f'Bearer realm="http://{fake.host}/token"'
            return handler.headers.get("Authorization") != "Bearer t" and handler.answer(
                401, headers={"WWW-Authenticate": realm}
            )

        fake.rules.append(rule)
        given = (
            Credentials(identity_token="s3cret")
            if secret == "refresh token"
            else Credentials(username="u", password="s3cret")
        )
        async with Service(str(tmp_path)) as service:
            if secret == "refresh token":
                with pytest.raises(CrishimError) as caught:
                    await service.images.pull(f"{fake.host}/a:t", given)
                assert "s3cret" not in str(caught.value)
                assert status == 302 or f"redirects to {thief.host}" in str(caught.value)
            else:
                await service.images.pull(f"{fake.host}/a:t", given)
    assert not any("s3cret" in words or "Authorization" in words for words in seen)


async def test_a_loopback_registry_with_an_authority_but_without_a_server_is_asked_by_tls(tmp_path: Path) -> None:
    pem = certificate(tmp_path)
    with FakeRegistry(pem) as fake:
        fake.image("t", [SMALL])
        hosts = tmp_path / "certs" / fake.host
        hosts.mkdir(parents=True)
        (hosts / "hosts.toml").write_text(f'ca = "{pem}.crt"\n', encoding="utf-8")
        async with Service(str(tmp_path / "root"), certs_d=(str(tmp_path / "certs"),)) as service:
            await service.images.pull(f"{fake.host}/a:t")
            (hosts / "hosts.toml").write_text("skip_verify = false\n", encoding="utf-8")
            with pytest.raises(CrishimError) as caught:
                await service.images.pull(f"{fake.host}/a:t")
    assert "Remote" not in str(caught.value)
    assert "Connection(" not in str(caught.value)


WIRE = {
    "no HTTP at all": (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "the answer is no HTTP"),
    "closed at once": (b"", "it was closed without an answer"),
    "too short": (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{", "the answer ends 899 bytes too early"),
    "cut in a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n{", "the answer ends"),
    "chunks that are none": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n{",
        "the answer ends too early",
    ),
    "endless header": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", "the answer is no HTTP"),
}


@pytest.mark.parametrize("case", WIRE)
async def test_what_a_broken_server_does_is_told_in_words_of_ours(tmp_path: Path, case: str) -> None:
    sent, words = WIRE[case]
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    peer, _ = server.accept()
                    with peer:
                        peer.recv(65536)
                        peer.sendall(sent)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        host = f"127.0.0.1:{server.getsockname()[1]}"
        async with Service(str(tmp_path), attempts=1) as service:
            with pytest.raises(RegistryUnavailableError) as caught:
                await service.images.pull(f"{host}/a:t")
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert words in str(caught.value)
    assert not re.search(r"Error|Exception|Read\(|Disconnected|Length\(|urllib3|_ssl\.c", str(caught.value))


async def test_a_401_is_told_by_whether_credentials_were_sent(fake: FakeRegistry, tmp_path: Path) -> None:
    fake.image("t", [SMALL])
    with FakeRegistry() as store:
        store.rules.append(lambda h: h.answer(401))

        def elsewhere(handler: Handler) -> bool:
            return "/blobs/" in handler.path and handler.answer(
                307, headers={"Location": f"http://{store.host}{handler.path}"}
            )

        fake.rules.append(elsewhere)
        async with Service(str(tmp_path)) as service:
            for given in (None, Credentials(username="u", password="p")):
                with pytest.raises(UnauthenticatedError, match=f"{store.host}: access denied: it wants credentials"):
                    await service.images.pull(f"{fake.host}/a:t", given)
            fake.rules[:] = [lambda h: h.answer(401)]
            with pytest.raises(UnauthenticatedError, match=f"{fake.host}: access denied: it wants credentials"):
                await service.images.pull(f"{fake.host}/a:t")
            with pytest.raises(UnauthenticatedError, match="neither Basic nor Bearer"):
                await service.images.pull(f"{fake.host}/a:t", Credentials(username="u", password="p"))
            fake.rules[:] = [lambda h: h.answer(401, headers={"WWW-Authenticate": "Basic realm=x"})]
            with pytest.raises(UnauthenticatedError, match="does not accept the credentials"):
                await service.images.pull(f"{fake.host}/a:t", Credentials(username="u", password="p"))


@pytest.mark.parametrize(
    "place",
    [
        "http://r.io:99999/x",
        "http://[::1/x",
        f"http://{'a' * 70}.example/x",
        "http://b\u00e4d.example/x",
        "http://r.io\\@r.io/x",
        "//r.io\\/x",
        "http://r.io\t/x",
        "http:/x",
    ],
)
async def test_a_redirect_to_an_address_that_is_none_is_refused(fake: FakeRegistry, tmp_path: Path, place: str) -> None:
    fake.rules.append(lambda h: h.answer(307, headers={"Location": place}))
    async with Service(str(tmp_path), attempts=1) as service:
        with pytest.raises(CrishimError) as caught:
            await service.images.pull(f"{fake.host}/a:t")
    assert not isinstance(caught.value, InternalError)
    assert not re.search(r"Error|codec|label", str(caught.value))
