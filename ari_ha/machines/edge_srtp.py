"""SRTP legs with keys in SDP (RFC 4568) in another life of rtpengine: their phones are told another key.

SRTP encrypts with a number that is half in the packet and half counted by both ends: how often the 16 bits
of the sequence number have gone round (RFC 3711 section 3.3.1). rtpengine's record of a call has that count
for what a phone sends, not for what it is sent. Another life of it, restarted in place or the peer's, begins
to count at 0, and a phone that counts 1 or more can read nothing to the end of the call. Streams begin at a
number of their sender's choice, so it may be so in a call of any age, and nothing we have tells: every such
leg gets a new key, and with it a new count. Its far end hears of it by a re-INVITE; a key alone is not a new
stream to every phone (RFC 3711 has the count outlive it), a key with another port is (RFC 4568 section
7.1.4), so the port moves too where the settings name further interfaces for it.

rtpengine makes another key when the far end's is told it once more under another crypto tag: in one command,
encrypted all the time, and it goes on listening at the old port and counting what the phone sends (measured,
docs/internals/rtpengine.md). What rtpengine says of its own side is what counts: whenever a leg's key or port
is not what its phone was last told, the phone is told.
"""

from __future__ import annotations

from dataclasses import replace

from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.media import MediaReach
from ari_ha.machines.edge_audio import MIRRORED, CodecRefused, narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import ANOTHER_LIFE, EdgeCall, PhoneLeg
from ari_ha.machines.edge_setup import Setup
from ari_ha.machines.media import WEB_PORT
from ari_ha.sip.events import LocalError
from ari_ha.sip.sdp import SdpError, SessionDescription

AT_ONCE_MAX = 50
"""Legs that have a new key and whose phones have not answered yet: others wait."""
ANSWER_PATIENCE_S = 2.0
"""A phone that says nothing makes others wait no longer than this."""
AGAIN_S = 1.0
"""A phone that could not be asked, or said "not now", is asked again after this."""
NOT_NOW = frozenset({408, 480, 491, 500, 503, 504})
"""Refusals that say nothing of the change itself."""
LIFE_CHARS = 23
"""Eight bytes of a fingerprint name a life of rtpengine."""


class SrtpKeys:
    """Which life of rtpengine is today's, and the legs whose key is of another."""

    def __init__(self, context: EdgeContext, calls: Calls, setup: Setup) -> None:
        self._context = context
        self._calls = calls
        self._setup = setup
        self._life = ""
        """Today's; empty: not known"""
        self._started = ""
        self._asking = False
        self._unsure: dict[str, None] = {}
        """Calls to look at once it is known, in order"""
        self._due: dict[str, None] = {}
        """SIP keys of legs whose turn has not come, in order"""
        self._open: dict[str, float] = {}
        """SIP key -> until when others wait for its phone's answer"""
        self._until: dict[str, float] = {}
        """SIP key -> when a phone that cannot be reached is given up"""

    # --- which life ----------------------------------------------------------------

    def relay_reached(self, event: MediaReach) -> None:
        """rtpengine came or went."""
        if not event.reachable or event.started != self._started:
            self._life = ""
        if event.reachable:
            self._started = event.started

    def _learn(self) -> None:
        """A call of nobody shows rtpengine's certificate, which it makes at each start."""
        if self._asking:
            return
        self._asking = True
        ident, asked = f"life/{self._context.new_id()}", self._started

        def shown(outcome: Outcome) -> None:
            self._asking = False
            prefix = "fingerprint:sha-256 "
            lines = [line for line in self._setup.web_lines(outcome) if line.startswith(prefix)]
            if isinstance(outcome, Done):
                self._context.ng(ident, "delete", {})
            if not lines or self._started != asked:  # away, or it began anew meanwhile
                again = self._context.now + AGAIN_S
                self._context.at("srtp/life", again, lambda: self._learn() if self._unsure else None)
                return
            self._life = lines[0].removeprefix(prefix)[:LIFE_CHARS]
            now = self._context.now
            self._until = {key: until for key, until in self._until.items() if until > now}
            unsure, self._unsure = self._unsure, {}
            for name in unsure:
                if call := self._calls.by_id.get(name):
                    self.look(call)

        body = {"from-tag": "life", "interface": self._context.config.public_interface, **WEB_PORT}
        self._context.ng(ident, "create", body, shown)

    # --- which legs ----------------------------------------------------------------

    def look(self, call: EdgeCall) -> None:
        """Whoever has a key of another life, or was told another than there is, gets his turn."""
        legs = [leg for leg in call.living() if leg.side.suite and not leg.side.web and not leg.elsewhere]
        if call.ended or not legs:
            return
        if not self._life:
            self._unsure[call.call] = None
            self._learn()
            return
        for leg in legs:
            sent = leg.state == "up" or (leg.waits and leg.progress)
            if not leg.relay_life or not sent:
                leg.relay_life = self._life  # nothing was encrypted with it in another life
            elif leg.state == "up" and leg.key not in self._open and self._has_way(leg):
                if leg.relay_life != self._life or not self._told(leg):
                    self._due[leg.key] = None
        self._go_on()

    def _has_way(self, leg: PhoneLeg) -> bool:
        """Not so a phone on TLS that has not come back: until then the old key may still serve."""
        if self._context.sip.leg_state(leg.key) == "ended":
            return False
        flow = self._context.sip.leg_flow(leg.key)
        return not (flow.reliable and not flow.conn and (leg.aor or leg.user))

    def _told(self, leg: PhoneLeg) -> bool:
        """Whether the last description of ours that counts has the key and the port of today."""
        text = self._context.sip.local_sdp(leg.key)
        if text is None:
            return True
        return f" {leg.key_line}" in text and f"m=audio {leg.port} " in text

    def _go_on(self) -> None:
        now = self._context.now
        self._open = {key: until for key, until in self._open.items() if until > now}
        while self._due and len(self._open) < AT_ONCE_MAX:
            key = next(iter(self._due))
            del self._due[key]
            found = self._calls.phone(key)
            if found and found[1].state == "up" and not found[0].ended:
                self._open[key] = now + ANSWER_PATIENCE_S
                self._until.setdefault(key, now + self._context.timings.rehome_limit_s)
                self._begin(*found)
        if self._due:
            self._context.at("srtp/next", min(self._open.values()), self._go_on)

    def _begin(self, call: EdgeCall, leg: PhoneLeg) -> None:
        if leg.relay_life == self._life:
            self._ask(call, leg)
            return
        remote = self._context.sip.remote_sdp(leg.key) or ""
        side = replace(leg.side, relay_tag=leg.side.relay_tag + 1)
        try:
            told = narrowed(remote, side)
        except (CodecRefused, SdpError):
            self._done(leg)
            return
        leg.side, leg.interface = side, self._next_interface(leg)
        self._calls.teach(call, leg.leg, told)

    def _next_interface(self, leg: PhoneLeg) -> str:
        """Never one it was on before: rtpengine 26.0.1 loses the port of a restored call that goes back."""
        config = self._context.config
        names = ["", *config.spare_public_interfaces]
        here = names.index(leg.interface) if leg.interface in names else 0
        return names[min(here + 1, len(names) - 1)]

    def published(self, call: EdgeCall, tag: str, outcome: Done) -> None:
        """rtpengine has said its side of a leg: what it says is so."""
        leg = call.legs.get(tag)
        if leg is None or not leg.alive or not leg.side.suite or leg.side.web:
            return
        before = (leg.key_line, leg.host, leg.port)
        if not self._setup.take_port(outcome, leg):
            return
        waited = leg.key in self._open
        if waited:
            leg.relay_life = self._life or ANOTHER_LIFE
        elif not leg.relay_life:
            leg.relay_life = self._life
        if before == (leg.key_line, leg.host, leg.port):
            if waited and self._told(leg):
                self._done(leg)
            elif not leg.relay_life:
                self.look(call)
            return
        self._calls.touch(call)
        if waited:
            self._context.note(
                f"call/{call.call}", "another life of rtpengine: another SRTP key", leg=leg.leg
            )
            self._ask(call, leg)
        else:
            self.look(call)

    # --- the phones ----------------------------------------------------------------

    def _ask(self, call: EdgeCall, leg: PhoneLeg) -> None:
        sip = self._context.sip
        if self._told(leg):
            self._done(leg)
            return
        try:
            sdp = leg.local_sdp(as_it_listens(sip.remote_sdp(leg.key)), bump=True)
            sip.reinvite(leg.key, sdp, self._context.now)
        except LocalError:  # something else is open in its dialog
            self._later(call, leg)

    def _done(self, leg: PhoneLeg) -> None:
        self._open.pop(leg.key, None)
        self._until.pop(leg.key, None)
        self._go_on()

    def _later(self, call: EdgeCall, leg: PhoneLeg) -> None:
        context, key = self._context, leg.key
        self._open.pop(key, None)
        if context.now < self._until.get(key, context.now):
            context.at(f"srtp/{key}", context.now + AGAIN_S, lambda: self.look(call))
        else:
            self._gives_up(call, leg, "unreachable")
        self._go_on()

    def _gives_up(self, call: EdgeCall, leg: PhoneLeg, why: str) -> None:
        """Its call goes on: it is heard, and may hear; what it changes itself is answered with the key."""
        self._context.count("edge_srtp_keys_refused", why=why)
        self._context.note(f"call/{call.call}", "a phone did not take another SRTP key", level="warning",
                           leg=leg.leg, why=why)  # fmt: skip
        self._done(leg)

    def phone_answered(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """It has accepted a re-INVITE of ours."""
        if leg.key not in self._until:
            return
        if self._told(leg):
            self._context.count("edge_srtp_keys_renewed")
            self._calls.touch(call)
            self._done(leg)
        else:
            self._open.pop(leg.key, None)
            self.look(call)

    def phone_refused(self, call: EdgeCall, leg: PhoneLeg, status: int) -> None:
        """It has not. An end of the dialog is told otherwise."""
        if leg.key not in self._until or leg.elsewhere:
            return
        if status in NOT_NOW:
            self._later(call, leg)
        else:
            self._gives_up(call, leg, str(status))


def as_it_listens(remote: str | None) -> str:
    """The direction our offer has to the party that said this last: who holds us goes on holding us (RFC
    6337 section 5.3)."""
    try:
        return MIRRORED.get(SessionDescription.parse(remote or "").direction, "sendrecv")
    except SdpError:
        return "sendrecv"
