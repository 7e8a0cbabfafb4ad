"""Legs to carriers: which trunk a number leaves by, and what happens when it fails there.

Another trunk is tried only while the call is certainly nowhere: the first one refused it,
or never said a word. Once a carrier reported progress its answer is final.
"""

from __future__ import annotations

from collections.abc import Sequence

from ari_ha.machines import identity
from ari_ha.machines.edge_audio import CodecRefused, narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, PhoneLeg
from ari_ha.machines.trunks import Trunks, rewritten
from ari_ha.sip.fields import canonical
from ari_ha.sip.message import SipParseError
from ari_ha.sip.sdp import SUITES, SdpError
from ari_ha.sip.uri import NameAddr
from ari_ha.wire.sip_values import TrunkValue

TRUNKS_TRIED_MAX = 4
REDIRECTS_MAX = 3
RELIABLE = {True: (("Supported", "timer, replaces, 100rel"),), False: ()}
NEXT_TRUNK = frozenset((408, *range(500, 600)))
"""Answers that speak of the carrier, not of the number."""
NEXT_PLACE = frozenset((408, 503))
"""Those, a timeout and a refused connection that speak of one of its places (RFC 3263 §4.3)."""


class Outbound:
    """Dials numbers."""

    def __init__(self, context: EdgeContext, calls: Calls, trunks: Trunks) -> None:
        self._context = context
        self._calls = calls
        self._trunks = trunks
        trunks.load = self._load

    def _load(self, trunk: str) -> int:
        """Calls of a carrier at the moment, both ways."""
        found = 0
        for call in self._calls.by_id.values():
            found += call.trunk == trunk
            for leg in call.legs.values():
                found += leg.trunk == trunk and leg.state != "ended"
        return found

    def refusal(self, number: str) -> tuple[int, str] | None:
        """Why a number cannot be dialled at all."""
        if not number or not number.replace("+", "").replace("*", "").replace("#", "").isalnum():
            return 484, "bad_number"
        return None if self._trunks.candidates(number) else (503, "no_trunk")

    def suite_for(self, number: str) -> str:
        """SRTP's suite towards the carrier that will be tried first; empty: plain RTP."""
        return next((self._suite(name) for name in self._trunks.candidates(number)), "")

    def _suite(self, name: str) -> str:
        return SUITES[0] if self._trunks.table[name].srtp == "sdes" else ""

    # --- dialling ------------------------------------------------------------------

    def ring(self, call: EdgeCall, leg: PhoneLeg) -> bool:
        """Calls the number through the next trunk; False when there is none left."""
        if not leg.alive or call.ended:
            return True
        if len(leg.tried) < TRUNKS_TRIED_MAX:
            for name in self._trunks.candidates(leg.number, set(leg.tried)):
                leg.tried.append(name)
                leg.places = []
                if self._suite(name) != leg.side.suite:
                    continue  # its port was made for the other transport
                why = self._trunks.refusal(name)
                if not why and self._invite(call, leg, name):
                    return True
                self._context.count("edge_trunk_refused", trunk=name, why=why)
        return False

    def _invite(self, call: EdgeCall, leg: PhoneLeg, name: str, target: str = "") -> bool:
        """Calls through the trunk's next place, or with ``target`` once more through the last;
        False when none is left."""
        context, trunk = self._context, self._trunks.table[name]
        place = self._trunks.pick(name, () if target else leg.places)
        if place is None:
            return False
        leg.places.append(place.place.text)
        if leg.state == "ringing":
            self._calls.rekey(call, leg, context.new_id())
        leg.trunk, leg.state, leg.progress = name, "ringing", False
        number = rewritten(leg.number, trunk.outbound_rules)
        domain = self._trunks.domain(trunk)
        caller = trunk.caller or call.caller
        own = call.trunk and identity.ASSERTED in call.identity
        shown = rewritten(caller, trunk.outbound_rules) if own else caller
        from_, headers = identity.shown_to_trunk(shown, call.identity, trunk, domain)
        flow, through = self._trunks.way(trunk, place)
        routes = tuple(("Route", value) for value in self._trunks.state(name).service_route)
        context.sip.invite(
            leg.key,
            flow=flow,
            target=target or self._trunks.uri(trunk, number),
            from_=from_,
            to=f"<sip:{number}@{domain}>",
            sdp=leg.local_sdp(),
            headers=(*through, *routes, *headers, *RELIABLE[trunk.reliable]),
            credentials=self._trunks.credentials(name),
            session_expires=context.timings.session_expires_s,
            contact_user=trunk.user if trunk.register else "",
            next_hop=self._trunks.next_hop_out(name),
            holds_ack=True,
            held=True,
            now=context.now,
        )
        context.note(f"call/{call.call}", f"dialling {leg.number} through {name}", leg=leg.leg)
        context.count("edge_trunk_calls", trunk=name, way="out")
        self._calls.release(call, leg.key, lambda: self.watch(call, leg))
        self._calls.touch(call)
        return True

    def watch(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """A carrier that says nothing at all is given up long before SIP's own timeout
        (32 s, RFC 3261 timer B)."""
        if leg.trunk:
            key = leg.key
            when = self._context.now + self._context.timings.trunk_silence_s
            self._context.at(f"trunk/{call.call}/{leg.leg}", when, lambda: self._silent(call, leg, key))

    def _silent(self, call: EdgeCall, leg: PhoneLeg, key: str) -> None:
        sip = self._context.sip
        if call.ended or leg.state != "ringing" or leg.key != key or sip.leg_tried(key):
            return
        sip.hangup(key, self._context.now)
        if not self.failed(call, leg, 408, ()):
            self._calls.end_leg(call, leg, "failed", "no answer from the carrier", 408)

    # --- how it goes ---------------------------------------------------------------

    def failed(self, call: EdgeCall, leg: PhoneLeg, status: int, headers: Sequence[tuple[str, str]]) -> bool:
        """A carrier refused the leg; whether it goes on elsewhere."""
        trunk = self._trunks.table.get(leg.trunk)
        if trunk is None or leg.state != "ringing" or call.ended:
            return False
        found = {canonical(name): value for name, value in reversed(headers)}
        if 300 <= status < 400:
            return self._redirected(call, leg, trunk, found.get("contact", ""))
        if status not in NEXT_TRUNK:
            return False
        place = leg.places[-1] if leg.places else ""
        self._trunks.failed(leg.trunk, place, found.get("retry-after", ""))
        context = self._context
        context.note(
            f"call/{call.call}", f"trunk {leg.trunk} failed", level="warning", status=status, at=place
        )
        if leg.progress:
            return False
        return (status in NEXT_PLACE and self._invite(call, leg, leg.trunk)) or self.ring(call, leg)

    def _redirected(self, call: EdgeCall, leg: PhoneLeg, trunk: TrunkValue, contact: str) -> bool:
        """§8.1.3.4, through the same carrier: where else a call may go is its business."""
        if trunk.redirects != "follow" or leg.redirects >= REDIRECTS_MAX:
            return False
        try:
            uri = NameAddr.parse(contact).uri
        except SipParseError:
            return False
        if not uri.lower().startswith("sip:"):
            return False
        leg.redirects += 1
        return self._invite(call, leg, leg.trunk, uri.partition("?")[0])

    def progressed(self, call: EdgeCall, leg: PhoneLeg, sdp: str | None) -> bool:
        """The carrier reports progress; whether it sends early media with it."""
        leg.progress = True
        if not sdp:
            return leg.early
        try:
            leg.side = leg.side.answered(sdp)
            known = narrowed(sdp, leg.side)
        except (CodecRefused, SdpError):
            return leg.early
        leg.early = True
        self._calls.teach(call, leg.leg, known)
        return True
