"""One nf_tables transaction: all of its changes take place at once, or none does.

A batch begins and ends with a message of its own; the kernel collects errors for every message and then commits or
drops the whole (net/netfilter/nfnetlink.c). An acknowledgement is asked for the last change only, and it comes even
when the batch was dropped, so an error seen before it is what counts.
"""

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from crishim.linux.netlink import wire
from crishim.linux.netlink.connection import Connection, failure_of

if TYPE_CHECKING:
    from crishim.errors import KernelError

_BEGIN = 0x10
_END = 0x11
_MARK = struct.pack(">BBH", 0, 0, 10)  # struct nfgenmsg; the resource is NFNL_SUBSYS_NFTABLES


def commit(connection: Connection, requests: Sequence[wire.Request]) -> None:
    """Apply `requests` as one transaction over a NETLINK_NETFILTER connection; none is fine.

    Raises:
        KernelError: names the first request that failed; nothing was changed.
    """
    if not requests:
        return
    last = requests[-1]
    begin = wire.Request(_BEGIN, 0, _MARK, f"commit the transaction that begins with: {requests[0].what}")
    end = wire.Request(_END, 0, _MARK, "end the transaction")
    batch = [begin, *requests[:-1], last._replace(flags=last.flags | wire.F_ACK), end]
    first = connection.send(batch)
    failure: KernelError | None = None
    while True:
        for message in connection.receive(last.what):
            index = message.sequence - first
            if not 0 <= index < len(batch) or message.kind != wire.ERROR:
                continue
            failure = failure or failure_of(message, batch[index].what)
            # An error of the first message is about the whole batch: a commit that was refused, a missing right.
            if index in {0, len(requests)}:
                if failure is not None:
                    raise failure
                return
