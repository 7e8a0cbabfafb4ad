"""Lamps: a phone's messages, and whether another phone is busy (RFC 6665, 3842, 4235).

A subscription is a key in etcd. NOTIFY always tells the whole state, so a lost one is
mended by the next, and whoever serves the pair next tells everybody the state as it is.
Its numbers (CSeq, version) come from the time of day: a new process needs no memory of
those the old one used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from ari_ha.core.ports.store import Compare, Delete, KeyValue, Put
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import PhoneLeg
from ari_ha.machines.identity import shown_to_phone, user_part
from ari_ha.machines.registrar import Registrar
from ari_ha.sip.dialog import Dialog
from ari_ha.sip.events import RequestFailed, RequestReceived, ResponseReceived
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import SipParseError
from ari_ha.sip.nexthop import ROUTE
from ari_ha.sip.subscription import (
    CONTENT_TYPES,
    DIALOG,
    MESSAGE_SUMMARY,
    DialogState,
    dialog_info,
    message_summary,
)
from ari_ha.sip.timers import parse_delta
from ari_ha.wire.keyspace import BadValue, decode, encode
from ari_ha.wire.sip_values import MailboxValue, SubscriptionValue
from ari_ha.wire.unknown_fields import merge_unknown

SUBSCRIPTIONS_MAX = 10_000
SUBSCRIPTIONS_PER_USER_MAX = 64
EXPIRES_MIN_S, EXPIRES_MAX_S = 60, 3_600
REAP_INTERVAL_S = 5.0
LOOK_S = 0.05
"""What changes within this is looked at together: a lamp may be that late."""
GAP_S = 0.25
"""Between two NOTIFYs of one subscription; what changed meanwhile is in the next one."""
ALL_TOLD_WITHIN_S = 10.0
"""After a takeover the NOTIFYs of all subscriptions are spread over this time."""
EPOCH_UTC_S = 1_577_836_800
"""2020-01-01. Numbers are quarters of seconds since then: below 2^31 until 2037."""
NUMBERS_PER_S = 4
KEY = "subscription/"
STATES = {"trying": "trying", "ringing": "early", "up": "confirmed"}


State = tuple[DialogState, ...] | tuple[int, int, int, int]
"""What a phone is told: the dialogs of another, or counts of messages."""


@dataclass(slots=True)
class Held:
    """A subscription and what its phone has been told."""

    value: SubscriptionValue
    told: State | None = None
    number: int = 0
    out: bool = False
    """A NOTIFY is under way"""
    again: bool = False
    told_at: float = -1.0
    found: bytes = b""
    """As it was read: a newer edge may have written more than this version knows"""


class Subscriptions:
    """Every subscription of this pair."""

    def __init__(self, context: EdgeContext, calls: Calls, registrar: Registrar) -> None:
        self._context = context
        self._calls = calls
        self._registrar = registrar
        self._held: dict[str, Held] = {}
        self._mailboxes: dict[str, MailboxValue] = {}
        self._serving = False
        self._due: set[str] = set()
        """Packages that will be looked at in a moment"""
        calls.on_changed = self._calls_changed

    # --- what etcd says ------------------------------------------------------------

    def stored(self, key: str, item: KeyValue | None) -> None:
        """A key of subscriptions/ or mailboxes/ as it is now."""
        parts = self._context.keys.split(key)
        try:
            if parts[:1] == ("mailboxes",) and len(parts) == 2:
                if item is None:
                    self._mailboxes.pop(parts[1], None)
                else:
                    self._mailboxes[parts[1]] = decode(item.value, MailboxValue, key)
                self._state_changed(MESSAGE_SUMMARY)
            elif parts[:2] == ("subscriptions", self._context.config.vip) and not self._serving:
                if item is None:
                    self._held.pop(parts[2], None)
                else:
                    self._held[parts[2]] = Held(decode(item.value, SubscriptionValue, key), found=item.value)
        except BadValue as error:
            self._context.note("edge", "unreadable subscription kept out", level="error", error=error)

    def begin_snapshot(self, family: str, items: Mapping[str, KeyValue]) -> None:
        """Forgets what a snapshot no longer has."""
        keys, vip = self._context.keys, self._context.config.vip
        if family == "subscriptions" and not self._serving:
            for ident in [i for i in self._held if keys.subscription(vip, i) not in items]:
                del self._held[ident]
        elif family == "mailboxes":
            for box in [b for b in self._mailboxes if keys.mailbox(b) not in items]:
                del self._mailboxes[box]

    def start(self) -> None:
        """Begins to serve: every phone is told how things are now."""
        self._serving = True
        step = ALL_TOLD_WITHIN_S / max(1, len(self._held))
        for place, ident in enumerate(self._held):
            self._later(ident, place * min(step, GAP_S))
        self._reap()

    def time_moved(self, by_s: float) -> None:
        """The time of day was put right: every subscription keeps the seconds it had left."""
        for ident, held in self._held.items():
            held.value.expires += by_s
            self._write(ident)

    def _reap(self) -> None:
        context = self._context
        for ident, held in list(self._held.items()):
            if context.utc and held.value.expires < context.utc:
                self._end(ident, "timeout")
        context.at("subscriptions", context.now + REAP_INTERVAL_S, self._reap)

    # --- SUBSCRIBE -----------------------------------------------------------------

    def subscribe(self, event: RequestReceived) -> None:
        """A SUBSCRIBE: new, or within a dialog of ours (a refresh, or the end)."""
        context, request = self._context, event.request
        package = request.get("Event").partition(";")[0].strip().lower()
        if package not in CONTENT_TYPES:
            allowed = ((("Allow-Events"), ", ".join(sorted(CONTENT_TYPES))),)
            context.sip.respond(event.txn, 489, context.now, headers=allowed)
            return
        user = self._registrar.authenticate(event)
        if user is None:
            return
        asked = parse_delta(request.get("Expires"))
        seconds = EXPIRES_MAX_S if asked is None else min(asked, EXPIRES_MAX_S)
        if 0 < seconds < EXPIRES_MIN_S:
            low = (("Min-Expires", str(EXPIRES_MIN_S)),)
            context.sip.respond(event.txn, 423, context.now, headers=low)
        elif request.to_tag:
            self._refresh(event, user, seconds)
        else:
            self._open(event, user, package, seconds)

    def _open(self, event: RequestReceived, user: str, package: str, seconds: int) -> None:
        context, request = self._context, event.request
        watched = user_part(request.uri) or user
        if package == MESSAGE_SUMMARY and watched not in (user, self._registrar.aor_of(user)):
            context.sip.respond(event.txn, 403, context.now)  # messages are nobody else's business
            return
        mine = sum(held.value.user == user for held in self._held.values())
        if len(self._held) >= SUBSCRIPTIONS_MAX or mine >= SUBSCRIPTIONS_PER_USER_MAX:
            context.sip.respond(event.txn, 503, context.now, headers=(("Retry-After", "60"),))
            return
        tag = context.new_id()
        try:
            dialog = Dialog.for_uas(request, tag)
        except SipParseError:
            context.sip.respond(event.txn, 400, context.now)
            return
        value = SubscriptionValue(
            user=user,
            package=package,
            event=request.get("Event")[:200],
            watched=watched,
            dialog=dialog.to_dict(),
            flow=event.flow.to_dict(),
            expires=context.utc + seconds,
        )
        ident = hashlib.sha256(f"{dialog.call_id}\0{tag}".encode()).hexdigest()[:16]
        self._held[ident] = Held(value)
        self._accept(event, ident, seconds, tag)

    def _refresh(self, event: RequestReceived, user: str, seconds: int) -> None:
        context, request = self._context, event.request
        ident = hashlib.sha256(f"{request.call_id}\0{request.to_tag}".encode()).hexdigest()[:16]
        held = self._held.get(ident)
        if held is None or held.value.user != user:
            context.sip.respond(event.txn, 481, context.now)
            return
        dialog = Dialog.from_dict(held.value.dialog)
        if not dialog.accepts(request.cseq[0]):
            context.sip.respond(event.txn, 500, context.now)
            return
        dialog.refresh_target(request)
        held.value.dialog, held.value.flow = dialog.to_dict(), event.flow.to_dict()
        held.value.expires = context.utc + seconds
        self._accept(event, ident, seconds, "")

    def _accept(self, event: RequestReceived, ident: str, seconds: int, tag: str) -> None:
        """200, and a NOTIFY at once (RFC 6665 §4.2.1.2)."""
        context = self._context
        contact = context.sip.contact(event.flow)
        headers = (("Expires", str(seconds)), ("Contact", contact))
        context.sip.respond(event.txn, 200, context.now, headers=headers, to_tag=tag)
        if seconds:
            held = self._held[ident]
            held.told = None
            self._write(ident)
            self._notify(ident)
        else:
            self._end(ident, "timeout")

    # --- NOTIFY --------------------------------------------------------------------

    def _calls_changed(self) -> None:
        self._state_changed(DIALOG)

    def _state_changed(self, package: str) -> None:
        """Looked at once for everything that happens within a moment."""
        if self._serving and self._held and package not in self._due:
            self._due.add(package)
            self._context.at(f"lamps/{package}", self._context.now + LOOK_S, lambda: self._tell(package))

    def _tell(self, package: str) -> None:
        self._due.discard(package)
        dialogs = self._all_dialogs() if package == DIALOG else {}
        for ident, held in self._held.items():
            if held.value.package == package:
                self._notify(ident, dialogs.get(held.value.watched, ()) if package == DIALOG else None)

    def _later(self, ident: str, seconds: float) -> None:
        self._context.at(f"{KEY}{ident}", self._context.now + seconds, lambda: self._notify(ident))

    def _notify(self, ident: str, known: State | None = None) -> None:
        """Tells the state, if it is not what was told last."""
        held, now = self._held.get(ident), self._context.now
        if held is None:
            return
        state = self._state(held.value) if known is None else known
        if state == held.told:
            return
        if held.out:
            held.again = True
        elif now - held.told_at < GAP_S and held.told is not None:
            self._later(ident, GAP_S - (now - held.told_at))
        else:
            held.told, held.told_at, held.out = state, now, True
            left = max(0, round(held.value.expires - self._context.utc))
            self._send(ident, held, f"active;expires={left}", state)

    def _send(self, ident: str, held: Held, word: str, state: State) -> None:
        context, value = self._context, held.value
        dialog, flow = Dialog.from_dict(value.dialog), Flow.from_dict(value.flow)
        if not context.sip.has_listener(flow.listener):
            self._forget(ident, "it came over a transport that is off")
            return
        if self._registrar.next_hop(self._registrar.aor_of(value.user), flow) == ROUTE:
            flow = context.sip.next_hop(dialog, flow)
        held.number = max(held.number + 1, int((context.utc - EPOCH_UTC_S) * NUMBERS_PER_S))
        dialog.local_cseq = held.number
        headers = (
            ("Event", value.event),
            ("Subscription-State", word),
            ("Contact", context.sip.contact(flow)),
        )
        context.sip.request_of(
            f"{KEY}{ident}", dialog, "NOTIFY", flow=flow, headers=headers,
            body=self._body(value, state, held.number),
            content_type=CONTENT_TYPES[value.package], now=context.now,
        )  # fmt: skip
        context.count("edge_notifies", package=value.package)

    def owns(self, key: str) -> bool:
        """Whether an answer of the SIP engine is for us."""
        return key.startswith(KEY)

    def answered(self, event: ResponseReceived | RequestFailed) -> None:
        """The phone took a NOTIFY, or did not: then it has lost the subscription (RFC 6665
        §4.2.2), and will ask for a new one."""
        ident = event.key.removeprefix(KEY)
        held = self._held.get(ident)
        if held is None:
            return
        held.out = False
        status = event.status if isinstance(event, ResponseReceived) else 408
        if status >= 300:
            self._forget(ident, f"NOTIFY got {status}")
        elif held.again:
            held.again = False
            self._later(ident, GAP_S)

    # --- state ---------------------------------------------------------------------

    def _state(self, value: SubscriptionValue) -> State:
        if value.package == MESSAGE_SUMMARY:
            box = self._mailboxes.get(value.watched, MailboxValue(mailbox=value.watched))
            return box.new, box.old, box.urgent_new, box.urgent_old
        return self._all_dialogs().get(value.watched, ())

    def _body(self, value: SubscriptionValue, state: State, version: int) -> bytes:
        uri = self._uri(value.watched)
        if value.package == MESSAGE_SUMMARY:
            return message_summary(uri, *(item for item in state if isinstance(item, int)))
        return dialog_info(uri, version, [item for item in state if isinstance(item, DialogState)])

    def _uri(self, name: str) -> str:
        return f"sip:{name}@{self._context.config.realm}"

    def _all_dialogs(self) -> dict[str, tuple[DialogState, ...]]:
        """Every phone that has a call, and its dialogs."""
        found: dict[str, tuple[DialogState, ...]] = {}
        for call in self._calls.by_id.values():
            for leg in call.living():
                phone = leg.aor or (self._registrar.aor_of(leg.user) if leg.user else "")
                if phone:
                    initiator = not leg.aor
                    remote = call.did if initiator else shown_to_phone(call.caller, call.identity)
                    state = STATES.get(leg.state, "trying")
                    ident, name = f"{call.call}.{leg.leg}", self._name(leg)
                    item = DialogState(ident, state, initiator, self._uri(remote), name)
                    found[phone] = (*found.get(phone, ()), item)
        return found

    def _name(self, leg: PhoneLeg) -> tuple[str, str, str] | None:
        """What a colleague's phone needs to pick up what rings (RFC 3891), where it may."""
        dialog = self._context.sip.dialog_of(leg.key) if leg.state == "ringing" else None
        if dialog is None or not leg.target or leg.attempt or not dialog[2]:
            return None
        call_id, ours, the_phones = dialog
        return call_id, the_phones, ours

    # --- ends ----------------------------------------------------------------------

    def _end(self, ident: str, reason: str) -> None:
        held = self._held.get(ident)
        if held is not None:
            self._forget(ident, reason)
            self._send(ident, held, f"terminated;reason={reason}", self._state(held.value))

    def _forget(self, ident: str, why: str) -> None:
        held = self._held.pop(ident, None)
        if held is None:
            return
        context = self._context
        context.cancel(f"{KEY}{ident}")
        context.note(f"user/{held.value.user}", "subscription over", level="debug", why=why,
                     package=held.value.package)  # fmt: skip
        if context.store_ok and context.edge_revision:
            key = context.keys.subscription(context.config.vip, ident)
            context.txn(f"subscription/{ident}", compares=self._fence(), deletes=(Delete(key),))

    def _write(self, ident: str) -> None:
        """A refresh writes it again, so a write that fails is made good by the phone."""
        context, held = self._context, self._held[ident]
        if not context.store_ok or not context.edge_revision:
            return

        key = context.keys.subscription(context.config.vip, ident)
        data = encode(held.value)
        puts = (Put(key, merge_unknown(held.found, data, SubscriptionValue) if held.found else data),)
        context.txn(f"subscription/{ident}", compares=self._fence(), puts=puts)

    def _fence(self) -> tuple[Compare, ...]:
        context = self._context
        return (Compare(context.keys.vip(context.config.vip), context.edge_revision),)
