"""Phones: who may register, and where each one is.

Bindings (RFC 3261 §10) live in etcd with their expiry in the value and are
reaped by the pair that holds them; an edge that starts anew knows every phone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put
from ari_ha.machines.edge_audio import WEB_TRANSPORTS
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_pairs import Pairs, contact_hash
from ari_ha.sip.auth import ALGORITHMS, DigestAuthority
from ari_ha.sip.events import InviteReceived, RequestReceived
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, SipParseError
from ari_ha.sip.nexthop import ROUTE, SOURCE
from ari_ha.sip.timers import parse_delta
from ari_ha.sip.uri import NameAddr
from ari_ha.wire.keyspace import (
    BadValue,
    BindingValue,
    SecretUserValue,
    UserValue,
    Value,
    decode,
    encode,
)
from ari_ha.wire.unknown_fields import merge_unknown

REAP_INTERVAL_S = 5.0
BINDINGS_PER_AOR_MAX = 8
PATH_MAX = 8
"""Proxies between a phone and us."""
BINDING_WRITE_LIMIT_S = 0.3
BINDING_GRACE_S = 5.0
"""A binding is kept this long after its expiry: refreshes run late on bad days."""


@dataclass(slots=True)
class Held:
    """A binding and whether etcd has this form of it."""

    value: BindingValue
    written: bool = True
    found: bytes = b""
    """As it was read: a newer edge may have written more than this version knows"""


class Registrar:
    """Registrations and digest authentication."""

    def __init__(self, context: EdgeContext, pairs: Pairs) -> None:
        self._context = context
        self._pairs = pairs
        config = context.config
        secret = hashlib.sha256(b"digest nonces " + config.header_key).digest()
        self._authority = DigestAuthority(config.realm, secret)
        self._users: dict[str, UserValue] = {}
        self._secrets: dict[str, SecretUserValue] = {}
        self._bindings: dict[str, dict[str, Held]] = {}
        """AOR -> contact hash -> binding"""
        self.hosts: set[str] = set()
        """Addresses phones are registered from, brought up to date with every reaping"""
        self.on_failure: Callable[[str, bool], None] = lambda host, unknown: None
        """Called with the address a wrong digest came from, and whether there is no such user."""
        self.on_flow: Callable[[str, Flow], None] = lambda aor, flow: None
        """Called with the flow of every registration over a connection."""
        self.in_call: Callable[[str], bool] = lambda aor: False
        """Whether a phone is in a call of ours"""
        self.on_registered: Callable[[str, str], None] = lambda aor, ident: None
        """Called with the binding every time it is registered."""

    # --- what etcd says ------------------------------------------------------------

    def stored(self, key: str, item: KeyValue | None) -> None:
        """A key of users/, secret/users/ or bindings/ as it is now."""
        parts = self._context.keys.split(key)
        if parts[:1] == ("users",):
            self._keep(self._users, parts[1], item, UserValue)
        elif parts[:2] == ("secret", "users"):
            self._keep(self._secrets, parts[2], item, SecretUserValue)
        elif parts[:1] == ("bindings",) and len(parts) == 3:
            self._binding_stored(parts[1], parts[2], item)

    def begin_snapshot(self, prefix: str, items: Mapping[str, KeyValue]) -> None:
        """Forgets what a snapshot no longer has: a user deleted while etcd was away, a
        binding that ended meanwhile."""
        family = self._context.keys.split(prefix)[:1]
        keys = self._context.keys
        tables = {("users",): (self._users, keys.user), ("secret",): (self._secrets, keys.secret_user)}
        if family in tables:
            table, key_of = tables[family]
            for name in [name for name in table if key_of(name) not in items]:
                del table[name]  # type: ignore[attr-defined]
        elif family == ("bindings",):
            for aor, held in self._bindings.items():
                for ident in [i for i, h in held.items() if h.written and keys.binding(aor, i) not in items]:
                    del held[ident]

    def _keep(self, table: dict, name: str, item: KeyValue | None, kind: type[Value]) -> None:  # type: ignore[type-arg]
        if item is None:
            table.pop(name, None)
            return
        try:
            table[name] = decode(item.value, kind, item.key)
        except BadValue as error:
            self._context.note("edge", "unreadable value kept out", level="error", error=error)

    def _binding_stored(self, aor: str, ident: str, item: KeyValue | None) -> None:
        mine = self._bindings.get(aor, {}).get(ident)
        if mine and not mine.written:
            return
        if item is None:
            self._bindings.get(aor, {}).pop(ident, None)
            return
        try:
            value = decode(item.value, BindingValue, item.key)
        except BadValue as error:
            self._context.note("edge", "unreadable binding kept out", level="error", error=error)
            return
        self._bindings.setdefault(aor, {})[ident] = Held(value, found=item.value)
        self.hosts.add(value.host)

    # --- digest --------------------------------------------------------------------

    def _ha1s(self, request: Request) -> dict[str, dict[str, str]]:
        given = self._authority.credentials_in(request) or {}
        secret = self._secrets.get(given.get("username", ""))
        if not secret:
            return {}
        return {secret.user: {"MD5": secret.ha1_md5, "SHA-256": secret.ha1_sha256}}

    def _algorithms(self, request: Request) -> tuple[str, ...]:
        """What a user is asked for: the digests kept for it. Some phones give up at a
        challenge they do not know, though another beside it would do (RFC 8760 §2.4)."""
        given = self._authority.credentials_in(request) or {}
        try:
            name = given.get("username") or NameAddr.parse(request.get("from")).sip_uri.user or ""
        except SipParseError:
            name = ""
        secret = self._secrets.get(name)
        kept = {"MD5": secret.ha1_md5, "SHA-256": secret.ha1_sha256} if secret else {}
        return tuple(algorithm for algorithm in ALGORITHMS if kept.get(algorithm)) or ALGORITHMS

    def _verify(self, request: Request, flow: Flow) -> tuple[str | None, tuple[tuple[str, str], ...]]:
        """The authenticated user, or None and the challenge to answer with."""
        context = self._context
        verdict = self._authority.verify(request, self._ha1s(request), context.now)
        if verdict.ok:
            return verdict.username, ()
        if verdict.reason not in ("missing", "stale"):
            context.count("edge_auth_failures", reason=verdict.reason)
            if self._secrets:  # before the directory is loaded nobody can be right
                self.on_failure(flow.host, verdict.reason == "unknown-user")
        values = self._authority.challenge(
            context.now, context.new_id(), stale=verdict.stale, algorithms=self._algorithms(request)
        )
        return None, tuple(("WWW-Authenticate", value) for value in values)

    def authenticate_invite(self, event: InviteReceived) -> str | None:
        """The user who sent this INVITE; otherwise it has been answered 401."""
        user, challenge = self._verify(event.request, event.flow)
        if user is None:
            self._context.sip.reject(event.leg, 401, self._context.now, headers=challenge)
        return user

    def authenticate(self, event: RequestReceived) -> str | None:
        """The user who sent this request; otherwise it has been answered 401."""
        user, challenge = self._verify(event.request, event.flow)
        if user is None:
            self._context.sip.respond(event.txn, 401, self._context.now, headers=challenge)
        return user

    # --- REGISTER ------------------------------------------------------------------

    def register(self, event: RequestReceived) -> None:
        """RFC 3261 §10.3; answered when the binding is in etcd, or after a limit."""
        context, request = self._context, event.request
        user = self.authenticate(event)
        if user is None:
            return
        try:
            aor = NameAddr.parse(request.get("to")).sip_uri.user or ""
            contacts = [NameAddr.parse(value) for value in request.values("contact") if value != "*"]
            wildcard = "*" in request.values("contact")
            cseq = request.cseq[0]
            path = request.values("path")
            if len(path) > PATH_MAX or any(not NameAddr.parse(hop).sip_uri.host for hop in path):
                raise SipParseError("path", 400)
        except SipParseError:
            context.sip.respond(event.txn, 400, context.now)
            return
        if aor not in (user, self.aor_of(user)):
            context.sip.respond(event.txn, 403, context.now)
            return
        if wildcard:
            for ident in list(self._bindings.get(aor, {})):
                self._remove(aor, ident)
            self._accept(event, aor)
            return
        taken: list[str] = []
        for contact in contacts:
            ident = self._bind(event, aor, contact, cseq)
            if ident is None:
                return
            taken += [ident] if ident else []
        self._accept_when_written(event, aor, taken)

    def _accept_when_written(self, event: RequestReceived, aor: str, taken: list[str]) -> None:
        """200 once the bindings are in etcd, or after a limit: a phone that was told it
        is registered is still so after a restart of ours."""
        left = set(taken)
        name = f"register/{event.txn}"

        def accept() -> None:
            self._context.cancel(name)
            if not done:
                done.append(True)
                self._accept(event, aor)

        def written(ident: str) -> None:
            left.discard(ident)
            if not left:
                accept()

        done: list[bool] = []
        if not taken:
            accept()
            return
        self._context.at(name, self._context.now + BINDING_WRITE_LIMIT_S, accept)
        for ident in taken:
            self._write(aor, ident, partial(written, ident))

    def _bind(self, event: RequestReceived, aor: str, contact: NameAddr, cseq: int) -> str | None:
        """Takes one contact and names its binding, empty where it was removed; None when
        the request has been answered with an error."""
        context, request, flow = self._context, event.request, event.flow
        limits = context.timings
        asked = parse_delta(contact.params.get("expires") or request.get("expires"))
        seconds = limits.registration_s if asked is None else min(asked, limits.registration_s)
        ident = contact_hash(contact.uri)
        if seconds == 0:
            self._remove(aor, ident)
            return ""
        if seconds < limits.registration_min_s:
            headers = (("Min-Expires", str(limits.registration_min_s)),)
            context.sip.respond(event.txn, 423, context.now, headers=headers)
            return None
        held = self._bindings.setdefault(aor, {})
        old = held.get(ident)
        if old and old.value.call_id == request.call_id and cseq <= old.value.cseq:
            context.sip.respond(event.txn, 500, context.now)
            return None
        if len(held) >= BINDINGS_PER_AOR_MAX and ident not in held:
            oldest = min(held, key=lambda name: held[name].value.expires)
            self._remove(aor, oldest)
        value = BindingValue(
            aor=aor,
            contact=contact.uri,
            host=flow.host,
            port=flow.port,
            listener=flow.listener,
            transport=flow.transport,
            expires=context.utc + seconds,
            call_id=request.call_id,
            cseq=cseq,
            user_agent=request.get("user-agent"),
            conn=flow.conn,
            pair=context.config.vip,
            edge=context.config.edge,
            path=list(request.values("path")),
        )
        held[ident] = Held(value, written=False)
        self.hosts.add(flow.host)
        self.on_registered(aor, ident)
        if flow.conn:
            self.on_flow(aor, flow)
        return ident

    def _write(self, aor: str, ident: str, then: Callable[[], None] = lambda: None) -> None:
        context = self._context
        held = self._bindings.get(aor, {}).get(ident)
        if held is None or not context.store_ok or not context.edge_revision:
            then()
            return
        value = held.value

        def written(outcome: Outcome) -> None:
            now_held = self._bindings.get(aor, {}).get(ident)
            ok = isinstance(outcome, Done) and outcome.value.succeeded
            if ok and now_held and now_held.value is value:
                now_held.written = True
            then()

        key, data = context.keys.binding(aor, ident), encode(value)
        data = merge_unknown(held.found, data, BindingValue) if held.found else data
        context.txn(f"binding/{aor}", written, compares=self._fence(), puts=(Put(key, data),))

    def _fence(self) -> tuple[Compare, ...]:
        context = self._context
        return (Compare(context.keys.vip(context.config.vip), context.edge_revision),)

    def _remove(self, aor: str, ident: str) -> None:
        context = self._context
        if self._bindings.get(aor, {}).pop(ident, None) and context.store_ok and context.edge_revision:
            deletes = (Delete(context.keys.binding(aor, ident)),)
            context.txn(f"binding/{aor}", compares=self._fence(), deletes=deletes)

    def _accept(self, event: RequestReceived, aor: str) -> None:
        """200 with the bindings as they are (§10.3 step 8), and the way the request came
        (RFC 3327 §5.3)."""
        context = self._context
        headers = tuple(
            ("Contact", f"<{held.value.contact}>;expires={max(0, int(held.value.expires - context.utc))}")
            for held in self._bindings.get(aor, {}).values()
        )
        path = tuple(("Path", hop) for hop in event.request.values("path"))
        context.sip.respond(event.txn, 200, context.now, headers=(*headers, *path))

    def aor_of(self, user: str) -> str:
        """The address of record of an account's phone."""
        account = self._users.get(user)
        return (account.aor if account else "") or user

    def agent_of(self, user: str) -> str:
        """The agent an account belongs to; empty: none."""
        account = self._users.get(user)
        return account.agent if account else ""

    # --- where is a phone ----------------------------------------------------------

    def contacts(self) -> list[tuple[str, str]]:
        """Every living binding of this pair: address of record and hash."""
        pair, utc = self._context.config.vip, self._context.utc
        return [
            (aor, ident)
            for aor, held in self._bindings.items()
            for ident, item in held.items()
            if item.value.pair == pair and item.value.expires + BINDING_GRACE_S > utc
            and self._can_reach(item.value)
        ]  # fmt: skip

    def contact(self, aor: str, ident: str) -> BindingValue | None:
        """One binding."""
        held = self._bindings.get(aor, {}).get(ident)
        return held.value if held else None

    def mark(self, aor: str, ident: str, unreachable: float) -> None:
        """Since when (UTC) the phone answers nothing; 0: it answers."""
        held = self._bindings.get(aor, {}).get(ident)
        if held:
            value = msgspec.structs.replace(held.value, unreachable=unreachable)
            self._bindings[aor][ident] = Held(value, written=False, found=held.found)
            self._write(aor, ident)

    def binding_of(self, aor: str) -> BindingValue | None:
        """The newest living contact of an address of record; one that answers, where there is any."""
        return next(iter(self.bindings_of(aor)), None)

    def bindings_of(self, aor: str) -> list[BindingValue]:
        """Every living contact, in the order they are to be rung."""
        now = self._context.utc
        living = [
            held.value
            for held in self._bindings.get(aor, {}).values()
            if held.value.expires + BINDING_GRACE_S > now and self._can_reach(held.value)
        ]
        return sorted(living, key=lambda value: (not value.unreachable, value.expires), reverse=True)

    def elsewhere(self, aor: str) -> str:
        """The other pair a phone is registered at; empty: at ours, or nowhere."""
        binding = self.binding_of(aor)
        return binding.pair if binding and not self._ours(binding) else ""

    def _ours(self, binding: BindingValue) -> bool:
        return binding.pair in ("", self._context.config.vip)

    def _can_reach(self, binding: BindingValue) -> bool:
        """Whether we speak what it registered over (an edge before us may have had TLS), or another
        pair that does is there."""
        if self._ours(binding):
            return self._context.sip.has_listener(binding.listener)
        return self._pairs.reaches(binding.pair)

    def route(self, binding: BindingValue) -> tuple[Flow, str, tuple[tuple[str, str], ...]]:
        """How to reach a contact: the flow it registered over, which is open through
        its NAT (a proxy's: the first of its path), the URI it gave, and the path as Route headers.
        One of another pair is reached through there. Raises LookupError when it cannot be."""
        flow = Flow(binding.listener, binding.transport, binding.host, binding.port, binding.conn)
        path = tuple(("Route", hop) for hop in binding.path)
        if self._ours(binding):
            return flow, binding.contact, path
        ident = contact_hash(binding.contact)
        flow, through = self._pairs.way(binding.pair, flow, binding.aor, ident)
        return flow, binding.contact, (*through, *path)

    def next_hop(self, aor: str, flow: Flow) -> str:
        """How requests within a call of a phone's find it: by the flow it registered over, which is open
        through its NAT (RFC 5626 §5.3), and a browser's only way; behind a proxy, or not registered, by its
        dialog."""
        if flow.transport in WEB_TRANSPORTS:
            return SOURCE
        for held in self._bindings.get(aor, {}).values():
            value = held.value
            at = (value.host, value.transport) == (flow.host, flow.transport)
            if at and not value.path and (value.port == flow.port or value.conn):
                return SOURCE
        return ROUTE

    def next_hop_to(self, binding: BindingValue) -> str:
        """How requests within a call to a contact find it: behind a proxy of its own by their dialog. Through
        another pair, that pair knows the way."""
        return ROUTE if binding.path and self._ours(binding) else SOURCE

    def flow_closed(self, flow: Flow) -> None:
        """A connection is gone: nobody is reached over it any more. The binding stays: the
        phone may take a connection of ours, or come back in a moment."""
        for held in self._bindings.values():
            for item in held.values():
                if flow.conn and item.value.conn == flow.conn:
                    item.value.conn = ""

    def start(self) -> None:
        """Begins to reap."""
        self._context.at("reap", self._context.now + REAP_INTERVAL_S, self._reap)

    def time_moved(self, by_s: float) -> None:
        """The time of day was put right: every binding of ours keeps the seconds it had left."""
        for held in self._bindings.values():
            for item in held.values():
                if item.value.pair == self._context.config.vip:
                    item.value.expires += by_s
                    item.written = False

    def _reap(self) -> None:
        context = self._context
        for aor, held in list(self._bindings.items()):
            for ident, item in list(held.items()):
                ours = item.value.pair == context.config.vip
                if ours and context.utc and item.value.expires + BINDING_GRACE_S < context.utc:
                    self._remove(aor, ident)
                elif not item.written:
                    self._write(aor, ident)
            if not held:
                del self._bindings[aor]
        self.hosts = {item.value.host for held in self._bindings.values() for item in held.values()}
        self.start()

    def counts(self) -> dict[str, int]:
        """How many phones are registered at this pair, and how many of them answer nothing."""
        living = [self.contact(*who) for who in self.contacts()]
        silent = sum(1 for value in living if value and value.unreachable)
        return {"registered": len(living), "unreachable": silent}

    def snapshot(self) -> list[dict[str, object]]:
        """Bindings for people."""
        return [
            {"aor": aor, "pair": item.value.pair, "contact": item.value.contact,
             "expires": item.value.expires, "from": f"{item.value.host}:{item.value.port}",
             "unreachable": item.value.unreachable}
            for aor, held in sorted(self._bindings.items())
            for item in held.values()
        ]  # fmt: skip
