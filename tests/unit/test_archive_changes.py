"""Dockerfile instructions for imported images."""

from typing import Any

import pytest

from crishim.errors import InvalidArgumentError
from crishim.images.archive.api import Order
from crishim.images.archive.changes import apply
from crishim.images.archive.rootfs import plan
from crishim.images.platform import Platform


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ([], {}),
        (['CMD ["a", "b c"]'], {"Cmd": ["a", "b c"]}),
        (["cmd a 'b c' | d"], {"Cmd": ["/bin/sh", "-c", "a 'b c' | d"]}),
        (["CMD [a, b]"], {"Cmd": ["/bin/sh", "-c", "[a, b]"]}),
        (["CMD [1]"], {"Cmd": ["/bin/sh", "-c", "[1]"]}),
        (["CMD []"], {"Cmd": []}),
        (["ENTRYPOINT  /run me"], {"Entrypoint": ["/bin/sh", "-c", "/run me"]}),
        (["CMD one", 'CMD ["two"]'], {"Cmd": ["two"]}),
        (['ENV A=1 B=\'x y\' C="q \\" r" D=a\\ b', "ENV A=2"], {"Env": ["A=2", "B=x y", 'C=q " r', "D=a b"]}),
        (["ENV OLD the whole  rest"], {"Env": ["OLD=the whole  rest"]}),
        (["ENV EMPTY="], {"Env": ["EMPTY="]}),
        (['LABEL "with space"=v a.b/c="d"', "LABEL x y"], {"Labels": {"with space": "v", "a.b/c": "d", "x": "y"}}),
        (["EXPOSE 80 53/udp"], {"ExposedPorts": {"80/tcp": {}, "53/udp": {}}}),
        (["EXPOSE 8000-8002"], {"ExposedPorts": {"8000/tcp": {}, "8001/tcp": {}, "8002/tcp": {}}}),
        (["STOPSIGNAL SIGRTMIN+3"], {"StopSignal": "SIGRTMIN+3"}),
        (["STOPSIGNAL 9"], {"StopSignal": "9"}),
        (["USER 1000:1000"], {"User": "1000:1000"}),
        (["WORKDIR '/a b'"], {"WorkingDir": "/a b"}),
        (['VOLUME ["/a", "/b"]', "VOLUME /c /d"], {"Volumes": {"/a": {}, "/b": {}, "/c": {}, "/d": {}}}),
        (["  user\tx  "], {"User": "x"}),
    ],
)
def test_what_an_instruction_sets(changes: list[str], config: dict[str, Any]) -> None:
    assert apply(changes, "changes") == config


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("", "is not one of CMD"),
        ("RUN make", "'RUN' is not one of CMD"),
        ("CMD", "needs a value"),
        ("USER a b", "takes one value"),
        ("USER 'a", "quote"),
        ("WORKDIR relative", "absolute"),
        ("VOLUME relative", "absolute"),
        ("STOPSIGNAL term", "no signal"),
        ("EXPOSE http", "no port"),
        ("EXPOSE 0", "no port"),
        ("EXPOSE 70000", "no port"),
        ("EXPOSE 90-80", "no port"),
        ("ENV A=1 B", "not name=value"),
        ("ENV A", "no value"),
        ("ENV =1", "not name=value"),
        ("CMD a\0b", "zero bytes"),
        ('CMD ["a\\u0000b"]', "zero byte"),
        ('CMD ["a\\ud800b"]', "surrogate"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(change: str, part: str) -> None:
    with pytest.raises(InvalidArgumentError, match=part) as caught:
        apply(["ENV FINE=1", change], "options.changes")
    assert caught.value.field == "options.changes[1]"


@pytest.mark.parametrize("platform", ["amd64", "windows/amd64", "linux/", "linux/a/b/c", "linux/a b"])
def test_a_platform_that_is_none(platform: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"options\.platform"):
        plan(Order(platform=platform), Platform("amd64"))


def test_the_plan_of_an_image() -> None:
    made = plan(Order("n", ("USER 1",), "words", "linux/arm/v7"), Platform("amd64"))
    assert made.platform == Platform("arm", "linux", "v7")
    assert {**made.document, "created": ""} | {"history": []} == {
        "created": "",
        "architecture": "arm",
        "os": "linux",
        "variant": "v7",
        "config": {"User": "1"},
        "history": [],
    }
    assert made.document["history"] == [{"created": made.document["created"], "comment": "words"}]
    assert plan(Order(), Platform("amd64")).platform == Platform("amd64")
