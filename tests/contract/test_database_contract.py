"""The simulator's database server and the real ones, told the same story, give the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ari_ha.core.machine import Outcome, Refused
from ari_ha.machines.database_config import FLAVOURS, MARIADB
from ari_ha.machines.database_gtid import extra, has_all
from tests.contract.database_pairs import FakePair, RealPair, no_image

pytestmark = pytest.mark.timeout(400)

Line = tuple[str, Any]


def said(outcome: Outcome) -> str:
    """Done, or a refusal and whether it was for a lock."""
    code = f" {outcome.code}" if isinstance(outcome, Refused) and outcome.code == 1205 else ""
    return type(outcome).__name__ + code


def seen(pair: Any, name: str) -> Line:
    """What decisions are made from."""
    now = pair.look(name)
    facts = (now.writable, now.source, now.io, now.applying, now.semi_source, now.semi_clients,
             now.semi_waiting, now.increment, now.offset, now.server_id)  # fmt: skip
    return f"{name} is seen", facts


def equal(pair: Any) -> bool:
    one, two = pair.look("db1"), pair.look("db2")
    return has_all(two.history, one.position) and has_all(one.history, two.position)


def opened_and_followed(pair: Any) -> Iterator[Line]:
    """They boot closed; one is opened; the other follows."""
    yield seen(pair, "db1")
    yield "a closed server says no", pair.write("db1").answer
    for verb in ("open", "open"):
        yield verb, said(pair.do("db1", verb))
    yield "an open one says yes", pair.write("db1").answer
    yield "heartbeat", said(pair.do("db1", "heartbeat", term=1))
    yield "follow", said(pair.follow("db2", "db1"))
    yield "start", said(pair.do("db2", "follow_start"))
    pair.until(lambda: pair.look("db2").follows == "db1" and equal(pair))
    yield seen(pair, "db2")
    for verb in ("follow", "follow_forget"):
        outcome = pair.follow("db2", "db1") if verb == "follow" else pair.do("db2", verb)
        yield f"{verb} while it follows", said(outcome)
    pair.do("db2", "heartbeat", term=1)
    yield "a heartbeat that comes late", extra(pair.look("db2").position, pair.look("db1").history)
    yield "number", said(pair.do("db2", "number", increment=2, offset=2))


def commits_wait(pair: Any) -> Iterator[Line]:
    """Semi-synchronous, with and without a standby that receives."""
    yield "semi_on", said(pair.do("db1", "semi_on"))
    pair.until(lambda: pair.look("db1").semi_clients == 1)
    acked = pair.look("db1").semi_acked
    yield "with a standby yes", pair.write("db1").answer
    yield "counted", pair.look("db1").semi_acked > acked
    yield "receive_stop", said(pair.do("db2", "receive_stop"))
    pair.until(lambda: pair.look("db1").semi_clients == 0)
    now = pair.look("db2")
    yield "it has what it received", (now.io, now.applying, has_all(now.history, now.received))
    waits = pair.write("db1")
    yield "without one nobody says anything", waits.answer
    yield "one waits", pair.look("db1").semi_waiting
    yield "close", said(pair.do("db1", "close", lock_wait_s=1))
    yield "still open", pair.look("db1").writable
    yield "start again", said(pair.do("db2", "follow_start"))
    pair.until(lambda: waits.answer is True and pair.look("db1").semi_waiting == 0)
    yield "now it closes", said(pair.do("db1", "close", lock_wait_s=1))
    yield "and again", said(pair.do("db1", "close", lock_wait_s=1))
    yield seen(pair, "db1")
    pair.do("db1", "open")


def waiting_turned_off(pair: Any) -> Iterator[Line]:
    """Turning it off says yes to those that wait, though the standby lacks them."""
    pair.do("db2", "receive_stop")
    waits = pair.write("db1")
    yield "waits", waits.answer
    yield "semi_off", said(pair.do("db1", "semi_off"))
    pair.until(lambda: waits.answer is not None)
    yield "it was told", waits.answer
    yield "the standby lacks it", not has_all(pair.look("db2").received, pair.look("db1").position)
    pair.do("db2", "follow_start")
    pair.until(lambda: equal(pair))
    yield "semi_on", said(pair.do("db1", "semi_on"))
    pair.until(lambda: pair.look("db1").semi_clients == 1)


def connections_ended(pair: Any) -> Iterator[Line]:
    """Ending the connection of a commit that waits: MariaDB commits it, MySQL goes on waiting."""
    pair.do("db2", "receive_stop")
    pair.until(lambda: pair.look("db1").semi_clients == 0)
    waits = pair.write("db1")
    yield "disconnect", said(pair.do("db1", "disconnect"))
    pair.until(lambda: waits.answer is False)
    yield "waiting", pair.look("db1").semi_waiting
    yield "close", said(pair.do("db1", "close", lock_wait_s=1))
    pair.do("db1", "open")
    pair.do("db2", "follow_start")
    pair.until(lambda: equal(pair) and pair.look("db1").semi_waiting == 0)
    pair.until(lambda: pair.look("db1").semi_clients == 1)


def killed_with_a_phantom(pair: Any, truncate: bool) -> Iterator[Line]:
    """What only the binary log of a killed primary has: MySQL keeps it, MariaDB takes it back if told to."""
    pair.do("db2", "receive_stop")
    pair.until(lambda: pair.look("db1").semi_clients == 0)
    waits = pair.write("db1")
    yield "waits", waits.answer
    pair.kill("db1")
    pair.until(lambda: waits.answer is False)
    pair.start("db1", truncate)
    standby = pair.look("db2")
    yield "it has more than the standby", bool(extra(pair.look("db1").position, standby.history))
    yield seen(pair, "db1")
    yield "the standby forgets", [said(pair.do("db2", verb)) for verb in ("follow_stop", "follow_forget")]
    yield seen(pair, "db2")


def written_with_all_rights(pair: Any) -> Iterator[Line]:
    """On a closed server: it has more than the other then."""
    pair.errant("db2")
    yield "it shows", bool(extra(pair.look("db2").position, pair.look("db1").history))
    yield "closed all the same", pair.look("db2").writable


def story(pair: Any, flavour: str) -> list[Line]:
    """Everything, in order."""
    lines: list[Line] = []
    for part in (opened_and_followed, commits_wait, waiting_turned_off, connections_ended):
        lines += part(pair)
    lines += killed_with_a_phantom(pair, truncate=flavour == MARIADB)
    lines += written_with_all_rights(pair)
    return lines


@pytest.mark.lab
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_fake_answers_as_the_real_one(flavour: str) -> None:
    if why := no_image(flavour):
        pytest.skip(why)
    fake, real = FakePair(flavour), RealPair(flavour)
    try:
        expected, found = story(fake, flavour), story(real, flavour)
    finally:
        real.close()
    assert found == expected
    assert len(found) > 30


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_story_of_the_fake(flavour: str) -> None:
    """What must be in it, whatever the real one is: a story that goes nowhere compares nothing."""
    lines = story(FakePair(flavour), flavour)
    told = dict(lines)
    assert told["close"] == "Refused 1205" or flavour == MARIADB
    assert told["an open one says yes"] is True and told["without one nobody says anything"] is None
    assert told["it has more than the standby"] is (flavour != MARIADB)
    assert told["it shows"] is True
