"""A recorded conversation, and what there is of it after a node, an app or the edge process died."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.cluster import decode_json
from ari_ha.cli.lab import FAULTS, NODES, PREFIX
from ari_ha.cli.recording import find
from ari_ha.core.ports.store import Compare, Put
from ari_ha.farend.rtp import VOICE, classify
from ari_ha.wire.recording import RATE_HZ, Part, join
from ari_ha.wire.rtpdump import read

pytestmark = pytest.mark.lab
SPOOL = "/var/lib/ari-ha/recordings"
SERVES = "ast1"
WINDOW_S = 0.2
MORE_THAN_PEOPLE_MS = 60
"""A recording may lack so much more than the people: a dying relay has forwarded one and not the other."""
LOUD = 1000
"""Root of the mean square of a window in which somebody speaks; the tone's is 4000."""


def set_record(stage: Stage, on: bool) -> None:
    """Whether the queue's conversations are recorded."""
    import msgspec

    key = stage.cluster.keys.queue_config("support")
    item = stage.cluster.get(key)
    assert item is not None
    put = Put(key, msgspec.json.encode({**decode_json(item), "record": on}))
    assert stage.cluster.txn([Compare(key, item.mod_revision)], [put]).succeeded


@pytest.fixture
def recording(stage: Stage) -> Iterator[Stage]:
    set_record(stage, True)
    for node in NODES:
        stage.lab.run(node, "sh", "-c", f"rm -f {SPOOL}/*.rtp")
    yield stage
    stage.clean()
    set_record(stage, False)


def talk(stage: Stage) -> Pair:
    """A conversation that is recorded; `SERVES` serves it and is one of the two that record."""
    stage.only(SERVES)
    (pair,) = stage.place(1, "talking", 7)
    whole(stage, pair)
    stage.uncordon(NODES)
    assert SERVES in recorded(stage, pair)["c"] and pair.node == SERVES
    return pair


def files(stage: Stage, node: str) -> list[str]:
    """What is in a node's spool."""
    return stage.lab.run(node, "sh", "-c", f"ls {SPOOL} 2>/dev/null || true").split()


def recorded(stage: Stage, pair: Pair) -> dict[str, list[str]]:
    """leg -> nodes that record it, as the edge says."""
    return stage.edge_call(pair.call)["recorded"]


def whole(stage: Stage, pair: Pair, without: str = "") -> None:
    def look() -> bool:
        nodes = recorded(stage, pair)
        return len(nodes) == 2 and all(len(n) == 2 and without not in n for n in nodes.values())

    until("two nodes record both voices", 30, look)


def end(stage: Stage, pair: Pair, tmp_path: Path) -> list[Part]:
    """Hangs up, and fetches all parts of the call."""
    stage.far.order(pair.customer, "hangup")
    until("the call is over", 30, lambda: pair.caller not in stage.edge_calls())

    def fetched() -> list[Part] | None:
        for node in [node for node in NODES if files(stage, node)]:
            (tmp_path / node).mkdir(exist_ok=True)
            stage.lab.docker("cp", f"{PREFIX}{node}:{SPOOL}/.", str(tmp_path / node))
        parts = find(pair.call, [tmp_path])
        return parts if sum(part.ended for part in parts) >= 4 else None

    return until("the recorders have ended the parts", 20, fetched, 0.5)


def numbers(parts: list[Part], leg: str) -> set[int]:
    """The numbers of a leg's voice packets that any part has."""
    found = set()
    for part in parts:
        for packet in part.packets if part.name.leg == leg else ():
            raw = b"\x80\x08" + bytes(10) + packet.payload
            kind, _, number, _ = classify(raw, len(raw), 101)
            if kind == VOICE:
                found.add(number)
    return found


def missing_ms(parts: list[Part], leg: str) -> int:
    there = numbers(parts, leg)
    return 20 * (max(there) - min(there) + 1 - len(there))


def silent_windows(side: array, begin: float, end_s: float) -> list[float]:
    """When nobody speaks on a channel for a whole window."""
    found, at = [], begin
    while at + WINDOW_S <= end_s:
        samples = side[int(at * RATE_HZ) : int((at + WINDOW_S) * RATE_HZ)]
        if (sum(s * s for s in samples) / len(samples)) ** 0.5 < LOUD:
            found.append(round(at, 1))
        at += WINDOW_S
    return found


def judge(parts: list[Part], struck: float) -> dict[str, Any]:
    """Both voices are in every window, over the fault too; what it was."""
    joined = join(parts)
    firsts = [
        min(p.packets[0].arrived for p in parts if p.packets and p.name.leg == leg) for leg in ("c", "a1")
    ]
    begin = max(firsts) - joined.start_utc + 0.1
    told = {
        "seconds": round(joined.seconds, 2),
        "parts": len(parts),
        "fault_at_s": round(struck - joined.start_utc, 2),
        "missing_ms": {leg: missing_ms(parts, leg) for leg in ("c", "a1")},
        "gaps": [(gap.leg, round(gap.at_s, 2), gap.ms) for gap in joined.gaps],
        "silent": {
            "left": silent_windows(joined.left, begin, joined.seconds - 0.3),
            "right": silent_windows(joined.right, begin, joined.seconds - 0.3),
        },
        "clocks_ms": {node: round(s * 1000, 1) for node, s in joined.clocks.items()},
    }
    assert 1.0 < struck - joined.start_utc < joined.seconds - 1.0, told
    return told


@pytest.mark.parametrize(
    ("fault", "loses"),
    [
        ("asterisk-kill", False),
        ("asterisk-freeze", False),
        ("drain", True),
        ("node-cut", True),
        ("app-kill", True),
        ("app-freeze", True),
        ("edge-process-kill", False),
    ],
)
def test_both_voices_are_in_every_window(recording: Stage, tmp_path: Path, fault: str, loses: bool) -> None:
    """``loses``: the node that was struck records no more, and another one does."""
    stage = recording
    pair = talk(stage)
    time.sleep(2.0)
    before = recorded(stage, pair)
    struck = FAULTS[fault](stage.lab, stage.active_edge() if fault.startswith("edge") else SERVES)
    if loses:
        whole(stage, pair, without=SERVES)
    else:
        until("the edge answers", 30, lambda: stage.edge_call(pair.call))
    time.sleep(3.0)
    if struck.mend is not None:
        struck.mend()
    if not loses:
        assert recorded(stage, pair) == before
    parts = end(stage, pair, tmp_path)
    told = judge(parts, struck.at)
    print(fault, told)
    assert told["missing_ms"] == {"c": 0, "a1": 0} and told["gaps"] == [], told
    assert told["silent"] == {"left": [], "right": []}, told
    nodes = {part.name.node for part in parts}
    assert len(nodes) == (3 if loses else 2)


def test_what_both_recorders_lose_is_told(recording: Stage, tmp_path: Path) -> None:
    stage = recording
    pair = talk(stage)
    time.sleep(2.0)
    struck = [FAULTS["app-kill"](stage.lab, node) for node in recorded(stage, pair)["c"]]
    whole(stage, pair)
    time.sleep(2.0)
    parts = end(stage, pair, tmp_path)
    told = judge(parts, struck[0].at)
    print("both", told)
    assert {leg for leg, _, _ in told["gaps"]} <= {"c", "a1"}
    for leg in ("c", "a1"):
        assert sum(ms for who, _, ms in told["gaps"] if who == leg) == told["missing_ms"][leg], told


def heard_lost_ms(stage: Stage, pair: Pair, since: float) -> dict[str, int]:
    """leg -> what the other person has lost of its voice since then."""
    rows = stage.measure(since, [pair])
    ways = {"c": (pair.agent_call, pair.customer), "a1": (pair.customer, pair.agent_call)}
    return {
        leg: next(heard["lost_packets"] for heard in rows[ear]["hears"] if heard["call"] == mouth) * 20
        for leg, (ear, mouth) in ways.items()
    }


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("fault", "lost_max_ms"),
    [("edge-switchover", 300), ("edge-kill", 900), ("edge-freeze", 900), ("rtpengine-kill", 1_200)],
)
def test_a_recording_over_a_takeover_of_the_pair(
    recording: Stage, tmp_path: Path, fault: str, lost_max_ms: int
) -> None:
    """The same recorders write on, into the same parts, what the other edge's relay forwards. What is
    missing is what no relay was there to forward: about what the people lost themselves. `join` tells
    all of it."""
    stage = recording
    if len(stage.edges) < 2:
        pytest.skip("this lab has one edge")
    until("the pair is whole", 60, stage.pair_is_whole, 0.2)
    pair = talk(stage)
    before, active, since = recorded(stage, pair), stage.active_edge(), stage.far.now()
    time.sleep(2.0)
    struck = FAULTS[fault](stage.lab, active)
    if fault != "rtpengine-kill":
        until("the other edge serves", 30, lambda: stage.active_edge() != active)
    until("they talk", 30, lambda: stage.talking([pair]), 0.1)
    time.sleep(3.0)
    people = heard_lost_ms(stage, pair, since)
    if struck.mend is not None:
        struck.mend()
    assert recorded(stage, pair) == before
    parts = end(stage, pair, tmp_path)
    told = {**judge(parts, struck.at), "people_lost_ms": people}
    print(fault, told)
    assert len(parts) == 4 and len({part.name.node for part in parts}) == 2
    for leg in ("c", "a1"):
        missing = told["missing_ms"][leg]
        assert missing <= min(lost_max_ms, people[leg] + MORE_THAN_PEOPLE_MS), told
        assert sum(ms for who, _, ms in told["gaps"] if who == leg) == missing, told
    silent = told["silent"]["left"] + told["silent"]["right"]
    assert all(abs(at - told["fault_at_s"]) < 1.0 + lost_max_ms / 1000 for at in silent), told


def test_a_queue_that_records_nothing(stage: Stage, tmp_path: Path) -> None:
    for node in NODES:
        stage.lab.run(node, "sh", "-c", f"rm -f {SPOOL}/*.rtp")
    (pair,) = stage.place(1, "talking", 8)
    time.sleep(1.0)
    assert recorded(stage, pair) == {}
    for node in NODES:
        assert not files(stage, node)


def test_the_format_is_what_it_says(recording: Stage, tmp_path: Path) -> None:
    """Every part reads by itself, and is one leg's."""
    pair = talk(recording)
    time.sleep(1.0)
    end(recording, pair, tmp_path)
    files = list(tmp_path.glob("**/*.rtp"))
    assert len(files) == 4
    for path in files:
        packets, ended = read(path.read_bytes())
        assert ended and len({packet.ssrc for packet in packets}) == 1
        assert {packet.payload_type for packet in packets} == {8}
