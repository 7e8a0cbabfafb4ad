"""Other pairs beside ours: how their phones and carriers are reached, and ours by them.

A call belongs to the pair it came in at, with all its dialogs and its media, wherever the phone
it rings is registered. Only that phone's pair has the way to it (the connection, the hole in its
NAT), so requests to it go through there. That pair keeps nothing of them (`sip.proxy`): its
registration says where the phone is, the sealed route says which phone, and the key in etcd says
which edge of the pair is active. A carrier that only another pair may speak to is reached alike.

A phone that talks in a call of another pair may call a second time: it asks for advice, or wants to
transfer. That is the other pair's business as well. What the nodes wrote says who talks where; an
INVITE that follows an old word is a new call there, and nothing is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.edge_config import EdgeConfig
from ari_ha.machines.edge_context import HOP, INNER, EdgeContext
from ari_ha.sip.dialog import Dialog
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, SipParseError
from ari_ha.sip.nexthop import ROUTE
from ari_ha.sip.proxy import Onward, opened, sealed
from ari_ha.sip.uri import NameAddr, SipUri
from ari_ha.wire.keyspace import (
    BadValue,
    BindingValue,
    EdgeValue,
    OwnerValue,
    RecordValue,
    V,
    VipValue,
    decode,
)
from ari_ha.wire.token import HEADER_PREFIX

Address = tuple[str, int]
Route = tuple[tuple[str, str], ...]
EDGES_KNOWN_MAX = 1_000
"""Addresses of edges remembered after their keys are gone"""


@dataclass(frozen=True, slots=True)
class Party:
    """Who is at the end of a sealed route: a phone by its binding, and the flow it had when the
    route was made, or a place of a carrier."""

    pair: str
    flow: Flow
    aor: str = ""
    """Empty: a carrier"""
    ident: str = ""
    """Of a binding; of a carrier, its trunk"""

    @property
    def text(self) -> str:
        """What is sealed."""
        flow = self.flow
        at = (flow.listener, flow.transport, flow.host, str(flow.port))
        return "\n".join((self.pair, *at, self.ident, self.aor))

    @classmethod
    def read(cls, text: str) -> Party | None:
        """The party of `text`."""
        parts = text.split("\n", 6)
        if len(parts) != 7 or not parts[4].isdigit():
            return None
        pair, listener, transport, host, port, ident, aor = parts
        return cls(pair, Flow(listener, transport, host, int(port)), aor, ident)


class Phones(Protocol):
    """What is asked about phones of this pair."""

    in_call: Callable[[str], bool]
    """Whether a phone is in a call of this pair"""

    def contact(self, aor: str, ident: str) -> BindingValue | None:
        """One binding."""

    def binding_of(self, aor: str) -> BindingValue | None:
        """The newest living contact of an address of record."""

    def aor_of(self, user: str) -> str:
        """The address of record of an account's phone."""


def contact_hash(uri: str) -> str:
    """The last part of a binding's key."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def hop_address(config: EdgeConfig) -> str:
    """host:port where other pairs' edges find this one; empty: nowhere."""
    return f"{config.core_host}:{config.hop_port}" if config.hop_port else ""


class Pairs:
    """The edges there are, by pair, and what passes through this one."""

    def __init__(self, context: EdgeContext) -> None:
        self._context = context
        self._key = b"route to another pair " + context.config.header_key
        self._edges: dict[str, EdgeValue] = {}
        self._active: dict[str, str] = {}
        """pair -> its active edge"""
        self._known: dict[Address, str] = {}
        """Where an edge takes requests of other pairs, or took them -> its pair. An edge that is being
        started again has no key for a moment; what is for it must not be refused then."""
        self._foreign: dict[str, tuple[str, bytes]] = {}
        """Call of another pair -> that pair, and its node's record"""
        self._phones: Phones

    def serve(self, phones: Phones) -> None:
        """Begins to pass requests on."""
        self._phones = phones
        if self._context.sip.has_listener(HOP):
            self._context.sip.proxy.serve(self._key, self._onward, HEADER_PREFIX, self._connected)

    def start(self) -> None:
        """The calls have been read back: those that go through other pairs may have to go through another
        edge there."""
        for pair in {edge.vip for edge in self._edges.values()}:
            self._moved(pair)

    # --- what etcd says ------------------------------------------------------------

    def begin_snapshot(self, family: str, items: Mapping[str, KeyValue]) -> None:
        """Forgets edges a snapshot no longer has."""
        if family == "edges":
            keys = self._context.keys
            self._edges = {name: edge for name, edge in self._edges.items() if keys.edge(name) in items}
        elif family == "calls":
            self._foreign.clear()

    def stored(self, key: str, item: KeyValue | None) -> None:
        """A key of edges/, vips/ or calls/ as it is now."""
        match self._context.keys.split(key):
            case ("edges", name):
                value = self._read(item, EdgeValue)
                if value is None:
                    self._edges.pop(name, None)
                    return
                self._edges[name] = value
                if (at := _address(value.hop)) is not None and len(self._known) < EDGES_KNOWN_MAX:
                    self._known[at] = value.vip
                    self._context.inner_hosts.add(at[0])
                self._moved(value.vip)
            case ("vips", pair):
                holder = self._read(item, VipValue)
                if holder is not None:
                    self._active[pair] = holder.edge
                    self._moved(pair)
            case ("calls", call, "owner"):
                owner = self._read(item, OwnerValue)
                if owner is None or owner.vip in ("", self._context.config.vip):
                    self._foreign.pop(call, None)
                else:
                    self._foreign[call] = (owner.vip, self._foreign.get(call, ("", b""))[1])
            case ("calls", call, "record") if item is not None and call in self._foreign:
                self._foreign[call] = (self._foreign[call][0], item.value)

    def _read(self, item: KeyValue | None, kind: type[V]) -> V | None:
        try:
            return decode(item.value, kind, item.key) if item else None
        except BadValue as error:
            self._context.note("edge", "unreadable value kept out", level="error", error=error)
            return None

    def _moved(self, pair: str) -> None:
        """Where a pair's edges have addresses of their own, its phones are reached by another one when
        another edge is active."""
        context, at = self._context, self._at(pair)
        if at is None or pair == context.config.vip:
            return
        for key in context.sip.legs():
            flow = context.sip.leg_flow(key)
            if flow.listener != HOP or (flow.host, flow.port) == at:
                continue
            found = self._party(context.sip.first_route(key))
            if found is not None and found[1].pair == pair:
                context.sip.move_flow(key, Flow(HOP, "udp", *at))

    # --- to another pair -----------------------------------------------------------

    def _at(self, pair: str) -> Address | None:
        """Where a pair takes requests: at its active edge, or at one that lives."""
        edges = [self._edges.get(self._active.get(pair, "")), *self._edges.values()]
        return next((at for e in edges if e and e.vip == pair and (at := _address(e.hop))), None)

    def reaches(self, pair: str) -> bool:
        """Whether requests can go through another pair: one of its edges is there, and takes them."""
        return self._context.sip.has_listener(HOP) and self._at(pair) is not None

    def first_of(self, pairs: Iterable[str]) -> str:
        """The first of the pairs that can be reached; empty: none."""
        return next((pair for pair in pairs if self.reaches(pair)), "")

    def way(self, pair: str, flow: Flow, aor: str = "", ident: str = "") -> tuple[Flow, Route]:
        """How to reach, through another pair, whom that pair reaches by ``flow``. Raises LookupError
        when there is no way."""
        at = self._at(pair)
        if at is None:
            raise LookupError(f"no edge of {pair} takes requests")
        token = self._sealed(Party(pair, flow, aor, ident))
        return Flow(HOP, "udp", *at), (("Route", f"<sip:{token}@{at[0]}:{at[1]};lr>"),)

    # --- from another pair, and back -----------------------------------------------

    def _onward(self, request: Request, flow: Flow) -> Onward | None:
        """A request with a sealed route of ours is another pair's, or for it."""
        if not request.has("Route"):
            return self._second_call(request, flow) if self._foreign else None
        routes, found = 0, None
        for value in request.values("Route"):
            party = self._party(value)
            if party is None or party[1].pair != self._context.config.vip:
                break
            found, routes = found or party, routes + 1
        if found is None:
            return None
        token, party = found
        if party.flow.listener == HOP:
            return None  # for ourselves, see `from_phone`
        if flow.listener != HOP:
            # with a route of ours a phone or a carrier speaks within a call, and begins nothing
            refuse = 0 if request.to_tag else 403
            sender = (party.aor, party.ident) if party.aor else ()
            return Onward(self._edge_at(request.uri), routes, token, refuse, sender=sender)
        if (
            request.method == "INVITE"
            and not request.to_tag
            and party.aor
            and self._phones.in_call(party.aor)
        ):
            self._context.count("edge_hop_refused", why="device_busy")
            return Onward(None, routes, refuse=486)
        to = self._phone_at(party) if party.aor else self._carrier_at(party, request, routes)
        return Onward(to, routes, token)

    def from_phone(self, request: Request) -> bool:
        """Whether an edge of another pair says that a phone of its sent this."""
        found = self._party(request.get("Route")) if request.has("Route") else None
        return (
            found is not None and found[1].pair == self._context.config.vip and found[1].flow.listener == HOP
        )

    def _second_call(self, request: Request, flow: Flow) -> Onward | None:
        """A phone of ours that talks in a call of another pair calls somebody: that pair's business. Only
        what belongs to an INVITE's own transaction; everything later has our route."""
        first = request.method == "INVITE" and not request.to_tag and not request.has("Replaces")
        if flow.listener.startswith(INNER) or not (first or request.method in ("ACK", "CANCEL")):
            return None
        try:
            aor = self._phones.aor_of(NameAddr.parse(request.get("From")).sip_uri.user or "")
        except SipParseError:
            return None
        binding = self._phones.binding_of(aor)
        if binding is None or binding.host != flow.host or self._phones.in_call(aor):
            return None
        pair = self._talks_at(aor)
        at = self._at(pair) if pair else None
        if at is None:
            return None
        ident = contact_hash(binding.contact)
        ours = self._sealed(Party(self._context.config.vip, flow, aor, ident))
        theirs = self._sealed(Party(pair, Flow(HOP, "udp", *at), aor))
        add = f"<sip:{theirs}@{at[0]}:{at[1]};lr>"
        return Onward(Flow(HOP, "udp", *at), record=ours, add=add, sender=(aor, ident))

    def _talks_at(self, aor: str) -> str:
        """The other pair in whose call a phone talks; empty: in none."""
        target = f"device:{aor}"
        marks = (f'"{aor}"'.encode(), f'"{target}"'.encode())
        for pair, raw in self._foreign.values():
            if not any(mark in raw for mark in marks):
                continue
            try:
                record = decode(raw, RecordValue)
            except BadValue:
                continue
            answered = (a.device == aor and a.state == "answered" for a in record.attempts.values())
            dialled = (leg.target == target and leg.state in ("up", "held") for leg in record.legs.values())
            if any(answered) or any(dialled):
                return pair
        return ""

    def _sealed(self, party: Party) -> str:
        return sealed(self._key, party.text)

    def _party(self, route: str) -> tuple[str, Party] | None:
        try:
            token = NameAddr.parse(route).sip_uri.user or ""
        except SipParseError:
            return None
        text = opened(self._key, token)
        party = Party.read(text) if text else None
        return (token, party) if party else None

    def _carrier_at(self, party: Party, request: Request, routes: int) -> Flow:
        """A request within a call goes where the carrier's own Record-Route or Contact leads, if that is an
        address: a name may have several, and each repetition would go to another."""
        context = self._context
        if not request.to_tag or context.trunk_next_hop(party.ident) != ROUTE:
            return party.flow
        dialog = Dialog(request.call_id, request.from_tag, "", "", "uac", remote_target=request.uri,
                        route_set=request.values("Route")[routes:])  # fmt: skip
        return context.sip.next_hop(dialog, party.flow, names=False)

    def _phone_at(self, party: Party) -> Flow:
        """Where the phone is registered now; without a registration, where it was."""
        binding = self._phones.contact(party.aor, party.ident)
        if binding is None or binding.pair != party.pair:
            return party.flow
        return Flow(binding.listener, binding.transport, binding.host, binding.port, binding.conn)

    def _connected(self, flow: Flow, aor: str, ident: str) -> Flow:
        """Where a phone's request came from; the connection it has registered over since, from the same
        address, where that one is gone."""
        binding = self._phones.contact(aor, ident)
        if not flow.reliable or self._context.sip.connected(flow):
            return flow
        if binding is None or binding.pair != self._context.config.vip:
            return flow
        same = (binding.host, binding.transport) == (flow.host, flow.transport)
        if not same or binding.conn in ("", flow.conn):
            return flow
        return Flow(binding.listener, binding.transport, binding.host, binding.port, binding.conn)

    def _edge_at(self, uri: str) -> Flow | None:
        """The edge of another pair whose Contact this is. Nobody outside sends anything anywhere else."""
        try:
            target = SipUri.parse(uri)
        except SipParseError:
            return None
        at, own = (target.host, target.port or 0), self._context.config.vip
        return Flow(HOP, "udp", *at) if self._known.get(at, own) != own else None


def _address(text: str) -> Address | None:
    host, _, port = text.rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None
