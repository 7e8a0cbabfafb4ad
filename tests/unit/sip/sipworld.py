"""Endpoints wired in memory: no loop, no clock, no network; `transfer`, `drop` and time are the test's to
use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.message import Request, Response, parse_message
from ari_ha.sip.sdp import build_audio_sdp

Message = Request | Response
STEPS_MAX = 20_000


def sdp(name: str = "10.0.0.9", version: int = 1, direction: str = "sendrecv", port: int = 4000) -> str:
    """A small description; another version has another port too, so that it does change something."""
    return build_audio_sdp(7, version, name, port + 2 * version, direction=direction)


class Party:
    """One endpoint at one address, and everything it was told and has sent."""

    def __init__(self, world: World, name: str, transport: str = "udp", **options: Any) -> None:
        self.world = world
        self.name = name
        self.transport = transport
        self.number = 0
        self.options = options
        self.seen: list[Any] = []
        self.sent: list[Message] = []
        self.generation = 0
        self.agent = self.start()

    def start(self) -> Endpoint:
        """A fresh engine: what a restarted process has."""
        self.generation += 1
        listener = Listener("main", self.transport, self.name, 5060)
        return Endpoint({"main": listener}, self.new_id, **self.options)

    def new_id(self) -> str:
        self.number += 1
        return f"{self.name.replace('.', '-')}g{self.generation}n{self.number}"

    def flow(self, other: Party) -> Flow:
        """The way to another party."""
        conn = "" if self.transport == "udp" else f"to-{other.name}"
        return Flow("main", self.transport, other.name, 5060, conn)

    def call(self, other: Party, leg: str = "a", **options: Any) -> str:
        """Invite another party."""
        options.setdefault("sdp", sdp(self.name))
        options.setdefault("target", f"sip:{other.name}")
        self.agent.invite(
            leg,
            flow=self.flow(other),
            from_=f"<sip:{self.name}>",
            to=f"<sip:{other.name}>",
            now=self.world.now,
            **options,
        )
        return leg

    def take(self, kind: type | None = None) -> Any:
        """The oldest event not yet taken (of a kind); fails when there is none."""
        self.world.collect()
        for position, event in enumerate(self.seen):
            if kind is None or isinstance(event, kind):
                del self.seen[position]
                return event
        raise AssertionError(f"{self.name}: no {kind} in {self.seen}")

    def has(self, kind: type) -> bool:
        """Whether such an event waits."""
        self.world.collect()
        return any(isinstance(event, kind) for event in self.seen)

    def messages(self, what: str | int) -> list[Message]:
        """What it has sent: requests of a method or responses of a status."""
        self.world.collect()
        return [m for m in self.sent if (m.method if isinstance(m, Request) else m.status) == what]


class World:
    """The wire between parties."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.parties: dict[str, Party] = {}
        self.wire: list[tuple[Party, Party, bytes]] = []
        self.lost: Callable[[Message, Party, Party], bool] | None = None

    def party(self, name: str, **options: Any) -> Party:
        """A new party."""
        self.parties[name] = Party(self, name, **options)
        return self.parties[name]

    def collect(self) -> None:
        """Move outputs onto the wire and events to their parties."""
        for party in self.parties.values():
            party.seen += party.agent.events()
            for data, flow in party.agent.output():
                if data.strip(b"\r\n"):
                    party.sent.append(parse_message(data))
                other = self.parties.get(flow.host)
                if other is not None:
                    self.wire.append((party, other, data))

    def deliver(self, position: int = 0) -> None:
        """Bring one message to where it goes, or lose it."""
        source, target, data = self.wire.pop(position)
        message = parse_message(data) if data.strip(b"\r\n") else None
        if message is not None and self.lost is not None and self.lost(message, source, target):
            return
        if source.transport == "tcp":
            target.agent.receive_stream(data, target.flow(source), self.now)
        else:
            target.agent.receive(data, target.flow(source), self.now)

    def transfer(self) -> None:
        """Deliver until the wire is empty; no time passes."""
        for _ in range(STEPS_MAX):
            self.collect()
            if not self.wire:
                return
            self.deliver()
        raise AssertionError("messages go round and round")

    def drop(self) -> list[Message]:
        """Lose what is on the wire."""
        self.collect()
        lost = [parse_message(data) for _, _, data in self.wire]
        self.wire.clear()
        return lost

    def advance(self, seconds: float, deliver: bool = True) -> None:
        """Let time pass, timers fire and (mostly) messages travel."""
        end = self.now + seconds
        for _ in range(STEPS_MAX):
            if deliver:
                self.transfer()
            due = [at for p in self.parties.values() if (at := p.agent.deadline()) is not None and at <= end]
            if not due:
                self.now = end
                return
            self.now = max(self.now, min(due))
            for party in self.parties.values():
                party.agent.handle_timer(self.now)
        raise AssertionError("time does not pass")

    def losing(self, *what: str | int, times: int = 1) -> None:
        """Lose the next messages of these methods or statuses."""
        left = {item: times for item in what}

        def lose(message: Message, source: Party, target: Party) -> bool:
            kind = message.method if isinstance(message, Request) else message.status
            if left.get(kind, 0) > 0:
                left[kind] -= 1
                return True
            return False

        self.lost = lose
