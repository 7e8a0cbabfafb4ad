"""Legs that go on in another process: what `export_leg` wrote is taken up again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ari_ha.sip.auth import Credentials
from ari_ha.sip.core import TRYING_S, Core
from ari_ha.sip.events import ReinviteReceived
from ari_ha.sip.flow import Flow
from ari_ha.sip.leg import IncomingInvite, Leg, header_list, import_plain, stored_request
from ari_ha.sip.outgoing import Outgoing
from ari_ha.sip.transaction import ServerTransaction


class Handover:
    """Import of legs."""

    def __init__(self, core: Core, outgoing: Outgoing) -> None:
        self.core = core
        self.stack = core.stack
        self.outgoing = outgoing

    def take(
        self,
        key: str,
        record: dict[str, Any],
        now: float,
        cseq_margin: int,
        credentials: Credentials | None,
        moved: bool,
    ) -> None:
        """Go on with a leg. Local CSeq jumps by the margin, so that requests the old process sent after the
        record was written do not collide with ours."""
        open_change = record.get("out") if moved else None
        if moved:
            record = _without_way_back(record)
        leg = import_plain(key, record, cseq_margin)
        leg.credentials = credentials
        leg.flow = replace(self._here(leg.flow), conn="")  # the name of a connection means nothing here
        if leg.unheard is not None:
            leg.unheard = leg.unheard[0], replace(self._here(leg.unheard[1]), conn="")
        self.core.add(leg)
        self.core.ways(leg)  # a name in it is asked for at once
        self.outgoing.acknowledge(leg)  # what its owner waited for is done: the answer is written
        if moved:
            self._acknowledge(leg, open_change)
        if record.get("inc") is not None:
            self._incoming(leg, record["inc"], now)
            self.outgoing.reliable.resume(leg, now)
        if record.get("out") is not None:
            out = record["out"]
            request = stored_request(out["request"])
            self.outgoing.resume(leg, out, request, self._here(Flow.from_dict(out["flow"])), now)
        calling = leg.out is not None and leg.out.purpose == "invite"
        if leg.state == "ending" and not calling:
            self.core.begin_ending(leg, now)
        elif leg.out is not None and not calling:
            self.core.start(leg, "change", now + self.stack.settings.reinvite_limit_s)
        if leg.waiting is not None:
            self.core.start(leg, "reinvite", now + 2 * self.stack.rand())
        self._session(leg, now)

    def _here(self, flow: Flow) -> Flow:
        """The flow; by our first listener where the other process had one that we have not (a transport that
        was turned off): nobody may be at its end, but whoever is at the others' must not be lost for that."""
        if flow.listener in self.stack.listeners:
            return flow
        first = next(iter(self.stack.listeners.values()))
        return replace(flow, listener=first.name, transport=first.transport, conn="")

    def _acknowledge(self, leg: Leg, open_change: dict[str, Any] | None) -> None:
        """A far side whose 2xx has no ACK takes no other INVITE, and sends that 2xx where nobody is. Whoever
        has the ACK, or did not say 2xx, passes over it (section 13.3.1.4, RFC 6141 section 3.1)."""
        if open_change is not None and open_change["purpose"] != "invite":
            self.core.ack(leg, stored_request(open_change["request"]).cseq[0], None)
        elif leg.acks:
            self.core.ack_again(leg, max(leg.acks))

    def _incoming(self, leg: Leg, record: dict[str, Any], now: float) -> None:
        """The far side's open INVITE: it can be answered, cancelled and retransmitted as if nothing
        happened."""
        request = stored_request(record["request"])
        flow = self._here(Flow.from_dict(record["flow"]))
        txn = ServerTransaction(self.stack, tuple(record["key"]), request, flow, list(record["vias"]))
        txn.local_tag = record.get("local_tag", "")
        txn.data = record.get("response", "").encode("latin-1")
        self.stack.servers[txn.key] = txn
        self.stack.bind(txn, leg)
        inc = IncomingInvite(request, txn, record.get("sdp"), bool(record.get("initial")), txn.data)
        leg.inc = inc
        if record.get("accepted"):
            inc.accepted = True
            txn.reply(200, txn.data, now)
            self.core.await_ack(leg, inc, now)
        elif inc.initial and leg.state == "early":
            self.core.start(leg, "remind", now + self.stack.settings.ring_reminder_s)
        elif not inc.initial:
            # waits, with its 100 or without: the owner of the leg is asked again
            inc.told = True
            self.core.start(leg, "trying", now + TRYING_S)
            self.stack.emit(ReinviteReceived(leg.key, inc.sdp, header_list(request)))
        txn.wait_for_owner(now)

    def _session(self, leg: Leg, now: float) -> None:
        """The session timer, counted so that it is right whatever the age of the record: a refresh is due
        half an
        interval after the last one, so a quarter from now at the latest comes before the far side gives up;
        and
        we ourselves give up only a whole interval from now."""
        timer = leg.timer
        self.core.arm_session(leg, timer, now)
        if timer is not None and timer.refresher == "local" and leg.state in ("answered", "confirmed"):
            self.core.start(leg, "session", now + timer.interval_s / 4 * (0.5 + self.stack.rand() / 2))


def _without_way_back(record: dict[str, Any]) -> dict[str, Any]:
    """The record of a leg whose far side knows us by an address we do not have. Responses go where the Via
    says, and the ACK of a 2xx to its Contact: what is under way that way is never heard of again. Our INVITE
    can only be ended, by CANCEL (its own Via names it, section 9.1) and BYE, a change of ours is dropped, and
    a 2xx of ours counts as acknowledged: whether it was, the next request shows. With that the first one is
    said again (`Modify.reinvite`)."""
    out, inc = record.get("out"), record.get("inc")
    changed: dict[str, Any] = {"waiting": None}
    if out is not None:
        invite = out["purpose"] == "invite"
        changed["out"] = {**out, "provisional": True, "unheard": True} if invite else None
    if inc is not None and inc.get("accepted"):
        changed["inc"] = None
        changed["state"] = "confirmed" if record["state"] == "answered" else record["state"]
        if inc.get("initial") and inc.get("sdp") is not None:
            changed["unheard"] = [inc["response"], inc["flow"]]
    return {**record, **changed}
