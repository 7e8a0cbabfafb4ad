"""Feature codes: an agent's phone dials one, the ACD does it, a tone says how it went.

*21 log in at this phone · *22 log out · *23 available · *24 not ready (a digit
after it is the reason) · *25 the other of the two. A supervisor's phone, followed by an
agent: *31 listen · *32 whisper · *33 barge · *30 stop."""

from __future__ import annotations

from ari_ha.core.machine import Outcome
from ari_ha.machines.acd_orders import VerbResult
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_model import FEATURE, NORMAL
from ari_ha.machines.node_supervisors import CODES as SUPERVISE
from ari_ha.wire.token import LegToken

CODES = {"*21": "login", "*22": "logout", "*23": "available", "*24": "not-ready", "*25": "toggle"}
CODE_CHARS = 3
DONE_TONE = "tone:!1000/150,!0/80,!1400/150,!0/500"
"""Up: it is so now."""
REFUSED_TONE = "tone:!480+620/250,!0/150,!480+620/250,!0/500"
NOT_FOUND = "1"
"""Q.850: unallocated number."""
PREFIX = "feature:"


def begin_feature(call: NodeCall, token: LegToken) -> None:
    """Carries a dialled code out for the phone's authenticated user."""
    context = call.parts.context
    if token.did[:CODE_CHARS] in SUPERVISE:
        _supervise(call, token)
        return
    verb = CODES.get(token.did[:CODE_CHARS])
    rest = token.did[CODE_CHARS:]
    call.stage = FEATURE
    if verb is None or (rest and verb != "not-ready"):
        call.note("no such feature code", code=token.did, user=token.user)
        context.count("node_features_unknown")
        call.end_leg(call.legs[call.head], NOT_FOUND, "no such feature code")
        call.over("unknown code")
        return
    args: dict[str, object] = {"by": token.user}
    if verb == "login":
        args |= {"device": call.parts.device_of(token.user), "take_over": True}
    if rest:
        args["reason"] = rest
    call.note("feature code", code=token.did, verb=verb, user=token.user)
    call.touch()
    limit_s = context.timings.verb_limit_s
    context.after(f"feature/{call.call}", limit_s, lambda: _no_answer(call))
    call.parts.acd.agent_verb(PREFIX + call.call, verb, args, user=token.user)


def _supervise(call: NodeCall, token: LegToken) -> None:
    """*31, *32, *33 and an agent: this phone will be rung, and hears (speaks into) his call;
    *30 ends it."""
    mode, agent = SUPERVISE[token.did[:CODE_CHARS]], token.did[CODE_CHARS:]
    supervisors = call.parts.supervisors
    call.stage = FEATURE
    call.note("feature code", code=token.did, verb=mode, user=token.user)
    call.touch()

    def answer(status: int, text: str) -> None:
        feature_done(call, VerbResult(request=PREFIX + call.call, status=status, text=text, agent=agent))

    if not supervisors.may(token.user):
        answer(403, "not a supervisor's phone")
        return
    limit_s = call.parts.context.timings.verb_limit_s
    call.parts.context.after(f"feature/{call.call}", limit_s, lambda: _no_answer(call))
    supervisors.give(agent, mode, call.parts.device_of(token.user), token.user, answer)


def feature_done(call: NodeCall, result: VerbResult) -> None:
    """The ACD's answer: said as a tone, then the call ends."""
    context = call.parts.context
    context.cancel(f"feature/{call.call}")
    good = 200 <= result.status < 300
    call.note("feature done", status=result.status, answer=result.text, agent=result.agent)
    context.count("node_features_done", status=str(result.status))
    leg = call.legs.get(call.head)
    if leg is None or not leg.alive or leg.channel is None:
        return
    media = DONE_TONE if good else REFUSED_TONE
    params = {"channelId": leg.channel.id, "media": media, "playbackId": f"{call.call}.tone"}

    def told(outcome: Outcome) -> None:
        context.after(f"feature/{call.call}", context.timings.tone_s, lambda: _end(call))

    if not leg.channel.answered:
        context.ari(f"call/{call.call}", "channels.answer", {"channelId": leg.channel.id})
    context.ari(f"call/{call.call}", "channels.play", params, told)


def _no_answer(call: NodeCall) -> None:
    feature_done(call, VerbResult(request=PREFIX + call.call, status=503, text="no answer in time"))


def _end(call: NodeCall) -> None:
    leg = call.legs.get(call.head)
    if leg is not None and leg.alive:
        call.end_leg(leg, NORMAL, "feature code done")
    call.over("feature code")
