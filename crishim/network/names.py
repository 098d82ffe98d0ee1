"""What a pod's hostname, hosts and resolv.conf files hold; pure.

All containers of a pod share the same three files. A pod of the host's network gets the host's hosts and hostname.
For resolv.conf, no DNS configuration, an empty one and a full one are three things: the host's file, an empty file, and
what was asked for. Invariant: no value of a request can start a line of its own.
"""

import re
from collections.abc import Sequence
from typing import Protocol

from crishim.errors import InvalidArgumentError

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")
_LONGEST_HOSTNAME = 64  # sethostname(2): HOST_NAME_MAX
_STANDARD_HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


class Dns(Protocol):
    """The request's DNS configuration (CRI `DNSConfig`)."""

    @property
    def servers(self) -> Sequence[str]:
        """Addresses of name servers."""

    @property
    def searches(self) -> Sequence[str]:
        """Search domains."""

    @property
    def options(self) -> Sequence[str]:
        """Resolver options."""


def check_hostname(hostname: str) -> None:
    """Refuse a hostname that the kernel or a resolver would not take; "" is fine (the caller has a default).

    Raises:
        InvalidArgumentError: names `config.hostname`.
    """
    if not hostname:
        return
    if len(hostname) > _LONGEST_HOSTNAME or not _HOSTNAME.fullmatch(hostname):
        raise InvalidArgumentError(
            "config.hostname",
            f"{hostname!r} must be 1-{_LONGEST_HOSTNAME} letters, digits, - and ., not - or . at its ends",
        )


def hostname_file(hostname: str) -> str:
    """Return the content of /etc/hostname."""
    return f"{hostname}\n"


def hosts_file(hostname: str, addresses: Sequence[str]) -> str:
    """Return the content of /etc/hosts for a pod with its own network: localhost, and its name at its addresses."""
    short = hostname.partition(".")[0]
    names = hostname if short == hostname else f"{hostname} {short}"
    return _STANDARD_HOSTS + "".join(f"{address}\t{names}\n" for address in addresses if hostname)


def resolv_conf(dns: Dns | None, host_file: str) -> str:
    """Return the content of /etc/resolv.conf (resolv.conf(5)).

    Raises:
        InvalidArgumentError: a value holds white space.
    """
    if dns is None:
        return host_file
    for field, values in (("servers", dns.servers), ("searches", dns.searches), ("options", dns.options)):
        for number, value in enumerate(values):
            if not value or value.split() != [value]:
                raise InvalidArgumentError(f"config.dns_config.{field}[{number}]", f"{value!r} must be one word")
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)
