"""Who is with whom, as the people themselves know it: they know whom they called, whom they
put on hold, and what they asked for. Who really hears whom is `ears`' business."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from ari_ha.simulation.cluster import SUPERVISOR, Cluster
from ari_ha.simulation.fake_phones import UP, Talk


class Circles:
    """The people of each call, by the conversation they are in."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def learn_call(self, talk: Talk) -> None:
        """Which call a talk is of, by the media port it was given."""
        if not talk.call and (found := self.cluster.ears.call_of(talk)):
            talk.call = found[0]
            if talk.calls_out and (talk.main is None or talk.main.call != talk.call):
                # of a phone in two calls the edge cannot know which one is meant, nor, where the phone was
                # called before it heard of this line, that it was dialled beside nobody; and where the
                # other line was over before this one was dialled, this is a call like any
                talk.main = next((o for o in self.of_call(talk.call) if _beside(o, talk)), None)

    def everybody(self) -> Iterator[Talk]:
        """Every talk there was, carriers' first."""
        yield from self.cluster.carrier.talks.values()
        yield from self.cluster.phones.talks.values()

    def of_call(self, call: str) -> list[Talk]:
        """Everybody who is or was on the call, but supervisors and dialled codes."""
        return [talk for talk in self.everybody() if call and _call_of(talk) == call and _is_person(talk)]

    def there_are(self) -> list[list[Talk]]:
        """Conversations of those who are on the phone, some of one person; none of a call whose
        people are just being brought together."""
        calls: dict[str, list[Talk]] = {}
        for talk in self.everybody():
            if _is_person(talk):
                self.learn_call(talk)
                # also a line that was never answered: whoever it called was asked for by it
                if call := _call_of(talk):
                    calls.setdefault(call, []).append(talk)
        for talks in calls.values():
            self._find_joined(talks)
        return [c for talks in calls.values() if not _merging(talks) for c in self.split(talks)]

    def _find_joined(self, talks: list[Talk]) -> None:
        """Whoever typed the digits of a conference and then hung up his first line may have been
        heard or not, and the phones of all three do not tell: what they hear does."""
        for k in talks:
            if k.joining and not k.joined and k.alive and k.main is not None and k.main.ended_by == "self":
                heard = self.cluster.ears.heard_by(k)
                k.joined = any(o.leg in heard and not _came_by(o, k, talks) for o in talks)

    @staticmethod
    def split(talks: list[Talk]) -> list[list[Talk]]:
        """Those on the phone, of all who are or were on a call, by their conversation."""
        found: dict[str, list[Talk]] = {}
        for talk in talks:
            if talk.state == UP:
                found.setdefault(group(talk, talks), []).append(talk)
        return list(found.values())

    def with_whom(self, talk: Talk) -> list[Talk]:
        """The others of this person's conversation who are on the phone."""
        self.learn_call(talk)
        circles = self.split(self.of_call(talk.call))
        return [other for circle in circles if talk in circle for other in circle if other is not talk]


def _call_of(talk: Talk) -> str:
    """What is known of it: a second line is of the call of the first, until it turns out otherwise."""
    return talk.call or (talk.main.call if talk.main is not None else "")


def _is_person(talk: Talk) -> bool:
    return talk.who != SUPERVISOR and not talk.dialled.startswith("*")


def _beside(line: Talk, talk: Talk) -> bool:
    """Whether it is the phone's other line, and was in a conversation when this one was dialled."""
    there = line.state == UP or (line.answered_s and line.ended_s > talk.started_s)
    return bool(there) and line is not talk and line.who == talk.who and line.main is None


def consulted(talk: Talk, talks: list[Talk]) -> Talk | None:
    """The dialog by which somebody in a call asked for this one. Of two who want the same person one is
    refused before he answers."""
    if talk.dialled:
        return None
    asking = (
        k for k in talks
        if k.main is not None and k.dialled == talk.who and (k.alive or k.ended_s >= talk.started_s)
    )  # fmt: skip
    until_s = talk.answered_s or talk.ended_s or inf
    return max(
        (k for k in asking if k.started_s <= talk.started_s),
        key=lambda k: (k.alive or k.ended_s >= until_s, k.started_s), default=None,
    )  # fmt: skip


def _came_by(talk: Talk | None, leads: Talk, everybody: list[Talk]) -> bool:
    """Whether it is the line that leads this consultation, or came into the call by it."""
    while talk is not None:
        line = talk if talk.main is not None else consulted(talk, everybody)
        if line is leads:
            return True
        talk = line.main if line is not None else None
    return False


def others_stay(leads: Talk, everybody: list[Talk]) -> bool:
    """Whether the main conversation goes on without whoever leads a consultation: of three."""
    assert leads.main is not None
    rest = [o for o in everybody if not _came_by(o, leads, everybody)]
    home = group(leads.main, rest)
    return any(o.state == UP and o.started_s < leads.main.ended_s and group(o, rest) == home for o in rest)


def group(talk: Talk, everybody: list[Talk], over: bool = False) -> str:
    """The conversation of a call that a talk is of: a consultation is one of its own, named
    after the dialog that leads it, for as long as whoever leads it has both his dialogs; with
    ``over``, also afterwards, unless it was brought into the main one (the empty name)."""
    leads = talk if talk.main is not None else consulted(talk, everybody)
    if leads is None or leads.main is None:
        return ""
    # whoever hung up his first line before it was done made no conference
    first = not leads.alive and leads.ended_s < leads.main.ended_s
    done = leads.main.ended_by != "self" or leads.joined or first
    merged = leads.attended or (leads.joining and done)
    if (leads.alive and leads.main.alive) or (over and not merged):
        return leads.leg
    if leads.alive and not merged and others_stay(leads, everybody):
        return leads.leg
    return group(leads.main, everybody, over) if merged else ""


def _merging(talks: list[Talk]) -> bool:
    """Whether a conference was asked for and both dialogs are still there: it may be, or not yet."""
    return any(k.joining and k.alive and k.main is not None and k.main.alive for k in talks)
