"""Calls whose far ends speak to where we are not: they are told our address and ports.

Where no address can move (no layer 2 in common, most clouds) the edge that takes a pair's
calls over has the dialogs, and neither the address nor the ports their far ends know. It
opens ports at its own rtpengine and sends a re-INVITE (RFC 3261 §14.1) in every stored
dialog, to phones, carriers and nodes at once: new Contact, new SDP. From then on the call
is as it was. What was under way at the old address has no way back: a caller without an
answer is refused, a phone that rings is asked to stop and rung from here.

An rtpengine that began anew without its calls is the same at one address: only the ports
are others, and what is under way goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.machines.edge_audio import CodecRefused, narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_dialling import Dialling
from ari_ha.machines.edge_model import EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.edge_srtp import SrtpKeys, as_it_listens
from ari_ha.machines.media import local_ports
from ari_ha.machines.takeover import Takeover
from ari_ha.sip.events import LocalError
from ari_ha.sip.sdp import SdpError, SessionDescription
from ari_ha.sip.web_sdp import relay_lines

AGAIN_S = 1.0
"""A far end that refused, or had no way to it, is asked again after this."""
UNKNOWN_CALL = "unknown call"
"""How rtpengine says, in lower case, that it does not have a call."""
LOST = "lost"
"""Who ended a leg whose far end did not come along"""


class Rehome:
    """Brings restored calls to this edge's address."""

    def __init__(
        self, context: EdgeContext, calls: Calls, setup: Setup, dialling: Dialling, takeover: Takeover,
        srtp: SrtpKeys,
    ) -> None:  # fmt: skip
        self._context = context
        self._calls = calls
        self._setup = setup
        self._dialling = dialling
        self._takeover = takeover
        self._srtp = srtp
        self._until: dict[str, float] = {}
        """SIP key of a phone's leg -> when it counts as lost"""
        self._opening: dict[str, set[str]] = {}
        """call -> SIP keys of the sides rtpengine has given no port yet"""
        self._looking: set[str] = set()
        """Calls of which rtpengine is being asked what it has"""
        self._doubted: set[str] = set()
        """Calls to ask of when their ports are there"""
        self.on_relay_has: Callable[[EdgeCall, set[str]], None] = lambda call, tags: None
        """What rtpengine has of a call"""

    def refuse_unanswered(self, call: EdgeCall) -> None:
        """A caller without an answer waits for it from the other address, where his CANCEL
        would go, too. He gets 503: a carrier that takes it from us tries its next way at
        once, others when their own patience ends. What rings at a carrier's customer is
        taken back: it is not dialled a second time."""
        for leg in call.living():
            if not leg.elsewhere:
                continue
            if leg.waits or self._context.sip.unanswered(leg.key) or (leg.number and leg.state != "up"):
                self._calls.end_leg(call, leg, LOST, "34", 503)

    def moved(self, call: EdgeCall) -> None:
        """Every far end that knows the other address is told ours. Media flows as each of
        them answers; rtpengine is told who hears whom when all ports are there."""
        context = self._context
        away = [leg for leg in call.living() if leg.elsewhere]
        halves = [] if call.lost else [half for half in call.halves.values() if half.elsewhere]
        context.note(f"call/{call.call}", "comes from another address: its far ends are told ours",
                     phones=len(away), nodes=len(halves))  # fmt: skip
        context.count("edge_calls_rehomed")
        self._open(call, [leg for leg in away if leg.state == "up"], halves)
        for leg in away:
            if leg.state != "up":
                self._dialling.ring_again(call, leg)

    def never_opened(self, call: EdgeCall) -> None:
        """The process before us died between a second line's INVITE and its port."""
        if legs := [leg for leg in call.living() if leg.of and not leg.port and not leg.elsewhere]:
            self._open(call, legs, [])

    def look(self, call: EdgeCall) -> None:
        """rtpengine refused something, or has been away, or we have: what does it have of the
        call? A connection to a tag without media it calls done, so that proves nothing."""
        if call.ended or call.call in self._looking:
            return
        if self._opening.get(call.call):
            self._doubted.add(call.call)
            return
        self._looking.add(call.call)

        def known(ports: dict[str, set[int]] | None) -> None:
            self._looking.discard(call.call)
            if ports is not None and not call.ended and not self._opening.get(call.call):
                self._relay_has(call, ports)
                self._srtp.look(call)

        def seen(outcome: Outcome) -> None:
            if isinstance(outcome, Done) and not call.ended:
                self._browsers(call, local_ports(outcome.value), known)
            elif isinstance(outcome, Refused) and outcome.reason.lower().startswith(UNKNOWN_CALL):
                known({})
            else:
                known(None)

        self._context.ng(call.call, "query", {}, seen)

    def _browsers(
        self, call: EdgeCall, ports: dict[str, set[int]], then: Callable[[dict[str, set[int]]], None]
    ) -> None:
        """Another life of rtpengine has the keys of a browser's audio, which flows, but neither
        the ICE session, without which browsers fall silent after half a minute, nor how often
        the packets' numbers have gone round (measured). Its ports count as lost: the far end is
        told new ICE and another certificate, and agrees on new keys."""
        left = {leg.leg: leg for leg in call.living() if leg.side.web and leg.port in ports.get(leg.leg, ())}
        if not left:
            then(ports)

        def asked(leg: PhoneLeg, outcome: Outcome) -> None:
            del left[leg.leg]
            fresh = self._setup.web_lines(outcome)
            if fresh and fresh != leg.web_lines:
                ports.pop(leg.leg, None)
            elif not fresh:
                self._context.at(f"look/{call.call}", self._context.now + AGAIN_S, lambda: self.look(call))
            if not left:
                then(ports)

        for leg in list(left.values()):
            self._setup.create(call, self._setup.leg_body(leg), partial(asked, leg))

    def _relay_has(self, call: EdgeCall, ports: dict[str, set[int]]) -> None:
        """Ports it does not have are made anew. Who has not been answered, or has not
        answered, is told with, or after, the answer."""
        context = self._context
        call.media.relay_has(set(ports))
        self.on_relay_has(call, set(ports))
        moving = call.move.halves.values() if call.move else ()
        legs = [leg for leg in call.living() if leg.port and leg.port not in ports.get(leg.leg, ())]
        halves = [half for half in (*call.halves.values(), *moving) if half.port]
        halves = [half for half in halves if half.port not in ports.get(half.tag, ())]
        legs = [leg for leg in legs if context.sip.leg_state(leg.key) != "ended"]
        halves = [half for half in halves if context.sip.leg_state(half.key) != "ended"]
        if not legs and not halves:
            return
        context.note(f"call/{call.call}", "rtpengine has lost it: new ports", level="warning",
                     legs=[leg.leg for leg in legs], nodes=[half.tag for half in halves])  # fmt: skip
        context.count("edge_calls_relay_lost")
        for side in (*legs, *halves):
            side.elsewhere = True
        for leg in legs:
            if leg.side.web and not leg.waits:
                call.media.forget_tag(leg.leg)  # its ICE session is over: rtpengine would keep to that
        self._open(call, legs, halves)

    def _open(self, call: EdgeCall, legs: list[PhoneLeg], halves: list[NodeLeg]) -> None:
        now = self._context.now
        self._until = {key: until for key, until in self._until.items() if until > now}
        self._calls.touch(call)
        self._opening[call.call] = {side.key for side in (*legs, *halves)}
        for leg in legs:
            leg.fax = {}  # its port was there, too; what it is offered now is audio
            self._until[leg.key] = now + self._context.timings.rehome_limit_s
            self._phone(call, leg)
        for half in halves:
            self._node(call, half)

    def _opened(self, call: EdgeCall, key: str) -> None:
        opening = self._opening.get(call.call, set())
        opening.discard(key)
        if opening or self._opening.pop(call.call, None) is None:
            return
        doubted = call.call in self._doubted
        self._doubted.discard(call.call)
        if not call.ended:
            if doubted:
                self.look(call)
            call.media.doubtful = True  # said before there was a port, it may count for nothing
            self._calls.apply_media(call)

    # --- phones and carriers -------------------------------------------------------

    def _phone(self, call: EdgeCall, leg: PhoneLeg) -> None:
        origin, key = leg.origin or leg.host, leg.key

        def done(outcome: Outcome) -> None:
            if call.ended or not leg.alive:
                self._opened(call, key)
            elif self._setup.take_port(outcome, leg):
                leg.origin = origin if origin != leg.host else ""
                if leg.waits or not leg.side.web:
                    self.far_end(call, leg.leg, leg)
                self._opened(call, key)
                self.answered(call, leg)
                leg.elsewhere &= not leg.waits  # it hears of the port with its answer
            else:
                self._later(call, leg, lambda: self._phone(call, leg))

        self._setup.create(call, self._setup.leg_body(leg), done)

    def answered(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """A phone's dialog is up: if it was offered a port that is gone, it is told now."""
        if self._context.sip.leg_state(leg.key) == "ended":
            return  # its end is being told
        if leg.elsewhere and leg.state == "up" and leg.key not in self._opening.get(call.call, ()):
            self._ask(call, leg)

    def _ask(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """It is told where we are now."""
        sip = self._context.sip
        sdp = leg.local_sdp(as_it_listens(sip.remote_sdp(leg.key)), bump=True)
        leg.side.ufrag = ""  # a browser answers with another
        try:
            sip.reinvite(leg.key, sdp, self._context.now)
        except LocalError:  # something else is open in its dialog
            self._later(call, leg, lambda: self._ask(call, leg))

    def ask_for_ice(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """The browser began an ICE session by itself, and was answered. Chromium may go on checking
        our port with the credentials it had before, because port and address are the same, and no
        packet of it is taken any more (measured, half of the tries): in a session that we offer it
        does not."""

        def begun(ok: bool) -> None:
            if ok:
                leg.elsewhere = True
                self._until[leg.key] = self._context.now + self._context.timings.rehome_limit_s
                self._calls.touch(call)
                self._ask(call, leg)

        remote = self._context.sip.remote_sdp(leg.key)
        if remote and not leg.elsewhere:  # else it is being asked anyhow
            self._setup.begin_ice(call, leg, remote, begun)

    def _later(self, call: EdgeCall, leg: PhoneLeg, act: Callable[[], None]) -> None:
        now = self._context.now
        if now < self._until.get(leg.key, now):
            self._context.at(f"rehome/{leg.key}", now + AGAIN_S, lambda: self._if_away(call, leg, act))
            return
        self._context.note(f"call/{call.call}", "a far end did not take our address", level="warning",
                           leg=leg.leg)  # fmt: skip
        self._calls.end_leg(call, leg, LOST, "41")

    def _if_away(self, call: EdgeCall, leg: PhoneLeg, act: Callable[[], None]) -> None:
        if leg.alive and leg.elsewhere and not call.ended:
            act()
        else:
            self._opened(call, leg.key)

    def phone_answered(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """It has accepted a re-INVITE of ours: it speaks to us from now on. One that had to
        wait may have offered a port that is gone meanwhile."""
        if not leg.elsewhere:
            return
        if not self._was_offered(leg):
            self.answered(call, leg)
            return
        leg.elsewhere = False
        self._until.pop(leg.key, None)
        self._context.note(f"call/{call.call}", "a far end has our address", leg=leg.leg)
        self._calls.touch(call)

    def phone_refused(self, call: EdgeCall, leg: PhoneLeg, status: int) -> None:
        """Not now, or there was no way to it. An end of the dialog is told otherwise."""
        if leg.elsewhere:
            self._context.count("edge_rehome_refused", status=str(status))
            self._later(call, leg, lambda: self._ask(call, leg))

    def reconnected(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """A phone on TCP or TLS has found its way to us."""
        self.answered(call, leg)
        self._srtp.look(call)

    # --- nodes ---------------------------------------------------------------------

    def _node(self, call: EdgeCall, half: NodeLeg) -> None:
        origin = half.origin or half.host

        def done(outcome: Outcome) -> None:
            if call.ended or half.state == "ended":
                self._opened(call, half.key)
            elif self._setup.take_port(outcome, half):
                half.origin = origin if origin != half.host else ""
                self.far_end(call, half.tag, half)
                self._opened(call, half.key)
                self.half_answered(call, half)
                # a node that calls us hears of the port with its answer
                half.elsewhere &= not half.calls_us or half.state == "up"
                if half in call.to_answer():  # whoever was told of it before had no time to say so
                    half.state = "up"
                    self._context.sip.answer(half.key, half.local_sdp(), self._context.now)
                    self._calls.touch(call)
            else:
                self._opened(call, half.key)
                self.node_refused(call, half, 503)

        body = self._setup.create_body(half.tag, half.side, self._context.config.core_interface)
        self._setup.create(call, body, done)

    def half_answered(self, call: EdgeCall, half: NodeLeg) -> None:
        """A node's dialog is up: as of a phone's."""
        if half.elsewhere and half.state == "up" and half.key not in self._opening.get(call.call, ()):
            self._ask_node(call, half)

    def _ask_node(self, call: EdgeCall, half: NodeLeg) -> None:
        try:
            self._context.sip.reinvite(half.key, half.local_sdp(bump=True), self._context.now)
        except LocalError:
            self.node_refused(call, half, 491)

    def node_answered(self, call: EdgeCall, half: NodeLeg) -> None:
        """The node's Asterisk speaks to us from now on."""
        if half.elsewhere and not self._was_offered(half):
            self.half_answered(call, half)
        elif half.elsewhere:
            half.elsewhere = False
            self._calls.touch(call)

    def node_refused(self, call: EdgeCall, half: NodeLeg, status: int) -> None:
        """The leg is made anew, there or elsewhere, as after any loss of one."""
        leg = call.legs.get(half.leg)
        if not half.elsewhere or call.lost or call.halves.get(half.leg) is not half:
            return
        self._context.count("edge_rehome_refused", status=str(status))
        if call.by_dialplan and leg:  # nobody could take it up
            self._calls.end_leg(call, leg, LOST, "41")
            return
        self._takeover.lose(call, f"its node did not take our address: {status}")
        self._takeover.pump()

    def _was_offered(self, side: PhoneLeg | NodeLeg) -> bool:
        """Whether the last description of ours that counts names the port of today."""
        try:
            session = SessionDescription.parse(self._context.sip.local_sdp(side.key) or "")
        except SdpError:
            return False
        audio = session.audio()
        where = (audio.connection or session.connection, audio.port) if audio else None
        if audio and isinstance(side, PhoneLeg) and side.side.web and relay_lines(audio) != side.web_lines:
            return False
        return where == (side.host, side.port)

    def far_end(self, call: EdgeCall, tag: str, side: PhoneLeg | NodeLeg) -> None:
        """rtpengine may never have heard where it is: it is told with the next change of the media."""
        sip = self._context.sip
        if sip.leg_state(side.key) == "ended":
            return
        try:
            known = narrowed(sip.remote_sdp(side.key) or "", side.side)
        except (CodecRefused, SdpError):
            return
        call.media.far_end(tag, known)
