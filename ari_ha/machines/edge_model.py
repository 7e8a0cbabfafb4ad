"""What an edge knows of a call: plain data that exports to etcd and back."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ari_ha.core.ids import NO_EPOCH, PRIMARY_LEG, Epoch, NodeId, is_supervisor
from ari_ha.machines.edge_audio import AudioSide
from ari_ha.machines.edge_recorder import RecorderLeg
from ari_ha.machines.media import CallMedia
from ari_ha.sip.sdp import build_audio_sdp
from ari_ha.sip.web_sdp import secured
from ari_ha.wire.keyspace import DialogsValue, MediaValue
from ari_ha.wire.link import LegGone, Rung

TOMBSTONES_TOLD_MAX = 24
DIGITS_KEPT_MAX = 64
MOVES_KEPT_MAX = 32
ANOTHER_LIFE = "another"
"""`PhoneLeg.relay_life` where the record does not say it"""
DEVICE, NUMBER = "device:", "number:"
"""What a node may ask to be dialled: an address of record, or a number at a carrier."""


@dataclass(slots=True)
class PhoneLeg:
    """One phone's side: a dialog the phone keeps whatever dies behind the edge."""

    leg: str
    role: str
    """customer, agent or user (a phone that dialled us)"""
    key: str
    """The leg's key in the SIP endpoint."""
    state: str = "trying"
    """trying, ringing, up, ended"""
    held: bool = False
    muted: bool = False
    """Nobody is to hear this phone."""
    aor: str = ""
    user: str = ""
    attempt: str = ""
    agent: str = ""
    queue: str = ""
    """Whose phone it is, and for which queue's caller, as the node that rang it said"""
    host: str = ""
    """rtpengine's address and port towards this phone: they change only with the edge's
    own address (`edge_rehome`)."""
    port: int = 0
    origin: str = ""
    """The address our first SDP to it was from, where that was another edge's"""
    elsewhere: bool = False
    """It still sends its words and its audio to the address of another edge."""
    side: AudioSide = field(default_factory=AudioSide)
    key_line: str = ""
    """Our SRTP key towards this phone (``inline:…``), made by rtpengine"""
    relay_life: str = ""
    """The life of rtpengine that made the key (`edge_srtp`); empty: today's, whose name is not known yet"""
    interface: str = ""
    """rtpengine's logical interface its port is on; empty: the public one"""
    web_lines: list[str] = field(default_factory=list)
    """Towards a browser: rtpengine's ICE and certificate, as attributes"""
    sdp_version: int = 1
    late_offer: bool = False
    ringing_sent: bool = False
    target: str = ""
    """What a node asked to be dialled, ``device:<aor>`` or ``number:<number>``"""
    consult: str = ""
    """The consulting phone's leg of the side conversation it belongs to; its own for that"""
    of: str = ""
    """On a consulting leg: the same phone's leg in the main conversation"""
    number_asked: str = ""
    """On a consulting leg: whom it wants to reach"""
    refer: dict[str, str] = field(default_factory=dict)
    """A transfer it asked for and that is not over: id, number, other"""
    forks: list[str] = field(default_factory=list)
    """SIP keys of its further dialogs while it rings at several places, and of the one that
    is being replaced"""
    fax: dict[str, Any] = field(default_factory=dict)
    """Its port for T.38 once it had one: host, port, and whether it is ``on``"""
    taken: bool = False
    """Another account's phone has taken it over (RFC 3891)"""
    trunk: str = ""
    """The trunk it leaves by"""
    tried: list[str] = field(default_factory=list)
    """Trunks tried for it, this one included"""
    places: list[str] = field(default_factory=list)
    """host:port tried at this trunk"""
    progress: bool = False
    """The carrier has reported progress: no other trunk is tried any more. On a caller's
    leg: he was told that the party can be heard."""
    early: bool = False
    """Its audio is heard before the answer (RFC 3960)."""
    redirects: int = 0
    media_lines: list[str] = field(default_factory=list)
    """The phone's offer, line by line: empty for the audio we take, else the m-line that
    refuses a stream; an answer has as many m-lines as its offer (RFC 3264 §6)."""

    @property
    def aside(self) -> bool:
        """Whether it is a supervisor's, whom the people's media does not depend on."""
        return is_supervisor(self.leg)

    @property
    def alive(self) -> bool:
        """Whether anybody is, or may soon be, on this leg."""
        return self.state != "ended"

    @property
    def waits(self) -> bool:
        """A caller who has not been answered yet."""
        return self.state in ("trying", "ringing") and not self.target

    @property
    def fact(self) -> str:
        """The leg's state as nodes know states: whoever is not answered rings."""
        return "ringing" if self.state == "trying" else self.state

    @property
    def name(self) -> str:
        """Whom the leg leads to, in words."""
        return self.aor or self.number or self.leg

    @property
    def number(self) -> str:
        """The number dialled at a carrier; empty for a phone."""
        return self.target.removeprefix(NUMBER) if self.target.startswith(NUMBER) else ""

    def local_sdp(self, direction: str = "sendrecv", bump: bool = False) -> str:
        """Our SDP to this phone: same origin, same port, its own payload numbers.
        ``bump`` raises the version (RFC 3264 §8)."""
        if bump:
            self.sdp_version += 1
        side = self.side
        sdes = f"{side.crypto_tag} {side.suite} {self.key_line}" if side.suite and not side.web else ""
        audio = build_audio_sdp(
            1,
            self.sdp_version,
            self.host,
            self.port,
            [(side.payload, f"{side.codec}/8000")],
            side.telephone_event,
            direction,
            sdes,
            self.origin,
        )
        if side.web:
            lines = [*self.web_lines, f"setup:{side.setup}", "rtcp-mux"]
            audio = secured(audio, lines, side.mid, side.bundled)
        if len(self.media_lines) < 2:
            return audio
        head, _, stream = audio.partition("m=")
        return head + "".join(line or f"m={stream}" for line in self.media_lines)

    def take_web_lines(self, lines: list[str]) -> bool:
        """Keeps rtpengine's ICE and certificate; False when it said none. Others than before
        are another ICE session, which the phone answers with another of its own."""
        if self.web_lines and lines != self.web_lines:
            self.side.ufrag = ""
        self.web_lines = lines
        return bool(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON facts of the leg, without its SIP state."""
        return {
            "leg": self.leg,
            "role": self.role,
            "key": self.key,
            "state": self.state,
            "held": self.held,
            "muted": self.muted,
            "aor": self.aor,
            "user": self.user,
            "attempt": self.attempt,
            "agent": self.agent,
            "queue": self.queue,
            "host": self.host,
            "port": self.port,
            "origin": self.origin,
            "elsewhere": self.elsewhere,
            "payload": self.side.payload,
            "telephone_event": self.side.telephone_event,
            "suite": self.side.suite,
            "crypto_tag": self.side.crypto_tag,
            "relay_tag": self.side.relay_tag,
            "relay_life": self.relay_life,
            "interface": self.interface,
            "key_line": self.key_line,
            "web": self.side.web_facts(),
            "web_lines": self.web_lines,
            "sdp_version": self.sdp_version,
            "late_offer": self.late_offer,
            "target": self.target,
            "consult": self.consult,
            "of": self.of,
            "number_asked": self.number_asked,
            "refer": self.refer,
            "taken": self.taken,
            "fax": self.fax,
            "trunk": self.trunk,
            "tried": self.tried,
            "places": self.places,
            "progress": self.progress,
            "early": self.early,
            "media_lines": self.media_lines,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PhoneLeg:
        """The leg of a record written by `to_dict`."""
        side = AudioSide(data.get("payload", 8), data.get("telephone_event", 101))
        side.suite, side.crypto_tag = data.get("suite", ""), data.get("crypto_tag", 1)
        side.relay_tag = data.get("relay_tag", 1)
        side = side.with_web_facts(data.get("web", {}))
        names = ("leg", "role", "key", "state", "held", "muted", "aor", "user", "attempt", "agent",
                 "queue", "host", "port", "origin", "elsewhere", "target", "consult", "of", "number_asked",
                 "refer", "taken", "fax",
                 "sdp_version", "late_offer", "trunk", "tried", "places", "progress", "early",
                 "key_line", "web_lines", "media_lines", "interface")  # fmt: skip
        known = {name: data[name] for name in names if name in data}
        return cls(**known, relay_life=data.get("relay_life") or ANOTHER_LIFE, side=side)


@dataclass(slots=True)
class NodeLeg:
    """One leg's other half: the dialog with the Asterisk that serves it."""

    leg: str
    node: NodeId
    epoch: Epoch
    key: str
    tag: str
    """rtpengine's tag of this half: ``<leg>@<node>.<n>``"""
    calls_us: bool = False
    """True when the node sent the INVITE (it dials), False when the edge did."""
    state: str = "calling"
    """calling, up, ended"""
    over: bool = False
    """Ended by us as well: its tag has been given back"""
    host: str = ""
    port: int = 0
    origin: str = ""
    """As of a `PhoneLeg`"""
    elsewhere: bool = False
    """As of a `PhoneLeg`"""
    sdp_version: int = 1
    side: AudioSide = field(default_factory=AudioSide)

    def local_sdp(self, direction: str = "sendrecv", bump: bool = False) -> str:
        """Our SDP to the node. ``bump`` raises the version (RFC 3264 §8)."""
        if bump:
            self.sdp_version += 1
        return build_audio_sdp(
            1,
            self.sdp_version,
            self.host,
            self.port,
            [(self.side.payload, f"{self.side.codec}/8000")],
            self.side.telephone_event,
            direction,
            origin=self.origin,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON facts of the half, without its SIP state."""
        return {
            "leg": self.leg,
            "node": str(self.node),
            "epoch": str(self.epoch),
            "key": self.key,
            "tag": self.tag,
            "calls_us": self.calls_us,
            "state": self.state,
            "host": self.host,
            "port": self.port,
            "origin": self.origin,
            "elsewhere": self.elsewhere,
            "sdp_version": self.sdp_version,
            "payload": self.side.payload,
            "telephone_event": self.side.telephone_event,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NodeLeg:
        """The half of a record written by `to_dict`."""
        return cls(
            data["leg"],
            NodeId.parse(data["node"]),
            Epoch.parse(data["epoch"]),
            data["key"],
            data["tag"],
            calls_us=data.get("calls_us", False),
            state=data.get("state", "up"),
            host=data.get("host", ""),
            port=data.get("port", 0),
            origin=data.get("origin", ""),
            elsewhere=data.get("elsewhere", False),
            sdp_version=data.get("sdp_version", 1),
            side=AudioSide(data.get("payload", 8), data.get("telephone_event", 101)),
        )


@dataclass(slots=True)
class Move:
    """A takeover (or a drain) under way: the call's next home."""

    epoch: Epoch
    to: NodeId
    why: str
    started: float
    before: Epoch
    """Under which its old node serves it, if any does"""
    halves: dict[str, NodeLeg] = field(default_factory=dict)
    bridged: bool = False
    handing_over: bool = False
    """The next home has it and, as the old one serves it still, is listened for."""
    ends: list[LegGone] = field(default_factory=list)
    """Whose ends the next home was told of: should it come to nothing, the old one has not heard of them"""

    @property
    def taken_up(self) -> bool:
        """Whether every leg we brought is answered; those it dials itself are its own."""
        return all(half.state == "up" for half in self.halves.values() if not half.calls_us)


@dataclass(slots=True)
class EdgeCall:
    """One call: people on one side, an Asterisk on the other, and who serves."""

    call: str
    kind: str
    """trunk (from a carrier) or agent (an agent's phone dialled)"""
    started_utc: float
    media: CallMedia
    caller: str = ""
    did: str = ""
    trunk: str = ""
    head: str = PRIMARY_LEG
    """The leg whose end ends the call"""
    identity: dict[str, str] = field(default_factory=dict)
    """What is kept of the caller's identity headers (`identity`)"""
    legs: dict[str, PhoneLeg] = field(default_factory=dict)
    halves: dict[str, NodeLeg] = field(default_factory=dict)
    owner: NodeId | None = None
    epoch: Epoch = NO_EPOCH
    spent: Epoch = NO_EPOCH
    """A higher one, where a move came to nothing: the call has the epoch under which its node serves it"""
    lost: str = ""
    """Why the owner no longer serves; empty while it does."""
    lost_at: float = 0.0
    want: str = "through"
    want_request: int = 0
    move: Move | None = None
    prefer: str = ""
    """The node an operator wants it moved to"""
    tries: int = 0
    unserved_since: float = 0.0
    """When a node was first looked for and none was ready; 0: one was."""
    by_dialplan: bool = False
    """No app was there: its node's dialplan serves the call by itself, and nobody moves it."""
    refused_by: set[str] = field(default_factory=set)
    """Nodes that failed to take this call up, new or moved."""
    leaving: list[NodeLeg] = field(default_factory=list)
    """Dialogs with an earlier node, ended as soon as the media has moved."""
    fading: set[tuple[str, str]] = field(default_factory=set)
    """(leg, tag of an earlier node's half) that is heard for a moment more"""
    tombstones: dict[str, str] = field(default_factory=dict)
    turned_down: str = ""
    """The last attempt whose phone refused it, let it ring in vain, or hung up"""
    announced: set[str] = field(default_factory=set)
    farewells: dict[str, str] = field(default_factory=dict)
    """SIP key -> trunk of legs we have ended: whoever goes on with the call repeats what had no answer"""
    tag_numbers: dict[str, set[int]] = field(default_factory=dict)
    """``leg@node`` -> n in use, for rtpengine tags"""
    digits: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    """leg -> its last digits by INFO, numbered"""
    moves: list[dict[str, Any]] = field(default_factory=list)
    answered_utc: float = 0.0
    connected_utc: float = 0.0
    agents: list[str] = field(default_factory=list)
    """Who answered it, in order"""
    served: list[str] = field(default_factory=list)
    """node#incarnation that served it, in order, the last ones"""
    cause: str = ""
    """Why the leg that leads the call ended"""
    record: bytes = b""
    """Its node's record as last seen, for what only the node knows"""
    recorded: bool = False
    """Its node said that it is to be recorded."""
    recorders: dict[str, RecorderLeg] = field(default_factory=dict)
    """recording -> the copy that goes there"""
    ended: bool = False

    @property
    def newest(self) -> Epoch:
        """The highest epoch that was given for it."""
        return max(self.epoch, self.spent)

    def served_under(self, epoch: str) -> bool:
        """Whether a frame of this epoch is the serving node's word: while a call moves on
        purpose its old node still serves it under the epoch before."""
        if epoch == str(self.epoch):
            return True
        return not self.lost and self.move is not None and epoch == str(self.move.before)

    @property
    def in_menu(self) -> bool:
        """Whether its record says that an IVR has the caller: he may hear nothing by right."""
        return b'"stage":"ivr"' in self.record

    @property
    def primary(self) -> PhoneLeg | None:
        """The leg whose call it is, while it lives."""
        leg = self.legs.get(self.head)
        return leg if leg and leg.alive else None

    @property
    def fresh(self) -> bool:
        """Nobody has answered its caller, or is called for him: another node can be asked as if he had just
        come. Not whose second line leads it: no node takes that for a call of its own."""
        leg = self.primary
        return leg is not None and leg.state == "trying" and not leg.of

    def keep_times(self, utc: float) -> None:
        """Keeps what the call's record will say and only this moment knows."""
        up = [leg for leg in self.up() if not leg.aside]
        if up and not self.answered_utc:
            self.answered_utc = utc
        if len(up) > 1:
            self.connected_utc = self.connected_utc or utc
            self.agents += [leg.agent for leg in up if leg.agent and leg.agent not in self.agents]
        if self.owner and (not self.served or self.served[-1] != str(self.owner)):
            self.served.append(str(self.owner))
            del self.served[:-MOVES_KEPT_MAX]

    def keep_told(self, leg: str, digit: str, utc: float) -> int:
        """Keeps a digit that came by INFO; returns its number. Numbers grow also over a
        restart of ours, which forgets them: so they begin at the time in milliseconds."""
        known = self.told.setdefault(leg, [])
        number = max(round(utc * 1000), known[-1][0] + 1 if known else 1)
        known.append((number, digit))
        del known[:-DIGITS_KEPT_MAX]
        return number

    def half_of(self, leg: str) -> NodeLeg | None:
        """The leg's half at the node that has it, or is about to."""
        moving = self.move.halves.get(leg) if self.move else None
        return moving or self.halves.get(leg)

    def to_answer(self) -> list[NodeLeg]:
        """Halves of a node that dials, whose party is there, and that have not heard so."""
        up = {leg.leg for leg in self.up()}
        waiting = [half for half in self.halves.values() if half.calls_us and half.state == "calling"]
        return [half for half in waiting if half.leg in up]

    def home(self) -> NodeId | None:
        """The node to tell what happens: where the call is going, else where it is."""
        return self.move.to if self.move else self.owner

    def living(self) -> list[PhoneLeg]:
        """Legs with somebody on them, or ringing."""
        return [leg for leg in self.legs.values() if leg.alive]

    def up(self) -> list[PhoneLeg]:
        """Legs that have been answered."""
        return [leg for leg in self.legs.values() if leg.state == "up"]

    def audible(self, consult: str = "") -> list[PhoneLeg]:
        """Legs of one conversation whose audio flows: answered, or heard early."""
        return [leg for leg in self.living() if leg.consult == consult and (leg.state == "up" or leg.early)]

    def consults(self) -> list[str]:
        """The side conversations, by the leg that leads each."""
        return sorted({leg.consult for leg in self.living() if leg.consult})

    def conversation(self, consult: str) -> list[PhoneLeg]:
        """Living legs of a conversation, its head first."""
        first = consult or self.head
        legs = [leg for leg in self.living() if leg.consult == consult]
        # of three the caller and his agent are the two who can be connected without a node
        return sorted(legs, key=lambda leg: (leg.leg != first, not (leg.attempt or leg.of), leg.leg))

    def waiter(self, leg: PhoneLeg) -> PhoneLeg | None:
        """Who waits for ``leg`` to answer."""
        head = self.legs.get(leg.consult or self.head)
        return head if head is not None and head is not leg and head.alive and head.waits else None

    def recorded_legs(self) -> list[PhoneLeg]:
        """Whose voices are recorded: of everybody in the main conversation, while there are two."""
        if not self.recorded:
            return []
        legs = [leg for leg in self.conversation("") if leg.state == "up" and not leg.aside]
        return legs if len(legs) > 1 else []

    def recorder_graph(self) -> set[tuple[str, str]]:
        """What recorders hear."""
        legs = {leg.leg for leg in self.recorded_legs()}
        return {(one.tag, one.leg) for one in self.recorders.values() if one.on and one.leg in legs}

    def early_graph(self) -> set[tuple[str, str]]:
        """A caller who is not answered yet hears the party that lets itself be heard."""
        heard = [leg for leg in self.living() if leg.early and leg.state == "ringing" and leg.target]
        return {(head.leg, leg.leg) for leg in heard if (head := self.waiter(leg)) and head.progress}

    def facts(self) -> dict[str, str]:
        """The edge's word about every living leg, for a resume."""
        return {leg.leg: "held" if leg.held else leg.fact for leg in self.living()}

    def ended_lately(self) -> dict[str, str]:
        """The last legs that ended, and who ended them: a message has room for some, and
        older ones are history."""
        return dict(list(self.tombstones.items())[-TOMBSTONES_TOLD_MAX:])

    def grouping(self) -> dict[str, Any]:
        """Who belongs to whom, for a resume by a node whose record may be too old to know."""
        by_queue = [leg for leg in self.living() if leg.attempt and leg.queue and leg.leg != self.head]
        return {
            "head": self.head,
            "sides": {leg.leg: leg.consult for leg in self.living() if leg.consult},
            "lines": {leg.leg: leg.of for leg in self.living() if leg.of},
            "targets": {leg.leg: leg.target for leg in self.living() if leg.target and not leg.attempt},
            "rung": {leg.leg: Rung(leg.attempt, leg.agent, leg.aor, leg.queue) for leg in by_queue},
            "turned_down": self.turned_down,
            "asking": [leg.leg for leg in self.living() if leg.refer],
        }

    def two_talking(self, consult: str = "") -> bool:
        """Whether exactly two people are in the conversation and nobody is on hold."""
        up = [leg for leg in self.up() if leg.consult == consult and not leg.aside]
        return len(up) == 2 and not any(leg.held for leg in up)

    def take_tag(self, leg: str, node: str) -> str:
        """A rtpengine tag for ``leg`` towards ``node``; lowest free number, because
        tags cannot be deleted and would pile up."""
        used = self.tag_numbers.setdefault(f"{leg}@{node}", set())
        n = 1
        while n in used:
            n += 1
        used.add(n)
        return f"{leg}@{node}.{n}"

    def free_tag(self, tag: str) -> None:
        """The dialog of ``tag`` has ended: its number may serve again."""
        base, _, n = tag.rpartition(".")
        self.tag_numbers.get(base, set()).discard(int(n))

    def dialogs_value(self, export: Any, at: str) -> DialogsValue:
        """The stored form; ``export`` turns a SIP key into its record, or None. ``at``: the
        address by which people know this edge."""
        legs = {
            leg.leg: {**leg.to_dict(), "sip": export(leg.key), "forks": {k: export(k) for k in leg.forks}}
            for leg in self.living()
        }
        halves = {half.leg: {**half.to_dict(), "sip": export(half.key)} for half in self.halves.values()}
        # what is said in a BYE does not depend on the audio
        silent = {"local_sdp": None, "remote_sdp": None}
        byes = {
            key: {"sip": {**record, **silent}, "trunk": trunk}
            for key, trunk in self.farewells.items()
            if (record := export(key))
        }
        self.farewells = {key: self.farewells[key] for key in byes}
        return DialogsValue(
            call=self.call,
            at=at,
            started=self.started_utc,
            trunk=self.trunk,
            caller=self.caller,
            did=self.did,
            legs=legs,
            node_legs=halves,
            tombstones=dict(self.tombstones),
            turned_down=self.turned_down,
            kind=self.kind,
            want=self.want,
            identity=dict(self.identity),
            head=self.head,
            answered=self.answered_utc,
            connected=self.connected_utc,
            served=list(self.served),
            agents=list(self.agents),
            recorded=self.recorded,
            recorders={name: one.to_dict() for name, one in self.recorders.items() if one.on},
            byes=byes,
        )

    def media_value(self) -> MediaValue:
        """The stored media state."""
        return MediaValue(
            call=self.call,
            ng_call=self.call,
            state=self.media.state,
            epoch=str(self.epoch),
            node_tags={half.leg: half.tag for half in self.halves.values()},
            muted=sorted(leg.leg for leg in self.living() if leg.muted),
        )
