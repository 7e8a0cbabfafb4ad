"""One call, one crash, step by step: what people hear and what the machines do. All of
it simulated, from a seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ari_ha.machines.edge import EdgeMachine
from ari_ha.simulation.cluster import NUMBER, Cluster, Node, Shape
from ari_ha.simulation.fake_phones import UP, Talk
from ari_ha.simulation.world import World

SAMPLE_S = 0.02
"""One voice packet."""
READY_S = 3.0
WAIT_MAX_S = 15.0
AFTER_S = 6.0
LABEL = "SIMULATED"


@dataclass(frozen=True, slots=True)
class Step:
    """One line of the story, in milliseconds from the crash."""

    at_ms: float
    who: str
    text: str

    def __str__(self) -> str:
        return f"{LABEL} {self.at_ms:+10.1f} ms  {self.who:<13} {self.text}"


@dataclass
class Told:
    """The story and its verdict."""

    steps: list[Step] = field(default_factory=list)
    lost_ms: dict[str, float] = field(default_factory=dict)
    phone_messages: int = 0
    survived: bool = False
    verdict: str = ""

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "simulated": True,
            "survived": self.survived,
            "lost_audio_ms": self.lost_ms,
            "phone_messages": self.phone_messages,
            "steps": [{"at_ms": round(s.at_ms, 1), "who": s.who, "text": s.text} for s in self.steps],
        }


class Demo:
    """A cluster of two nodes, one agent, one caller."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.cluster = Cluster(self.world, Shape(nodes=2, agents=1))
        self.told = Told()
        self.crash_s = 0.0
        self._deaf = {"to_customer": 0.0, "to_agent": 0.0}
        self._messages: list[str] = []

    def run(self) -> Told:
        """Plays it to the end."""
        world, cluster = self.world, self.cluster
        cluster.start()
        world.run_until(READY_S)
        cluster.phones.on_ringing = lambda talk: (
            world.after(1.0, lambda: cluster.phones.answer(talk)) and None
        )
        customer = cluster.carrier.call(NUMBER, "+493012345678")
        agent = self._wait_for_talk(customer)
        if agent is None:
            self.told.verdict = f"{LABEL}: the call was never connected"
            return self._tell(0.0)
        world.run_until(world.now + 2.0)
        node = self._server()
        self._kill(node, customer, agent)
        self._judge(node, customer, agent)
        return self._tell(self.crash_s)

    def _wait_for_talk(self, customer: Talk) -> Talk | None:
        world, cluster = self.world, self.cluster
        until = world.now + WAIT_MAX_S
        while world.now < until:
            world.run_until(world.now + 0.1)
            for agent in cluster.phones.talks.values():
                if agent.state == UP and cluster.ears.hears(customer, agent):
                    return agent
        return None

    def _server(self) -> Node:
        """The node that serves the one call."""
        machine = self.cluster.edge.machine
        assert isinstance(machine, EdgeMachine)
        (call,) = machine.calls.by_id.values()
        assert call.owner is not None
        return self.cluster.by_name[call.owner.name]

    def _kill(self, node: Node, customer: Talk, agent: Talk) -> None:
        """SIGKILL, and ears on both sides every 20 ms."""
        world = self.world
        world.say("people", "customer and agent talk")
        self.crash_s = world.now
        self.cluster.wire.taps.append(self._tap)
        node.asterisk.kill()
        until = world.now + AFTER_S
        while world.now < until:
            world.run_until(world.now + SAMPLE_S)
            ears = self.cluster.ears
            for key, listener, speaker in (("to_customer", customer, agent), ("to_agent", agent, customer)):
                if not ears.hears(listener, speaker):
                    self._deaf[key] += SAMPLE_S * 1000

    def _tap(self, host: str, port: int, to_host: str, to_port: int, data: bytes) -> None:
        outside = (self.cluster.carrier.address, self.cluster.phones.address)
        if host in outside or to_host in outside:
            self._messages.append(data.split(b"\r\n", 1)[0].decode())

    def _judge(self, node: Node, customer: Talk, agent: Talk) -> None:
        ears, told, world = self.cluster.ears, self.told, self.world
        told.lost_ms = {key: round(value, 1) for key, value in self._deaf.items()}
        told.phone_messages = len(self._messages)
        now_at = ears.nodes_that_hear(customer)
        world.say("people", f"still talking; {', '.join(now_at) or 'no node'} listens along")
        pressed = ears.press(customer, "5")
        world.run_until(world.now + 0.5)
        world.say("people", f"customer presses 5; heard by {', '.join(pressed) or 'nobody'}")
        whole = ears.hears(customer, agent) and ears.hears(agent, customer)
        moved = [name for name in now_at if name != node.name]
        self.cluster.phones.hang_up(agent)
        world.run_until(world.now + 3.0)
        ended = not customer.alive
        told.survived = whole and bool(moved) and ended and not told.phone_messages
        told.verdict = (
            f"{LABEL}: {'survived' if told.survived else 'NOT survived'}; lost "
            f"{told.lost_ms['to_customer']:g} ms to the customer and {told.lost_ms['to_agent']:g} ms to the "
            f"agent; "
            f"{told.phone_messages} SIP messages at their phones; served on by {', '.join(moved) or 'nobody'}"
        )

    def _tell(self, zero_s: float) -> Told:
        self.told.steps = [
            Step((line.at_s - zero_s) * 1000, line.who, line.text)
            for line in self.world.story
            if line.at_s >= READY_S
        ]
        return self.told


def tell_demo(seed: int = 1) -> Told:
    """The story of one call that survives the death of its Asterisk."""
    return Demo(seed).run()
