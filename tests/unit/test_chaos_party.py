"""What people do once a fault is over: the orders they give, and what must come of them."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ari_ha.cli import chaos_party as party
from ari_ha.cli.chaos_judge import CONFERENCE, CONSULT, Pair, Verdict
from ari_ha.cli.chaos_stage import Stage
from ari_ha.farend.client import FarEndError


class Far:
    """Far ends whose calls end as they do behind an edge that works."""

    def __init__(self, pairs: list[Pair]) -> None:
        idents = [ident for pair in pairs for ident in (pair.agent_call, *pair.side)]
        self.calls: dict[str, dict[str, Any]] = {ident: self._up(ident) for ident in idents}
        self.partner = {pair.side[0]: pair.side[1] for pair in pairs}
        self.orders: list[tuple[str, str]] = []
        self.last_word = "SIP/2.0 200 OK"
        self.answer = 202

    def _up(self, ident: str) -> dict[str, Any]:
        refer: dict[str, Any] = {"answer": 0, "said": []}
        return {"call": ident, "owner": ident.split("-")[0], "state": "up", "ended_by": "", "refer": refer}

    def _end(self, ident: str, by: str) -> None:
        self.calls[ident] |= {"state": "ended", "ended_by": by}

    def call(self, ident: str) -> dict[str, Any]:
        return self.calls[ident]

    def order(self, ident: str, order: str, **body: Any) -> None:
        if self.calls[ident]["state"] == "ended":
            raise FarEndError(f"{ident} has ended", 409)
        self.orders.append((ident, order))
        if order == "hangup":
            self._end(ident, "us")
            if ident in self.partner:
                self._end(self.partner[ident], "them")
        if order == "refer":
            assert body["number"] == self.calls[self.partner[body["other"]]]["owner"]
            self.calls[ident]["refer"] = {
                "answer": self.answer,
                "said": ["SIP/2.0 100 Trying", self.last_word],
            }
            if self.answer == 202:
                self._end(ident, "them")
                self._end(body["other"], "them")


class World:
    """The part of the stage that they need."""

    def __init__(self, pairs: list[Pair]) -> None:
        self.far = Far(pairs)


def acted(world: World, pairs: list[Pair]) -> list[Verdict]:
    verdicts = [Verdict(pair) for pair in pairs]
    party.go_on(cast(Stage, world), verdicts)
    return verdicts


def consulting(count: int, state: str = CONSULT) -> list[Pair]:
    return [
        Pair(f"carrier-{n}", f"1555{n}", state, f"k{n}", f"100{n}", f"100{n}-1", "a1",
             side=(f"100{n}-2", f"104{n}-1"))
        for n in range(count)
    ]  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(party, "RELEASE_LIMIT_S", 0.0)


@pytest.mark.parametrize(("count", "transferred"), [(1, 1), (3, 2), (4, 2)])
def test_half_of_those_who_consult_complete_the_transfer_and_half_come_back(
    count: int, transferred: int
) -> None:
    pairs = consulting(count)
    world = World(pairs)
    assert not [verdict.against for verdict in acted(world, pairs) if verdict.against]
    assert [order for order in world.far.orders if order[1] == "refer"] == [
        (f"100{n}-1", "refer") for n in range(transferred)
    ]
    for n, pair in enumerate(pairs):
        assert pair.agent_call == (f"104{n}-1" if n < transferred else f"100{n}-1"), "whom he is to hear now"
        assert world.far.calls[pair.agent_call]["state"] == "up"
        if n >= transferred:
            assert [order for order in world.far.orders if order[0].startswith(f"100{n}")] == [
                (f"100{n}-2", "hangup"),
                (f"100{n}-1", "unhold"),
            ]


def test_an_agent_whose_transfer_is_refused_is_named() -> None:
    pairs = consulting(1)
    world = World(pairs)
    world.far.answer, world.far.last_word = 603, "SIP/2.0 603 Decline"
    (verdict,) = acted(world, pairs)
    assert any("1000-1 was told 603" in reason for reason in verdict.against)
    assert any("1000-2 is released" in reason for reason in verdict.against)


def test_whoever_was_consulted_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = consulting(2)
    world = World(pairs)
    monkeypatch.setitem(world.far.partner, "1001-2", "1000-2")  # another one is ended
    _, verdict = acted(world, pairs)
    assert [reason for reason in verdict.against if "1041-1 is released" in reason]


def test_a_conference_goes_on_without_the_third() -> None:
    pairs = consulting(1, CONFERENCE)
    world = World(pairs)
    (verdict,) = acted(world, pairs)
    assert world.far.orders == [("1040-1", "hangup")] and pairs[0].agent_call == "1000-1"
    assert not verdict.against
