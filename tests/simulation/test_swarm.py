"""Seeds times faults. Every run: whatever goes wrong while people call, nothing happens
that must not; then faults stop and everything comes together and is cleaned up."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from ari_ha.cli.simulate import replay
from ari_ha.simulation.coverage import Covered, never
from ari_ha.simulation.faults import (
    CUT_KINDS,
    HARD_KINDS,
    KINDS,
    LEADER_KINDS,
    MORE_KINDS,
    PAIR_KINDS,
    PURPOSE_KINDS,
    REHOME_KINDS,
    REPLACED_KINDS,
    Odds,
)
from ari_ha.simulation.run import EASY, EVERYTHING, FULL, HARD, RECORDED, WHOLE, Plan, Result, run_seed

WHOLE_SEEDS = 200
FULL_SEEDS = 100
EASY_SEEDS = 60
SEEDS_PER_BLOCK = 10
SEEDS_PER_FAULT = 5
PAUSE_S = 2.5
STORY_LINES = 60


def verdict(result: Result, plan: Plan = EASY) -> str:
    """What to say of a failed seed: what is wrong, how to see it again, and the end of its story."""
    told = run_seed(result.seed, plan, tell=True).story
    until = result.problems[0].at_s if result.problems else float("inf")
    story = [str(line) for line in told if line.at_s <= until][-STORY_LINES:]
    lines = [f"seed {result.seed} ({result.odds})", *map(str, result.problems)]
    return "\n".join([*lines, f"again: {replay(result.seed, plan)}", *story])


def swarm(seeds: Iterable[int], plan: Plan) -> None:
    bad = [result for seed in seeds if not (result := run_seed(seed, plan)).good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)


@pytest.mark.parametrize("first", range(0, WHOLE_SEEDS, SEEDS_PER_BLOCK))
def test_swarm(first: int) -> None:
    swarm(range(first, first + SEEDS_PER_BLOCK), WHOLE)


@pytest.mark.parametrize("first", range(0, FULL_SEEDS, SEEDS_PER_BLOCK))
def test_full_swarm(first: int) -> None:
    swarm(range(first, first + SEEDS_PER_BLOCK), FULL)


@pytest.mark.parametrize("first", range(0, EASY_SEEDS, SEEDS_PER_BLOCK))
def test_easy_swarm(first: int) -> None:
    swarm(range(first, first + SEEDS_PER_BLOCK), EASY)


RECORDED_SEEDS = 20


@pytest.mark.parametrize("first", range(0, RECORDED_SEEDS, SEEDS_PER_BLOCK))
def test_recorded_swarm(first: int) -> None:
    swarm(range(first, first + SEEDS_PER_BLOCK), RECORDED)


COVERAGE_SEEDS_MAX = 200


def test_every_state_meets_faults() -> None:
    """Nothing people do is left out: a habit that dies out would make every swarm green."""
    covered: Covered = Covered()
    plan = dataclasses.replace(FULL, odds=Odds(kinds=FULL.kinds, pause_s=2.0, aimed=0.6))
    for seed in range(COVERAGE_SEEDS_MAX):
        covered.update(run_seed(seed, plan).covered)
        if not never(covered):
            return
    assert not never(covered)


HARD_SEEDS = 40


@pytest.mark.parametrize("first", range(0, HARD_SEEDS, SEEDS_PER_BLOCK))
def test_hard_swarm(first: int) -> None:
    swarm(range(first, first + SEEDS_PER_BLOCK), HARD)


@pytest.mark.parametrize("kind", (*MORE_KINDS, *PAIR_KINDS, *CUT_KINDS, *LEADER_KINDS, *REPLACED_KINDS))
def test_one_kind_of_the_full_plan_often(kind: str) -> None:
    plan = dataclasses.replace(FULL, odds=Odds(kinds=(kind,), pause_s=PAUSE_S))
    results = [run_seed(seed, plan) for seed in range(SEEDS_PER_FAULT)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)
    assert sum(len(result.faults) for result in results) > SEEDS_PER_FAULT


@pytest.mark.parametrize("kind", HARD_KINDS)
def test_one_hard_kind_often(kind: str) -> None:
    plan = Plan(kinds=(kind,), odds=Odds(kinds=(kind,), pause_s=PAUSE_S), hard=True)
    results = [run_seed(seed, plan) for seed in range(SEEDS_PER_FAULT)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)
    assert sum(len(result.faults) for result in results) > SEEDS_PER_FAULT


@pytest.mark.parametrize("kind", PURPOSE_KINDS)
def test_what_operators_do_while_nothing_else_goes_wrong(kind: str) -> None:
    plan = Plan(kinds=(kind,), odds=Odds(kinds=(kind,), pause_s=4.0))
    results = [run_seed(seed, plan) for seed in range(SEEDS_PER_FAULT)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)
    assert sum(len(result.faults) for result in results) > SEEDS_PER_FAULT


EVERYTHING_SEEDS = 40


@pytest.mark.parametrize("first", range(0, EVERYTHING_SEEDS, SEEDS_PER_BLOCK))
def test_swarm_of_everything(first: int) -> None:
    swarm(range(first, first + SEEDS_PER_BLOCK), EVERYTHING)


REHOME_SEEDS = 40


@pytest.mark.parametrize("first", range(0, REHOME_SEEDS, SEEDS_PER_BLOCK))
def test_swarm_of_a_pair_without_an_address_that_moves(first: int) -> None:
    """The edge's host dies and the other has its own addresses; in every second block alone,
    else among all the rest."""
    often = Plan(kinds=REHOME_KINDS, odds=Odds(kinds=REHOME_KINDS, pause_s=4.0))
    plan = Plan(kinds=(*KINDS, *REHOME_KINDS)) if first % (2 * SEEDS_PER_BLOCK) else often
    results = [run_seed(seed, plan) for seed in range(first, first + SEEDS_PER_BLOCK)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)
    assert any(set(REHOME_KINDS) & set(result.faults) for result in results)
    assert sum(result.talked for result in results) > 0


def test_what_operators_do_in_the_swarm() -> None:
    plan = Plan(kinds=(*KINDS, *PURPOSE_KINDS))
    bad = [result for seed in range(SEEDS_PER_BLOCK) if not (result := run_seed(seed, plan)).good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)


@pytest.mark.parametrize("kind", KINDS)
def test_one_kind_of_fault_often(kind: str) -> None:
    plan = Plan(kinds=(kind,), odds=Odds(kinds=(kind,), pause_s=PAUSE_S))
    results = [run_seed(seed, plan) for seed in range(SEEDS_PER_FAULT)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)
    assert sum(len(result.faults) for result in results) > SEEDS_PER_FAULT


@pytest.mark.parametrize(
    "odds",
    [
        Odds(kinds=(), loss=0.05),
        Odds(kinds=(), duplicate=0.1),
        Odds(kinds=(), slow=0.1),
        Odds(kinds=(), reply_lost=0.1, request_lost=0.1),
        Odds(kinds=(), lag_s=0.5),
    ],
    ids=["loss", "duplicates", "slow", "lost-transactions", "lagging-watches"],
)
def test_bad_weather(odds: Odds) -> None:
    plan = Plan(odds=odds)
    results = [run_seed(seed, plan) for seed in range(SEEDS_PER_FAULT)]
    bad = [result for result in results if not result.good]
    assert not bad, "\n\n".join(verdict(result, plan) for result in bad)
    assert sum(result.talked for result in results) > 0


KEPT = {
    "a node whose Asterisk died releases other nodes' attempts": (24, ("asterisk-kill",)),
    "the end of a leg overtakes its INVITE": (53, ("asterisk-kill",)),
    "two agents for one call after SIGTERM": (70, ("asterisk-stop",)),
    "a ring given up while the link is down": (70, ("app-freeze",)),
    "an INVITE reaches a node after the caller was refused": (87, ("asterisk-kill",)),
    "a caller given up stays in the queue": (18, ("node-reboot",)),
    "a caller given up stays in the queue, cut one way": (0, ("node-cut-one-way",)),
    "two attempts of one agent after a cut": (20, ("node-cut",)),
    "a record comes back after the end": (12, ("node-cut-etcd",)),
    "two attempts after the edge stood still": (0, ("edge-freeze",)),
    "media commands while the relay is away": (9, ("relay-away",)),
    "a call is deleted while the relay is away": (46, ("relay-away",)),
}
"""Seeds that failed once, by what was wrong."""


@pytest.mark.parametrize("name", KEPT)
def test_what_failed_once(name: str) -> None:
    seed, kinds = KEPT[name]
    plan = Plan(kinds=kinds, odds=Odds(kinds=kinds, pause_s=PAUSE_S))
    swarm([seed], plan)


KEPT_HARD = {
    "the record of an IVR is older than the agent it led to": 15,
    "a supervisor's end is nobody's end": 25,
    "an answer decided, written and never sent": 5,
    "a step begun by the node before, at the last moment": 159,
    "rung a second time in vain, and the first ring forgotten": 276,
    "an agent freed of a conversation nobody knew the end of": 120,
}


@pytest.mark.parametrize("name", KEPT_HARD)
def test_what_failed_once_in_the_hard_plan(name: str) -> None:
    swarm([KEPT_HARD[name]], HARD)


KEPT_SWARM = {
    "a moved call whose survivor cannot reach etcd": 270,
    "a caller sent back to the dialplan": 59,
    "an unsubscribe that was not done": 14,
    "an agent freed while he talks": 99,
    "handled is counted once": 297,
    "the address taken, and the answer lost": 320,
    "a ringing leg taken up without its record": 496,
    "matched and released at once, again and again": 456,
    "a node without Asterisk answers matches of others": 440,
    "the place of a caller who talks": 461,
    "a call nobody ended at the edge": 390,
    "answered while the edge was away": 898,
    "two attempts after a takeover": 1139,
    "a phone rung while a move completes": 1001,
    "the record of a feature code": 714,
    "the edge dies just after an answer": 822,
    "a restarted app and a call that has moved": 1363,
    "an agent whose name the record does not know yet": 561,
}


@pytest.mark.parametrize("name", KEPT_SWARM)
def test_what_failed_once_in_the_swarm(name: str) -> None:
    swarm([KEPT_SWARM[name]], EASY)


KEPT_FULL = {
    "an agent who talks is given to another caller": 210,
    "transferred into a queue, and the record of that is lost": 55,
    "nobody takes a caller of whom there is no record": 1081,
    "refused before the record knew the attempt": 1117,
    "two consultations in one call, and a conference": 1143,
    "a transfer asked for before the edge has the answer": 1315,
    "an answer that the edge had no time to write down": 1311,
    "an attended transfer, and whoever asked for it hangs up": 1215,
    "an agent taken up twice in one call": 4019,
    "the same transfer, asked for in the other line": 6099,
    "a caller gives up while nobody hears of it": 6155,
    "the same, and Asterisk dies meanwhile": 7074,
    "a conference, and the caller hangs up at once": 7089,
    "a conversation ended by two nodes while etcd was away": 8064,
    "nobody takes a caller whose record is older than his queue": 7215,
    "the end of a leg that the edge had no time to write down": 2743,
    "a leg ends while its call is taken up": 1351,
    "the second line of a phone in two calls": 1365,
    "a conference that nobody hears of": 1425,
    "a party is no caller of the dialplan": 2141,
    "whoever waits in a queue consults": 2453,
    "of three in a consultation one leaves": 2608,
    "a transfer to a dialog that is over": 2701,
    "drained when the relay has just come back": 21006,
    "drained while etcd is full": 20720,
    "a hold that the edge had no time to write down": 21060,
    "an answer that was written down and not passed on": 20639,
    "who was consulted transfers, and hangs up in the gap": 30093,
    "a second line of somebody whom the dialplan has": 30037,
    "a transfer that has failed, and the record of that is lost": 30165,
    "a step that was done before the mirror knew of it": 30431,
    "a conference of somebody who waits in a queue": 20393,
    "a caller goes before his node has read etcd": 20115,
    "the same, and an agent consults": 20550,
    "whoever waits consults and hangs up": 20651,
    "answered while the edge was dead, by an agent who dials": 20779,
    "a conversation that a merge leaves out": 20973,
    "both people of a call consult": 20155,
    "handed over by a record that still rings": 21224,
    "the edge dies while a phone's ringing is being written down": 10190,
    "a step of an IVR while its call is drained": 40291,
    "released by a node that could tell nobody": 30503,
    "drained while only its node has lost etcd": 40046,
    "moved to a node that has lost etcd": 50301,
    "an INVITE of a move given up, when the call is over": 50360,
    "a frame to an edge that has become the other one": 50655,
    "a watch that was cut off for a moment": 52423,
    "a transfer of somebody who has hung up": 60063,
    "the edge dies while three are brought together": 52215,
    "a second line that the app had not heard of": 52217,
    "the last call ends just before everything is looked at": 50828,
    "a transfer of which only the node that did it knows": 7209,
    "of both ends of a transfer the first begins the move anew": 51899,
    "the same, and the second is said under an old epoch": 50512,
    "both ends of a transfer of a call that moves": 52467,
    "a 200 OK lost until the call was over": 51096,
    "hung up before anybody could hear of his transfer": 52366,
    "of three one transfers and leaves, and nobody takes it": 70579,
    "an INVITE of a move given up, when the app has just started": 100442,
    "dialled through an edge that died, and the number rings": 200182,
    "a second line leads the call, and its party rings": 100194,
    "a record of a newer epoch is written over": 100541,
    "answered at a node whose call another has taken up": 320009,
    "a second line that begins while its call moves": 330030,
    "a supervisor in a record older than a transfer": 360007,
    "a caller goes before the consulted one is dialled": 420356,
    "a transfer done by a node that has lost the call": 710021,
    "an answer that is lost until the ring is given up": 410010,
    "a conference on second lines, asked for too late": 410019,
    "a supervisor is the first to hear that all is over": 420404,
    "dialled beside a feature code while the edge stands still": 600358,
    "a second line leads the call, and its node is lost": 801470,
    "the same, and its node was lost before": 803374,
    "in the dialplan by the record, and an agent rings": 800384,
    "a node is to be emptied, and etcd has been full for a while": 802196,
    "two conversations without etcd, and the first is told by another node": 805621,
    "an attended transfer asked for while the app starts again": 805658,
    "a step of an IVR while its node is emptied, and etcd is full": 805841,
    "an Asterisk stops before its app could say whom it has taken": 806061,
    "a supervisor, and an edge that doubts his node": 802935,
    "a hold is heard of when the conversation is over elsewhere": 800455,
    "an edge dies before it has rung whoever is rung back": 800457,
    "held by somebody whose answer his node has not": 804481,
    "a supervisor is sent away, and asked back at once": 802944,
    "two to be rung for a caller who is taken up": 803856,
    "an answer is written down when he has hung up and another has the caller": 801936,
    "a transfer of which the edge hears half": 801729,
    "a party of no record hangs up in the gap": 805219,
    "a transfer of somebody who hangs up in the gap": 803016,
    "a second line leads the call before its edge has heard so": 802774,
    "dialled while the edge was dead, and called into a conversation": 802715,
    "two consult the same person, and who dialled last is refused": 805250,
    "asked for an attended transfer and hung up, and no app heard of it": 804593,
    "an app cut off from etcd before it has read anything takes a caller up": 3200278,
    "whoever was consulted hands on who called him, and the record says that he rings": 3200338,
    "an agent is rung, and the record never knew it": 810782,
}
"""Seeds of the full plan that failed once, beside those of the swarm above."""


KEPT_RECORDED = {
    "a transfer asked for while the app is being started again": 204,
    "who waits in a queue consults, and his node dies": 15,
    "led into a queue without etcd, back in the menu, and an agent was reserved": 811130,
    "a supervisor whose order cannot be read, for etcd is away": 810191,
    "rung again for the caller, while whoever was called by transfer consults": 3100134,
    "a recorder's node is emptied while the other's is dead and nobody knows": 810195,
    "a late INVITE at an app that has just started without etcd": 810843,
    "a conference of two lines, of which the node between ended the other one": 2500124,
    "a channel that nobody knows is found by an app that has just started": 2931501,
}


@pytest.mark.parametrize("name", KEPT_RECORDED)
def test_what_failed_once_in_the_recorded_plan(name: str) -> None:
    swarm([KEPT_RECORDED[name]], RECORDED)


@pytest.mark.parametrize("name", KEPT_FULL)
def test_what_failed_once_in_the_full_plan(name: str) -> None:
    swarm([KEPT_FULL[name]], FULL)


KEPT_ZOMBIES = {
    "its list of calls ends people": 154,
    "told again of ends, it ends whoever was brought together": 117,
    "a number that it dials once more": 139,
}
"""Seeds in which an edge that had been replaced was listened to."""


@pytest.mark.parametrize("name", KEPT_ZOMBIES)
def test_what_failed_once_when_an_edge_came_back(name: str) -> None:
    kinds = (*REPLACED_KINDS, "asterisk-kill", "app-freeze")
    swarm([KEPT_ZOMBIES[name]], dataclasses.replace(FULL, odds=Odds(kinds=kinds, pause_s=1.5)))


KEPT_EVERYTHING = {
    "an INVITE that the life before had too": 89,
    "no answer yet, and the edge's host comes back": 300038,
    "a conversation of which only a node without etcd can tell": 128,
    "an unhold that looks like a refresh": 330089,
    "a second line without a port, and the edge dies": 350172,
    "whoever was called is all that is left, and was counted": 300238,
    "asked in one line and hung up the other before anybody could hear of it": 300491,
    "a conversation that began and ended while two nodes were without etcd": 350171,
    "a conference and its supervisor, and the caller hangs up": 400192,
    "an answer to an address that nobody has any more": 360046,
    "whispered to an agent who talks to himself": 500072,
    "whoever took a transfer transfers while the call moves": 500263,
    "a port of a relay that has been started again": 500379,
    "a hold is answered from another address": 500058,
    "taken back while rtpengine is slow, and the edge dies": 500630,
    "an answer that nobody hears is acknowledged with the end": 500061,
    "a supervisor answers an edge whose host is dead": 500661,
}


@pytest.mark.parametrize("name", KEPT_EVERYTHING)
def test_what_failed_once_in_the_plan_of_everything(name: str) -> None:
    swarm([KEPT_EVERYTHING[name]], EVERYTHING)


KEPT_WHOLE = {
    "a party answers an edge that dies, and the call has to move": 900250,
    "an attended transfer to somebody who has hung up": 902232,
    "the same, and the node is cut off": 906604,
    "out of an IVR, and taken up by a node without etcd": 903977,
    "a transfer fails, and its edge asks for it again before it hears so": 900419,
    "a transfer fails while the app is away, and is asked for again": 901903,
    "an answer is written down when the conversation is over elsewhere": 901294,
    "released by a node whose edge hears nothing of it": 903934,
    "the end of a line that a conference replaces is said again": 902951,
    "an answer is lost each time it is said": 906336,
    "an answer that the next leader of etcd writes, when its agent has paused": 904782,
    "a whisper to an agent who was handed over into a queue": 904839,
    "a supervisor with the name of one who was given up": 902986,
    "an agent dials, and hands whom he talks to into a queue": 902315,
    "a prompt is over before a slow relay lets it be heard": 900260,
    "a 200 OK is lost, and the edge's host dies": 900656,
    "consults, hands his caller over, and is left by whom he consulted": 902798,
    "a transfer of which nobody heard, and it was counted": 905655,
    "a target refuses while etcd is slow, and its node is lost": 906583,
    "a caller is handed on before that is written, and waits still": 904427,
    "the end of a link is heard after its next one has begun": 905647,
    "a ring is let go by a node that has lost the call, and answered at the next": 907813,
    "of two who consult in turn the first leaves": 2485009,
    "another address can be told only when etcd is back": 908935,
    "a transfer fails for an edge that is cut off, and its successor does not know": 909958,
    "whoever took a transfer handed the caller on, and the record says that he rings": 3200102,
    "a place that is kept twice, of which one says that an agent is rung": 2615754,
    "a relay lost twice, and a phone that had not got the ACK both times": 2731505,
    "whoever dialled was left while he consulted, and his node was lost": 5200507,
    "another agent is rung than the store names, and the record never knew it": 2185753,
    "a transfer said to an app that does not know yet what its Asterisk has": 3320125,
    "an agent handed into a queue, answered there, and a record of before": 7000735,
}


@pytest.mark.parametrize("name", KEPT_WHOLE)
def test_what_failed_once_in_the_plan_of_the_whole(name: str) -> None:
    swarm([KEPT_WHOLE[name]], WHOLE)
