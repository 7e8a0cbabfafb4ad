"""The kernel's fence around the pair's addresses: an nftables set whose elements expire.

Packets and ARP of an address pass only while the address is in the set. Of an address that
does not move, and which its host needs for more, only the ports it serves by are fenced. Whoever is to
hold it puts it in again and again; a process that hangs does not, and the kernel closes
the fence by itself. libnftables is called in this process (libnftables(3)): no program
is started, and nothing queues up behind a pipe.
"""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Sequence
from dataclasses import dataclass

TABLE = "ari_ha_guard"
_NFT_CTX_DEFAULT = 0


class FenceError(RuntimeError):
    """nftables refused; the text is its own."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """What is fenced of one address."""

    address: str
    device: str
    ports: tuple[str, ...] = ()
    """Local UDP and TCP ports, each a number or ``first-last``; none: all there is of the
    address, ARP included."""


class Fence:
    """The fence of one guard. Closed until `open` is called; it stays in the kernel
    when the process ends, because an address without a guard must be silent."""

    def __init__(self, fenced: Sequence[Fenced]) -> None:
        self._fenced = tuple(fenced)
        library = ctypes.CDLL(ctypes.util.find_library("nftables") or "libnftables.so.1")
        library.nft_ctx_new.restype = ctypes.c_void_p
        library.nft_ctx_new.argtypes = [ctypes.c_uint32]
        library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        for name in ("nft_ctx_buffer_error", "nft_ctx_buffer_output"):
            getattr(library, name).argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.argtypes = [ctypes.c_void_p]
        library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        library.nft_ctx_free.argtypes = [ctypes.c_void_p]
        self._library = library
        self._context = library.nft_ctx_new(_NFT_CTX_DEFAULT)
        library.nft_ctx_buffer_error(self._context)
        library.nft_ctx_buffer_output(self._context)

    def build(self) -> None:
        """Puts the fence up, closed. Raises FenceError."""
        self._run(rules(self._fenced))

    def open(self, ttl_s: float) -> None:
        """Packets pass for ``ttl_s`` from now. Raises FenceError."""
        self._run(opening([one.address for one in self._fenced], ttl_s))

    def close(self) -> None:
        """Packets stop now. Raises FenceError."""
        self._run(f"flush set netdev {TABLE} alive\n")

    def free(self) -> None:
        """Gives the library's memory back; the fence stays."""
        self._library.nft_ctx_free(self._context)

    def _run(self, commands: str) -> None:
        if self._library.nft_run_cmd_from_buffer(self._context, commands.encode()):
            raise FenceError(self._library.nft_ctx_get_error_buffer(self._context).decode().strip())


def rules(fenced: Sequence[Fenced]) -> str:
    """The table, made anew: per device one chain in and one out (nft(8), family netdev:
    it sees ARP too, before and after everything else)."""
    text = f"add table netdev {TABLE}\ndelete table netdev {TABLE}\ntable netdev {TABLE} {{\n"
    text += "  set alive { type ipv4_addr; flags timeout; }\n"
    for device in dict.fromkeys(one.device for one in fenced):
        for name, hook, priority, side, port in (
            ("in", "ingress", -500, "daddr", "dport"),
            ("out", "egress", 0, "saddr", "sport"),
        ):
            text += f"  chain {name}_{device} {{\n"
            text += f"    type filter hook {hook} device {device} priority {priority};\n"
            for one in (one for one in fenced if one.device == device):
                text += "".join(f"    {rule} drop;\n" for rule in _closed(one, side, port))
            text += "  }\n"
    return text + "}\n"


def _closed(one: Fenced, side: str, port: str) -> list[str]:
    """What does not pass while the fence is closed, in one direction."""
    alive = f"ip {side} {one.address} ip {side} != @alive"
    if one.ports:
        ports = ", ".join(one.ports)
        return [f"{alive} {protocol} {port} {{ {ports} }}" for protocol in ("udp", "tcp")]
    return [f"arp {side} ip {one.address} arp {side} ip != @alive", alive]


def opening(addresses: Sequence[str], ttl_s: float) -> str:
    """One transaction that gives every address its time anew: an element that is already
    there would keep its old end."""
    timeout, text = f"timeout {round(ttl_s * 1000)}ms", ""
    for address in addresses:
        element = f"element netdev {TABLE} alive"
        text += f"add {element} {{ {address} {timeout} }}\ndelete {element} {{ {address} }}\n"
        text += f"add {element} {{ {address} {timeout} }}\n"
    return text
