"""Who hears whom: follows a voice through rtpengine's subscriptions and Asterisk's
bridges, by the addresses each side really uses. What packets would show, without any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ari_ha.simulation.fake_asterisk import FIRST_PACKET_S, Channel, FakeAsterisk
from ari_ha.simulation.fake_phones import UP, Phones, Talk
from ari_ha.simulation.fake_rtpengine import FakeRtpengine, MediaCall, Tag
from ari_ha.simulation.world import Network

MUSIC, ANNOUNCEMENT = "music", "announcement"


class Ears:
    """Looks at all media of the world at one instant."""

    def __init__(
        self,
        relays: Sequence[FakeRtpengine],
        asterisks: Iterable[FakeAsterisk],
        phones: Sequence[Phones],
        network: Network,
        relay_host: str,
    ) -> None:
        self.relays = relays
        self.asterisks = list(asterisks)
        self.phones = phones
        self.network = network
        self.relay_host = relay_host

    def heard_by(self, talk: Talk) -> list[str]:
        """What reaches this person's ear: legs of talks, ``music``, ``announcement``;
        twice when it comes twice."""
        at = self._tag_of(talk)
        if at is None or talk.state != UP:
            return []
        relay, call, tag = at
        if tag.remote != talk.rtp:
            return []
        return sorted(self._out_of(relay, call, tag, frozenset()))

    def was_told(self, talk: Talk) -> bool:
        """Whether an Asterisk that this person hears has said a prompt to its end; then it is his turn."""
        at = self._tag_of(talk)
        if at is None:
            return False
        relay, call, tag = at
        behind = [self._channel_behind(call.tags[name]) for name in relay.hears(call.ident, tag.name)]
        return any(found is not None and found[1].played for found in behind)

    def hears(self, listener: Talk, speaker: Talk) -> bool:
        """Whether the voice of one reaches the other."""
        return speaker.leg in self.heard_by(listener)

    def call_of(self, talk: Talk) -> tuple[str, str] | None:
        """The call and leg a person is on, by the media port of the edge; also when rtpengine has the call
        no more: the phone may hear late that it was answered."""
        if talk.remote is None:
            return None
        given = (relay.given.get(talk.remote) for relay in self.relays)
        return next((found for found in given if found is not None), None)

    def press(self, talk: Talk, digit: str) -> list[str]:
        """The person presses a key; returns the nodes whose Asterisk got it."""
        at = self._tag_of(talk)
        if at is None:
            return []
        relay, call, own = at
        reached = []
        for tag in call.tags.values():
            found = self._channel_behind(tag)
            if found and own.name in relay.hears(call.ident, tag.name):
                asterisk, channel = found
                asterisk.digit(channel.ident, digit)
                reached.append(asterisk.node)
        return reached

    def nodes_that_hear(self, talk: Talk) -> list[str]:
        """Nodes at which this person's voice arrives on an answered channel."""
        at = self._tag_of(talk)
        if at is None:
            return []
        relay, call, own = at
        return [
            found[0].node
            for tag in call.tags.values()
            if own.name in relay.hears(call.ident, tag.name)
            and (found := self._channel_behind(tag)) is not None
        ]

    def sends(self, relay: FakeRtpengine, call: MediaCall, tag: Tag) -> bool:
        """Whether packets come from whoever is behind ``tag``: a phone always sends, an
        Asterisk what it plays, or what it gets from the others of a bridge."""
        if self._talk_behind(tag) is not None:
            return True
        found = self._channel_behind(tag)
        if found is None:
            return False
        asterisk, channel = found
        if self.network.cut(self.relay_host, asterisk.host):
            bridge = asterisk.bridges.get(channel.bridge)
            return bool(self._played_to(asterisk, channel) or (bridge and bridge.music))
        return bool(self._from_channel(relay, call, asterisk, channel, frozenset()))

    # -- following

    def _out_of(self, relay: FakeRtpengine, call: MediaCall, tag: Tag, seen: frozenset[str]) -> list[str]:
        """Everything that leaves the relay through ``tag``."""
        if tag.name in seen:
            return []
        seen = seen | {tag.name}
        out: list[str] = []
        for name in relay.hears(call.ident, tag.name):
            speaker = call.tags[name]
            talk = self._talk_behind(speaker)
            if talk is not None:
                out.append(talk.leg)
                continue
            found = self._channel_behind(speaker)
            if found is not None:
                out += self._from_channel(relay, call, *found, seen)
        return out

    def _from_channel(
        self,
        relay: FakeRtpengine,
        call: MediaCall,
        asterisk: FakeAsterisk,
        channel: Channel,
        seen: frozenset[str],
        overheard: bool = False,
    ) -> list[str]:
        """What Asterisk sends into a channel: the others of its bridge, or what it plays, and what is
        whispered to it. Of that, whoever overhears the channel hears nothing."""
        whispered = [] if overheard else self._whispered(relay, call, asterisk, channel, "out", seen)
        out = self._played_to(asterisk, channel)
        bridge = asterisk.bridges.get(channel.bridge)
        if bridge is None or out:
            return out + whispered
        if bridge.music:
            out.append(MUSIC)
        for ident in bridge.channels:
            other = asterisk.channels[ident]
            if other is channel or other.state != "Up":
                continue
            if other.spies:
                out += self._overheard(relay, call, asterisk, other, seen)
                continue
            tag = self._tag_in_front_of(call, other)
            if tag is not None:
                out += self._out_of(relay, call, tag, seen)
            out += self._whispered(relay, call, asterisk, other, "in", seen)
        return out + whispered

    def _whispered(
        self,
        relay: FakeRtpengine,
        call: MediaCall,
        asterisk: FakeAsterisk,
        channel: Channel,
        direction: str,
        seen: frozenset[str],
    ) -> list[str]:
        """Voices a snoop adds to a channel: to what goes ``out`` to it, or to what comes ``in`` from it."""
        out: list[str] = []
        for snoop in asterisk.channels.values():
            bridge = asterisk.bridges.get(snoop.bridge)
            if bridge is None or snoop.spies != channel.ident or snoop.whisper not in (direction, "both"):
                continue
            for ident in bridge.channels:
                tag = self._tag_in_front_of(call, asterisk.channels[ident])
                if ident != snoop.ident and tag is not None:
                    out += self._out_of(relay, call, tag, seen)
        return out

    @staticmethod
    def _played_to(asterisk: FakeAsterisk, channel: Channel) -> list[str]:
        """What is played to a channel and has begun to go out."""
        now = asterisk.world.now
        out = [ANNOUNCEMENT] if any(now >= since + FIRST_PACKET_S for since in channel.plays.values()) else []
        if channel.music and now >= channel.music_from:
            out.append(MUSIC)
        return out

    def _overheard(
        self,
        relay: FakeRtpengine,
        call: MediaCall,
        asterisk: FakeAsterisk,
        snoop: Channel,
        seen: frozenset[str],
    ) -> list[str]:
        """What a snoop channel hears: the person at the channel, and what is sent to it."""
        target = asterisk.channels.get(snoop.spies)
        if target is None:
            return []
        tag = self._tag_in_front_of(call, target)
        person = self._out_of(relay, call, tag, seen) if tag is not None else []
        return person + self._from_channel(relay, call, asterisk, target, seen, overheard=True)

    # -- addresses

    def _tag_of(self, talk: Talk) -> tuple[FakeRtpengine, MediaCall, Tag] | None:
        for relay in self.relays:
            found = relay.tag_at(*talk.remote) if talk.remote else None
            if found:
                return relay, *found
        return None

    def _talk_behind(self, tag: Tag) -> Talk | None:
        for phones in self.phones:
            for talk in phones.talks.values():
                if talk.state == UP and talk.rtp == tag.remote and talk.remote == (tag.host, tag.port):
                    return talk
        return None

    def _channel_behind(self, tag: Tag) -> tuple[FakeAsterisk, Channel] | None:
        for asterisk in self.asterisks:
            if not asterisk.running or self.network.cut(asterisk.host, self.relay_host):
                continue
            for channel in asterisk.channels.values():
                if (
                    channel.state == "Up"
                    and channel.rtp == tag.remote
                    and channel.remote == (tag.host, tag.port)
                ):
                    return asterisk, channel
        return None

    @staticmethod
    def _tag_in_front_of(call: MediaCall, channel: Channel) -> Tag | None:
        for tag in call.tags.values():
            if channel.remote == (tag.host, tag.port) and channel.rtp == tag.remote:
                return tag
        return None
