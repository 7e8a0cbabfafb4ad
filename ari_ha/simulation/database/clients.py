"""Applications: they write, and remember what they were told yes for."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.simulation.database.pair import NAMES, Pair
from ari_ha.simulation.process import RUNNING

CHECK_EVERY_S = 0.5
REPLY_LIMIT_S = 3.0


@dataclass(frozen=True, slots=True)
class Ack:
    """A write a server said yes for."""

    ident: str
    server: str
    at_s: float
    reign: int
    newest: int
    """Newest reign in which any server had said yes before."""


class Clients:
    """Some go where the health checks send them; some stay where they are, as old
    connections do."""

    def __init__(self, pair: Pair, count: int, pause_s: float) -> None:
        self.pair = pair
        self.count = count
        self.pause_s = pause_s
        self.acks: list[Ack] = []
        self.newest_reign = 0
        self.last_ack_s = 0.0
        self.longest_gap_s = 0.0
        self.refused = 0
        self.writing = True
        self._serial = 0
        self._checked: dict[str, bool] = dict.fromkeys(NAMES, False)

    def begin(self) -> None:
        """They start."""
        world = self.pair.world
        self.last_ack_s = world.now
        self._check()
        for number in range(self.count):
            world.after(world.between(0, self.pause_s), lambda number=number: self._write(number))

    def _check(self) -> None:
        for name in NAMES:
            self._checked[name] = self.pair.says_writable(name)
        self.pair.world.after(CHECK_EVERY_S, self._check)

    def _write(self, number: int) -> None:
        world = self.pair.world
        if not self.writing:
            world.after(1.0, lambda: self._write(number))
            return
        stubborn = number == self.count - 1
        good = list(NAMES) if stubborn else [name for name in NAMES if self._checked[name]]
        if not good:
            world.after(self.pause_s, lambda: self._write(number))
            return
        server = self.pair.servers[world.rng.choice(good)]
        self._serial += 1
        ident = f"w{self._serial}"
        done = False

        def again(pause_s: float) -> None:
            nonlocal done
            if not done:
                done = True
                world.after(pause_s, lambda: self._write(number))

        def reply(ok: bool) -> None:
            # The server has said it: whether the client still listens is all the same.
            if ok:
                self._acked(ident, server.name)
            else:
                self.refused += 1
            again(self.pause_s * (0.5 + world.rng.random()))

        if server.state != RUNNING:
            again(self.pause_s)
            return
        life = server.life
        world.after(
            0.001,
            lambda: server.write(ident, reply) if server.running and server.life == life else again(0.1),
        )
        world.after(REPLY_LIMIT_S, lambda: again(0.0))

    def _acked(self, ident: str, server: str) -> None:
        now, reign = self.pair.world.now, self.pair.reigns.get(server, 0)
        self.longest_gap_s = max(self.longest_gap_s, now - self.last_ack_s)
        self.last_ack_s = now
        self.acks.append(Ack(ident, server, now, reign, self.newest_reign))
        self.newest_reign = max(self.newest_reign, reign)
