"""This host's addresses, by rtnetlink, and gratuitous ARP by frames of our own.

No program is started for it: on a busy host that alone may take longer than all the rest
of a takeover.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

RTM_NEWADDR, RTM_DELADDR = 20, 21
"""rtnetlink(7)"""
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
NLMSG_ERROR = 2
IFA_ADDRESS, IFA_LOCAL = 1, 2
SIOCGIFADDR, SIOCGIFHWADDR = 0x8915, 0x8927
"""netdevice(7)"""
ETHERTYPE_ARP = 0x0806
ARP_REQUEST, ARP_REPLY = 1, 2
HOST_PREFIX_BITS = 32
RECEIVE_MAX_BYTES = 65_536
ANSWER_LIMIT_S = 1.0


class AddressError(OSError):
    """The kernel refused, or the configuration does not fit this host."""


@dataclass(frozen=True, slots=True)
class SharedAddress:
    """One of the pair's addresses, and the device it belongs on."""

    address: str
    device: str
    index: int
    hardware: bytes


def device_of(own: str) -> tuple[str, int, bytes]:
    """Name, index and hardware address of the device that has ``own`` as its first
    address. Raises AddressError when there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for index, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                found = fcntl.ioctl(asked, SIOCGIFADDR, request)
                if socket.inet_ntoa(found[20:24]) == own:
                    hardware = fcntl.ioctl(asked, SIOCGIFHWADDR, request)[18:24]
                    return name, index, hardware
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.ENODEV):
                    raise
    raise AddressError(errno.EADDRNOTAVAIL, f"no device of this host has {own} as its first address")


class HostAddresses:
    """The pair's addresses on this host. ``wanted``: pairs of shared and own address; none
    where no address moves."""

    def __init__(self, wanted: Sequence[tuple[str, str]]) -> None:
        self.shared = tuple(SharedAddress(address, *device_of(own)) for address, own in wanted)
        self._serial = os.getpid() & 0xFFFF
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.settimeout(ANSWER_LIMIT_S)
        self._netlink.bind((0, 0))
        self._packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW) if self.shared else None

    def up(self) -> None:
        """All of them are on this host. Raises OSError."""
        for one in self.shared:
            self._change(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, one, ())

    def down(self) -> None:
        """None of them is on this host. Raises OSError."""
        for one in self.shared:
            self._change(RTM_DELADDR, 0, one, (errno.EADDRNOTAVAIL, errno.ENODEV))

    def announce(self) -> None:
        """Gratuitous ARP on every network, as request and as reply (RFC 5227 §3): some
        neighbours take the one, some the other. Raises OSError."""
        for one in self.shared if self._packet else ():
            for operation in (ARP_REQUEST, ARP_REPLY):
                self._packet.sendto(arp_frame(one.hardware, one.address, operation), (one.device, 0))

    def close(self) -> None:
        """Gives the sockets back; addresses stay as they are."""
        self._netlink.close()
        if self._packet:
            self._packet.close()

    def _change(self, kind: int, flags: int, one: SharedAddress, fine: Sequence[int]) -> None:
        self._serial += 1
        self._netlink.send(address_message(kind, flags, self._serial, one))
        while True:
            data = self._netlink.recv(RECEIVE_MAX_BYTES)
            length, answer, _, serial, _ = struct.unpack_from("=IHHII", data)
            if answer == NLMSG_ERROR and serial == self._serial:
                code = -struct.unpack_from("=i", data, 16)[0]
                if code and code not in fine:
                    raise AddressError(code, f"{one.address} on {one.device}: {os.strerror(code)}")
                return


def address_message(kind: int, flags: int, serial: int, one: SharedAddress) -> bytes:
    """The rtnetlink request about one address (struct nlmsghdr, struct ifaddrmsg)."""
    packed = socket.inet_aton(one.address)
    body = struct.pack("=BBBBI", socket.AF_INET, HOST_PREFIX_BITS, 0, 0, one.index)
    for attribute in (IFA_LOCAL, IFA_ADDRESS):
        body += struct.pack("=HH", 4 + len(packed), attribute) + packed
    head = struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, serial, 0)
    return head + body


def arp_frame(hardware: bytes, address: str, operation: int) -> bytes:
    """An ARP frame in which the host announces its own address (RFC 826)."""
    everybody, packed = b"\xff" * 6, socket.inet_aton(address)
    ethernet = everybody + hardware + struct.pack("!H", ETHERTYPE_ARP)
    target = b"\0" * 6 if operation == ARP_REQUEST else everybody
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation)
    return ethernet + head + hardware + packed + target + packed


def nonlocal_bind() -> bool:
    """Whether a program may listen on an address this host does not have now
    (net.ipv4.ip_nonlocal_bind, ip-sysctl)."""
    with open("/proc/sys/net/ipv4/ip_nonlocal_bind") as file:
        return file.read().strip() == "1"
