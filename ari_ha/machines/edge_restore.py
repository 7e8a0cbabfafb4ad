"""A restarted edge continues its calls: from their copy in etcd, legs and all."""

from __future__ import annotations

from itertools import permutations

from ari_ha.core.ids import NO_EPOCH, PRIMARY_LEG, Epoch, NodeId
from ari_ha.machines.edge_audio import narrowed
from ari_ha.machines.edge_calls import Calls
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_model import EdgeCall, NodeLeg, PhoneLeg
from ari_ha.machines.edge_recorder import RecorderLeg
from ari_ha.machines.edge_rehome import Rehome
from ari_ha.machines.media import DIRECT, HITLESS, THROUGH, CallMedia, wanted_graph
from ari_ha.machines.takeover import Takeover
from ari_ha.wire.keyspace import DialogsValue, MediaValue, OwnerValue

AFRESH_AFTER_S = 1.0
"""A caller found unanswered is given to a node after this: the links come up meanwhile."""


def restore_call(
    context: EdgeContext,
    calls: Calls,
    takeover: Takeover,
    rehome: Rehome,
    value: DialogsValue,
    owner: OwnerValue | None,
    media: MediaValue | None,
) -> None:
    """Rebuilds one call. Raises KeyError, ValueError or TypeError on a record that
    makes no sense; nothing of it is kept then."""
    call = _stored_call(value, media)
    moved = value.at not in ("", context.config.public_host)
    _import_legs(context, call, value, moved)
    for key, data in value.byes.items():
        credentials = context.trunk_credentials(data.get("trunk", ""))
        context.sip.import_leg(key, data["sip"], context.now, credentials=credentials, moved=moved)
        call.farewells[key] = data.get("trunk", "")
    if value.byes and not value.legs:
        context.note(f"call/{call.call}", "said goodbye again", legs=len(value.byes))
        calls.store.owes(call.call, value.byes)
        return
    if owner:
        call.epoch = call.spent = Epoch.parse(owner.epoch)
        if not owner.moving and call.halves:
            call.epoch = next(iter(call.halves.values())).epoch
        node = NodeId.parse(owner.moving_from if owner.moving else owner.node)
        call.owner = node if node.name else None  # its caller waited for one
        call.by_dialplan = owner.by_dialplan
    if call.primary is None:
        calls.by_id[call.call] = call
        calls.finish(call)
        return
    calls.adopt(call)
    if not moved:
        _import_recorders(call, value)
        _assume_media(call)
        _tell_far_ends(rehome, call)
    context.note(f"call/{call.call}", "continued after a restart", facts=call.facts(), epoch=call.epoch)
    rehome.refuse_unanswered(call)
    if not call.ended:
        _go_on(context, calls, takeover, rehome, call, owner)


def _stored_call(value: DialogsValue, media: MediaValue | None) -> EdgeCall:
    return EdgeCall(
        value.call,
        value.kind,
        value.started,
        CallMedia(state=media.state if media else THROUGH),
        caller=value.caller,
        did=value.did,
        trunk=value.trunk,
        want=value.want,
        identity=dict(value.identity),
        tombstones=dict(value.tombstones),
        turned_down=value.turned_down,
        head=value.head,
        answered_utc=value.answered,
        connected_utc=value.connected,
        served=list(value.served),
        agents=list(value.agents),
        recorded=value.recorded,
    )


def _import_legs(context: EdgeContext, call: EdgeCall, value: DialogsValue, moved: bool) -> None:
    """``moved``: the record was written at another address, which its far ends know."""
    sip, now = context.sip, context.now
    for data in value.legs.values():
        leg = PhoneLeg.from_dict(data)
        leg.elsewhere |= moved
        if data.get("sip"):
            credentials = context.trunk_credentials(leg.trunk)
            sip.import_leg(leg.key, data["sip"], now, credentials=credentials, moved=leg.elsewhere)
            trunk = leg.trunk or (call.trunk if leg.leg == PRIMARY_LEG else "")
            if trunk and "next_hop" not in data["sip"]:  # an older edge wrote it last
                sip.set_next_hop(leg.key, context.trunk_next_hop(trunk))
            for key, record in data.get("forks", {}).items():
                if record:
                    sip.import_leg(key, record, now, moved=leg.elsewhere)
                    leg.forks.append(key)
            call.legs[leg.leg] = leg
        elif leg.target and not leg.aor:
            # it may ring at the carrier or not: it is not dialled again
            call.tombstones[leg.leg] = "lost"
    for data in value.node_legs.values():
        half = NodeLeg.from_dict(data)
        half.elsewhere |= moved
        base, _, n = half.tag.rpartition(".")
        call.tag_numbers.setdefault(base, set()).add(int(n))
        if data.get("sip") and (half.state == "up" or (half.calls_us and half.state == "calling")):
            sip.import_leg(half.key, data["sip"], now, moved=half.elsewhere)
            if sip.leg_state(half.key) in ("answered", "confirmed"):
                half.state = "up"
            call.halves[half.leg] = half


def _import_recorders(call: EdgeCall, value: DialogsValue) -> None:
    """Copies that go on where rtpengine is the same; elsewhere they are made anew."""
    for recording, data in value.recorders.items():
        one = RecorderLeg.from_dict(recording, data)
        base, _, n = one.tag.rpartition(".")
        call.tag_numbers.setdefault(base, set()).add(int(n))
        call.recorders[recording] = one
        call.media.far_end(one.tag, one.remote_sdp())


def _go_on(
    context: EdgeContext,
    calls: Calls,
    takeover: Takeover,
    rehome: Rehome,
    call: EdgeCall,
    owner: OwnerValue | None,
) -> None:
    """From where the call was: answered, moving, talking, or not yet any of it."""
    for leg in [leg for leg in call.up() if context.sip.unanswered(leg.key)]:
        # it was written that it is answered, and the process died before it said so
        context.note(f"call/{call.call}", "answered now, as it was decided", leg=leg.leg)
        if offer := context.sip.remote_sdp(leg.key):
            call.media.far_end(leg.leg, narrowed(offer, leg.side))
        context.sip.answer(leg.key, leg.local_sdp(), context.now)
    for half in [half for half in call.to_answer() if not half.elsewhere]:
        half.state = "up"
        context.sip.answer(half.key, half.local_sdp(), context.now)
    away, served = any(side.elsewhere for side in (*call.living(), *call.halves.values())), False
    if call.fresh:
        # nobody has answered, and the node's answer to the old process is nobody's
        why = "edge restarted before the answer"
        context.at(f"afresh/{call.call}", context.now + AFRESH_AFTER_S, lambda: takeover.lose(call, why))
    elif owner is None or owner.moving or owner.why or call.epoch == NO_EPOCH or not _whole(call):
        takeover.lose(call, owner.why if owner and owner.why else "edge restarted during a move")
    elif not away:
        served = True
        calls.apply_media(call)
    rehome.never_opened(call)
    if away:
        rehome.moved(call)
    elif not served or not context.config.guarded or any(leg.side.suite for leg in call.living()):
        # rtpengine may have begun anew as well: alone, and in a pair whose addresses do not move. What it
        # refuses of a call that is served shows that, what is made for a node that shall serve does not;
        # with SRTP it is felt in any pair
        rehome.look(call)


def _whole(call: EdgeCall) -> bool:
    """Whether every leg still has its half at the node: an INVITE of ours to it that was
    still open is over."""
    return all(leg.leg in call.halves for leg in call.living())


def _assume_media(call: EdgeCall) -> None:
    """rtpengine kept what it had: probably the stored state. Everything else the call
    may have had is taken away, everything wanted is said again."""
    tags = {half.leg: half.tag for half in call.halves.values()}
    # people may have been brought together just now, and their conversations before that are not known
    graph = set(permutations((leg.leg for leg in call.up()), 2))
    for consult in ("", *call.consults()):
        up = [leg.leg for leg in call.conversation(consult) if leg.state == "up"]
        for state in (call.media.state, HITLESS, THROUGH, DIRECT):
            graph |= wanted_graph(state, up, tags)
    call.media.assume(graph)


def _tell_far_ends(rehome: Rehome, call: EdgeCall) -> None:
    """What a far end said last was answered, and rtpengine may not have been told before the process died: it
    would send nothing to whoever has taken his call back. Not of a leg with keys: it is told by `publish`,
    and in a call that rtpengine has read from valkey a second one may cost the port (26.0.1)."""
    for leg in call.up():
        if not leg.elsewhere and not leg.side.suite and not leg.side.web:
            rehome.far_end(call, leg.leg, leg)
    for half in call.halves.values():
        if half.state == "up" and not half.elsewhere:
            rehome.far_end(call, half.tag, half)
