"""Where requests within a dialog go (RFC 3261 sections 8.1.2 and 12.2.1.1; RFC 3263 section 4).

The route set's first entry says it, or without a route set the remote target; not the address
the last message came from: a cluster may send from one and take requests at another. Two far
sides are spoken to at their source all the same: one behind NAT, whose Contact is an address
nobody outside can reach, and one whose owner says so.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

from ari_ha.sip.dialog import Dialog
from ari_ha.sip.fields import SipParseError
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.uri import SipUri

ROUTE, SOURCE = "route", "source"
"""What a leg may be told: go by the dialog, or stay with where its far side was last heard."""
DEFAULT_PORTS = {"udp": 5060, "tcp": 5060, "tls": 5061}
_SCOPES = (
    (0, ("127.0.0.0/8",)),
    (1, ("169.254.0.0/16",)),
    (2, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")),
)
"""How far an address is heard of: RFC 1122, 3927, 1918 and 6598; every other one is global."""
_NETWORKS = tuple((scope, ipaddress.IPv4Network(net)) for scope, nets in _SCOPES for net in nets)
_GLOBAL = 3
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
"""RFC 1122 section 3.2.1.3: never a destination."""


@dataclass(frozen=True, slots=True)
class Hop:
    """The next hop as a URI names it."""

    host: str
    """An address or a name"""
    port: int | None
    """None: the default one, or what SRV says (RFC 3263 section 4.2)"""
    transport: str


Resolve = Callable[[Hop], Sequence[tuple[str, int]]]
"""What is known of a name at this moment, addresses and ports, the best first; empty: nothing yet."""


def hop_of(dialog: Dialog, heard: Flow) -> Hop | None:
    """The hop requests of a dialog go to, whose far side speaks to us by `heard`; None when its
    URI cannot be followed: not read, another transport than ours, or TLS given up (section 26.2.2)."""
    try:
        uri = SipUri.parse(dialog.next_uri())
    except SipParseError:
        return None
    transport = (uri.params.get("transport") or "").lower()
    if uri.scheme == "sips":
        transport = "tls"
    transport = transport or heard.transport  # RFC 3263 section 4.1 would guess UDP: this one works
    host = (uri.params.get("maddr") or uri.host).lower()
    if not host or transport not in DEFAULT_PORTS or (heard.transport == "tls" and transport != "tls"):
        return None
    return Hop(host, uri.port, transport)


def ways(
    dialog: Dialog,
    heard: Flow,
    listeners: Mapping[str, Listener],
    resolve: Resolve,
    inner: Container[str] = (),
) -> list[Flow]:
    """The ways the dialog itself names, the best first; empty when there is none but `heard`. None
    leads from the outside to a host of `inner`: whoever calls us does not choose what we send there."""
    hop = hop_of(dialog, heard)
    listener = _listener(hop, heard, listeners) if hop is not None else None
    if hop is None or listener is None:
        return []
    address = _address(hop.host)
    if address is not None:
        places: Sequence[tuple[str, int]] = [(hop.host, hop.port or DEFAULT_PORTS[hop.transport])]
    else:
        places = resolve(hop)
    ours = {(item.host, item.port) for item in listeners.values()}
    outside = bool(listeners[listener].side)
    found = []
    for host, port in places:
        if (host, port) in ours or not _is_heard_of(host, heard.host):
            continue
        if outside and host in inner and host != heard.host:
            continue
        same = (hop.transport, host) == (heard.transport, heard.host)
        if same and (port == heard.port or (hop.transport == "tls" and heard.conn)):
            # over TLS also where the port differs: the connection is authenticated, and a certificate
            # seldom names the address a Contact does (RFC 5923 section 1)
            found.append(heard)
        else:
            found.append(Flow(listener, hop.transport, host, port))
    return found


def _listener(hop: Hop, heard: Flow, listeners: Mapping[str, Listener]) -> str | None:
    """Ours for the hop's transport, on the side the far end is on."""
    if hop.transport == heard.transport:
        return heard.listener
    side = listeners[heard.listener].side if heard.listener in listeners else ""
    for name, listener in listeners.items():
        if (listener.transport, listener.side) == (hop.transport, side):
            return name
    return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_heard_of(host: str, source: str) -> bool:
    """Whether a far side that speaks from `source` can be reached at `host` from where we are: a
    private address in the Contact of somebody with a public one is behind NAT."""
    address = _address(host)
    if not isinstance(address, ipaddress.IPv4Address) or address.is_multicast or address.is_reserved:
        return False
    return address not in _THIS_NETWORK and _scope(address) >= _scope(_address(source))


def _scope(address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> int:
    if not isinstance(address, ipaddress.IPv4Address):
        return 0
    return next((scope for scope, network in _NETWORKS if address in network), _GLOBAL)


def takes_media(host: str, source: str, inner: Container[str] = ()) -> bool:
    """Whether audio may be sent to `host`, which somebody who speaks from `source` named in SDP. A private
    address of somebody behind NAT may: what is heard of him says later where he is. Our own hosts may not,
    nor a loopback: a relay's or a database's port there takes whatever a caller puts into his packets."""
    address = _address(host)
    if address is None or (host in inner and host != source):
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return takes_media(str(address.ipv4_mapped), source, inner)
        return not (address.is_loopback or address.is_multicast or address.is_link_local)
    if address.is_unspecified:
        return True  # hold (RFC 3264 section 8.4), or ICE
    if address.is_multicast or address.is_reserved or address in _THIS_NETWORK:
        return False
    speaker = _address(source)
    return not address.is_loopback or (speaker is not None and speaker.is_loopback)
