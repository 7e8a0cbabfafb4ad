"""Legs a node dials: an agent's phone, or a number at a carrier.

The app says whom; the edge rings, and tells both the app and whoever waits for
the answer. A caller who was not answered yet hears the ringing (or what the
carrier lets him hear) and is answered by the edge itself when the called party
answers: that needs no node, so it happens in the gap of a takeover too. What is
dialled at a carrier is written down first and never dialled a second time.
"""

from __future__ import annotations

from collections.abc import Callable

from ari_ha.core.ids import is_supervisor
from ari_ha.core.machine import Outcome
from ari_ha.machines import identity
from ari_ha.machines.edge_audio import AudioSide, CodecRefused, narrowed, suite_towards
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_forks import Forks
from ari_ha.machines.edge_model import DEVICE, NUMBER, EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.edge_outbound import Outbound
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.registrar import Registrar
from ari_ha.machines.trunks import Trunks
from ari_ha.sip.events import InviteReceived
from ari_ha.wire import link
from ari_ha.wire.keyspace import BindingValue
from ari_ha.wire.token import HEADER, BadToken, LegToken, verify


class Dialling:
    """Rings phones and numbers for the apps."""

    def __init__(
        self, context: EdgeContext, calls: Calls, setup: Setup, registrar: Registrar, trunks: Trunks
    ) -> None:
        self.outbound = Outbound(context, calls, trunks)
        self.forks = Forks(context, calls, registrar)
        self._trunks = trunks
        self._context = context
        self._calls = calls
        self._setup = setup
        self._registrar = registrar
        self.on_party_failed: Callable[[EdgeCall, PhoneLeg, int], None] = lambda call, leg, status: None
        """A party was called in vain, and no node is there to say so."""
        self.on_answered: Callable[[EdgeCall, PhoneLeg], None] = lambda call, leg: None
        """A party's answer is written down and acknowledged."""

    # --- the node's INVITE ---------------------------------------------------------

    def from_node(self, event: InviteReceived) -> None:
        """An INVITE of a node: its app rings somebody for a call it serves."""
        context = self._context
        try:
            token = verify(event.request.get(HEADER), context.config.header_key)
        except BadToken as error:
            context.note("edge", "INVITE of a node without a true token", level="warning", error=error)
            self._setup.refuse(event, 403, "bad_token")
            return
        call = self._calls.by_id.get(token.call)
        if token.kind != "dial" or call is None or str(call.epoch) != token.epoch or call.owner is None:
            self._setup.refuse(event, 481, "stale_dial")
            return
        known = call.legs.get(token.leg)
        if token.leg in call.announced:
            # the app gave the attempt up before its INVITE came: the link is quicker
            self._setup.refuse(event, 487, "attempt_given_up")
            return
        if known is not None or token.leg in call.tombstones or call.primary is None:
            self._setup.refuse(event, 486 if known and known.alive else 487, "leg_exists")
            return
        self._dial(event, call, token)

    def _refusal(self, number: str, aor: str) -> tuple[int, str] | None:
        """Why the party cannot be dialled at all."""
        if number:
            return self.outbound.refusal(number)
        if aor in self._calls.device_of:
            return 486, "device_busy"
        return None if self._registrar.binding_of(aor) else (480, "no_binding")

    def _dial(self, event: InviteReceived, call: EdgeCall, token: LegToken) -> None:
        context = self._context
        number = token.target.removeprefix(NUMBER) if token.target.startswith(NUMBER) else ""
        aor = "" if number else token.target.removeprefix(DEVICE)
        refusal = self._refusal(number, aor)
        if refusal is not None:
            self._setup.refuse(event, *refusal)
            return
        offer = event.request.body.decode("utf-8", "replace")
        head, home = call.primary, call.home()
        assert home is not None and head is not None
        try:
            # the call's own codec, or Asterisk would have to transcode between its legs
            node_side = AudioSide.of(offer, head.side.payload)
        except CodecRefused:
            self._setup.refuse(event, 488, "no_codec")
            return
        # one codec and one telephone-event number per call wherever both ends allow it
        side = AudioSide(head.side.payload, head.side.telephone_event or 101)
        side.suite = self.outbound.suite_for(number) if number else self._suite_for(aor)
        # whoever wants the party may lead the call meanwhile
        leader = call.legs.get(token.consult)
        leg = PhoneLeg(
            token.leg, _role(token.leg, number), context.new_id(), aor=aor, target=token.target,
            attempt=token.attempt, agent=token.agent, queue=token.queue, side=side,
            consult=leader.consult if leader else token.consult,
        )  # fmt: skip
        half = NodeLeg(
            token.leg, home, call.epoch, event.leg, call.take_tag(token.leg, home.name),
            calls_us=True, side=node_side,
        )  # fmt: skip
        (call.move.halves if call.move else call.halves)[leg.leg] = half
        if leg.consult in call.legs:
            call.legs[leg.consult].number_asked = ""  # the app has acted on it
        if leg.target and not (leg.attempt or leg.consult or leg.aside):
            for asker in [o for o in call.living() if o.refer]:
                asker.refer["party"] = leg.leg
        self._calls.by_key[half.key] = (call.call, leg.leg)
        self._calls.index(call, leg)
        waiter = call.waiter(leg)
        if waiter is not None:
            waiter.state = "ringing"  # not anew at another node any more: somebody is being called

        def half_opened(outcome: Outcome) -> None:
            if half.state == "ended" or call.ended:
                return
            if not self._setup.take_port(outcome, half):
                self._calls.end_leg(call, leg, "edge", "34", 503)
                return
            self._calls.teach(call, half.tag, narrowed(offer, half.side))
            self._setup.open_phone_media(call, leg, "", lambda: self._ring(call, leg))

        body = self._setup.create_body(half.tag, half.side, context.config.core_interface)
        self._setup.create(call, body, half_opened)

    def _suite_for(self, aor: str) -> str:
        """SRTP's suite offered to a phone; empty: plain RTP."""
        binding = self._registrar.binding_of(aor)
        return suite_towards(binding.transport if binding else "", self._context.config.srtp_to_phones)

    def _ring(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """The leg has its port: the carrier, or the phone, is called."""
        if not leg.number:
            self._ring_phone(call, leg)
        elif self.outbound.ring(call, leg):
            self.limit_ringing(call, leg)
        else:
            self._calls.end_leg(call, leg, "edge", "34", 503)

    def _ring_phone(self, call: EdgeCall, leg: PhoneLeg) -> None:
        context = self._context
        if not leg.alive or call.ended:
            return
        binding = self._registrar.binding_of(leg.aor)
        if binding is None:
            self._calls.end_leg(call, leg, "edge", "20", 480)
            return
        self._invite_phone(call, leg, leg.key, binding)
        leg.state = "ringing"
        self.forks.ring(call, leg, lambda key, other: self._invite_phone(call, leg, key, other))
        text = f"ringing {leg.aor}"
        context.note(f"call/{call.call}", text, leg=leg.leg, attempt=leg.attempt, places=1 + len(leg.forks))
        self.limit_ringing(call, leg)
        self._calls.touch(call)

    def _invite_phone(self, call: EdgeCall, leg: PhoneLeg, key: str, binding: BindingValue) -> None:
        context, config = self._context, self._context.config
        flow, target, routes = self._registrar.route(binding)
        caller = identity.shown_to_phone(call.caller, call.identity)
        context.sip.invite(
            key,
            flow=flow,
            target=target,
            from_=f"<sip:{caller}@{config.public_host}>",
            to=f"<sip:{leg.aor}@{config.realm}>",
            sdp=leg.local_sdp(),
            headers=routes,
            session_expires=context.timings.session_expires_s,
            next_hop=self._registrar.next_hop_to(binding),
            holds_ack=True,
            held=True,
            now=context.now,
        )
        self._calls.release(call, key)

    def ring_again(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """The phone rings for an edge at another address, which its answer would go to: it
        is asked to stop, and rung from here. The node notices nothing."""
        self._context.sip.hangup(leg.key, self._context.now)
        self.forks.stop(leg)
        self._calls.rekey(call, leg, self._context.new_id())
        leg.elsewhere, leg.sdp_version = False, 1
        self._setup.open_phone_media(call, leg, "", lambda: self._ring_phone(call, leg))

    def limit_ringing(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """A phone rings for a named time at most, whatever becomes of its app."""
        name = f"ring/{call.call}/{leg.leg}"
        when = self._context.now + self._context.timings.ring_limit_s
        self._context.at(name, when, lambda: self._rang_out(call, leg))

    def _rang_out(self, call: EdgeCall, leg: PhoneLeg) -> None:
        if leg.state == "ringing" and not call.ended:
            self.party_over(call, leg, "timeout", "18", 408)

    def party_over(self, call: EdgeCall, leg: PhoneLeg, by: str, cause: str, status: int) -> None:
        """A party was called in vain, or hung up. While no node serves the call, whoever waits
        for it, or talked to it, is told from here: a node that takes the call up later may not
        know whom it was about, and would call again."""
        called = bool(leg.target) and not (leg.attempt or leg.aside)
        leads, talked = call.legs.get(leg.consult or call.head), leg.state == "up"
        self._calls.end_leg(call, leg, by, cause, status)
        if not called or call.ended or not (call.lost or call.move):
            return
        self.on_party_failed(call, leg, status)
        if leads is None or not leads.alive or not (talked or leads.waits):
            return
        if any(o.refer.get("into") == leg.consult for o in call.living()):
            return  # he has brought in whom he consulted: see `Transfers.complete`
        if not [o for o in call.conversation(leg.consult) if o is not leads and not o.aside]:
            self._calls.end_leg(call, leads, "edge", "16" if talked else "", 0 if talked else status)

    # --- the party's answers -------------------------------------------------------

    def phone_ringing(self, call: EdgeCall, leg: PhoneLeg, status: int, sdp: str | None) -> None:
        """The party rings, or a carrier reports progress, perhaps with early media."""
        half, home, head = call.half_of(leg.leg), call.home(), call.waiter(leg)
        early = bool(leg.trunk) and self.outbound.progressed(call, leg, sdp)
        if half and half.calls_us and half.state == "calling":
            if early:
                self._context.sip.ring(half.key, self._context.now, 183, sdp=half.local_sdp())
            elif status != 183 or not leg.trunk:
                self._context.sip.ring(half.key, self._context.now)
        if head is not None:
            self._head_hears(call, head, leg)
            self._calls.apply_media(call)
        if home and not leg.ringing_sent:
            leg.ringing_sent = True
            frame = link.LegRinging(call=call.call, leg=leg.leg, epoch=str(call.epoch))
            self._context.link(home.name, frame)
            self._calls.touch(call)

    def _head_hears(self, call: EdgeCall, head: PhoneLeg, leg: PhoneLeg) -> None:
        """The caller is told that it rings: once, and once more when there is something
        to hear. Straight from phone to phone, because no node is needed for it."""
        sip, now = self._context.sip, self._context.now
        if leg.early and not head.progress:
            head.progress = True
            sip.ring(head.key, now, status=183, sdp=head.local_sdp())
        elif not head.ringing_sent:
            sip.ring(head.key, now)
        head.ringing_sent = True

    def phone_answered(self, call: EdgeCall, leg: PhoneLeg, sdp: str | None) -> None:
        """The party answered: learn its address, then tell the node, by its own INVITE
        where it dialled, and on the link (it may be the phone of a moved call)."""
        context = self._context
        context.cancel(f"ring/{call.call}/{leg.leg}")
        try:
            leg.side = leg.side.answered(sdp or "")
        except CodecRefused:
            self._calls.end_leg(call, leg, "edge", "", 488)
            return
        leg.state = "up"
        if leg.trunk:
            self._trunks.worked(leg.trunk)
        self._calls.teach(call, leg.leg, narrowed(sdp or "", leg.side))
        context.note(f"call/{call.call}", f"{leg.name} answered", leg=leg.leg)
        waited = call.waiter(leg)
        if waited:
            waited.state = "up"
        self._calls.touch(call, lambda: self._tell_answer(call, leg, waited))

    def _tell_answer(self, call: EdgeCall, leg: PhoneLeg, waited: PhoneLeg | None) -> None:
        context = self._context
        if leg.alive:
            context.sip.acknowledge(leg.key, context.now)  # not before: an edge that dies is told again
            self.on_answered(call, leg)
        if waited and waited.alive and not call.ended:
            context.sip.answer(waited.key, waited.local_sdp(), context.now)
            context.note(f"call/{call.call}", "answered", leg=waited.leg)
        half, home = call.half_of(leg.leg), call.home()
        if call.ended or not leg.alive:
            return
        if half and half.calls_us and half.state == "calling":
            half.state = "up"
            context.sip.answer(half.key, half.local_sdp(), context.now)
            self._calls.touch(call)
        self._calls.apply_media(call)
        for told in (leg, waited):
            if home and told:
                frame = link.LegAnswered(call=call.call, leg=told.leg, epoch=str(call.epoch))
                context.link(home.name, frame)


def _role(leg: str, number: str) -> str:
    if is_supervisor(leg):
        return "supervisor"
    return "customer" if number else "agent"
