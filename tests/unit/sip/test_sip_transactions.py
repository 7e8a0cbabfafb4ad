"""The four automata of RFC 3261 section 17, timer by timer, and the timer queue under them."""

from __future__ import annotations

import pytest

from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, Response
from ari_ha.sip.settings import EndpointSettings
from ari_ha.sip.timers import SLACK_MAX_COUNT, TimerQueue
from ari_ha.sip.transaction import TABLES, VERDICTS, ClientTransaction, ServerTransaction, Transaction


class Bench:
    """The host of one transaction."""

    def __init__(self, transport: str = "udp") -> None:
        self.settings = EndpointSettings()
        self.timers = TimerQueue()
        self.sent: list[bytes] = []
        self.retired = False
        self.flow = Flow("l", transport, "h", 1)

    def transmit(self, data: bytes, flow: Flow) -> None:
        self.sent.append(data)

    def count(self, name: str) -> None:
        pass

    def retire(self, txn: Transaction) -> None:
        self.retired = True

    def run(self, until: float) -> list[tuple[float, str, str]]:
        """Fire timers up to a time; what fired when, with its verdict."""
        fired = []
        while (at := self.timers.deadline()) is not None and at <= until:
            name = self.timers.pop_due(at)
            assert isinstance(name, tuple)
            fired.append((at, name[1], name[0].step(f"timer {name[1]}", at)))
        return fired


def client(bench: Bench, method: str) -> ClientTransaction:
    request = Request(
        method, "sip:x", [("Via", "v"), ("CSeq", f"1 {method}"), ("Route", "<r>"), ("Call-ID", "i")]
    )
    txn = ClientTransaction(bench, "z9hG4bK1", request, bench.flow, "p")
    txn.open(b"request", 0.0)
    return txn


def server(bench: Bench, method: str) -> ServerTransaction:
    return ServerTransaction(bench, ("k",), Request(method, "sip:x"), bench.flow, ["v"])


def test_the_tables_are_closed() -> None:
    for name, table in TABLES.items():
        states = {state for state, _ in table}
        for (state, event), (after, *actions) in table.items():
            assert after in states | {"terminated"}, (name, state, event)
            assert sum(action in VERDICTS for action in actions) <= 1


def test_an_invite_is_sent_again_and_times_out() -> None:
    bench = Bench()
    client(bench, "INVITE")
    fired = bench.run(100)
    assert [at for at, letter, _ in fired if letter == "A"] == [0.5, 1.5, 3.5, 7.5, 15.5, 31.5]
    assert fired[-1] == (32.0, "B", "timeout") and bench.retired and len(bench.sent) == 7


def test_a_request_is_sent_again_and_times_out() -> None:
    bench = Bench()
    client(bench, "INFO")
    fired = bench.run(100)
    assert [at for at, letter, _ in fired if letter == "E"] == [
        0.5,
        1.5,
        3.5,
        7.5,
        11.5,
        15.5,
        19.5,
        23.5,
        27.5,
        31.5,
    ]
    assert fired[-1] == (32.0, "F", "timeout") and bench.retired


def test_a_proceeding_request_is_sent_every_t2() -> None:
    bench = Bench()
    txn = client(bench, "INFO")
    assert txn.receive(Response(100, ""), 0.1) == "pass"
    assert [at for at, letter, _ in bench.run(13) if letter == "E"] == [0.5, 4.5, 8.5, 12.5]


def test_nothing_is_sent_again_over_tcp() -> None:
    for method, letter in (("INVITE", "B"), ("INFO", "F")):
        bench = Bench("tcp")
        client(bench, method)
        assert bench.run(100) == [(32.0, letter, "timeout")] and bench.sent == [b"request"]


@pytest.mark.parametrize(("transport", "end"), [("udp", 32.0), ("tcp", None)])
def test_a_refused_invite_is_acked_each_time(transport: str, end: float | None) -> None:
    bench = Bench(transport)
    txn = client(bench, "INVITE")
    assert txn.receive(Response(180, ""), 0.0) == "pass" and txn.state == "proceeding"
    assert txn.receive(Response(486, "", [("To", "t;tag=1")]), 0.0) == "pass"
    assert b"ACK sip:x" in bench.sent[-1] and b"Route: <r>" in bench.sent[-1] and b"tag=1" in bench.sent[-1]
    assert txn.receive(Response(486, ""), 0.0) == ""
    assert len(bench.sent) == (3 if transport == "udp" else 2)
    assert [at for at, _, _ in bench.run(100)] == ([end] if end else []) and bench.retired


def test_an_accepted_invite_passes_every_2xx_for_64_t1() -> None:
    bench = Bench("tcp")
    txn = client(bench, "INVITE")
    assert [txn.receive(Response(200, ""), 0.0) for _ in range(3)] == ["pass"] * 3
    assert txn.receive(Response(486, ""), 0.0) == "" and txn.receive(Response(180, ""), 0.0) == ""
    assert bench.run(100) == [(32.0, "M", "")] and bench.retired


def test_a_transport_error_fails_what_is_open() -> None:
    for method in ("INVITE", "INFO"):
        bench = Bench()
        assert client(bench, method).step("error", 0.0) == "failed" and bench.retired and not bench.run(100)


def test_a_refusal_is_sent_until_its_ack() -> None:
    bench = Bench()
    txn = server(bench, "INVITE")
    txn.reply(180, b"180", 0.0)
    txn.step("request", 0.0)
    assert bench.sent == [b"180", b"180"]
    txn.reply(486, b"486", 0.0)
    assert [at for at, _, _ in bench.run(10)] == [0.5, 1.5, 3.5, 7.5]
    txn.step("ack", 10.0)
    assert txn.state == "confirmed" and txn.final
    assert bench.run(100) == [(15.0, "I", "")] and bench.retired


def test_a_refusal_without_ack_ends_at_h() -> None:
    bench = Bench()
    server(bench, "INVITE").reply(486, b"486", 0.0)
    assert bench.run(100)[-1] == (32.0, "H", "") and bench.retired


def test_an_accepted_server_absorbs() -> None:
    bench = Bench()
    txn = server(bench, "INVITE")
    txn.reply(200, b"200", 0.0)
    txn.step("request", 0.0)
    txn.reply(486, b"486", 0.0)
    assert bench.sent == [b"200"] and txn.step("ack", 0.0) == "pass"
    assert bench.run(100) == [(32.0, "L", "")]


@pytest.mark.parametrize(("transport", "at"), [("udp", [32.0]), ("tcp", [])])
def test_a_server_answers_retransmissions_for_j(transport: str, at: list[float]) -> None:
    bench = Bench(transport)
    txn = server(bench, "INFO")
    txn.step("request", 0.0)
    txn.reply(200, b"200", 0.0)
    txn.step("request", 0.0)
    assert bench.sent == ([b"200", b"200"] if transport == "udp" else [b"200"])
    assert [when for when, _, _ in bench.run(100)] == at and bench.retired


def test_the_timer_queue_moves_stops_and_stays_small() -> None:
    queue = TimerQueue()
    queue.start("a", 5)
    queue.start("b", 3)
    queue.start("b", 7)
    assert queue.deadline() == 5 and queue.at("b") == 7 and queue.pop_due(4) is None
    queue.stop("a")
    assert queue.pop_due(7) == "b" and queue.deadline() is None and len(queue) == 0
    for number in range(100_000):
        queue.start("c", number)
    assert len(queue._heap) <= SLACK_MAX_COUNT + 2
