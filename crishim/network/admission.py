"""Keep the table of `guard` as the pods need it; blocking, over a given connection.

A kernel that has no nf_tables for bridges gets no such table, and its pods are not held to their addresses: `lack` says
so. Invariant: a pod is admitted before its link is there, so that not even its first packet is lost.
"""

import errno
from collections.abc import Sequence

from crishim.errors import KernelError
from crishim.linux.netlink import wire
from crishim.linux.netlink.connection import Connection
from crishim.linux.nft import listing, messages, transaction
from crishim.network import guard
from crishim.network.guard import Sender
from crishim.network.plan import link_prefix
from crishim.network.settings import NetworkSettings

_UNSUPPORTED = {errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}
_FAMILY = "bridge"


class Admission:
    """The bridge table of one instance."""

    def __init__(self, settings: NetworkSettings) -> None:
        self._table = settings.table_name
        self._bridge = settings.bridge
        self.lack = ""
        """What the kernel said when it could not make the table, "" if it could."""

    def build(self, connection: Connection, senders: Sequence[Sender]) -> None:
        """Make the table anew, in one step, with these pods admitted and no others.

        Raises:
            KernelError: it cannot be made, though the kernel has such tables.
        """
        prefix = link_prefix(self._bridge)
        try:
            transaction.commit(connection, guard.table(self._table, self._bridge, prefix, senders))
        except KernelError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self.lack = str(error)
        else:
            self.lack = ""

    def admit(self, sender: Sender) -> list[wire.Request]:
        """Return the changes that let a pod send, for a transaction with others."""
        return [] if self.lack else guard.admit(self._table, [sender])

    def dismiss(self, connection: Connection, senders: Sequence[Sender]) -> None:
        """Take back what was admitted, as far as it is there."""
        if self.lack:
            return
        for sender in senders:
            try:
                transaction.commit(connection, guard.dismiss(self._table, [sender]))
            except KernelError as error:
                if error.errno != errno.ENOENT:  # the table is made anew if someone took it away
                    raise

    def is_whole(self, connection: Connection, senders: Sequence[Sender]) -> bool:
        """Tell whether the table is there with its rules, and these pods are admitted."""
        if self.lack:
            return True
        wanted = guard.table(self._table, self._bridge, link_prefix(self._bridge), ())
        rules = sum(request.what.startswith("add a rule") for request in wanted)
        if len(connection.dump(listing.list_rules(self._table, _FAMILY))) != rules:
            return False
        return all(
            {item.key for item in items} <= self._load(connection, name)
            for name, items in guard.elements(senders).items()
        )

    def remove(self, connection: Connection) -> None:
        """Delete the table; an absent one is fine."""
        try:
            transaction.commit(connection, [messages.delete_table(self._table, family=messages.BRIDGE)])
        except KernelError as error:
            if error.errno not in _UNSUPPORTED:
                raise

    def _load(self, connection: Connection, name: str) -> set[bytes]:
        try:
            answers = connection.dump(messages.list_elements(self._table, name, family=messages.BRIDGE))
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return set()
        return {element.key for message in answers for element in messages.parse_elements(message.payload)}
