"""The connections between processes: the node link (mutual TLS over TCP) and the app's
connection to its own Asterisk. Ordered and lossless while they last; what was under way
when they break is gone; silence is noticed late, a closed socket at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ari_ha.core.machine import Effect, Outcome, Unknown, Unreachable
from ari_ha.core.ports.ari import AriCall, AriDown, AriEvent, AriSnapshot, SetMaintenance
from ari_ha.core.ports.link import LinkDown, LinkReceived, LinkUp
from ari_ha.simulation.fake_ari import FakeAri
from ari_ha.simulation.fake_asterisk import FakeAsterisk
from ari_ha.simulation.process import DEAD, FROZEN, MachineProcess
from ari_ha.simulation.world import Network, World
from ari_ha.wire import link as wire

LOOK_EVERY_S = 0.1
LINK_SILENCE_S = 0.6
RECONNECT_MIN_S, RECONNECT_MAX_S = 0.05, 0.4
COMMAND_S = 0.001
ARI_SILENCE_S = 1.0
ARI_WRITE_LIMIT_S = 1.0


class NodeLink:
    """The link between one edge and one node app; the edge dials."""

    def __init__(self, world: World, network: Network, edge: MachineProcess, app: MachineProcess) -> None:
        self.world = world
        self.network = network
        self.edge = edge
        self.app = app
        self.up = False
        self.last = False
        """Its edge is never started again."""
        self.before: NodeLink | None = None
        """The app's link to the edge that this one has replaced"""
        self.number = 0
        """Which connection this is; what belongs to an earlier one is lost."""
        self._lives = (0, 0)
        self._last: dict[str, float] = {}
        self._silent_since: float | None = None
        self._held_back: dict[str, deque[Callable[[], None]]] = {}
        self._next_try = 0.0
        self.taps: list[Callable[[str, str, Any], None]] = []
        """(from, to, frame) of everything that is sent"""
        self.drop: Callable[[str, Any], bool] = lambda sender, frame: False
        """A planted bug: frames that vanish."""
        world.after(world.between(0.0, LOOK_EVERY_S), self._look)

    def _connected(self) -> bool:
        one, two = self.edge.host, self.app.host
        return not self.network.cut(one, two) and not self.network.cut(two, one)

    def _look(self) -> None:
        """The state of both ends and of the way between them, now and then."""
        world = self.world
        if self.last and not self.up and self.edge.state == DEAD:
            return
        world.after(LOOK_EVERY_S * world.between(0.8, 1.2), self._look)
        edge, app = self.edge, self.app
        if not self.up:
            if world.now >= self._next_try and edge.running and app.running and self._connected():
                self._open()
            return
        if (edge.life, app.life) != self._lives or DEAD in (edge.state, app.state):
            self._one_end_died()
            return
        if edge.running and app.running and self._connected():
            self._silent_since = None
            for waiting in self._held_back.values():
                while waiting:
                    waiting.popleft()()
            return
        if self._silent_since is None:
            self._silent_since = world.now
        elif world.now - self._silent_since > LINK_SILENCE_S:
            self._break("silence", clean=False)

    def _open(self) -> None:
        self._replace()
        self.up = True
        self.number += 1
        self._lives = (self.edge.life, self.app.life)
        self._last = {}
        self._held_back = {self.edge.name: deque(), self.app.name: deque()}
        self._silent_since = None
        self.edge.deliver(LinkUp(peer=self.app.name))
        self.app.deliver(LinkUp(peer=self.edge.name))

    def _replace(self) -> None:
        """A peer has one connection: the app drops the one of an earlier life of that name first."""
        before = self.before
        while before is not None:
            if before.up and before.edge.name == self.edge.name:
                before._break("replaced by a newer connection", clean=True)
            before = before.before

    def _one_end_died(self) -> None:
        """A kernel closes what its process leaves behind, when it can be heard."""
        if self._connected():
            self._break("closed by the far end", clean=True)
            return
        if self._silent_since is None:
            self._silent_since = self.world.now
        elif self.world.now - self._silent_since > LINK_SILENCE_S:
            self._break("silence", clean=False)

    def _break(self, reason: str, clean: bool) -> None:
        self.up = False
        self._next_try = self.world.now + self.world.between(RECONNECT_MIN_S, RECONNECT_MAX_S)
        for process, life, peer in (
            (self.edge, self._lives[0], self.app.name),
            (self.app, self._lives[1], self.edge.name),
        ):
            if process.life == life and process.state != DEAD:
                # who stood still itself only finds a closed socket when it wakes
                own = process.state == FROZEN
                process.deliver(LinkDown(peer=peer, reason=reason, clean=clean or own))

    def send(self, sender: MachineProcess, frame: Any) -> None:
        """A frame from one end to the other."""
        to = self.app if sender is self.edge else self.edge
        for tap in self.taps:
            tap(sender.name, to.name, frame)
        if not self.up or self.drop(sender.name, frame):
            return
        (decoded,) = wire.FrameReader().feed(wire.encode(frame))
        number = self.number

        def arrive() -> None:
            if number == self.number and self.up:
                to.deliver(LinkReceived(peer=sender.name, frame=decoded))

        if not self._connected():
            # to an edge that has taken another's name meanwhile it is lost with this connection
            self._held_back.setdefault(to.name, deque()).append(arrive)
            return
        delay_s = self.network.stream_delay(sender.host, to.host)
        when = max(self.world.now + delay_s, self._last.get(to.name, 0.0))
        self._last[to.name] = when
        self.world.at(when, arrive)


class AriLink:
    """The node app's websocket and REST calls to its own Asterisk, over loopback."""

    def __init__(self, world: World, app: MachineProcess, asterisk: FakeAsterisk) -> None:
        self.world = world
        self.app = app
        self.asterisk = asterisk
        self.ari = FakeAri(asterisk)
        self.up = False
        self._lives = (0, 0)
        self._last = 0.0
        self._silent_since: float | None = None
        self._unread_since: float | None = None
        self._next_try = 0.0
        self.tap: Callable[[AriCall, Outcome], None] = lambda effect, outcome: None
        world.after(world.between(0.0, 0.02), self._look)

    def _look(self) -> None:
        world, app, asterisk = self.world, self.app, self.asterisk
        world.after(world.between(0.01, 0.03), self._look)
        if not self.up:
            if world.now >= self._next_try and app.running and asterisk.running:
                self._open()
            return
        if app.life != self._lives[0] or app.state == DEAD:
            self.up = False
            if asterisk.life == self._lives[1]:
                asterisk.disconnect()
        elif asterisk.life != self._lives[1] or asterisk.state == DEAD:
            self._down("process gone", True)
        elif not asterisk.running and app.running:
            self._silent_since = self._silent_since or world.now
            if world.now - self._silent_since > ARI_SILENCE_S:
                self._down("no answer to pings", False)
        elif not app.running and asterisk.running and self._unread_since is not None:
            if world.now - self._unread_since > ARI_WRITE_LIMIT_S:
                self._down("Asterisk closed the websocket: not read", False)
        else:
            self._silent_since = None

    def _down(self, reason: str, gone: bool) -> None:
        self.up = False
        self._next_try = self.world.now + self.world.between(RECONNECT_MIN_S, RECONNECT_MAX_S)
        life = self._lives[1]
        asterisk = self.asterisk
        if asterisk.life == life and asterisk.state != DEAD:
            asterisk.in_life(asterisk.disconnect)()
        self.app.deliver(AriDown(reason=reason, process_gone=gone))

    def _open(self) -> None:
        self.up = True
        self._lives = (self.app.life, self.asterisk.life)
        self._silent_since = self._unread_since = None
        channels, bridges = self.asterisk.connect(self._event)
        self._pipe(AriSnapshot(incarnation=self.asterisk.incarnation, channels=channels, bridges=bridges))

    def _event(self, event: Any) -> None:
        """One event of the websocket, behind all others."""
        if not self.app.running and self._unread_since is None:
            self._unread_since = self.world.now
        elif self.app.running:
            self._unread_since = None
        self._pipe(AriEvent(event=event))

    def _pipe(self, event: AriEvent | AriSnapshot) -> None:
        lives = self._lives

        def arrive() -> None:
            if lives == self._lives and self.up:
                self.app.deliver(event)

        when = max(self.world.now + self.world.between(0.0001, 0.001), self._last)
        self._last = when
        self.world.at(when, arrive)

    def perform(self, effect: Effect, settle: Callable[[Outcome], None]) -> None:
        """One REST call, or a command over the control socket."""
        if isinstance(effect, SetMaintenance):
            self._ask(
                lambda: self.asterisk.set_maintenance(effect.endpoints, effect.on), settle, lambda: COMMAND_S
            )
            return
        assert isinstance(effect, AriCall)
        world = self.world

        def perform() -> Outcome:
            outcome = self.ari.perform(effect.operation, effect.params)
            self.tap(effect, outcome)
            return outcome

        self._ask(perform, settle, lambda: world.between(0.0002, 0.002))

    def _ask(
        self, perform: Callable[[], Outcome], settle: Callable[[Outcome], None], takes: Callable[[], float]
    ) -> None:
        """A hung Asterisk does it when it wakes; one that dies never."""
        world, asterisk = self.world, self.asterisk
        if asterisk.state == DEAD:
            world.after(0.001, lambda: settle(Unreachable("connection refused")))
            return

        def arrive() -> None:
            outcome = perform()
            world.after(takes(), lambda: settle(outcome))

        life = asterisk.life

        def sent() -> None:
            if asterisk.life != life or asterisk.state == DEAD:
                settle(Unknown("connection lost"))
                return
            asterisk.in_life(arrive)()

        world.after(takes(), sent)
