"""certs.d: containerd's hosts.toml and Docker's certificate directories."""

import os
from pathlib import Path

import pytest

from crishim.errors import FailedPreconditionError
from crishim.images.registry.hosts import Tls, is_loopback, load, seconds
from crishim.images.registry.transport import proxy_for


def _write(top: Path, host: str, text: str) -> tuple[str, ...]:
    (top / host).mkdir(parents=True)
    (top / host / "hosts.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    return (str(top),)


def test_defaults_without_a_directory(tmp_path: Path) -> None:
    assert [e.base for e in load("docker.io", (str(tmp_path),))] == ["https://registry-1.docker.io/v2"]
    assert [e.base for e in load("r.io:8443", ())] == ["https://r.io:8443/v2"]
    for host in ("localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.3.2.1"):
        assert [e.base for e in load(host, ())] == [f"http://{host}/v2"]


def test_the_whole_format(tmp_path: Path) -> None:
    text = """
server = "https://upstream.io"
[host."https://mirror.io:5000/cache"]
  capabilities = ["pull", "resolve"]
  ca = ["ca.pem", "/abs/ca.pem"]
  client = [["c.pem", "k.pem"], ["both.pem", ""]]
  skip_verify = true
  dial_timeout = "1m1.5s"
  [host."https://mirror.io:5000/cache".header]
    X-One = "1"
    X-Two = ["a", "b"]
[host."http://other.io/v2/proxy"]
  override_path = true
  ca = "one.pem"
  client = "one.pem"
"""
    first, second, third = load("r.io", _write(tmp_path, "r.io", text))
    here = str(tmp_path / "r.io")
    assert (first.base, first.capabilities) == ("https://mirror.io:5000/cache/v2", frozenset({"pull", "resolve"}))
    assert first.tls == Tls(
        (f"{here}/ca.pem", "/abs/ca.pem"),
        ((f"{here}/c.pem", f"{here}/k.pem"), (f"{here}/both.pem", "")),
        skip_verify=True,
    )
    assert first.headers == (("X-One", "1"), ("X-Two", "a"), ("X-Two", "b"))
    assert (first.dial_seconds, first.namespace) == (61.5, "r.io")
    assert (second.base, second.tls.ca) == ("http://other.io/v2/proxy", (f"{here}/one.pem",))
    assert third.base == "https://upstream.io/v2"


def test_settings_at_the_top_are_the_registrys_own(tmp_path: Path) -> None:
    (only,) = load("r.io", _write(tmp_path, "r.io", 'skip_verify = true\nca = "x.pem"\n'))
    assert (only.base, only.namespace, only.tls.skip_verify) == ("https://r.io/v2", "", True)
    server = 'server = "http://127.0.0.1:5000"\n'
    (mapped,) = load("registry.k8s.io", _write(tmp_path, "registry.k8s.io", server))
    assert (mapped.base, mapped.namespace) == ("http://127.0.0.1:5000/v2", "registry.k8s.io")


@pytest.mark.parametrize("setting", ['ca = "x.pem"', 'client = "both.pem"', "skip_verify = true"])
def test_a_loopback_host_with_a_word_of_tls_speaks_it(tmp_path: Path, setting: str) -> None:
    host = "127.0.0.1:5000"
    (own,) = load(host, _write(tmp_path / "own", host, f"{setting}\n"))
    assert (own.base, own.tls == Tls()) == (f"https://{host}/v2", False)
    (named,) = load(host, _write(tmp_path / "named", host, f'server = "localhost:5001"\n{setting}\n'))
    assert named.base == "https://localhost:5001/v2"
    mirror, last = load(host, _write(tmp_path / "mirror", host, f'[host."localhost:5001"]\n{setting}\n'))
    assert (mirror.base, last.base) == ("https://localhost:5001/v2", f"http://{host}/v2")
    (plain,) = load(host, _write(tmp_path / "plain", host, f'server = "http://localhost:5001"\n{setting}\n'))
    assert plain.base == "http://localhost:5001/v2"


def test_names_of_directories_and_their_order(tmp_path: Path) -> None:
    _write(tmp_path / "a", "_default", 'server = "https://default.io"\n')
    _write(tmp_path / "b", "r.io_5000_", 'server = "https://ported.io"\n')
    _write(tmp_path / "b", "r.io:5000", 'server = "https://colon.io"\n')
    both = (str(tmp_path / "b"), str(tmp_path / "a"))
    assert load("r.io:5000", both)[0].base == "https://ported.io/v2"
    assert load("r.io", both)[0].base == "https://default.io/v2"


def test_docker_certificates(tmp_path: Path) -> None:
    directory = tmp_path / "127.0.0.1:5000"
    directory.mkdir()
    for name in ("ca.crt", "me.cert", "me.key", "readme"):
        (directory / name).write_text("", encoding="utf-8")
    (only,) = load("127.0.0.1:5000", (str(tmp_path),))
    assert only.base == "https://127.0.0.1:5000/v2"
    assert only.tls.ca == (os.path.join(directory, "ca.crt"),)
    assert only.tls.client == ((os.path.join(directory, "me.cert"), os.path.join(directory, "me.key")),)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("not toml [", "hosts.toml"),
        ("\udcff = 1", "byte 1 is not UTF-8"),
        ("server = " + "9" * 5000, "too many digits"),
        ('server = "https://x:99999"', "server"),
        ('server = "ftp://x"', "server"),
        ("server = 5", "server"),
        ('[host."https://m"]\nskip_verify = "yes"', "skip_verify"),
        ('[host."https://m"]\ncapabilities = ["fly"]', "fly"),
        ('[host."https://m"]\ndial_timeout = "soon"', "dial_timeout"),
        ('[host."https://m"]\nclient = [["a", "b", "c"]]', "client"),
        ("host = 3", "host"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        load("r.io", _write(tmp_path, "r.io", text))
    assert str(tmp_path) in str(caught.value)
    assert part in str(caught.value)


def test_durations_and_loopback() -> None:
    assert (seconds("10s"), seconds("1h2m"), seconds("250ms"), seconds("x"), seconds("")) == (
        10,
        3720,
        0.25,
        None,
        None,
    )
    assert [is_loopback(h) for h in ("localhost:1", "[::1]", "127.9.9.9:80", "r.io", "128.0.0.1")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_proxies() -> None:
    environment = {
        "HTTPS_PROXY": "proxy.io:3128",
        "http_proxy": "http://plain.io:1",
        "NO_PROXY": "in.io, 10.0.0.0/8,.y.io",
    }
    assert proxy_for("https://r.io/v2/", environment) == "http://proxy.io:3128"
    assert proxy_for("http://r.io/v2/", environment) == "http://plain.io:1"
    for url in (
        "https://in.io/",
        "https://a.in.io:5000/",
        "https://10.1.2.3/",
        "https://z.y.io/",
        "https://127.0.0.1/",
    ):
        assert proxy_for(url, environment) == ""
    assert proxy_for("https://main.io/", environment) != ""
    assert proxy_for("https://r.io/", {}) == ""
