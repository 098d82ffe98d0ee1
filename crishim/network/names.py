"""What a pod's hostname, hosts and resolv.conf files hold; pure.

All containers of a pod share the same three files. A pod of the host's network gets the host's hosts and hostname.
For resolv.conf, no DNS configuration, an empty one and a full one are three things: the host's file, an empty file, and
what was asked for. That no value of a request can start a line of its own, the admission sees to.
"""

from collections.abc import Sequence

from crishim.request import DnsConfig

_STANDARD_HOSTS = """\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def hostname_file(hostname: str) -> str:
    """Return the content of /etc/hostname."""
    return f"{hostname}\n"


def hosts_file(hostname: str, addresses: Sequence[str]) -> str:
    """Return the content of /etc/hosts for a pod with its own network: localhost, and its name at its addresses."""
    short = hostname.partition(".")[0]
    names = hostname if short == hostname else f"{hostname} {short}"
    return _STANDARD_HOSTS + "".join(f"{address}\t{names}\n" for address in addresses if hostname)


def resolv_conf(dns: DnsConfig | None, host_file: str) -> str:
    """Return the content of /etc/resolv.conf (resolv.conf(5)); each value of `dns` is one word."""
    if dns is None:
        return host_file
    lines = [f"search {' '.join(dns.searches)}"] if dns.searches else []
    lines += [f"nameserver {server}" for server in dns.servers]
    lines += [f"options {' '.join(dns.options)}"] if dns.options else []
    return "".join(f"{line}\n" for line in lines)
