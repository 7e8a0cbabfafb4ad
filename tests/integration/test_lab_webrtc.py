"""A phone in a browser: SIP over WebSocket with TLS, ICE and DTLS-SRTP, through what dies beside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_lab_other_programs import BORROWED, lent

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import FAULTS, NETWORK
from tests.support.web_phone import WebPhone

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
CA = ROOT / ".lab/operator/ca.pem"
PORT = 5063
GATEWAY = f"{NETWORK}.1.1"
"""This machine on the phones' network."""


def public_address(stage: Stage) -> str:
    """Where phones find the edge: the pair's address, or the single edge's."""
    return f"{NETWORK}.1.{10 if len(stage.edges) > 1 else 11}"


@pytest.fixture
def phone(stage: Stage) -> Iterator[WebPhone]:
    with lent(stage, BORROWED) as password:
        url = f"wss://{public_address(stage)}:{PORT}/"
        one = WebPhone(url, BORROWED, password, "lab", (GATEWAY,), str(CA))
        try:
            until("the browser is registered", 30, lambda: one.registrations, 0.1)
            yield one
        finally:
            one.close()
        assert not one.errors


@pytest.fixture
def call(stage: Stage, phone: WebPhone) -> Pair:
    """A customer talks to the browser's agent, without Asterisk in the way."""
    stage.agents_out()
    ask_a_node(stage.cluster, stage.view(), BORROWED, "login", {"device": BORROWED})
    (ident,) = stage.far.place("6100", "15551080")
    until("the browser has answered", 30, lambda: phone.talking, 0.1)
    until("both hear each other", 30, lambda: both_hear(stage, phone, ident), 0.2)
    return Pair(ident, "")


def voices(stage: Stage, ident: str, since: float, ends: float) -> dict[str, Any]:
    """What the customer heard of the browser."""
    rows = stage.far.measure(since, ends, [ident])["calls"]
    heard = rows[0]["hears"] if rows else []
    return max(heard, key=lambda item: item["received"], default={"received": 0, "longest_gap_ms": 1e9})


def both_hear(stage: Stage, phone: WebPhone, ident: str, window_s: float = 1.0) -> bool:
    """For the last second: the browser's voice at the customer, and packets at the browser."""
    ends = stage.far.now() - 0.1
    count, gap = phone.heard(ends - window_s, ends)
    theirs = voices(stage, ident, ends - window_s, ends)
    return count > 40 * window_s and gap < 0.2 and theirs["received"] > 40 * window_s


def gaps(stage: Stage, phone: WebPhone, ident: str, since: float) -> tuple[float, float]:
    """Longest silence since then, in seconds: at the browser, at the customer."""
    ends = stage.far.now() - 0.2
    return phone.heard(since, ends)[1], voices(stage, ident, since, ends)["longest_gap_ms"] / 1000


def agreed_anew(phone: WebPhone) -> None:
    """It was asked for new keys, and has them."""
    until("the browser was asked", 30, lambda: phone.changes, 0.1)
    until("it has agreed", 30, lambda: phone.browser and phone.browser.handshakes == 2, 0.1)


def leg_of(stage: Stage) -> dict[str, Any]:
    (row,) = stage.edge_calls().values()
    return next(leg for leg in row["legs"].values() if leg["role"] == "agent")


def test_it_is_rung_talks_holds_and_is_hung_up_on(stage: Stage, phone: WebPhone, call: Pair) -> None:
    assert leg_of(stage)["srtp"] == "DTLS"
    phone.change("sendonly")
    until("the customer hears music", 30, lambda: stage.hearing_music([call]), 0.2)
    phone.change("sendrecv")
    until("they talk again", 30, lambda: both_hear(stage, phone, call.customer), 0.2)
    assert phone.browser and (phone.browser.handshakes, phone.browser.ice_connects) == (1, 1)
    stage.far.order(call.customer, "hangup")
    until("the browser was hung up on", 30, lambda: not phone.talking, 0.1)


def test_it_moves_to_another_network(stage: Stage, phone: WebPhone, call: Pair) -> None:
    phone.move()
    until("the browser was asked once more", 30, lambda: phone.changes, 0.1)
    until("they talk", 30, lambda: both_hear(stage, phone, call.customer), 0.2)
    assert phone.browser and phone.browser.handshakes == 1 and phone.browser.ice_connects >= 2
    stage.far.order(call.customer, "hangup")
    until("the browser was hung up on", 30, lambda: not phone.talking, 0.1)


def test_it_calls(stage: Stage, phone: WebPhone) -> None:
    stage.agents_out()
    ask_a_node(stage.cluster, stage.view(), BORROWED, "login", {"device": BORROWED})
    phone.call("1002")
    until("the colleague has answered", 30, lambda: phone.talking, 0.1)
    (ident,) = [c["call"] for c in stage.far.calls(living="1") if c["owner"] == "1002"]
    until("both hear each other", 30, lambda: both_hear(stage, phone, ident), 0.2)
    phone.hang_up()
    until("the colleague was hung up on", 30, lambda: not stage.far.calls(living="1"), 0.1)


def test_a_node_dies_and_nothing_changes_for_it(stage: Stage, phone: WebPhone, call: Pair) -> None:
    (row,) = stage.edge_calls().values()
    since = stage.far.now()
    stage.lab.asterisk_kill(row["node"])
    until("another node has the call", 30, lambda: _moved(stage, row["node"]), 0.1)
    time.sleep(1.0)
    browser, customer = gaps(stage, phone, call.customer, since)
    assert browser < 0.3 and customer < 0.3, (browser, customer)
    assert (phone.changes, phone.connections) == (0, 1)
    stage.far.order(call.customer, "hangup")
    until("the browser was hung up on", 30, lambda: not phone.talking, 0.1)


def _moved(stage: Stage, node: str) -> bool:
    rows = list(stage.edge_calls().values())
    return bool(rows) and rows[0]["node"] not in ("", node) and not rows[0]["moving_to"]


def test_the_edge_process_dies_and_it_comes_back(stage: Stage, phone: WebPhone, call: Pair) -> None:
    since, before = stage.far.now(), phone.registrations
    stage.lab.edge_process_kill(stage.active_edge())
    until("the browser has come back", 30, lambda: phone.registrations > before, 0.1)
    time.sleep(2.0)
    browser, customer = gaps(stage, phone, call.customer, since)
    assert browser < 0.3 and customer < 0.3, (browser, customer)
    stage.far.order(call.customer, "hangup")
    until("its dialog has followed it", 30, lambda: not phone.talking, 0.1)


def test_rtpengine_dies_and_the_keys_are_agreed_on_anew(stage: Stage, phone: WebPhone, call: Pair) -> None:
    since = stage.far.now()
    stage.lab.rtpengine_kill(stage.active_edge())
    agreed_anew(phone)
    until("they talk again", 30, lambda: both_hear(stage, phone, call.customer), 0.2)
    browser, customer = gaps(stage, phone, call.customer, since)
    assert browser < 3 and customer < 3, (browser, customer)
    phone.change("sendonly")
    until("the customer hears music", 30, lambda: stage.hearing_music([call]), 0.2)
    phone.change("sendrecv")
    until("they talk", 30, lambda: both_hear(stage, phone, call.customer), 0.2)
    stage.far.order(call.customer, "hangup")
    until("the browser was hung up on", 30, lambda: not phone.talking, 0.1)


def test_the_host_dies_and_the_peer_is_asked_for_its_keys(stage: Stage, phone: WebPhone, call: Pair) -> None:
    """The audio goes on with the old keys; the browser has to come back for the new ones within half a
    minute, or falls silent."""
    if len(stage.edges) < 2 or not stage.address_moves():
        pytest.skip("this lab has no pair with one address")
    since = stage.far.now()
    FAULTS["edge-kill"](stage.lab, stage.active_edge())
    agreed_anew(phone)
    until("they talk again", 30, lambda: both_hear(stage, phone, call.customer), 0.2)
    browser, customer = gaps(stage, phone, call.customer, since)
    assert browser < 3 and customer < 3, (browser, customer)
    time.sleep(31)  # without a new ICE session it would be silent by now
    until("they still talk", 5, lambda: both_hear(stage, phone, call.customer), 0.2)
    stage.far.order(call.customer, "hangup")
    until("the browser was hung up on", 30, lambda: not phone.talking, 0.1)
