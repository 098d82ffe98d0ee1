"""Frames as a program with a raw socket may make them, true or forged: ARP, IPv4, IPv6 and its neighbour discovery."""

import socket
import struct
from ipaddress import ip_address

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD


def send_all(link: str, *frames: bytes) -> None:
    """Send frames from a link of this thread's network namespace."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind((link, 0))
        for one in frames:
            wire.send(one)


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def raw(address: str) -> bytes:
    return ip_address(address).packed


def frame(target: str, source: str, kind: int, payload: bytes, tags: bytes = b"") -> bytes:
    return mac(target) + mac(source) + tags + kind.to_bytes(2, "big") + payload


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    start = struct.pack(">HHBBH", 1, IPV4, 6, 4, operation)
    return start + mac(sender[0]) + raw(sender[1]) + mac(target[0]) + raw(target[1])


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv6(source: str, target: str, protocol: int, payload: bytes, at: int) -> bytes:
    """Return a packet whose checksum stands at `at` in the payload."""
    pseudo = raw(source) + raw(target) + struct.pack(">II", len(payload), protocol)
    padded = pseudo + payload + bytes(len(payload) % 2)
    payload = payload[:at] + struct.pack(">H", checksum(padded) or 0xFFFF) + payload[at + 2 :]
    return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 255) + raw(source) + raw(target) + payload


def ipv4(source: str, target: str, port: int, text: bytes) -> bytes:
    datagram = struct.pack(">HHHH", 5000, port, 8 + len(text), 0) + text
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 0, 0, 64, 17, 0) + raw(source) + raw(target)
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + datagram


def udp6(source: str, target: str, port: int, text: bytes) -> bytes:
    return ipv6(source, target, 17, struct.pack(">HHHH", 5000, port, 8 + len(text), 0) + text, 6)


def advertisement(source: str, target: str, subject: str, hardware: str) -> bytes:
    body = struct.pack(">BBHI", 136, 0, 0, 0xA0000000) + raw(subject) + b"\2\1" + mac(hardware)
    return ipv6(source, target, 58, body, 2)


def router(source: str) -> bytes:
    prefix = struct.pack(">BBBBIII", 3, 4, 64, 0xC0, 3600, 3600, 0) + raw("fd66::")
    return ipv6(source, "ff02::1", 58, struct.pack(">BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix, 2)
