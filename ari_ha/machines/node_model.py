"""What a node knows of a call: its legs, their channels, what Asterisk was told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ari_ha.core.ids import SUPERVISOR_LEG, Epoch, is_supervisor

TRYING, RINGING, UP, ENDED = "trying", "ringing", "up", "ended"
LOST = "lost"
"""An attempt whose agent was in conversation and whose leg is being made again."""
SETUP, QUEUED, TALKING, DIALPLAN, FEATURE, OVER = "setup", "queued", "talking", "dialplan", "feature", "ended"
DIALING = "dialing"
"""A party is being called, and the caller waits for its answer."""
IVR = "ivr"
HITLESS, THROUGH, COACH = "hitless", "through", "coach"

NO_MUSIC = ""
UNKNOWN_MUSIC = "?"
"""After a restart of the app: Asterisk does not say whether music plays."""

NORMAL, USER_BUSY, NO_USER_RESPONSE, NO_ANSWER, CONGESTION = "16", "17", "18", "19", "34"
"""Q.850 causes as the edge understands them."""


AGENT_LEG, SNOOP = "a", "x"
"""First letters of names in channel ids: a party, and what hears a party for a supervisor."""
CHANNEL_LETTERS = (AGENT_LEG, SUPERVISOR_LEG, SNOOP)


class ChannelName(NamedTuple):
    """The id of a channel we create: which leg of which call, decided under which epoch."""

    call: str
    leg: str
    epoch: Epoch
    time: int = 1
    """Of a leg that is dialled more than once"""

    def __str__(self) -> str:
        again = f"~{self.time}" if self.time > 1 else ""
        return f"{self.call}.{self.leg}{again}.{self.epoch}"

    @classmethod
    def parse(cls, text: str) -> ChannelName | None:
        """The name in a channel id, or None when the id is not of our making."""
        parts = text.rsplit(".", 3)
        leg, again, time = parts[1].partition("~") if len(parts) == 4 else ("", "", "")
        if leg[:1] not in CHANNEL_LETTERS or not leg[1:].isdigit():
            return None
        try:
            return cls(parts[0], leg, Epoch.parse(f"{parts[2]}.{parts[3]}"), int(time) if again else 1)
        except ValueError:
            return None


def bridge_id(call: str, epoch: Epoch, consult: str = "") -> str:
    """The id of a call's bridge under ``epoch``; each side conversation has its own."""
    return f"{call}.{consult}.{epoch}" if consult else f"{call}.{epoch}"


def parse_bridge_id(text: str) -> tuple[str, Epoch] | None:
    """Call and epoch of a bridge of ours, whichever conversation's; None when it is not."""
    call, dot, n = text.rpartition(".")
    call, dot2, revision = call.rpartition(".")
    if not dot or not dot2 or not call:
        return None
    try:
        return call.partition(".")[0], Epoch.parse(f"{revision}.{n}")
    except ValueError:
        return None


def next_leg(used: Sequence[str], letter: str = AGENT_LEG) -> str:
    """The next party's (or supervisor's) leg: a number never used in this call."""
    numbers = [int(leg[1:]) for leg in used if leg[:1] == letter and leg[1:].isdigit()]
    return f"{letter}{max(numbers, default=0) + 1}"


@dataclass(slots=True)
class Channel:
    """A leg's channel in Asterisk, as far as its replies and events told us."""

    id: str
    up: bool = False
    answered: bool = False
    """Asterisk was told to answer it, or it was us who dialled."""
    bridge: str = ""
    music: str = NO_MUSIC
    dialled: bool = False
    through: int = 0
    """By which revision of its address the edge served that was to dial it; 0: not known"""
    left: bool = False
    """Its far end, which is the edge, hung it up: nothing in this Asterisk did."""
    digit_utc: float = 0.0
    """When its last digit was, by Asterisk's wall clock"""


@dataclass(slots=True)
class Leg:
    """One side of the call. The edge owns the facts of the phone; this is our copy."""

    leg: str
    role: str
    state: str = TRYING
    agent: str = ""
    attempt: str = ""
    held: bool = False
    channel: Channel | None = None
    announced: bool = False
    """`EndLeg` was said."""
    by: str = ""
    """Who ended it."""
    target: str = ""
    """What was dialled, ``device:<aor>`` or ``number:<number>``, where somebody asked for it."""
    consult: str = ""
    """The leg that leads the side conversation it belongs to; its own for that one"""
    of: str = ""
    """On such a leg: the same phone's leg in the main conversation"""
    status: int = 0
    """The SIP status it failed with, as the edge said."""
    unrecorded: bool = False
    """The record did not know it when the call was taken up."""

    @property
    def alive(self) -> bool:
        """Whether somebody is, or may soon be, on it."""
        return self.state != ENDED

    @property
    def aside(self) -> bool:
        """Whether it is a supervisor's: nobody of the call."""
        return is_supervisor(self.leg)

    @property
    def joined(self) -> bool:
        """Whether it can hear and be heard in Asterisk now."""
        return self.state == UP and self.channel is not None and self.channel.up


@dataclass(slots=True)
class Attempt:
    """One ringing of one agent for the call."""

    attempt: str
    agent: str
    device: str
    leg: str
    state: str = "intent"
    """intent, ringing, answered, lost, ended"""
    started: float = 0.0
    deadline: float = 0.0
    outcome: str = ""


@dataclass(slots=True)
class Wanted:
    """What Asterisk should be doing for a call."""

    answer: tuple[str, ...] = ()
    bridges: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Conversation -> legs that hear each other, at least two; the main one has no name"""
    music: dict[str, str] = field(default_factory=dict)
    """leg -> class of music"""
    media: str = THROUGH


def failure_kind(status: int, cause: int, by_phone: bool) -> str:
    """What became of an unanswered attempt, in the ACD's words. ``status``: SIP, 0
    when unknown; ``cause``: Q.850; ``by_phone``: the edge said the phone answered so."""
    if status in (486, 600) or (not status and cause == 17):
        return "busy" if by_phone else "edge-refused"
    if status == 603 or (not status and cause == 21):
        return "reject"
    if status in (408, 480) or (not status and cause in (18, 19, 20)):
        return "no-answer" if by_phone and status == 408 else "unreachable"
    if status == 487:
        return "canceled"
    if status in (403, 481, 482):
        return "edge-refused"
    return "unreachable"
