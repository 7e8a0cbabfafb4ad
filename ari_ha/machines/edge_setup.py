"""Setting calls up: from a trunk, and from an agent's phone."""

from __future__ import annotations

from collections.abc import Callable, Set

from ari_ha.core.ids import PRIMARY_LEG, Epoch
from ari_ha.core.machine import LANE_STOPPED, Done, Outcome, Refused
from ari_ha.machines import identity
from ari_ha.machines.edge_audio import AudioSide, CodecRefused, answer_lines, narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.edge_recorder import RecorderLeg
from ari_ha.machines.media import WEB_PORT, ending_ice
from ari_ha.machines.node_watch import NodeWatch, WatchedNode
from ari_ha.machines.registrar import Registrar
from ari_ha.machines.trunks import Trunks
from ari_ha.sip.events import InviteReceived
from ari_ha.sip.flow import Flow
from ari_ha.sip.sdp import SdpError, SessionDescription, usable_crypto
from ari_ha.sip.web_sdp import relay_lines
from ari_ha.wire.token import HEADER, LEG_HEADER, LegToken, sign

RETRY_AFTER = (("Retry-After", "5"),)
TRY_ANOTHER_NODE = frozenset({408, 480, 500, 501, 502, 503, 504, 603})
"""Answers of a node to a new call that say something of the node, not of the
caller's wish; 480 and 603 are what Asterisk says before its app is registered."""
FALLBACK_HEADER = "X-ARI-HA-Fallback"
"""``no``: the dialplan's own fallback is not wanted (asterisk-conf/extensions.conf)."""


class Setup:
    """Builds calls and legs, and hears how they fare until they are answered."""

    def __init__(
        self, context: EdgeContext, calls: Calls, watch: NodeWatch, registrar: Registrar, trunks: Trunks
    ) -> None:
        self._context = context
        self._trunks = trunks
        self._calls = calls
        self._watch = watch
        self._registrar = registrar
        self.on_second_call: Callable[[InviteReceived, str, str], bool] = lambda event, user, number: False
        self.on_replaces: Callable[[InviteReceived, str, str], None] = lambda event, trunk, user: None
        self.on_moving_half_failed: Callable[[EdgeCall, NodeLeg, int, str], None] = self.half_failed

    # --- a new call ----------------------------------------------------------------

    def from_public(self, event: InviteReceived) -> None:
        """An INVITE on a public listener: a carrier by its address or its digest, else a
        user by digest; anybody else is refused."""
        trunk, user = self._trunks.of_host(event.flow.host), ""
        if trunk is None:
            found = self._registrar.authenticate_invite(event)
            if found is None:
                return
            trunk, user = self._trunks.of_user(found), found
        registrar = self._registrar
        rule = (
            self._trunks.next_hop(trunk) if trunk else registrar.next_hop(registrar.aor_of(user), event.flow)
        )
        self._context.sip.set_next_hop(event.leg, rule)
        if event.request.has("replaces"):
            self.on_replaces(event, trunk or "", user)
            return
        if trunk is None:
            number = identity.user_part(event.request.uri)
            if not self.on_second_call(event, user, number):
                self._new_call(event, "agent", "", user, number)
            return
        did = self._trunks.called(trunk, event.request)
        if not self._trunks.accepts(trunk, did):
            self.refuse(event, 404, "unknown_did")
        elif why := self._trunks.refusal(trunk):
            self.refuse(event, 503, why, RETRY_AFTER)
        else:
            self._new_call(event, "trunk", trunk, "", did)

    def refuse(self, event: InviteReceived, status: int, why: str, headers: tuple = ()) -> None:
        """Turns an INVITE down; counted by ``why``."""
        self._context.count("edge_invites_refused", why=why)
        self._context.sip.reject(event.leg, status, self._context.now, headers=headers)

    def _new_call(self, event: InviteReceived, kind: str, trunk: str, user: str, did: str) -> None:
        context, request = self._context, event.request
        if len(self._calls.by_id) >= context.config.calls_max:
            self.refuse(event, 503, "full", RETRY_AFTER)
            return
        if not context.media_ok:
            self.refuse(event, 503, "media relay away", RETRY_AFTER)
            return
        offer = request.body.decode("utf-8", "replace") if request.body else ""
        try:
            side = AudioSide.of(offer) if offer else AudioSide()
        except CodecRefused:
            self.refuse(event, 488, "no_codec")
            return
        caller, kept = identity.heard(request, self._trunks.table.get(trunk))
        caller = user or self._trunks.inbound(trunk, caller)
        call = self._calls.create(kind, caller, did, trunk)
        call.identity = kept
        role = "customer" if kind == "trunk" else "user"
        aor = self._registrar.aor_of(user) if user and not did.startswith("*") else ""
        leg = PhoneLeg(
            PRIMARY_LEG, role, event.leg, user=user, side=side, late_offer=not offer,
            aor="" if aor in self._calls.device_of else aor,
        )  # fmt: skip
        leg.media_lines = answer_lines(offer) if offer else []
        self._calls.index(call, leg)
        context.note(f"call/{call.call}", f"new {kind} call", caller=caller, did=call.did, trunk=trunk)
        context.count("edge_calls_started", kind=kind)
        self.open_phone_media(call, leg, offer, lambda: self.choose_node(call))

    def open_phone_media(self, call: EdgeCall, leg: PhoneLeg, remote: str, then: Callable[[], None]) -> None:
        """Gets the leg its port; with the phone's SDP at hand, tells rtpengine of it."""

        def opened(outcome: Outcome) -> None:
            if not self.take_port(outcome, leg):
                self._media_failed(call, leg, outcome)
                return
            if remote:
                self._calls.teach(call, leg.leg, narrowed(remote, leg.side))
            then()

        body = self.leg_body(leg)
        self.create(call, body, opened)

    def create(self, call: EdgeCall, body: dict[str, object], then: Callable[[Outcome], None]) -> None:
        """Asks rtpengine for a port. A create that was only stopped by an earlier failure
        of its lane was never tried: it is asked again."""

        def done(outcome: Outcome) -> None:
            if isinstance(outcome, Refused) and outcome.reason == LANE_STOPPED and not call.ended:
                self.create(call, body, then)
            else:
                then(outcome)

        self._context.ng(call.call, "create", body, done)

    def create_body(self, tag: str, side: AudioSide, interface: str) -> dict[str, object]:
        """NG ``create``: one codec and telephone-event, on the network the far end is on."""
        body: dict[str, object] = {
            "from-tag": tag,
            "interface": interface,
            "codec": {"offer": [side.codec, "telephone-event"]},
            "ICE": "remove",
        }
        if side.web:
            body |= WEB_PORT
        elif side.suite:
            body |= {"transport-protocol": "RTP/SAVP", "SDES": [f"only-{side.suite}"], "DTLS": "off"}
        return body

    def leg_body(self, leg: PhoneLeg) -> dict[str, object]:
        """NG ``create`` for a phone's leg, on the interface its port is on."""
        return self.create_body(leg.leg, leg.side, leg.interface or self._context.config.public_interface)

    @staticmethod
    def take_port(outcome: Outcome, leg: PhoneLeg | NodeLeg | RecorderLeg) -> bool:
        """Whether rtpengine gave a port. Reads address, port and key from the SDP it made."""
        if not isinstance(outcome, Done):
            return False
        try:
            session = SessionDescription.parse(str(outcome.value["sdp"]))
        except (SdpError, KeyError, TypeError):
            return False
        audio = session.audio()
        if audio is None:
            return False
        leg.host = audio.connection or session.connection or ""
        leg.port = audio.port
        if leg.side.web and isinstance(leg, PhoneLeg):
            return bool(leg.host) and leg.take_web_lines(relay_lines(audio))
        if leg.side.suite and isinstance(leg, PhoneLeg):
            crypto = usable_crypto(audio)
            if crypto and crypto.key != leg.key_line:
                leg.key_line, leg.relay_life = crypto.key, ""
            leg.side.relay_tag = crypto.tag if crypto else 1
            return bool(leg.host and crypto)
        return bool(leg.host)

    def begin_ice(self, call: EdgeCall, leg: PhoneLeg, sdp: str, then: Callable[[bool], None]) -> None:
        """A browser begins another ICE session, as one does that comes from another network: so
        does rtpengine, with the keys it has. ``then`` hears whether the leg has its new lines."""
        interface = self._context.config.public_interface
        call.media.forget_tag(leg.leg)  # what is told next is what the offer says

        def opened(outcome: Outcome) -> None:
            then(not call.ended and leg.alive and self.take_port(outcome, leg))

        def over(outcome: Outcome) -> None:
            if isinstance(outcome, Done):
                self.create(call, self.create_body(leg.leg, leg.side, interface), opened)
            else:
                then(False)

        body = ending_ice(leg.leg, narrowed(sdp, leg.side), interface)
        self._context.ng(call.call, "publish", body, over)

    @staticmethod
    def web_lines(outcome: Outcome) -> list[str]:
        """rtpengine's ICE and certificate, of its answer to ``create``; empty when it told none."""
        try:
            audio = SessionDescription.parse(str(outcome.value["sdp"])).audio()  # type: ignore[union-attr]
        except (AttributeError, SdpError, KeyError, TypeError):
            return []
        return relay_lines(audio) if audio else []

    def _media_failed(self, call: EdgeCall, leg: PhoneLeg, outcome: Outcome) -> None:
        self._context.note(f"call/{call.call}", "rtpengine gave no port", level="error", outcome=outcome)
        if not call.ended and leg.alive:
            self._calls.end_leg(call, leg, "edge", "34", 503)

    # --- the node ------------------------------------------------------------------

    def choose_node(self, call: EdgeCall) -> None:
        """Gives a new call to the usable node with the fewest calls."""
        leg = call.primary
        if call.ended or leg is None or leg.state == "up":
            return
        node = self.least_loaded(leave_out=call.refused_by)
        call.by_dialplan = node is None and call.kind == "trunk"
        if call.by_dialplan:
            node = self._without_app(call.refused_by)
        if node is None and self._waits_for_a_node(call):
            return
        if node is None or call.tries >= self._context.timings.setup_tries_max:
            why = "no node is ready" if node is None else "every node tried refused"
            self._context.note(f"call/{call.call}", f"cannot be served: {why}", level="error")
            self._context.count("edge_calls_unserved")
            self._calls.end_leg(call, leg, "edge", "34", 503)
            return
        if call.by_dialplan:
            self._context.note(
                f"call/{call.call}", "no app is ready: the dialplan serves the caller", level="warning",
                node=node.config.name,
            )  # fmt: skip
            self._context.count("edge_calls_by_dialplan")
        call.tries += 1
        call.unserved_since = 0.0
        call.epoch = self._calls.next_epoch(call)
        call.owner, call.lost = node.id, ""
        self._calls.touch(call)
        self.invite_node(call, leg, node, call.epoch, "trunk" if call.kind == "trunk" else "agent")

    def _waits_for_a_node(self, call: EdgeCall) -> bool:
        """No node is ready, but one may be in a moment (silent, or just starting): the caller is kept
        waiting for it rather than turned away."""
        hoped_for = [
            node for node in self._watch.nodes.values()
            if not node.cordoned and not node.draining and node.config.name not in call.refused_by
        ]  # fmt: skip
        context = self._context
        since = call.unserved_since or context.now
        if not hoped_for or context.now >= since + context.timings.setup_patience_s:
            return False
        if not call.unserved_since:
            call.unserved_since = since
            self._calls.touch(call)  # he has heard 100: whoever serves next owes him an answer
        again = context.now + context.timings.move_retry_s
        context.at(f"setup/{call.call}", again, lambda: self.choose_node(call))
        return True

    def least_loaded(self, leave_out: Set[str] = frozenset()) -> WatchedNode | None:
        """The node for the next call: one that takes calls, least load counting the
        moves under way."""
        taking = [n for n in self._watch.taking() if n.config.name not in leave_out]
        now, loads = self._context.now, self._calls.loads()

        def burden(node: WatchedNode) -> tuple[bool, bool, int, str]:
            name = node.config.name  # without etcd a node knows what it knew when it lost it
            return node.suspect_until > now, node.store_away, loads[name], name

        return min(taking, key=burden, default=None)

    def _without_app(self, leave_out: Set[str]) -> WatchedNode | None:
        standing = [n for n in self._watch.standing() if n.config.name not in leave_out]
        loads = self._calls.loads()
        return min(standing, key=lambda n: (loads[n.config.name], n.config.name), default=None)

    def taking(self, name: str) -> WatchedNode | None:
        """This node, if calls may be given to it now."""
        return next((node for node in self._watch.taking() if node.config.name == name), None)

    def without_store(self) -> set[str]:
        """Nodes whose apps do not reach etcd, or have not written yet what they kept meanwhile."""
        return {node.config.name for node in self._watch.usable() if node.store_away}

    def node_of(self, call: EdgeCall) -> WatchedNode | None:
        """The node that serves the call; None while it is lost or on its way."""
        known = self._watch.nodes.get(call.owner.name) if call.owner else None
        return known if known and known.usable and not call.lost and call.move is None else None

    def takes_up(self, node: WatchedNode) -> None:
        """The node is given a call that another one served."""
        self._watch.takes_up(node)

    def suspect(self, node: str) -> None:
        """The node ended a leg that was not announced."""
        self._watch.suspect(node)

    def invite_node(
        self,
        call: EdgeCall,
        leg: PhoneLeg,
        node: WatchedNode,
        epoch: Epoch,
        kind: str,
        halves: dict[str, NodeLeg] | None = None,
    ) -> None:
        """INVITEs a node's Asterisk for a leg: a new call, or (``resume``) a living leg
        of a call on its way to this node."""
        context, config = self._context, self._context.config
        name = node.config.name
        tag = call.take_tag(leg.leg, name)
        half = NodeLeg(leg.leg, node.id, epoch, context.new_id(), tag, side=AudioSide(leg.side.payload, 101))
        (call.halves if halves is None else halves)[leg.leg] = half
        self._calls.by_key[half.key] = (call.call, leg.leg)
        listener = {"trunk": "node-trunk", "agent": "node-agent", "resume": "node-resume"}[kind]

        def opened(outcome: Outcome) -> None:
            if half.state == "ended" or call.ended:
                return
            if not self.take_port(outcome, half):
                if kind == "resume":
                    self.on_moving_half_failed(call, half, 503, "no media port")
                else:
                    self.half_failed(call, half, 503, "no media port")
                return
            token = LegToken(
                kind=kind,
                call=call.call,
                leg=leg.leg,
                epoch=str(epoch),
                caller=call.caller,
                did=call.did,
                trunk=call.trunk,
                user=leg.user,
                pair=config.vip,
                facts=call.facts() if kind == "resume" else {},
                ended=call.ended_lately() if kind == "resume" else {},
                **(call.grouping() if kind == "resume" else {}),
            )
            host, port = node.config.sip_host, node.config.sip_port
            caller = call.caller or "anonymous"
            context.sip.invite(
                half.key,
                flow=Flow(listener, "udp", host, port),
                target=f"sip:{call.did or 'none'}@{host}:{port}",
                from_=f"<sip:{caller}@{config.core_host}>",
                to=f"<sip:{call.did or 'none'}@{host}>",
                sdp=half.local_sdp(),
                headers=(
                    (HEADER, sign(token, config.header_key)),
                    (LEG_HEADER, token.name),
                    *self._fallback(kind, name),
                ),
                now=context.now,
            )

        body = self.create_body(tag, half.side, config.core_interface)
        self.create(call, body, opened)

    def _fallback(self, kind: str, name: str) -> tuple[tuple[str, str], ...]:
        """While another node could serve, this one's dialplan must refuse at once when
        its app is not there, instead of serving the caller by itself."""
        others = [n for n in self._watch.taking() if n.config.name != name]
        return ((FALLBACK_HEADER, "no"),) if kind == "resume" or others else ()

    def half_ringing(self, call: EdgeCall, half: NodeLeg) -> None:
        """The node has the call and has not answered it."""
        leg = call.legs.get(half.leg)
        if leg and leg.state == "trying" and not leg.ringing_sent:
            leg.ringing_sent = True
            self._context.sip.ring(leg.key, self._context.now)

    def half_answered(self, call: EdgeCall, half: NodeLeg, sdp: str | None) -> None:
        """The node answered a new call: connect the media, write it down, answer."""
        half.state = "up"
        leg = call.legs[half.leg]
        self.learn_node_media(call, half, sdp)
        if not leg.waits:
            self._calls.apply_media(call)
            self._calls.touch(call)
            return
        leg.state = "up"
        self._calls.apply_media(call)

        def answer() -> None:
            if leg.alive and not call.ended:
                self._context.sip.answer(leg.key, leg.local_sdp(), self._context.now)
                self._context.note(f"call/{call.call}", "answered", node=half.node)

        self._calls.touch(call, answer)

    def learn_node_media(self, call: EdgeCall, half: NodeLeg, sdp: str | None) -> None:
        """Tells rtpengine where the node's side listens."""
        try:
            if sdp:
                half.side = AudioSide.of(sdp)
                self._calls.teach(call, half.tag, narrowed(sdp, half.side))
        except (CodecRefused, SdpError) as error:
            self._context.note(f"call/{call.call}", "node answered with odd SDP", level="error", error=error)

    def half_failed(self, call: EdgeCall, half: NodeLeg, status: int, reason: str) -> None:
        """The node did not take a new call: another node, or the caller hears it."""
        self._calls.end_half(call, half)
        leg = call.legs.get(half.leg)
        if leg is not None and leg.of and leg.waits:
            self._calls.end_leg(call, leg, "edge", "", status if status >= 400 else 503)
            return
        if call.ended or leg is None or leg.state != "trying":
            return
        self._context.note(
            f"call/{call.call}", "node refused the call", level="warning", node=half.node, status=status,
            reason=reason,
        )  # fmt: skip
        if leg.leg in call.announced or status not in TRY_ANOTHER_NODE:
            self._calls.end_leg(call, leg, "edge", "", status if status >= 400 else 503)
        else:
            call.refused_by.add(half.node.name)
            self.choose_node(call)
