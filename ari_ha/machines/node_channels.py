"""What Asterisk says: channels that come and go, its snapshot, its leftovers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ari_ha.core.ids import NO_EPOCH, PRIMARY_LEG, Epoch
from ari_ha.core.machine import Done, Outcome
from ari_ha.core.ports.ari import AriDown, AriRefusedUs, AriSnapshot
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_call_base import CallFacts
from ari_ha.machines.node_core import NodeCore, is_bridge_of
from ari_ha.machines.node_features import begin_feature
from ari_ha.machines.node_model import (
    DIALPLAN,
    NO_MUSIC,
    RINGING,
    SNOOP,
    UNKNOWN_MUSIC,
    UP,
    Channel,
    ChannelName,
    Leg,
    parse_bridge_id,
)
from ari_ha.machines.node_resume import Arriving
from ari_ha.machines.node_supervise import SUFFIX
from ari_ha.wire import ari, link
from ari_ha.wire.token import BadToken, LegToken, verify

KINDS = ("trunk", "agent", "resume")
UP_STATE = "Up"
REFUSE_CAUSE = 34
"""Congestion becomes 503: the edge asks another node."""
HANGUP, DESTROY = "channels.hangup", "bridges.destroy"


@dataclass(frozen=True, slots=True)
class Entry:
    """A channel that entered the app, read from the dialplan's arguments."""

    channel: ari.Channel
    token: LegToken
    epoch: Epoch
    kind: str
    verb: tuple[str, ...]


QUICK_SWEEP_S = 1.0
QUICK_SWEEPS = 4
"""Sweeps in quick succession after each connect."""


class Channels:
    """The Asterisk side of `NodeMachine`."""

    def __init__(self, core: NodeCore, on_state: Callable[[], None], on_hello: Callable[[], None]) -> None:
        self._core = core
        self._context = core.context
        self._on_state = on_state
        self._on_hello = on_hello
        self._suspects: dict[str, set[str]] = {HANGUP: set(), DESTROY: set()}
        """Channels and bridges without a call, seen once."""
        self._hangups: dict[str, int] = {}
        """Channels being hung up, and the cause."""
        self._first = True
        self._under_way: set[str] = set()
        """Calls for which Asterisk had dialled somebody when we connected"""
        self._quick_sweeps = 0

    # --- events --------------------------------------------------------------------

    def event(self, event: Any) -> None:
        """One event of the websocket. Those not named here change nothing."""
        match event:
            case ari.StasisStart(channel=channel, args=args):
                self._entered(channel, args)
            case ari.ChannelStateChange(channel=channel):
                self._state(channel)
            case ari.ChannelDestroyed(channel=channel, cause=cause, tech_cause=status):
                self._destroyed(channel.id, status, cause)
            case ari.ChannelHangupRequest(channel=channel, cause=cause, soft=soft):
                self._hangups[channel.id] = cause
                if not soft and (found := self._find(channel.id)) and found[1].channel:
                    found[1].channel.left = True
            case ari.StasisEnd(channel=channel):
                self._left_stasis(channel.id)
            case ari.ChannelEnteredBridge(bridge=bridge, channel=channel) if channel is not None:
                self._bridged(channel.id, bridge.id)
            case ari.ChannelLeftBridge(bridge=bridge, channel=channel):
                self._left(channel.id, bridge.id)
            case ari.BridgeDestroyed(bridge=bridge):
                self._bridge_gone(bridge.id)
            case ari.ChannelDtmfReceived(channel=channel, digit=digit):
                self._digit(channel.id, digit, _utc_of(event.timestamp))
            case ari.PlaybackFinished(playback=playback):
                self._played(playback)
            case ari.RawEvent(type=name):
                self._context.count("node_ari_events_unknown", type=name[:40])

    def _find(self, channel: str) -> tuple[NodeCall, Leg] | None:
        found = self._core.by_channel.get(channel)
        call = self._core.calls.get(found[0]) if found else None
        leg = call.legs.get(found[1]) if call and found else None
        if call is None or leg is None or leg.channel is None or leg.channel.id != channel:
            return None
        return call, leg

    def _arriving(self, channel: str) -> tuple[Arriving, str] | None:
        found = self._core.by_channel.get(channel)
        arriving = self._core.resumes.by_call.get(found[0]) if found else None
        if arriving is None or found is None or found[1] not in arriving.channels:
            return None
        return (arriving, found[1]) if arriving.channels[found[1]].id == channel else None

    def _state(self, channel: ari.Channel) -> None:
        if found := self._find(channel.id):
            call, leg = found
            if channel.state == UP_STATE:
                call.channel_up(leg)
            elif channel.state == "Ringing" and leg.channel and leg.channel.dialled:
                call.leg_rings(leg)
        elif arriving := self._arriving(channel.id):
            one, name = arriving
            if channel.state == UP_STATE:
                one.channels[name].up = one.channels[name].answered = True
                if one.channels[name].dialled:
                    one.facts[name] = UP

    def _destroyed(self, channel: str, status: int, cause: int) -> None:
        self._suspects[HANGUP].discard(channel)
        self._hangups.pop(channel, None)
        if found := self._find(channel):
            call, leg = found
            call.channel_gone(leg, status, cause)
        elif arriving := self._arriving(channel):
            one, name = arriving
            del one.channels[name]
        elif (known := self._core.by_channel.get(channel)) and (served := self._core.calls.get(known[0])):
            served.supervision.gone(channel)
        self._core.by_channel.pop(channel, None)

    def _left_stasis(self, channel: str) -> None:
        """For a channel that came in, and for a snoop, the last we hear of it: its
        subscription ends here. One that we dialled is still to be destroyed, and that
        event says why; one that went on in the dialplan was subscribed to on purpose."""
        cause = self._hangups.pop(channel, 0)
        if found := self._find(channel):
            call, leg = found
            if leg.channel and not leg.channel.dialled and call.stage != DIALPLAN:
                self._destroyed(channel, 0, cause)
        elif arriving := self._arriving(channel):
            if not arriving[0].channels[arriving[1]].dialled:
                self._destroyed(channel, 0, cause)
        else:
            self._destroyed(channel, 0, cause)

    def _bridged(self, channel: str, bridge: str) -> None:
        if (found := self._find(channel)) and found[1].channel:
            found[1].channel.bridge = bridge

    def _left(self, channel: str, bridge: str) -> None:
        """Not asked for by us it is asked back; asked for, it is what we know already."""
        if (found := self._find(channel)) and found[1].channel and found[1].channel.bridge == bridge:
            found[1].channel.bridge = ""
            if channel not in self._hangups:
                found[0].touch()

    def _bridge_gone(self, bridge: str) -> None:
        parsed = parse_bridge_id(bridge)
        call = self._core.calls.get(parsed[0]) if parsed else None
        if call is not None and bridge in call.asterisk.existing:
            call.asterisk.existing.discard(bridge)
            call.touch()

    def _digit(self, channel: str, digit: str, utc_s: float) -> None:
        if found := self._find(channel):
            call, leg = found
            if leg.channel is not None:
                leg.channel.digit_utc = utc_s
            self._context.count("node_digits_heard")
            number = call.ivr.digit(leg.leg, digit)
            frame = link.DigitHeard(
                call=call.call, leg=leg.leg, epoch=str(call.epoch), digit=digit, number=number
            )
            call.say(frame)
            call.transfers.digit(leg, digit)

    def _played(self, playback: ari.Playback) -> None:
        if found := self._find(playback.target_uri.removeprefix("channel:")):
            found[0].ivr.played(playback.id)

    # --- entering ------------------------------------------------------------------

    def _entered(self, channel: ari.Channel, args: Sequence[str]) -> None:
        name = ChannelName.parse(channel.id)
        if name is not None and name.leg[0] == SNOOP:
            call = self._core.calls.get(name.call)
            if call is None or not call.supervision.entered(channel.id):
                self._context.hang_up(channel.id)
            return
        if name is not None:
            self._dialled_channel(channel, name)
            return
        entry = self._read(channel, args)
        if entry is None:
            return
        if entry.kind == "resume":
            self._resume_leg(entry)
        else:
            self._new_call(entry)

    def _dialled_channel(self, channel: ari.Channel, name: ChannelName) -> None:
        """A channel of ours: known, or of a call that is not here any more."""
        found = self._find(channel.id)
        if found is not None:
            call, leg = found
            call.dialling.entered(leg)
            self._state(channel)
        elif self._arriving(channel.id) is None:
            self._context.note(f"call/{name.call}", "its channel came too late", channel=channel.id)
            self._context.count("node_channels_orphaned")
            self._context.hang_up(channel.id)
        else:
            self._state(channel)

    def _read(self, channel: ari.Channel, args: Sequence[str]) -> Entry | None:
        """Who this is, by the edge's signed word; None: a stranger, sent back."""
        if args and args[0] in KINDS:
            text, verb, said = (args[1] if len(args) > 1 else ""), tuple(args[2:]), args[0]
        else:
            text, verb, said = str(channel.channelvars.get("HA_TOKEN", "")), tuple(args), ""
        try:
            token = verify(text, self._core.config.header_key)
            epoch = Epoch.parse(token.epoch)
            if not token.call or not token.leg or token.kind not in KINDS:
                raise BadToken(f"not for a node: {token.kind!r}")
        except ValueError as error:
            why = "no token" if not text else "bad token"
            self._context.note(
                "node", "a call that no edge vouches for: back to the dialplan", level="warning",
                channel=channel.name, extension=channel.dialplan.exten, why=f"{why}: {error}",
            )  # fmt: skip
            self._context.count("node_foreign_calls", why=why)
            self._context.ari(
                f"hangup/{channel.id}", "channels.continueInDialplan", {"channelId": channel.id}
            )
            return None
        return Entry(channel, token, epoch, said or token.kind, tuple(v for v in verb if v))

    def _new_call(self, entry: Entry) -> None:
        core, token, channel = self._core, entry.token, entry.channel
        known = core.calls.get(token.call)
        if known is not None and known.epoch == entry.epoch and token.leg != known.head:
            self._consult_leg(known, entry)
            return
        if known is not None and known.epoch == entry.epoch:
            leg = known.legs.get(PRIMARY_LEG)
            if known.stage == DIALPLAN and leg and leg.channel and leg.channel.id == channel.id:
                known.note("back from the dialplan", verb=",".join(entry.verb))
                known.stage = "setup"
                self._carry_out(known, entry)
                return
        if token.leg != PRIMARY_LEG:
            self._turn_away(entry, "second line of a call that is not here")
            return
        if self._goes_on(entry):
            self._turn_away(entry, "its edge says that others are on the call: not a new one")
            return
        arriving = core.resumes.by_call.get(token.call)
        here, stored = self._newest(token.call)
        another = core.records.of_another(token.call, entry.epoch)
        if entry.epoch <= here or entry.epoch < stored or another or entry.kind == "resume":
            self._turn_away(entry, "stale")
            return
        if not self._context.ari_state.up or len(core.calls) >= core.config.calls_max:
            self._turn_away(entry, "full")
            return
        if core.closed:
            # sent before its edge knew, or by one that does not: it asks another node
            self._turn_away(entry, "cordoned")
            return
        if known is not None or arriving is not None:
            core.moved(token.call, entry.epoch, f"{core.config.node}, anew")
        call = self._make(entry)
        self._carry_out(call, entry)

    def _goes_on(self, entry: Entry) -> bool:
        """Whether somebody has been dialled for the call already, by Asterisk's snapshot or by
        an edge's list: we let it go, and what it asked for at first is not to be done again."""
        if entry.token.call in self._under_way:
            return True
        lists = (edge.calls.calls for edge in self._context.links.values() if edge.calls is not None)
        found = (calls.get(entry.token.call) for calls in lists)
        return any(c is not None and c.epoch == entry.token.epoch and len(c.legs) > 1 for c in found)

    def _newest(self, call: str) -> tuple[Epoch, Epoch]:
        """The highest epochs of the call: of what is here, served or arriving, and of what is stored."""
        core = self._core
        known, arriving = core.calls.get(call), core.resumes.by_call.get(call)
        here = max(known.epoch if known else NO_EPOCH, arriving.epoch if arriving else NO_EPOCH)
        return here, core.records.newest(call)

    def _consult_leg(self, call: NodeCall, entry: Entry) -> None:
        """The second dialog of a phone in this call. It is answered when its party is."""
        leg = None if call.quiet() else call.transfers.consult_channel(entry.token.leg)
        if leg is None or not leg.alive or leg.channel is not None:
            self._turn_away(entry, "stale")
            return
        call.channel_came(leg, Channel(entry.channel.id))

    def _turn_away(self, entry: Entry, why: str) -> None:
        self._context.note(
            f"call/{entry.token.call}", "channel not taken", level="warning", why=why, epoch=entry.token.epoch
        )
        self._context.count("node_channels_turned_away", why=why)
        self._context.hang_up(entry.channel.id, REFUSE_CAUSE)

    def _make(self, entry: Entry) -> NodeCall:
        token, channel, context = entry.token, entry.channel, self._context
        facts = CallFacts(
            call=token.call, epoch=entry.epoch, caller=token.caller or channel.caller.number, did=token.did,
            verb=(entry.kind, *entry.verb) if entry.kind == "agent" else entry.verb,
            context=channel.dialplan.context, extension=channel.dialplan.exten,
            priority=channel.dialplan.priority, started=context.utc,
        )  # fmt: skip
        call = NodeCall(self._core, facts)
        call.vip = token.pair
        role = "customer" if entry.kind == "trunk" else "user"
        leg = call.add_leg(Leg(token.leg, role, state=UP))
        up = channel.state == UP_STATE
        leg.channel = Channel(channel.id, up=up, answered=up)
        self._core.records.open(call.call, call.epoch)
        self._core.begin(call)
        call.note(
            f"new {entry.kind} call", caller=facts.caller, did=facts.did, verb=",".join(entry.verb),
            epoch=facts.epoch,
        )  # fmt: skip
        context.count("node_calls_started", kind=entry.kind)
        return call

    def _carry_out(self, call: NodeCall, entry: Entry) -> None:
        """What the dialplan asked for."""
        if entry.kind == "agent" and entry.token.did.startswith("*"):
            begin_feature(call, entry.token)
            return
        self._core.carry_out(call, entry.verb, entry.token.user)

    # --- moved calls ---------------------------------------------------------------

    def _resume_leg(self, entry: Entry) -> None:
        core, token = self._core, entry.token
        known = core.calls.get(token.call)
        if entry.epoch < max(self._newest(token.call)) or (known is not None and entry.epoch == known.epoch):
            self._turn_away(entry, "stale")
            return
        if known is None and core.records.ended(token.call):
            self._turn_away(entry, "ended")
            return
        retired = core.supersede(token.call) if known is not None else []
        channel = Channel(entry.channel.id, up=entry.channel.state == UP_STATE)
        channel.answered = channel.up
        core.by_channel[channel.id] = (token.call, token.leg)
        if not channel.up:
            self._answer(channel, token.call)
        arriving = core.resumes.takeover(token, entry.epoch, channel)
        arriving.retired += retired
        core.resumes.look(arriving)

    def _answer(self, channel: Channel, call: str) -> None:
        """At once: nothing is known yet, and nothing else need be for that."""

        def told(outcome: Outcome) -> None:
            if isinstance(outcome, Done):
                channel.up = channel.answered = True
                if found := self._core.calls.get(call):
                    found.touch()

        self._context.ari(f"answer/{channel.id}", "channels.answer", {"channelId": channel.id}, told)

    # --- snapshot ------------------------------------------------------------------

    def snapshot(self, event: AriSnapshot) -> None:
        """What Asterisk has, after every (re)connect."""
        state = self._context.ari_state
        if state.incarnation and state.incarnation != event.incarnation:
            self._gone("restarted")
        new_life = state.incarnation != event.incarnation
        state.up, state.incarnation = True, event.incarnation
        state.missing, state.trouble, state.word = tuple(event.missing_modules), "", "up"
        if event.missing_modules:
            names = " ".join(event.missing_modules)
            self._context.note(
                "node", "Asterisk lacks modules: load them in modules.conf", level="error", modules=names
            )
        if new_life:
            self._core.acd.asterisk_started(event.incarnation)
            self._on_hello()
        self._compare(event)
        self._context.note(
            "node", "Asterisk is up", incarnation=event.incarnation, channels=len(event.channels),
            calls=len(self._core.calls), taken_up=len(self._core.resumes.by_call),
        )  # fmt: skip
        self._first = False
        self._on_state()
        self._quick_sweeps = QUICK_SWEEPS
        self._arm_sweep()

    def _compare(self, event: AriSnapshot) -> None:
        """Channels we know and that are gone; channels we missed; who is in a bridge."""
        present = {channel.id: channel for channel in event.channels}
        names = [name for name in map(ChannelName.parse, present) if name is not None]
        self._under_way = {name.call for name in names}
        snoops: dict[str, int] = {}
        for name in [name for name in names if name.leg[0] == SNOOP]:
            snoops[name.call] = max(snoops.get(name.call, 0), int(name.leg[1:]))
        members = {c: bridge.id for bridge in event.bridges for c in bridge.channels}
        bridges = {bridge.id for bridge in event.bridges}
        for ident in [c for c in self._core.by_channel if c not in present]:
            self._destroyed(ident, 0, 0)
        for call in self._core.calls.values():
            call.asterisk.existing = {bridge for bridge in bridges if is_bridge_of(bridge, call)}
            for leg in call.living():
                if leg.channel is not None:
                    leg.channel.bridge = members.get(leg.channel.id, "")
            call.ivr.look_again()
            call.touch()
        for channel in event.channels:
            if known := self._core.by_channel.get(channel.id):
                self._state(channel)
                if served := self._core.calls.get(known[0]):
                    served.supervision.entered(channel.id)  # that may have been said to nobody
            elif self._first:
                self._adopt(channel, members.get(channel.id, ""))
            elif self._ours(channel):
                self._entered(channel, channel.dialplan.app_data.split(",")[1:])
        for arriving in list(self._core.resumes.by_call.values()):
            arriving.snoops = snoops.get(arriving.call, 0)
            self._core.resumes.look(arriving)
        if not self._first:
            # Asterisk was away while their calls left: it could not be told
            lost = self._lost_bridges(event.bridges)
            self._suspects[DESTROY] |= lost
            self._end_suspects(lost, DESTROY, "bridgeId")

    def _ours(self, channel: ari.Channel) -> bool:
        where = channel.dialplan
        return where.app_name == "Stasis" and where.app_data.partition(",")[0] == self._core.config.app

    def _adopt(self, channel: ari.Channel, bridge: str) -> None:
        """A channel found at our own start: nothing is dropped, its call is rebuilt."""
        name = ChannelName.parse(channel.id)
        if name is not None and name.leg[0] == SNOOP:
            self._context.hang_up(channel.id)  # made anew once its call is whole
            return
        entry = None
        if name is None:
            if not self._ours(channel):
                return
            entry = self._read(channel, channel.dialplan.app_data.split(",")[1:])
            if entry is None:
                return
            call, leg, epoch = entry.token.call, entry.token.leg, entry.epoch
        else:
            call, leg, epoch, _ = name
        arriving = self._core.resumes.adopt(call, epoch)
        if arriving.epoch != epoch:
            self._suspects[HANGUP].add(channel.id)
            return
        up = channel.state == UP_STATE
        ringing = (entry is not None and entry.token.facts.get(leg) == RINGING and not bridge) or not up
        arriving.facts[leg] = RINGING if ringing and leg != PRIMARY_LEG else UP
        arriving.channels[leg] = Channel(
            channel.id, up=up, answered=up or name is not None, bridge=bridge,
            music=UNKNOWN_MUSIC if up else NO_MUSIC, dialled=name is not None,
        )  # fmt: skip
        self._core.by_channel[channel.id] = (call, leg)
        if entry is not None:
            arriving.pair = entry.token.pair
        if entry is not None and leg == PRIMARY_LEG:
            arriving.caller, arriving.did = entry.token.caller, entry.token.did
            arriving.verb = entry.verb
            # the context of moved calls leads nowhere else
            arriving.context = channel.dialplan.context if entry.kind != "resume" else ""

    def down(self, event: AriDown) -> None:
        """The connection is gone; perhaps Asterisk is."""
        state = self._context.ari_state
        state.up = False
        state.trouble = event.reason
        state.word = "gone" if event.process_gone else "silent"
        self._context.note(
            "node", "Asterisk is away", level="warning", reason=event.reason, gone=event.process_gone
        )
        if event.process_gone:
            self._gone(event.reason)
        self._on_state()

    def _gone(self, reason: str) -> None:
        state = self._context.ari_state
        if state.incarnation:
            frame = link.AsteriskGone(incarnation=state.incarnation, reason=reason)
            for peer in self._context.links:
                self._context.tell(peer, frame)
        self._context.note(
            "node", "this life of Asterisk is over", level="warning", calls=len(self._core.calls),
            incarnation=state.incarnation, reason=reason,
        )  # fmt: skip
        state.incarnation = ""
        self._core.forget_all()
        for suspects in self._suspects.values():
            suspects.clear()
        self._hangups.clear()

    def refused_us(self, event: AriRefusedUs) -> None:
        """Asterisk answers and does not want us: people must change something."""
        state = self._context.ari_state
        state.up, state.trouble, state.word = False, event.advice, "refuses us"
        self._context.note("node", "ARI refuses us", level="error", status=event.status, advice=event.advice)
        self._on_state()

    # --- leftovers -----------------------------------------------------------------

    def _arm_sweep(self) -> None:
        """Often at first after Asterisk was away, when most is left over."""
        often = self._quick_sweeps > 0
        self._quick_sweeps -= often
        every_s = QUICK_SWEEP_S if often else self._context.timings.sweep_every_s
        self._context.after("sweep", every_s, self._sweep)

    def _sweep(self) -> None:
        """Channels and bridges of ours that belong to no call: ended when seen twice."""
        if not self._context.ari_state.up:
            return
        self._arm_sweep()
        self._context.ari("sweep", "channels.list", {}, self._channels_listed)
        self._context.ari("sweep", "bridges.list", {}, self._bridges_listed)

    def _channels_listed(self, outcome: Outcome) -> None:
        if not isinstance(outcome, Done):
            return
        known = set(self._core.by_channel)
        for call in self._core.calls.values():
            known.update(call.retired)
        for arriving in self._core.resumes.by_call.values():
            known.update(arriving.retired)
        lost = {
            channel.id
            for channel in outcome.value
            if channel.id not in known and (ChannelName.parse(channel.id) or self._ours(channel))
        }
        self._end_suspects(lost, HANGUP, "channelId")

    def _bridges_listed(self, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            self._end_suspects(self._lost_bridges(outcome.value), DESTROY, "bridgeId")

    def _lost_bridges(self, bridges: Iterable[ari.Bridge]) -> set[str]:
        """Bridges of ours that no call here has."""
        lost = set()
        for bridge in bridges:
            parsed = parse_bridge_id(bridge.id)
            if parsed is None or bridge.name != parsed[0]:
                continue
            ident = parsed[0].removesuffix(SUFFIX)
            call = self._core.calls.get(ident)
            arriving = ident in self._core.resumes.by_call
            ours = call is not None and (
                is_bridge_of(bridge.id, call) or bridge.id == call.supervision.bridge
            )
            if not arriving and not ours:
                lost.add(bridge.id)
        return lost

    def _end_suspects(self, lost: set[str], operation: str, param: str) -> None:
        for ident in sorted(lost & self._suspects[operation]):
            self._context.note("node", "orphan ended", level="warning", what=ident, by=operation)
            self._context.count("node_orphans_ended", operation=operation)
            self._context.ari(f"hangup/{ident}", operation, {param: ident})
        self._suspects[operation] = lost - self._suspects[operation]


def _utc_of(timestamp: str) -> float:
    """An event's time (``2026-11-30T20:18:23.996+0000``) as UTC seconds, 0 where it has none."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0
