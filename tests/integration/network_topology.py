"""Network namespaces for tests of the network: a host of our own, pods on it, and an outside world behind it.

Everything is made in fresh namespaces; the machine's own network is never touched. A namespace goes when its
descriptors are closed, so there is nothing to clean up.
"""

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

import pytest

from crishim.ids import new_id
from crishim.linux import calls
from crishim.network.model import PodNetns
from tests.support.abilities import CLONE_NEWNET, can_unshare


def need_network_namespaces() -> None:
    if not can_unshare(CLONE_NEWNET):
        pytest.skip("lacks the ability to make network namespaces (CAP_SYS_ADMIN)")


@contextmanager
def inside(fd: int) -> Iterator[None]:
    """Put this thread into a network namespace for a while."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(fd, calls.CLONE_NEWNET, "test namespace")
        yield
    finally:
        calls.setns(home, calls.CLONE_NEWNET, "home namespace")
        os.close(home)


def enter(path: str) -> None:
    """Put this thread into the network namespace at `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        calls.setns(fd, calls.CLONE_NEWNET, path)
    finally:
        os.close(fd)


class Namespace:
    """A network namespace that lives as long as this object is open."""

    def __init__(self, path: str = "") -> None:
        """Make a namespace, or open the one that is pinned at `path`."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if path:
                enter(path)
            else:
                calls.unshare(calls.CLONE_NEWNET)
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        finally:
            calls.setns(home, calls.CLONE_NEWNET, "home namespace")
            os.close(home)
        self.open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.netlink.close()
            os.close(self.fd)

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program in the namespace and return its output."""
        done = subprocess.run(
            ["nsenter", f"--net=/proc/self/fd/{self.fd}", *command],
            capture_output=True,
            text=True,
            check=False,
            pass_fds=(self.fd,),
            timeout=30,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def ip(self, line: str) -> None:
        self.run("ip", *line.split())

    def socket(self, kind: int, family: int = socket.AF_INET) -> socket.socket:
        """Return a socket that lives in the namespace."""
        with inside(self.fd):
            made = socket.socket(family, kind)
        made.settimeout(3)
        return made


class Pod(Namespace):
    """A pod's namespace with an id; `netns` is what a keeper would hand over."""

    def __init__(self) -> None:
        super().__init__()
        self.id = new_id()

    @property
    def netns(self) -> PodNetns:
        return PodNetns(self.id, f"/proc/{os.getpid()}/fd/{self.fd}", self.fd, self.netlink.fileno())


class Service:
    """A server in a namespace that answers each caller with the address that it sees and a name."""

    def __init__(self, where: Namespace, kind: int, port: int, name: str, family: int = socket.AF_INET) -> None:
        self._socket = where.socket(kind, family)
        self._socket.settimeout(0.2)
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        self._socket.bind(("", port))
        self._name = name.encode()
        self._kind = kind
        self._open = True
        if kind == socket.SOCK_STREAM:
            self._socket.listen(16)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while self._open:
            try:
                if self._kind == socket.SOCK_STREAM:
                    peer, caller = self._socket.accept()
                    with peer:
                        peer.sendall(self._answer(caller[0]))
                else:
                    _, caller = self._socket.recvfrom(100)
                    self._socket.sendto(self._answer(caller[0]), caller)
            except TimeoutError:
                continue

    def _answer(self, caller: str) -> bytes:
        return self._name + b" " + caller.encode()


def ask(where: Namespace, address: str, port: int, kind: int = socket.SOCK_STREAM, source: int = 0) -> str:
    """Call a service from a namespace and return `name caller's-address`; OSError if nothing answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with where.socket(kind, family) as caller:
        if source:
            caller.bind(("", source))
        caller.connect((address, port))
        if kind == socket.SOCK_DGRAM:
            caller.send(b"?")
        return caller.recv(100).decode()


class World:
    """A host with loopback and an uplink to an outside machine (192.0.2.2, 2001:db8::2) that knows no pod subnet."""

    outside_ips = ("192.0.2.2", "2001:db8::2")
    host_ips = ("192.0.2.1", "2001:db8::1")

    def __init__(self) -> None:
        self.host = Namespace()
        self.outside = Namespace()
        self._pods: list[Pod] = []
        for where in (self.host, self.outside):
            where.ip("link set lo up")
        self.host.ip("link add up0 type veth peer name up1")
        self.host.run("ip", "link", "set", "up1", "netns", f"/proc/{os.getpid()}/fd/{self.outside.fd}")
        for where, link, ips in ((self.host, "up0", self.host_ips), (self.outside, "up1", self.outside_ips)):
            where.ip(f"addr add {ips[0]}/24 dev {link}")
            where.ip(f"addr add {ips[1]}/64 dev {link} nodad")
            where.ip(f"link set {link} up")

    def pod(self) -> Pod:
        made = Pod()
        self._pods.append(made)
        return made

    def close(self) -> None:
        for where in (*self._pods, self.outside, self.host):
            where.close()
