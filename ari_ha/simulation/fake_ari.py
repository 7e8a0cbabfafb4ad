"""The ARI operations of a `FakeAsterisk`, by their names in Asterisk's api-docs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.simulation.fake_asterisk import FIRST_PACKET_S, PLAY_S, Bridge, Channel, FakeAsterisk
from ari_ha.wire import ari

NORMAL_CAUSE = 16
REASONS = {"normal": 16, "busy": 17, "congestion": 34, "no_answer": 19, "timeout": 18, "rejected": 21,
           "unallocated": 1, "normal_unspecified": 31, "number_incomplete": 28, "codec_mismatch": 58,
           "interworking": 127, "failure": 38, "answered_elsewhere": 26}  # fmt: skip
DEFAULT_DIAL_S = 30.0
APOLOGY = "apology"
"""The label of extensions.conf for callers nobody can serve."""

NOT_FOUND = Refused("Channel not found", 404)
NO_BRIDGE = Refused("Bridge not found", 404)
NOT_IN_APP = Refused("Channel not in Stasis application", 409)

Params = Mapping[str, Any]


class FakeAri:
    """Performs operations on one Asterisk, at the moment they arrive there."""

    def __init__(self, asterisk: FakeAsterisk) -> None:
        self.asterisk = asterisk
        self._on_channel: dict[str, Callable[[Channel, Params], Outcome]] = {
            "channels.get": lambda channel, params: Done(asterisk._model(channel)),
            "channels.answer": self._answer,
            "channels.ring": self._ring,
            "channels.ringStop": lambda channel, params: Done(None),
            "channels.hangup": self._hangup,
            "channels.continueInDialplan": self._continue,
            "channels.startMoh": self._music,
            "channels.stopMoh": self._no_music,
            "channels.startSilence": lambda channel, params: Done(None),
            "channels.stopSilence": lambda channel, params: Done(None),
            "channels.play": self._play,
            "channels.playWithId": self._play,
            "channels.setChannelVar": self._set,
            "channels.setChannelVars": self._set_many,
            "channels.getChannelVar": self._get,
            "channels.dial": self._dial,
            "channels.snoopChannelWithId": self._snoop,
        }
        self._others: dict[str, Callable[[Params], Outcome]] = {
            "applications.subscribe": self._application,
            "applications.get": self._application,
            "applications.filter": self._application,
            "channels.list": lambda params: Done([asterisk._model(c) for c in asterisk.channels.values()]),
            "channels.create": self._create,
            "bridges.list": lambda params: Done(
                [asterisk._bridge_model(b) for b in asterisk.bridges.values()]
            ),
            "bridges.createWithId": self._bridge,
            "bridges.create": self._bridge,
            "bridges.get": self._bridge_get,
            "bridges.destroy": self._bridge_destroy,
            "bridges.addChannel": self._add,
            "bridges.removeChannel": self._remove,
            "bridges.startMoh": lambda params: self._bridge_music(params, True),
            "bridges.stopMoh": lambda params: self._bridge_music(params, False),
            "playbacks.stop": self._stop_play,
        }

    def perform(self, operation: str, params: Params) -> Outcome:
        """One operation; Refused with 501 for those this fake does not know."""
        act = self._on_channel.get(operation)
        if act is not None:
            channel = self.asterisk.channel(params.get("channelId"))
            outcome = act(channel, params) if channel else NOT_FOUND
        else:
            other = self._others.get(operation)
            outcome = other(params) if other else Refused(f"{operation}: not in this fake", 501)
        self.asterisk.pump()
        return outcome

    def refuse(self, operation: str) -> None:
        """A planted bug: says it is done, and does nothing."""
        self._on_channel[operation] = lambda channel, params: Done(None)

    # -- channels

    def _answer(self, channel: Channel, params: Params) -> Outcome:
        if not channel.in_app:
            return NOT_IN_APP
        self.asterisk._answer(channel)
        return Done(None)

    def _ring(self, channel: Channel, params: Params) -> Outcome:
        if not channel.in_app:
            return NOT_IN_APP
        if channel.incoming and channel.state == "Ring":
            self.asterisk.sip.ring(channel.ident, self.asterisk.mono)
        return Done(None)

    def _hangup(self, channel: Channel, params: Params) -> Outcome:
        code = params.get("reason_code")
        cause = int(code) if code else REASONS.get(str(params.get("reason", "normal")), NORMAL_CAUSE)
        self.asterisk._hang_up(channel, cause)
        return Done(None)

    def _continue(self, channel: Channel, params: Params) -> Outcome:
        asterisk = self.asterisk
        if not channel.in_app:
            return NOT_IN_APP
        if params.get("label") not in (None, "", APOLOGY):
            return Refused("Requested label can not be found", 404)
        asterisk._leave_bridge(channel)
        channel.in_app = False
        channel.context = str(params.get("context") or channel.context)
        channel.extension = str(params.get("extension") or channel.extension)
        asterisk._emit(ari.StasisEnd(application="ari-ha", channel=asterisk._model(channel)))
        if params.get("label") == APOLOGY:
            asterisk.apologise(channel)
        elif channel.context == "from-trunk" and params.get("extension"):
            # From the top of the dialplan: it asks the app again.
            asterisk._ask_app(channel, "trunk")
        else:
            asterisk._hang_up(channel, NORMAL_CAUSE)
        return Done(None)

    def _music(self, channel: Channel, params: Params) -> Outcome:
        if not channel.music:
            channel.music_from = self.asterisk.world.now + FIRST_PACKET_S
        channel.music = True
        return Done(None) if channel.in_app else NOT_IN_APP

    def _no_music(self, channel: Channel, params: Params) -> Outcome:
        channel.music = False
        return Done(None) if channel.in_app else NOT_IN_APP

    def _play(self, channel: Channel, params: Params) -> Outcome:
        asterisk = self.asterisk
        if not channel.in_app:
            return NOT_IN_APP
        ident = str(params.get("playbackId") or asterisk._new_id())
        channel.plays[ident] = asterisk.world.now
        playback = ari.Playback(id=ident, target_uri=f"channel:{channel.ident}", state="playing")
        asterisk._emit(ari.PlaybackStarted(playback=playback))
        asterisk.world.after(PLAY_S, asterisk.in_life(lambda: self._played(channel, ident)))
        return Done(playback)

    def _played(self, channel: Channel, ident: str) -> None:
        if channel.plays.pop(ident, None) is not None:
            channel.played = True
            playback = ari.Playback(id=ident, target_uri=f"channel:{channel.ident}", state="done")
            self.asterisk._emit(ari.PlaybackFinished(playback=playback))

    def _stop_play(self, params: Params) -> Outcome:
        ident = str(params.get("playbackId"))
        for channel in self.asterisk.channels.values():
            if ident in channel.plays:
                self._played(channel, ident)
                return Done(None)
        return Refused("Playback not found", 404)

    def _set(self, channel: Channel, params: Params) -> Outcome:
        channel.variables[str(params["variable"])] = str(params.get("value", ""))
        return Done(None)

    def _set_many(self, channel: Channel, params: Params) -> Outcome:
        channel.variables.update({str(k): str(v) for k, v in dict(params.get("variables") or {}).items()})
        return Done(None)

    def _get(self, channel: Channel, params: Params) -> Outcome:
        name = str(params["variable"])
        if name not in channel.variables:
            return Refused("Provided variable was not found", 404)
        return Done(ari.Variable(value=channel.variables[name]))

    def _create(self, params: Params) -> Outcome:
        ident = str(params.get("channelId") or "")
        if ident in self.asterisk.channels:
            return Refused("Channel with given unique ID already exists", 409)
        variables = {str(k): str(v) for k, v in dict(params.get("variables") or {}).items()}
        args = str(params.get("appArgs") or "")
        channel = self.asterisk.create(
            ident, str(params["endpoint"]), args.split(",") if args else [], variables
        )
        return Done(self.asterisk._model(channel))

    def _dial(self, channel: Channel, params: Params) -> Outcome:
        if not channel.in_app:
            return NOT_IN_APP
        if channel.incoming or channel.dialled:
            return Refused("Channel not in right state", 409)
        timeout = params.get("timeout")
        if not self.asterisk.dial(channel, DEFAULT_DIAL_S if timeout is None else float(timeout)):
            return Refused("Dialing failed", 500)
        return Done(None)

    def _snoop(self, channel: Channel, params: Params) -> Outcome:
        """A channel that hears another; in the app at once."""
        ident = str(params.get("snoopId") or self.asterisk._new_id())
        if ident in self.asterisk.channels:
            return Refused("Channel with given unique ID already exists", 409)
        snoop = Channel(ident, incoming=False, state="Up", spies=channel.ident)
        snoop.whisper = str(params.get("whisper") or "none")
        self.asterisk.channels[ident] = snoop
        self.asterisk._enter_app(snoop, str(params.get("appArgs") or "").split(","))
        return Done(self.asterisk._model(snoop))

    def _application(self, params: Params) -> Outcome:
        """Subscribed to, a channel's end is told; everything else the one app is told anyway."""
        kind, _, ident = str(params.get("eventSource") or "").partition(":")
        if kind == "channel":
            channel = self.asterisk.channels.get(ident)
            if channel is None:
                return Refused("Event source does not exist", 422)
            channel.followed = True
        return Done(ari.Application(name=str(params.get("applicationName", ""))))

    # -- bridges

    def _bridge(self, params: Params) -> Outcome:
        asterisk = self.asterisk
        ident = str(params.get("bridgeId") or asterisk._new_id())
        if ident in asterisk.bridges:
            return Refused("Bridge with id already exists", 409)
        bridge = asterisk.bridges[ident] = Bridge(
            ident, str(params.get("type") or "mixing"), name=str(params.get("name") or "")
        )
        asterisk._emit(ari.BridgeCreated(bridge=asterisk._bridge_model(bridge)))
        return Done(asterisk._bridge_model(bridge))

    def _bridge_get(self, params: Params) -> Outcome:
        bridge = self.asterisk.bridges.get(str(params["bridgeId"]))
        return Done(self.asterisk._bridge_model(bridge)) if bridge else NO_BRIDGE

    def _bridge_destroy(self, params: Params) -> Outcome:
        asterisk = self.asterisk
        bridge = asterisk.bridges.get(str(params["bridgeId"]))
        if bridge is None:
            return NO_BRIDGE
        for ident in list(bridge.channels):
            asterisk._leave_bridge(asterisk.channels[ident])
        del asterisk.bridges[bridge.ident]
        asterisk._emit(ari.BridgeDestroyed(bridge=asterisk._bridge_model(bridge)))
        return Done(None)

    def _named(self, params: Params) -> list[Channel] | Outcome:
        """All channels of an operation, or the refusal: nothing is done by halves."""
        named = params["channel"]
        idents = named.split(",") if isinstance(named, str) else [str(one) for one in named]
        channels = [self.asterisk.channels.get(ident) for ident in idents]
        if any(channel is None for channel in channels):
            return Refused("Channel not found", 400)
        found = [channel for channel in channels if channel is not None]
        if not all(channel.in_app for channel in found):
            return Refused("Channel not in Stasis application", 422)
        return found

    def _add(self, params: Params) -> Outcome:
        bridge = self.asterisk.bridges.get(str(params["bridgeId"]))
        if bridge is None:
            return NO_BRIDGE
        channels = self._named(params)
        if not isinstance(channels, list):
            return channels
        for channel in channels:
            self.asterisk.enter_bridge(channel, bridge)
        return Done(None)

    def _remove(self, params: Params) -> Outcome:
        bridge = self.asterisk.bridges.get(str(params["bridgeId"]))
        if bridge is None:
            return NO_BRIDGE
        channels = self._named(params)
        if not isinstance(channels, list):
            return channels
        if any(channel.bridge != bridge.ident for channel in channels):
            return Refused("Channel not in this bridge", 422)
        for channel in channels:
            self.asterisk._leave_bridge(channel)
        return Done(None)

    def _bridge_music(self, params: Params, on: bool) -> Outcome:
        bridge = self.asterisk.bridges.get(str(params["bridgeId"]))
        if bridge is None:
            return NO_BRIDGE
        bridge.music = on
        return Done(None)
