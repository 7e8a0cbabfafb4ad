"""What the SIP engine reports, given to whoever it concerns.

A key of the engine is either a phone's (its end is final) or a node's half (its
end is only the loss of a leg, unless the app announced it).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ari_ha.core.ports.sip import CloseSip
from ari_ha.machines.edge_audio import MIRRORED, CodecRefused, answer_lines, narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import INNER, EdgeContext
from ari_ha.machines.edge_dialling import Dialling
from ari_ha.machines.edge_fax import Fax
from ari_ha.machines.edge_messages import ALLOW_OUTSIDE, Messages
from ari_ha.machines.edge_model import EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.edge_pairs import Pairs
from ari_ha.machines.edge_rehome import Rehome
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.edge_srtp import SrtpKeys
from ari_ha.machines.edge_transfer import Transfers
from ari_ha.machines.phone_care import PhoneCare
from ari_ha.machines.registrar import Registrar
from ari_ha.machines.subscriptions import Subscriptions
from ari_ha.machines.takeover import Takeover
from ari_ha.machines.trunk_care import TrunkCare
from ari_ha.sip import events as sip
from ari_ha.sip.sdp import SdpError, SessionDescription
from ari_ha.wire import link

REINVITE_ANSWER_LIMIT_S = 1.0
"""A re-INVITE is answered by then even when the media could not be confirmed."""
DTMF, DTMF_RELAY = "application/dtmf", "application/dtmf-relay"


class Dialogs:
    """Routes the engine's events."""

    def __init__(
        self, context: EdgeContext, calls: Calls, setup: Setup, dialling: Dialling, takeover: Takeover,
        registrar: Registrar, care: TrunkCare, transfers: Transfers,
        subscriptions: Subscriptions, phones: PhoneCare, rehome: Rehome, srtp: SrtpKeys, fax: Fax,
        pairs: Pairs,
    ) -> None:  # fmt: skip
        self._fax, self._pairs = fax, pairs
        self._phones = phones
        self._messages = Messages(context, calls)
        self._care = care
        self._rehome = rehome
        self._srtp = srtp
        dialling.on_answered = rehome.answered
        self._subscriptions = subscriptions
        self._context = context
        self._calls = calls
        self._setup = setup
        self._transfers = transfers
        self._dialling = dialling
        self._takeover = takeover
        self._registrar = registrar
        self._late_reinvites: set[str] = set()
        self._ice_begun: set[str] = set()
        """SIP keys of browsers that begin another ICE session"""
        self._routes: dict[type, Callable[[Any], None]] = {
            sip.InviteReceived: self._invite,
            sip.RequestReceived: self._request,
            sip.LegRinging: self._ringing,
            sip.LegAnswered: self._answered,
            sip.LegAcked: self._acked,
            sip.EarlyAnswer: self._early_answer,
            sip.LegFailed: self._failed,
            sip.LegCancelled: lambda event: self._ended(event.leg, "cancelled", "487", 487),
            sip.LegEnded: self._leg_ended,
            sip.ReinviteReceived: self._reinvite,
            sip.ReinviteAcked: self._reinvite_acked,
            sip.ReinviteAnswered: self._changed_answer,
            sip.ReinviteFailed: self._change_refused,
            sip.InfoReceived: self._info,
            sip.InDialogRequest: self._in_dialog,
            sip.StreamBroken: lambda event: context.emit(CloseSip(flow=event.flow)),
            sip.ResponseReceived: self._response,
            sip.RequestFailed: self._no_response,
        }

    def heard(self, event: Any) -> None:
        """One event of the engine. Those not listed need no answer of ours."""
        route = self._routes.get(type(event))
        if route:
            route(event)

    # --- requests outside dialogs --------------------------------------------------

    def _invite(self, event: sip.InviteReceived) -> None:
        if event.flow.listener.startswith(INNER) and not self._pairs.from_phone(event.request):
            self._dialling.from_node(event)
        else:
            self._setup.from_public(event)

    def _request(self, event: sip.RequestReceived) -> None:
        context = self._context
        public = not event.flow.listener.startswith(INNER)
        match event.request.method:
            case "REGISTER" if public:
                self._registrar.register(event)
            case "OPTIONS":
                context.sip.respond(event.txn, 200, context.now)
            case "SUBSCRIBE" if public:
                self._subscriptions.subscribe(event)
            case "SUBSCRIBE" | "PUBLISH":
                context.sip.respond(event.txn, 489, context.now)
            case _:
                context.sip.respond(event.txn, 405, context.now, headers=ALLOW_OUTSIDE)

    def _response(self, event: sip.ResponseReceived) -> None:
        if self._care.owns(event.key):
            self._care.answered(event)
        elif self._phones.owns(event.key):
            self._phones.heard(event.key, answered=True)
        elif self._subscriptions.owns(event.key):
            self._subscriptions.answered(event)

    def _no_response(self, event: sip.RequestFailed) -> None:
        if self._care.owns(event.key):
            self._care.unanswered(event)
        elif self._phones.owns(event.key):
            self._phones.heard(event.key, answered=False)
        elif self._subscriptions.owns(event.key):
            self._subscriptions.answered(event)

    # --- progress ------------------------------------------------------------------

    def _ringing(self, event: sip.LegRinging) -> None:
        if found := self._calls.phone(event.leg) or self._dialling.forks.of(event.leg):
            self._dialling.phone_ringing(*found, event.status, event.sdp)
        elif half := self._calls.half(event.leg):
            call, node_leg = half
            if not call.move:
                self._setup.half_ringing(call, node_leg)

    def _answered(self, event: sip.LegAnswered) -> None:
        self._dialling.forks.answered(event.leg)
        if found := self._calls.phone(event.leg):
            call, leg = found
            if leg.alive:
                self._dialling.phone_answered(call, leg, event.sdp)
        elif half := self._calls.half(event.leg):
            call, node_leg = half
            if call.move and call.move.halves.get(node_leg.leg) is node_leg:
                self._takeover.half_answered(call, node_leg, event.sdp)
            else:
                self._setup.half_answered(call, node_leg, event.sdp)
            self._rehome.half_answered(call, node_leg)
        else:
            self._context.sip.hangup(event.leg, self._context.now)

    def _acked(self, event: sip.LegAcked) -> None:
        """The ACK; with SDP when our 200 carried the offer (late offer)."""
        found = self._calls.phone(event.leg)
        if found and event.sdp:
            call, leg = found
            late = leg.late_offer or event.leg in self._late_reinvites
            self._late_reinvites.discard(event.leg)
            if late:
                leg.late_offer = False
                self._answered_late(call, leg, event.sdp)
        elif found:
            self._calls.touch(found[0])
        if found:
            self._srtp.look(found[0])

    def _early_answer(self, event: sip.EarlyAnswer) -> None:
        """A caller without an offer has answered ours before he is answered."""
        if found := self._calls.phone(event.leg):
            call, leg = found
            leg.late_offer = False
            self._answered_late(call, leg, event.sdp)

    def _answered_late(self, call: EdgeCall, leg: PhoneLeg, sdp: str) -> None:
        """The answer came in the ACK; it may hold the call or take it off hold."""
        if not self._learn(call, leg, sdp):
            return
        was, leg.held = leg.held, SessionDescription.parse(sdp).is_hold()
        home = call.home()
        if was != leg.held and home:
            frame = link.LegHeld(call=call.call, leg=leg.leg, epoch=str(call.epoch), held=leg.held)
            self._context.link(home.name, frame)
        self._calls.apply_media(call)
        self._calls.touch(call)

    def _learn(self, call: EdgeCall, leg: PhoneLeg, sdp: str) -> bool:
        """Tells rtpengine where, and in which direction, the phone takes audio."""
        try:
            leg.side = leg.side.answered(sdp)
            known = narrowed(sdp, leg.side)
        except (CodecRefused, SdpError):
            return False
        self._calls.teach(call, leg.leg, known)
        return True

    # --- endings -------------------------------------------------------------------

    def _failed(self, event: sip.LegFailed) -> None:
        final = self._dialling.forks.failed(event)
        if not final:
            return
        if found := self._calls.phone(event.leg):
            call, leg = found
            if not self._dialling.outbound.failed(call, leg, event.status, event.headers):
                # a 3xx is not passed on: Asterisk would follow it on its own
                status = final if final >= 400 else 480
                self._dialling.party_over(call, leg, "failed", event.reason, status)
        elif half := self._calls.half(event.leg):
            call, node_leg = half
            if call.move and call.move.halves.get(node_leg.leg) is node_leg:
                self._takeover.half_failed(call, node_leg, event.status, event.reason)
            else:
                self._setup.half_failed(call, node_leg, event.status, event.reason)

    def _leg_ended(self, event: sip.LegEnded) -> None:
        """An end is confirmed when it is written down: else a successor would take for alive whom it
        never hears of again. An edge that dies before that is told again."""
        if event.txn:
            found, context = self._calls.phone(event.leg), self._context
            self._calls.store.when_written(
                found[0] if found else None,
                lambda: context.sip.respond(event.txn, 200, context.now),
                context.timings.end_limit_s,
            )
        self._ended(event.leg, "phone", event.cause, 0)

    def _ended(self, key: str, by: str, cause: str, status: int) -> None:
        if found := self._calls.phone(key):
            call, leg = found
            self._transfers.asker_left(call, leg)
            self._dialling.party_over(call, leg, by, cause, status)
        elif half := self._calls.half(key):
            self._half_ended(*half, cause)
        else:
            self._calls.store.farewell(key)

    def _half_ended(self, call: EdgeCall, half: NodeLeg, cause: str) -> None:
        move = call.move
        if move and move.halves.get(half.leg) is half:
            self._takeover.half_failed(call, half, 0, cause)
            return
        if call.lost:
            half.state = "ended"
            return
        leg = call.legs.get(half.leg)
        if half.calls_us and leg and leg.state in ("trying", "ringing"):
            # the node cancels its own attempt: announced by its EndLeg, or lost
            self._takeover.half_lost(call, half, cause)
            return
        self._takeover.half_lost(call, half, cause)

    # --- in the dialog -------------------------------------------------------------

    def _reinvite(self, event: sip.ReinviteReceived) -> None:
        context = self._context
        found = self._calls.phone(event.leg)
        if not found:
            half = self._calls.half(event.leg)
            if half:
                # nodes have no reason to change their audio; the answer is what it was
                self._setup.learn_node_media(half[0], half[1], event.sdp)
                context.sip.accept_reinvite(event.leg, half[1].local_sdp(), context.now)
            else:
                context.sip.reject_reinvite(event.leg, 481, context.now)
            return
        call, leg = found
        if event.sdp is None:
            self._late_reinvites.add(event.leg)
            context.sip.accept_reinvite(event.leg, leg.local_sdp(), context.now)
            return
        if not self._fax.offered(call, leg, event.sdp):
            self._fax.back(call, leg)
            self._changed_offer(call, leg, event.sdp)

    def _reinvite_acked(self, event: sip.ReinviteAcked) -> None:
        """Nothing of it is open any more: a successor must not think so."""
        if found := self._calls.phone(event.leg):
            self._calls.touch(found[0])
            if event.leg in self._ice_begun:
                self._ice_begun.discard(event.leg)
                self._rehome.ask_for_ice(*found)
            self._srtp.look(found[0])

    def _changed_answer(self, event: sip.ReinviteAnswered) -> None:
        """A far end accepted a re-INVITE of ours, perhaps from another address than before."""
        if self._fax.answered(event.leg, event.sdp):
            return
        if found := self._calls.phone(event.leg):
            call, leg = found
            self._rehome.phone_answered(call, leg)
            if event.sdp:
                self._answered_late(call, leg, event.sdp)
            self._srtp.phone_answered(call, leg)
        elif half := self._calls.half(event.leg):
            self._rehome.node_answered(*half)
            self._setup.learn_node_media(*half, event.sdp)

    def _change_refused(self, event: sip.ReinviteFailed) -> None:
        if self._fax.failed(event.leg):
            return
        if found := self._calls.phone(event.leg):
            self._rehome.phone_refused(*found, event.status)
            self._srtp.phone_refused(*found, event.status)
        elif half := self._calls.half(event.leg):
            self._rehome.node_refused(*half, event.status)

    def _changed_offer(self, call: EdgeCall, leg: PhoneLeg, sdp: str) -> None:
        """Hold, unhold or a new address. Media goes through Asterisk before a hold is
        answered, so that music is heard at once; and back to hitless on unhold."""
        context = self._context
        try:
            session = SessionDescription.parse(sdp)
            side = leg.side.changed(sdp)
        except (SdpError, CodecRefused):
            context.sip.reject_reinvite(leg.key, 488, context.now)
            return
        before, leg.side = leg.side, side
        leg.media_lines = answer_lines(sdp)
        if not before.other_ice(side):
            self._change(call, leg, sdp, session)
            return

        def begun(ok: bool) -> None:
            if ok:
                self._ice_begun.add(leg.key)
                self._change(call, leg, sdp, session)
            elif leg.alive and not call.ended:
                leg.side = before
                context.sip.reject_reinvite(leg.key, 488, context.now)
                self._rehome.look(call)

        context.note(f"call/{call.call}", "another ICE session", leg=leg.leg)
        self._setup.begin_ice(call, leg, sdp, begun)

    def _change(self, call: EdgeCall, leg: PhoneLeg, sdp: str, session: SessionDescription) -> None:
        """It is answered when the media is there, and it is written down: else a successor would not
        know who holds, and take the unhold for a refresh. One that is not told of again."""
        context = self._context
        was, leg.held = leg.held, session.is_hold()
        waits_for, answered = {"media", "etcd"}, [False]

        def done(what: str) -> None:
            waits_for.discard(what)
            if not waits_for:
                answer()

        def answer() -> None:
            if answered[0] or not leg.alive or call.ended:
                return
            answered[0] = True
            self._learn(call, leg, sdp)
            direction = MIRRORED.get(session.direction, "sendrecv")
            context.sip.accept_reinvite(leg.key, leg.local_sdp(direction, bump=True), context.now)
            home = call.home()
            if was != leg.held and home:
                frame = link.LegHeld(call=call.call, leg=leg.leg, epoch=str(call.epoch), held=leg.held)
                context.link(home.name, frame)
            self._calls.touch(call)

        if was != leg.held:
            context.note(f"call/{call.call}", "held" if leg.held else "taken off hold", leg=leg.leg)
        self._calls.apply_media(call, lambda: done("media"))
        self._calls.touch(call, lambda: done("etcd"))
        if not answered[0]:
            # rtpengine is slow or away: the phone gets its answer all the same
            name = f"reinvite/{call.call}/{leg.leg}"
            context.at(name, context.now + REINVITE_ANSWER_LIMIT_S, answer)

    def _info(self, event: sip.InfoReceived) -> None:
        """Digits by INFO go to the other phone, with a copy to the node."""
        context = self._context
        found = self._calls.phone(event.leg)
        if not found:
            return
        call, leg = found
        for other in call.up():
            if other is not leg and not other.aside and context.sip.has_dialog(other.key):
                context.sip.info(other.key, event.content_type, event.body, context.now)
        digit, home = _digit(event.content_type, event.body), call.home()
        told = call.keep_told(leg.leg, digit, context.utc) if digit else 0
        if digit and home:
            frame = link.LegDigit(call=call.call, leg=leg.leg, epoch=str(call.epoch), digit=digit, told=told)
            context.link(home.name, frame)

    def _in_dialog(self, event: sip.InDialogRequest) -> None:
        """Transfers and text; subscriptions are not served in a call: said so, never ignored."""
        if event.request.method == "REFER":
            self._transfers.refer(event)
            return
        if event.request.method == "MESSAGE":
            self._messages.in_dialog(event)
            return
        answers = {"SUBSCRIBE": 489, "NOTIFY": 489, "OPTIONS": 200}
        status = answers.get(event.request.method, 405)
        self._context.sip.respond(event.txn, status, self._context.now)


def _digit(content_type: str, body: bytes) -> str:
    """The digit of a DTMF INFO (``Signal=5``, or alone in ``application/dtmf``); empty when there is none."""
    kind = content_type.split(";")[0].strip().lower()
    if kind == DTMF:
        return body.decode("utf-8", "replace").strip()[:1]
    if kind != DTMF_RELAY:
        return ""
    for line in body.decode("utf-8", "replace").splitlines():
        name, _, value = line.partition("=")
        if name.strip().lower() == "signal":
            return value.strip()[:1]
    return ""
