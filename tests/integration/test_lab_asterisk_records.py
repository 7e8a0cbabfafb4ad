"""Asterisk's own CDR and CEL in the database, and what calls notice when there is none: nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ari_ha.adapters.call_records import CallRecords
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import DATABASES, FAULTS, NODES, PREFIX
from ari_ha.cli.records import access_of
from ari_ha.core.machine import Done

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

LIMIT_S = 60.0
WRITABLE_AGAIN_S = 120.0
DID, AGENTS = "6000", ["1001", "1002", "1003"]
SLOWER_S = 2.0
"""What a call may take longer while no database answers."""


@pytest.fixture
def staffed(stage: Stage) -> Stage:
    stage.agents_in(AGENTS)
    stage.far.manner(mode="answer", after_s=0.1)
    return stage


def talk(stage: Stage, caller: str) -> tuple[Pair, float]:
    """A customer and an agent talk; and how long it took from the INVITE."""
    began = time.monotonic()
    (ident,) = stage.far.place(DID, caller)
    pair = Pair(ident, caller, "talking", queue="support")
    until("they are connected", LIMIT_S, lambda: stage.reached([pair]), 0.05)
    took_s = time.monotonic() - began
    until("they talk", LIMIT_S, lambda: stage.talking([pair]), 0.1)
    stage.refresh([pair])
    return pair, took_s


def cdr(stage: Stage, call: str) -> list[dict[str, Any]]:
    found = CallRecords(access_of(stage.cluster.settings.source))
    try:
        outcome = asyncio.run(found.pieces(call, limit_s=5.0))
    finally:
        found.close()
    return outcome.value if isinstance(outcome, Done) else []


def cel(stage: Stage, call: str) -> int:
    """Rows of it, asked of the first server: a replica has them as well."""
    query = f"SELECT COUNT(*) FROM acd.cel WHERE ha_call_id = '{call}'"
    client = 'client=mysql; [ "$ARI_HA_FLAVOUR" = mysql ] || client=mariadb; $client -N'
    return int(stage.lab.run(DATABASES[0], "sh", "-c", client, given=query).strip() or 0)


def hang_up(stage: Stage, pair: Pair) -> None:
    stage.far.order(pair.customer, "hangup")
    until("the call is over", LIMIT_S, lambda: pair.caller not in stage.edge_calls(), 0.1)


@contextmanager
def no_database(stage: Stage) -> Iterator[None]:
    """Both hosts stand still: connections are neither refused nor served."""
    stage.lab.docker("pause", *[PREFIX + server for server in DATABASES])
    try:
        yield
    finally:
        for server in DATABASES:
            stage.lab.unpause(server)


def test_a_call_that_moved_is_joined_from_its_pieces(staffed: Stage) -> None:
    stage = staffed
    pair, _ = talk(stage, "15558101")
    FAULTS["asterisk-kill"](stage.lab, pair.node)
    first = pair.node
    until(
        "another node serves",
        LIMIT_S,
        lambda: stage.edge_calls()[pair.caller]["node"] not in ("", first),
        0.2,
    )
    until("they talk", LIMIT_S, lambda: stage.talking([pair]), 0.1)
    stage.refresh([pair])
    hang_up(stage, pair)
    until("the survivor's CDR is there", LIMIT_S, lambda: cdr(stage, pair.call), 0.5)
    rows = cdr(stage, pair.call)
    assert {row["node"] for row in rows} == {pair.node}, "what the dead one had not written is lost"
    assert {row["epoch"] for row in rows} == {pair.epoch}
    assert {"c", "a1"} <= {row["ha_leg"] for row in rows}
    until("CEL knows it too", LIMIT_S, lambda: cel(stage, pair.call) >= 4, 0.5)


def test_no_call_waits_for_a_database(staffed: Stage) -> None:
    stage = staffed
    pair, before_s = talk(stage, "15558102")
    with no_database(stage):
        other, at_once_s = talk(stage, "15558103")
        hang_up(stage, pair)
        hang_up(stage, other)
        assert at_once_s < before_s + SLOWER_S
        stage.lab.asterisk_kill(NODES[0])
        until(f"{NODES[0]} is not used", LIMIT_S, lambda: NODES[0] not in stage.usable_nodes(), 0.05)
        until(f"{NODES[0]} serves again", LIMIT_S, lambda: NODES[0] in stage.usable_nodes(), 0.2)
        stage.only(NODES[0])
        third, cold_s = talk(stage, "15558104")
        assert third.node == NODES[0] and cold_s < before_s + SLOWER_S
        hang_up(stage, third)

    def written() -> bool:
        again, _ = talk(stage, "15558105")
        hang_up(stage, again)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            if cdr(stage, again.call):
                return True
            time.sleep(0.5)
        return False

    try:
        until("calls have their CDR again", WRITABLE_AGAIN_S, written, 0.5)
    finally:
        stage.uncordon(NODES)
