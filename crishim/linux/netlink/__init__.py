"""Netlink without a library: the wire format, rtnetlink and ctnetlink messages, a blocking socket, a monitor."""
