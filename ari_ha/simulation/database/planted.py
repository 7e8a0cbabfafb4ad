"""Planted bugs: a checker that does not find its own checks nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from ari_ha.machines.database import DatabaseMachine
from ari_ha.machines.database_config import ASYNC, CIRCULAR, MARIADB, MYSQL, REPLICA, SYNC
from ari_ha.machines.database_model import Model
from ari_ha.machines.database_steps import Step
from ari_ha.simulation.database.faults import Odds
from ari_ha.simulation.database.pair import Pair, Shape
from ari_ha.simulation.database.run import Plan


@dataclass(frozen=True)
class Planted:
    """A bug, the weather in which it shows, and the rules that must catch it."""

    what: str
    plant: Callable[[Pair], None]
    kinds: tuple[str, ...]
    rules: tuple[str, ...]
    flavour: str = MYSQL
    mode: str = SYNC
    shape: str = REPLICA
    pause_s: float = 3.0
    lag_s: float = 0.0

    @property
    def plan(self) -> Plan:
        """Runs that should fail."""
        odds = Odds(kinds=self.kinds, pause_s=self.pause_s, lag_s=self.lag_s)
        return Plan(
            plant=self.plant, odds=odds, shape=Shape(self.flavour, self.shape, self.mode), safety_s=20.0
        )


def _machines(change: Callable[[DatabaseMachine], None]) -> Callable[[Pair], None]:
    return lambda pair: pair.on_machine.append(change)


def _undrained(machine: DatabaseMachine) -> None:
    """What was received is thrown away at promotion."""
    real = machine.primary._drain
    machine.primary._drain = lambda seen: real(seen)[:-1]  # type: ignore[method-assign]


def _anybody(machine: DatabaseMachine) -> None:
    """Whoever is there takes the lead, certified or not."""
    machine.replica._succeed = lambda seen, now: ""  # type: ignore[method-assign]
    machine.primary._unfit = lambda seen: ""  # type: ignore[method-assign]


def _off_untold(machine: DatabaseMachine) -> None:
    """Commits stop waiting, and etcd never hears of it."""
    real = machine.primary._alone

    def nothing(now: float) -> None:
        machine._retry_at = now + 1.0

    def alone(new_term: bool = False) -> Step:
        return real(True) if new_term else Step("nothing", nothing)

    machine.primary._alone = alone  # type: ignore[method-assign]


def _no_fence(machine: DatabaseMachine) -> None:
    """The fence asks nobody and kills nobody."""
    machine.authority._perhaps_writable = lambda: False  # type: ignore[method-assign]


def _no_errant_check(machine: DatabaseMachine) -> None:
    """A former primary is copied over without a look at what it has."""
    machine.model.errant = lambda: "" if machine.model.led_by_other else None  # type: ignore[method-assign]


def _no_archive(machine: DatabaseMachine) -> None:
    """Rebuilt without an archive."""
    machine.model.own = lambda: ""  # type: ignore[method-assign]
    replica = machine.replica
    real = replica._rebuild
    replica._rebuild = lambda why, errant, now: real(why, "", now)  # type: ignore[method-assign]


def _truncates_always(pair: Pair) -> None:
    """MariaDB always starts as if another server had everything."""
    real = pair._start_server

    def start(server: Any, truncate: bool, settle: Any) -> None:
        real(server, True, settle)

    pair._start_server = start  # type: ignore[method-assign]


def _named_too_early(machine: DatabaseMachine) -> None:
    """The standby is named as soon as commits wait, whatever was under way."""
    real = machine.primary._certify

    def certify() -> list[Step]:
        steps = real()
        peer = machine.primary._peer()
        seen = machine.model.server
        assert peer is not None and seen is not None
        cell = steps[-1].act.__closure__ or ()  # type: ignore[union-attr]
        for goal in (c.cell_contents for c in cell if isinstance(c.cell_contents, dict)):
            goal.update(position=seen.position, life=peer.life, server=peer.server)
        return [steps[0], steps[-1]]

    machine.primary._certify = certify  # type: ignore[method-assign]


def _life_forgotten(machine: DatabaseMachine) -> None:
    """A standby counts as certified though it was restarted."""
    model: Model = machine.model
    real = Model.sync.fget
    assert real is not None

    class Forgetful(Model):
        @property
        def sync(self) -> Any:
            stored = real(self)
            if stored is None or stored.value.standby != self.me or self.server is None:
                return stored
            return replace(stored, value=_with_life(stored.value, self.server.life))

    model.__class__ = Forgetful


def _with_life(value: Any, life: str) -> Any:
    return msgspec.structs.replace(value, standby_life=life)


def _old_lease(machine: DatabaseMachine) -> None:
    """A lead counts whatever lease it was written with."""
    model = machine.model

    class Credulous(Model):
        @property
        def leads(self) -> bool:
            leader = self.leader
            return leader is not None and leader.value.process == self.config.process

    model.__class__ = Credulous


PLANTED = {
    "undrained": Planted(
        "promotes without applying what was received", _machines(_undrained), ("slow-replica", "server-kill"),
        ("no confirmed write is lost",), pause_s=1.5,
    ),
    "anybody": Planted(
        "takes the lead without being certified", _machines(_anybody),
        ("cut-peer", "server-kill", "slow-replica"), ("no confirmed write is lost", "one server says yes"),
        pause_s=1.5,
    ),
    "off-untold": Planted(
        "stops waiting while the standby is still named", _machines(_off_untold),
        ("cut-peer", "server-kill"), ("no confirmed write is lost",), pause_s=2.0,
    ),
    "no-fence": Planted(
        "never closes", _machines(_no_fence), ("cut-both", "cut-etcd"), ("one server says yes",), mode=ASYNC,
    ),
    "no-errant-check": Planted(
        "a former primary follows with transactions of its own", _machines(_no_errant_check),
        ("server-kill", "cut-both"), ("comes together",), pause_s=1.5,
    ),
    "no-archive": Planted(
        "overwrites without an archive", _machines(_no_archive), ("errant", "server-kill"),
        ("nothing is overwritten silently",),
    ),
    "truncates-always": Planted(
        "MariaDB's truncation where nothing waited", _truncates_always,
        ("host-kill", "server-kill", "cut-peer"), ("no confirmed write is lost",), flavour=MARIADB,
        pause_s=1.0,
    ),
    "named-too-early": Planted(
        "a standby is named that lacks what was there before", _machines(_named_too_early),
        ("cut-peer", "slow-replica", "server-kill"), ("no confirmed write is lost",), pause_s=1.2,
    ),
    "life-forgotten": Planted(
        "a restarted standby is promoted", _machines(_life_forgotten), ("slow-replica", "server-kill"),
        ("no confirmed write is lost",), pause_s=0.6,
    ),
    "old-lease": Planted(
        "builds on a lead of an older lease", _machines(_old_lease),
        ("cut-both", "lease-revoked", "cut-etcd"),
        ("one server says yes",), shape=CIRCULAR, pause_s=1.5,
        lag_s=0.5,
    ),
}  # fmt: skip
