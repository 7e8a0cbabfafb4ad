"""A cordoned or drained node: its app refuses new calls, and has its Asterisk refuse them."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pytest

from ari_ha.core.machine import Done, Effect, Event, Outcome, OutcomeOf, Refused, Unknown, Unreachable
from ari_ha.core.ports.ari import NO_COMMAND, NO_ENDPOINT, NO_PERMISSION, SetMaintenance
from ari_ha.core.ports.store import StoreChanged
from ari_ha.machines.node import NodeMachine
from ari_ha.machines.node_config import NodeConfig
from ari_ha.machines.node_maintenance import NO_SUCH_COMMAND, REFUSED_RETRY_S, RETRY_S
from ari_ha.machines.node_presence import CALLS_EVERY_S
from ari_ha.node.settings import NodeSettings
from ari_ha.node.wiring import machine_config
from ari_ha.runtime.settings import SettingsError, build
from ari_ha.wire import link
from ari_ha.wire.keyspace import DrainValue, NodeValue, decode, encode
from tests.support.node_bench import CLUSTER, EDGE, KEY, NODE, Bench

ENDPOINTS = ("edge-in-trunk", "carrier")


class ClosedBench(Bench):
    """A bench whose Asterisk has a control socket."""

    def __init__(self, **more: Any) -> None:
        self.told: list[bool] = []
        """What was asked of it, in order."""
        self.in_maintenance = False
        self.answer: Outcome = Done()
        super().__init__(**more)

    def _machine(self) -> NodeMachine:
        config = NodeConfig(
            cluster=CLUSTER, node=NODE, sip="10.0.0.31:5060", edges=((EDGE, "10.0.0.11:5070"),),
            header_key=KEY, new_call_endpoints=ENDPOINTS,
        )  # fmt: skip
        return NodeMachine(config, lambda: f"id{next(self.ids)}", lambda: 0.5)

    def _perform(self, work: deque[Effect], queue: deque[Event]) -> None:
        effect = work[0]
        if not isinstance(effect, SetMaintenance):
            super()._perform(work, queue)
            return
        work.popleft()
        assert effect.endpoints == ENDPOINTS
        self.told.append(effect.on)
        if isinstance(self.answer, Done):
            self.in_maintenance = effect.on
        queue.append(OutcomeOf(effect=effect, outcome=self.answer))

    def asterisk_dies(self) -> None:
        self.in_maintenance = False
        super().asterisk_dies()

    def drain(self, on: bool = True) -> None:
        """An operator wants the node empty, or no longer."""
        key = self.keys.drain(NODE)
        if on:
            self.post(*self.changed(key, DrainValue(node=NODE)))
        else:
            self.store.data.pop(key)
            self.post(*self.changed(key, None))

    def changed(self, key: str, value: DrainValue | None) -> list[Event]:
        found = self.store.put(key, value) if value is not None else None
        return [StoreChanged(key=key, value=found, revision=self.store.revision)]

    @property
    def word(self) -> str:
        return self.ask("status").body["maintenance"]

    def stored(self) -> NodeValue:
        """The node's word about itself in etcd, a little later."""
        self.sleep(CALLS_EVERY_S + 0.1)
        kv = self.store.data[self.keys.node(NODE)]
        return decode(kv.value, NodeValue, kv.key)

    def troubles(self) -> list[str]:
        return [note.text for note in self.notes if "endpoint maintenance" in note.text]


def test_a_cordon_is_asterisks_too_and_is_taken_away_again() -> None:
    bench = ClosedBench()
    assert (bench.told, bench.word) == ([False], ""), "what an earlier life of the app left is undone"
    bench.ask("cordon")
    assert bench.in_maintenance and (bench.word, bench.stored().maintenance) == ("on", "on")
    bench.ask("cordon")
    bench.sleep(120)
    assert bench.told == [False, True], "asked for once"
    bench.ask("uncordon")
    assert not bench.in_maintenance and (bench.word, bench.stored().maintenance) == ("", "")


def test_a_drain_is_one_too() -> None:
    bench = ClosedBench()
    bench.drain()
    assert bench.in_maintenance
    bench.ask("cordon")
    bench.drain(False)
    assert bench.in_maintenance, "still cordoned"
    bench.ask("uncordon")
    assert not bench.in_maintenance


def test_after_a_restart_of_asterisk_it_is_asked_for_again() -> None:
    bench = ClosedBench()
    bench.ask("cordon")
    bench.asterisk_dies()
    assert bench.word == "asked for"
    bench.asterisk_back()
    assert bench.in_maintenance and bench.told == [False, True, True]
    bench.asterisk_dies()
    bench.ask("uncordon")
    bench.asterisk_back()
    assert not bench.in_maintenance and bench.told == [False, True, True], "a new life refuses nobody"


def test_after_a_restart_of_the_app_it_is_what_etcd_says() -> None:
    bench = ClosedBench()
    bench.ask("cordon")
    bench.restart_app()
    assert bench.in_maintenance and bench.word == "on"
    assert bench.told == [False, True, True], "never taken away in between"
    bench.drain()
    bench.ask("uncordon")
    bench.store.data.pop(bench.keys.drain(NODE))  # called off while the app is not there
    bench.restart_app()
    assert not bench.in_maintenance


def test_without_etcd_nothing_is_taken_away_at_the_start() -> None:
    bench = ClosedBench()
    bench.ask("cordon")
    bench.store_away()
    bench.restart_app()
    bench.sleep(60)
    assert bench.in_maintenance
    bench.store_back()
    assert bench.in_maintenance and bench.word == "on"


def test_an_asterisk_that_cannot_says_so_once_and_the_cordon_holds() -> None:
    bench = ClosedBench()
    bench.answer = Refused("No such command 'pjsip set maintenance'", NO_COMMAND)
    bench.ask("cordon")
    assert (bench.word, bench.stored().maintenance) == (NO_SUCH_COMMAND, NO_SUCH_COMMAND)
    bench.sleep(3 * REFUSED_RETRY_S + 1)
    assert len(bench.troubles()) == 1 and bench.told.count(True) == 4
    assert bench.stored().cordoned and bench.stored().ready
    bench.answer = Done()  # somebody loads the module
    bench.sleep(REFUSED_RETRY_S + 1)
    assert bench.word == "on"


def test_an_asterisk_that_cannot_is_not_complained_of_before_anybody_wants_it() -> None:
    bench = ClosedBench(start=False)
    bench.answer = Refused("No such command 'pjsip set maintenance'", NO_COMMAND)
    bench.start()
    bench.sleep(60)
    assert bench.told == [False] and not bench.troubles()


def test_an_endpoint_that_is_not_there_cannot_be_in_maintenance() -> None:
    bench = ClosedBench(start=False)
    bench.answer = Refused("Endpoint 'carrier' not found", NO_ENDPOINT)
    bench.start()
    bench.sleep(60)
    assert bench.told == [False] and not bench.troubles()


def test_a_missing_permission_is_known_before_it_is_needed() -> None:
    bench = ClosedBench(start=False)
    bench.answer = Refused("no permission", NO_PERMISSION)
    bench.start()
    assert len(bench.troubles()) == 1 and bench.word == ""
    assert bench.ask("status").body["maintenance_trouble"] == "no permission"


@pytest.mark.parametrize("outcome", [Unknown("no answer"), Unreachable("nobody listens")])
def test_what_may_not_have_been_done_is_asked_for_again(outcome: Outcome) -> None:
    bench = ClosedBench()
    bench.answer = outcome
    bench.ask("cordon")
    assert bench.word == outcome.reason
    bench.answer = Done()
    bench.sleep(RETRY_S + 0.1)
    assert bench.in_maintenance and bench.word == "on"


def test_maintenance_that_cannot_be_taken_away_is_an_error_and_shown() -> None:
    bench = ClosedBench()
    bench.ask("cordon")
    bench.answer = Refused("carrier: something odd")
    bench.ask("uncordon")
    assert bench.word == "still on: carrier: something odd"
    assert bench.said(link.NodeState)[-1].cordoned, "edges need not learn it by a refusal"
    assert [note.level for note in bench.notes if "not taken away" in note.text] == ["error"]
    bench.answer = Done()
    bench.sleep(REFUSED_RETRY_S + 1)
    assert not bench.in_maintenance and bench.word == ""
    assert not bench.said(link.NodeState)[-1].cordoned and not bench.stored().cordoned


def test_an_outcome_of_an_earlier_life_changes_nothing() -> None:
    bench = ClosedBench()
    late: list[SetMaintenance] = []
    performs = bench._perform

    def slowly(work: deque[Effect], queue: deque[Event]) -> None:
        if isinstance(work[0], SetMaintenance) and not late:
            late.append(work.popleft())  # type: ignore[arg-type]
            return
        performs(work, queue)

    bench._perform = slowly  # type: ignore[method-assign]
    bench.ask("cordon")
    bench.asterisk_dies()
    bench.asterisk_back()
    assert not bench.in_maintenance
    bench.post(OutcomeOf(effect=late[0], outcome=Done()))
    assert bench.in_maintenance and bench.word == "on"


def test_a_new_call_that_was_on_its_way_is_refused_and_asked_of_another_node() -> None:
    bench = ClosedBench()
    customer, agent = bench.talk()
    bench.ask("cordon")
    entered = bench.trunk("k2")
    assert bench.operations("channels.hangup")[-1] == {"channelId": entered, "reason_code": "34"}
    assert "k2" not in bench.machine.core.calls
    assert {customer, agent} <= bench.asterisk.channels.keys(), "who talks here talks on"
    bench.ask("uncordon")
    bench.trunk("k3")
    assert "k3" in bench.machine.core.calls


def settings(**given: Any) -> NodeSettings:
    """A node's settings with nothing but what must be set, and ``given``."""
    files = {"ca_file": "x", "cert_file": "x", "key_file": "x"}
    values = {
        "cluster": "t", "node": "ast1", "etcd": {"endpoints": ["e:2379"]}, "ari": {"password_file": "x"},
        "link": {"listen": "127.0.0.1:7700", **files}, "sip_address": "127.0.0.1:5060",
        "header_key_file": "x", **given,
    }  # fmt: skip
    return build(NodeSettings, values)


@pytest.mark.parametrize(
    ("endpoint", "word"),
    [("all", "agents"), ("edge-out", "agents"), ("edge-in-resume", "taken up"), ("edge-in-agent", "consult"),
     ("edge-in-trunk\nreload", "no endpoint")],
)  # fmt: skip
def test_endpoints_that_living_calls_need_are_refused_at_the_start(endpoint: str, word: str) -> None:
    assert settings().asterisk.new_call_endpoints == ("edge-in-trunk",)
    with pytest.raises(SettingsError, match=word):
        settings(asterisk={"new_call_endpoints": ["carrier", endpoint]})


def test_a_node_says_how_many_calls_it_may_have_when_others_are_drained(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k")

    def announced(**given: int) -> int:
        config = machine_config(settings(header_key_file=str(key), **given))
        machine = NodeMachine(config, lambda: "id", lambda: 0.5)
        return decode(encode(machine.presence.value()), NodeValue, "").capacity_calls

    assert [announced(), announced(capacity_calls=20), announced(calls_max=30)] == [100, 20, 30]
    with pytest.raises(SettingsError, match="capacity_calls"):
        settings(capacity_calls=0)
