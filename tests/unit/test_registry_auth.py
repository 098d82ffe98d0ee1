"""Challenges and tokens: redirects, expiry, odd scopes."""

import base64
import json
from collections.abc import Mapping
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crishim.errors import FailedPreconditionError, InvalidArgumentError, UnauthenticatedError
from crishim.images.model import Credentials
from crishim.images.registry.auth import Authorizer, Login
from crishim.images.registry.challenge import choose, parse

BEARER = 'Bearer realm="https://auth.io/token",service="r.io",scope="repository:a:pull repository:b:pull"'


def test_a_bearer_challenge_with_two_scopes() -> None:
    (found,) = parse(BEARER)
    assert found.scheme == "bearer"
    assert found.parameters["realm"] == "https://auth.io/token"
    assert found.scopes == ("repository:a:pull", "repository:b:pull")


@pytest.mark.parametrize(
    ("header", "schemes"),
    [
        ('Basic realm="x", Bearer realm="y",scope="z"', ["basic", "bearer"]),
        ("Negotiate, Basic realm=x", ["negotiate", "basic"]),
        ('BEARER Realm = "a\\"b" , service = c', ["bearer"]),
        ("", []),
        ("   ,, ", []),
        ('Bearer realm="unclosed', ["bearer"]),
    ],
)
def test_shapes_of_headers(header: str, schemes: list[str]) -> None:
    assert [challenge.scheme for challenge in parse(header)] == schemes


def test_quoted_pairs_and_missing_scope() -> None:
    (found,) = parse('BEARER Realm = "a\\"b" , service = c')
    assert found.parameters == {"realm": 'a"b', "service": "c"}
    assert found.scopes == ()


def test_bearer_before_basic_in_any_order() -> None:
    chosen = choose(['Basic realm="x"', BEARER])
    assert chosen is not None
    assert chosen.scheme == "bearer"
    assert choose(["Negotiate"]) is None


@given(st.text())
def test_any_header_is_read(text: str) -> None:
    parse(text)


class TokenServer:
    """Answers token requests with t1, t2, … and remembers them."""

    def __init__(self, key: str = "token", status: int = 200) -> None:
        self.calls: list[tuple[str, str, Mapping[str, str], bytes | None]] = []
        self.key = key
        self.status = status

    def __call__(self, method: str, url: str, headers: Mapping[str, str], body: bytes | None) -> tuple[int, bytes]:
        self.calls.append((method, url, headers, body))
        return self.status, json.dumps({self.key: f"t{len(self.calls)}", "expires_in": 300}).encode()


def test_a_token_is_fetched_once_kept_and_renewed_when_refused() -> None:
    server = TokenServer("access_token")
    authorizer = Authorizer(Login(None, "r.io"), "repository:a:pull")
    assert authorizer.header("https://r.io", server) == ""
    assert authorizer.answer("", [BEARER], "https://r.io", server) == "Bearer t1"
    assert authorizer.header("https://r.io", server) == "Bearer t1"
    assert authorizer.answer("Bearer t1", [BEARER], "https://r.io", server) == "Bearer t2"
    # Another thread that was refused with the old token takes the new one.
    assert authorizer.answer("Bearer t1", [BEARER], "https://r.io", server) == "Bearer t2"
    assert authorizer.private("https://r.io", server) == "Bearer t3"
    query = parse_qs(urlsplit(server.calls[0][1]).query)
    assert query == {"service": ["r.io"], "scope": ["repository:a:pull", "repository:b:pull"]}


def test_the_scope_is_ours_where_the_challenge_has_none() -> None:
    server = TokenServer()
    authorizer = Authorizer(Login(None, "r.io"), "repository:a:pull")
    authorizer.answer("", ['Bearer realm="https://auth.io/token"'], "https://r.io", server)
    assert parse_qs(urlsplit(server.calls[0][1]).query) == {"scope": ["repository:a:pull"]}


def test_an_identity_token_is_exchanged_by_post() -> None:
    server = TokenServer()
    authorizer = Authorizer(Login(Credentials(identity_token="idt"), "r.io"), "s")
    authorizer.answer("", [BEARER], "https://r.io", server)
    method, url, _, body = server.calls[0]
    assert (method, url) == ("POST", "https://auth.io/token")
    form = parse_qs((body or b"").decode())
    assert (form["grant_type"], form["refresh_token"]) == (["refresh_token"], ["idt"])


def test_a_registry_token_is_used_as_it_is_and_a_refusal_is_final() -> None:
    server = TokenServer()
    authorizer = Authorizer(Login(Credentials(registry_token="rt"), "r.io"), "s")
    assert authorizer.header("https://r.io", server) == "Bearer rt"
    with pytest.raises(UnauthenticatedError, match="does not accept"):
        authorizer.answer("Bearer rt", [BEARER], "https://r.io", server)
    assert server.calls == []


def test_basic_auth() -> None:
    server = TokenServer()
    authorizer = Authorizer(Login(Credentials(username="u", password="p:w"), "r.io"), "s")
    header = authorizer.answer("", ['Basic realm="x"'], "https://r.io", server)
    assert base64.b64decode(header.removeprefix("Basic ")) == b"u:p:w"
    with pytest.raises(UnauthenticatedError, match="does not accept"):
        authorizer.answer(header, ['Basic realm="x"'], "https://r.io", server)
    with pytest.raises(UnauthenticatedError, match="wants credentials"):
        Authorizer(Login(None, "r.io"), "s").answer("", ['Basic realm="x"'], "https://r.io", server)


def test_a_password_is_not_sent_in_clear_for_a_registry_that_is_not() -> None:
    authorizer = Authorizer(Login(Credentials(username="u", password="p"), "r.io"), "s")
    with pytest.raises(FailedPreconditionError, match="in clear"):
        authorizer.answer("", ['Bearer realm="http://auth.io/t"'], "https://r.io", TokenServer())
    with pytest.raises(FailedPreconditionError, match="no http"):
        authorizer.answer("", ['Bearer realm="file:///etc/passwd"'], "https://r.io", TokenServer())


def test_a_token_server_that_refuses() -> None:
    with pytest.raises(UnauthenticatedError):
        Authorizer(Login(None, "r.io"), "s").answer("", [BEARER], "https://r.io", TokenServer(status=401))


def test_forms_of_credentials() -> None:
    auth = base64.b64encode(b"me:secret").decode()
    login = Login(Credentials(auth=auth), "r.io")
    assert (login.user, login.password) == ("me", "secret")
    with pytest.raises(InvalidArgumentError, match=r"auth\.auth"):
        Login(Credentials(auth="%%%"), "r.io")
    for auth in ("é", "aGFs\u2028bG8=", base64.b64encode(b"\xe9:x").decode()):
        with pytest.raises(InvalidArgumentError, match=r"auth\.auth: is not base64"):
            Login(Credentials(auth=auth), "r.io")
    elsewhere = Login(Credentials(username="u", password="p", server_address="https://other.io/v2/"), "r.io")
    assert not any(elsewhere.key)
    hub = Login(Credentials(username="u", password="p", server_address="https://index.docker.io/v1/"), "docker.io")
    assert hub.user == "u"


@pytest.mark.parametrize("token", ["a\r\nX-Other: 1", "a\n", "a b", "t\u00e9", "\0", "\x7f"])
def test_a_token_that_no_header_can_hold_is_refused_by_its_field(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        Login(Credentials(registry_token=token), "r.io")
    assert caught.value.field == "auth.registry_token"
    assert token not in str(caught.value)


def test_a_token_server_with_an_impossible_port_is_named() -> None:
    for realm in ("https://auth.io:99999/t", "https://[::1/t", "https://auth.io:0/t"):
        with pytest.raises(FailedPreconditionError, match="no http or https URL"):
            Authorizer(Login(None, "r.io"), "s").answer("", [f'Bearer realm="{realm}"'], "https://r.io", TokenServer())


def test_a_challenge_that_cannot_be_answered_is_no_refusal_of_credentials() -> None:
    for headers in ([], ["Negotiate"]):
        with pytest.raises(UnauthenticatedError, match="wants credentials"):
            Authorizer(Login(None, "r.io"), "s").answer("", headers, "https://r.io", TokenServer())
        given = Login(Credentials(username="u", password="p"), "r.io")
        with pytest.raises(UnauthenticatedError, match="neither Basic nor Bearer"):
            Authorizer(given, "s").answer("", headers, "https://r.io", TokenServer())
