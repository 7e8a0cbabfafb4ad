"""What a phone asks for while it is in a call: a second call of its own (consult), and
transfers. Both end here and become words to the app; the phone is answered from what
the edge knows, whichever node serves the call, or none.

A phone's second dialog is a leg of the same call: what belongs together is served,
stored and moved together.
"""

from __future__ import annotations

from urllib.parse import unquote

from ari_ha.machines.edge_audio import AudioSide, CodecRefused, answer_lines
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import DEVICE, EdgeCall, PhoneLeg
from ari_ha.machines.edge_setup import RETRY_AFTER, Setup
from ari_ha.machines.registrar import Registrar
from ari_ha.sip.events import InDialogRequest, InviteReceived
from ari_ha.sip.message import SipParseError
from ari_ha.sip.reasons import REASONS
from ari_ha.sip.replaces import Replaces
from ari_ha.sip.uri import NameAddr, SipUri
from ari_ha.wire import link

SUBSCRIPTION_S = 120
"""How long a transfer may take in the eyes of whoever asked (RFC 3515 §2.4.4)."""
CONSULTS_MAX = 99
NUMBER_MAX_CHARS = 64


class Transfers:
    """Consult legs and REFER."""

    def __init__(self, context: EdgeContext, calls: Calls, setup: Setup, registrar: Registrar) -> None:
        self._context = context
        self._calls = calls
        self._setup = setup
        self._registrar = registrar
        calls.on_move = self.complete

    # --- a second call of a phone ---------------------------------------------------

    def consult(self, event: InviteReceived, user: str, number: str) -> bool:
        """Takes the INVITE of a phone that is in a call already; False when it is not, or
        when a feature code was dialled."""
        busy = self._calls.device_of.get(self._registrar.aor_of(user))
        call = self._calls.by_id.get(busy[0]) if busy else None
        main = call.legs.get(busy[1]) if call and busy else None
        if call is None or main is None or main.state != "up" or number.startswith("*"):
            return False
        if not number or any(leg.of == main.leg for leg in call.living()):
            self._setup.refuse(event, 486, "third_call")
            return True
        self._begin(event, call, main, user, number[:NUMBER_MAX_CHARS])
        return True

    def _begin(self, event: InviteReceived, call: EdgeCall, main: PhoneLeg, user: str, number: str) -> None:
        offer = event.request.body.decode("utf-8", "replace") if event.request.body else ""
        try:
            side = AudioSide.of(offer) if offer else AudioSide()
        except CodecRefused:
            self._setup.refuse(event, 488, "no_codec")
            return
        used = {*call.legs, *call.tombstones}
        name = next((f"k{n}" for n in range(1, CONSULTS_MAX + 1) if f"k{n}" not in used), "")
        if not name or not self._context.media_ok:
            why = "media relay away" if name else "too_many_consults"
            self._setup.refuse(event, 503, why, RETRY_AFTER)
            return
        leg = PhoneLeg(
            name, "user", event.leg, user=user, side=side, late_offer=not offer, consult=name, of=main.leg,
            number_asked=number, media_lines=answer_lines(offer) if offer else [],
        )  # fmt: skip
        self._calls.index(call, leg)
        self._context.note(f"call/{call.call}", "consults", leg=name, of=main.leg, number=number)
        self._context.count("edge_consults")
        self._setup.open_phone_media(call, leg, offer, lambda: self._to_node(call, leg))

    def _to_node(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """The node that serves the call gets this leg too; while the call is on its way, as soon
        as it is there."""
        self._calls.touch(call)
        if call.ended or not leg.alive:
            return
        node = self._setup.node_of(call)
        if node is None:
            return  # a move that begins brings it with all others; one under way: `second_lines`
        for frame in asked_frames(call):
            self._context.link(node.config.name, frame)
        self._setup.invite_node(call, leg, node, call.epoch, "agent")

    def node_ready(self, node: str) -> None:
        """A second line that began while the node's app was away gets its half there now: the
        call was not lost, so no survivor was told of it."""
        for call in self._calls.of_node(node):
            self.second_lines(call)

    def second_lines(self, call: EdgeCall) -> None:
        """Those without a half at the node that serves the call get it: they began while it moved."""
        if call.lost or call.move is not None or call.ended:
            return
        for leg in [leg for leg in call.living() if leg.of and leg.leg not in call.halves]:
            if leg.port:  # else what opens its media goes on from there
                self._to_node(call, leg)

    # --- REFER ----------------------------------------------------------------------

    def refer(self, event: InDialogRequest) -> None:
        """RFC 3515: 202, the word to the app, and NOTIFYs as it goes."""
        context, request = self._context, event.request
        found = self._calls.phone(event.leg)
        if found is None or not found[1].alive:
            context.sip.respond(event.txn, 481, context.now)
            return
        call, leg = found
        if leg.state != "up":
            # its 200 has been lost and comes again; a 481 would end its dialog (RFC 3261 §12.2.1.2)
            context.sip.respond(event.txn, 491, context.now)
            return
        number, other, status = self._target(call, leg, request.get("refer-to"))
        if status:
            context.sip.respond(event.txn, status, context.now)
            context.count("edge_transfers_refused", status=str(status))
            return
        if leg.refer:
            context.sip.respond(event.txn, 491, context.now)
            return
        # RFC 4488 §4: who wants no subscription gets none
        silent = request.get("refer-sub").partition(";")[0].strip().lower() == "false"
        headers = (("Refer-Sub", "false"),) if silent else ()
        context.sip.respond(event.txn, 202, context.now, headers=headers)
        leg.refer = {"id": context.new_id(), "number": number, "other": other}
        if silent:
            leg.refer["silent"] = "yes"
        context.note(f"call/{call.call}", "transfer asked", leg=leg.leg, number=number, other=other)
        context.count("edge_transfers", kind="attended" if other else "blind")
        self._notify(leg, leg.refer, 100)
        home = call.home()
        if home:
            context.link(home.name, _transfer_frame(call, leg))
        self._calls.touch(call)

    def _target(self, call: EdgeCall, leg: PhoneLeg, text: str) -> tuple[str, str, int]:
        """Number, the phone's other leg where the target is that one's partner, and the
        status that refuses what makes no sense."""
        try:
            uri = NameAddr.parse(text).uri
            target = SipUri.parse(uri)
        except SipParseError:
            return "", "", 400
        number = unquote(target.user or "")[:NUMBER_MAX_CHARS]
        replaces = next(
            (value for name, _, value in (part.partition("=") for part in target.headers.split("&"))
             if name.lower() == "replaces"), "",
        )  # fmt: skip
        if replaces:
            other = self._replaced(call, unquote(replaces))
            known = other is not None and other is not leg and leg.leg in (other.of, *_of(call, leg))
            # not 481, which would end the dialog it was asked in (RFC 3261 §12.2.1.2)
            if other is None or not known or _is_alone(call, leg if leg.of else other):
                return number, "", 603
            return number, other.leg, 0
        if not number or leg.consult:
            return number, "", 400 if not number else 603
        return number, "", 0

    def _replaced(self, call: EdgeCall, text: str) -> PhoneLeg | None:
        """The leg of this call whose dialog a Replaces names (RFC 3891 §3); its tags as
        the asker, or as the one asked, would write them."""
        try:
            name = Replaces.parse(text)
        except SipParseError:
            return None
        key = self._context.sip.dialog_named(name.call_id, name.to_tag, name.from_tag)
        found = self._calls.phone(key) if key else None
        return found[1] if found is not None and found[0] is call and found[1].alive else None

    def _notify(self, leg: PhoneLeg, refer: dict[str, str], status: int) -> None:
        """The sipfrag that tells how it goes (RFC 3515 §2.4.5)."""
        if "silent" in refer or "left" in refer or not leg.alive:
            return
        over = status >= 200
        reason = REASONS.get(status, "Failed")
        state = "terminated;reason=noresource" if over else f"active;expires={SUBSCRIPTION_S}"
        self._context.sip.request_in_dialog(
            leg.key,
            "NOTIFY",
            self._context.now,
            headers=(("Event", "refer"), ("Subscription-State", state)),
            content_type="message/sipfrag;version=2.0",
            body=f"SIP/2.0 {status} {reason}\r\n".encode(),
        )

    def party_failed(self, call: EdgeCall, party: PhoneLeg, status: int) -> None:
        """The target refused while no node serves the call: whoever asked hears so, and asks
        anew if he wants it called again."""
        for leg in [leg for leg in call.living() if leg.refer.get("party") == party.leg]:
            self._over(call, leg, status or 480)  # 0: it answered, and has hung up

    def _over(self, call: EdgeCall, leg: PhoneLeg, status: int) -> None:
        """One that failed is told of when that is written down: a successor that did not know would have it
        carried out, and a phone that was told it keeps its call would be sent away."""
        refer, leg.refer = leg.refer, {}
        self._context.note(f"call/{call.call}", "transfer over", leg=leg.leg, status=status)
        self._calls.touch(call)
        if status < 300:
            self._notify(leg, refer, status)  # at once: the end of its dialog is next
            return
        self._calls.store.when_written(
            call, lambda: self._notify(leg, refer, status), self._context.timings.end_limit_s
        )

    def asker_left(self, call: EdgeCall, leg: PhoneLeg) -> None:
        """A phone was told 202 and hangs up before its app has acted. Should no app act any more,
        whom it talked to and whom it consulted are connected from here (`complete`)."""
        side = next((o for o in call.living() if o.of == leg.leg), None)
        if side is None or not (leg.refer.get("other") == side.leg or side.refer.get("other") == leg.leg):
            return
        others = [o for o in call.conversation(leg.consult) if o is not leg and not o.aside]
        if not side.refer:
            side.refer = {**leg.refer, "other": leg.leg, "left": "yes"}
        side.refer["into"] = leg.consult
        if call.head == leg.leg and others:
            call.head = others[0].leg

    def complete(self, call: EdgeCall) -> None:
        """The node that was to carry out a transfer is lost, and whoever asked for it has gone."""
        for side in [leg for leg in call.living() if call.lost and "into" in leg.refer]:
            party = [o for o in call.conversation(side.leg) if o is not side]
            if not party or not [o for o in call.conversation(side.refer["into"]) if not o.aside]:
                continue
            for other in party:
                other.consult = side.refer["into"]
            call.tombstones[side.refer["other"]] = "app"  # who transfers does not hang up on anybody
            self._context.note(f"call/{call.call}", "transferred without a node", to=party[0].name)
            self._notify(side, side.refer, 200)
            self._calls.end_leg(call, side, "app", "16")

    def transfer_is(self, frame: link.TransferIs) -> None:
        """The app's word on how a transfer goes."""
        call = self._calls.by_id.get(frame.call)
        if call is None or not call.served_under(frame.epoch):
            self._context.count("edge_stale_frames", kind="TransferIs")
            return  # whoever has the call now is asked for it again
        leg = next((leg for leg in call.living() if leg.refer.get("id") == frame.transfer), None)
        if leg is None:
            return
        if frame.status >= 200:
            self._over(call, leg, frame.status)
        else:
            self._notify(leg, leg.refer, frame.status)
            self._calls.touch(call)


def _of(call: EdgeCall, leg: PhoneLeg) -> tuple[str, ...]:
    """The main leg of the phone whose consulting leg this is."""
    return (leg.leg,) if leg.of else ()


def _is_alone(call: EdgeCall, side: PhoneLeg) -> bool:
    """Whether whoever was called by this second line was there, and has hung up: whom could anybody be
    connected with?"""
    return side.state == "up" and call.conversation(side.consult) == [side]


def _transfer_frame(call: EdgeCall, leg: PhoneLeg) -> link.TransferAsked:
    return link.TransferAsked(
        call=call.call, leg=leg.leg, epoch=str(call.epoch), transfer=leg.refer["id"],
        number=leg.refer["number"], other=leg.refer["other"],
    )  # fmt: skip


def taken_frame(call: EdgeCall, leg: PhoneLeg) -> link.LegTaken:
    """Whose phone the leg is since another took it."""
    return link.LegTaken(call=call.call, leg=leg.leg, epoch=str(call.epoch), device=DEVICE + leg.aor)


def asked_frames(call: EdgeCall) -> list[link.Frame]:
    """What phones have asked for and the app may not have heard yet."""
    frames: list[link.Frame] = []
    for leg in call.living():
        if leg.number_asked and leg.waits:
            frames.append(
                link.ConsultAsked(
                    call=call.call, leg=leg.leg, epoch=str(call.epoch), of=leg.of, number=leg.number_asked
                )
            )
        if leg.refer:
            frames.append(_transfer_frame(call, leg))
        if leg.taken:
            frames.append(taken_frame(call, leg))
    return frames
