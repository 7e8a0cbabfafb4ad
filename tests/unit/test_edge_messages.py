"""MESSAGE: passed on between two people, refused by name elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from ari_ha.core.machine import Effect
from ari_ha.core.ports.store import StoreTxn
from ari_ha.sip import events as sip
from ari_ha.wire import link
from tests.support.edge_world import EDGE_PUBLIC, EdgeWorld, Party, kill
from tests.unit.test_edge_machine import talking


def say(world: EdgeWorld, party: Party, leg: str, text: str) -> int:
    """The answer to a MESSAGE in the dialog."""
    party.sip.request_in_dialog(leg, "MESSAGE", world.now, content_type="text/plain", body=text.encode())
    world.settle()
    return int(party.of(sip.ResponseReceived)[-1].status)


def heard(party: Party) -> list[tuple[str, str, bytes]]:
    requests = [e for e in party.of(sip.InDialogRequest) if e.request.method == "MESSAGE"]
    return [(e.leg, e.request.get("Content-Type"), e.request.body) for e in requests]


@pytest.mark.parametrize("gap", [False, True])
def test_two_people_write_to_each_other(world, gap):
    caller, call, node, phone, leg = talking(world)
    if gap:
        for other in world.nodes.values():
            other.auto_answer = False
        kill(world, node.name)
    assert say(world, phone, leg, "0815") == 202
    assert say(world, world.carrier, caller, "Grüße") == 202
    assert heard(world.carrier) == [(caller, "text/plain", b"0815")]
    assert heard(phone) == [(leg, "text/plain", "Grüße".encode())]
    assert {item.state for item in call.living()} == {"up"}


def test_nobody_there_to_read_it(world):
    caller, call = world.call_in()
    assert say(world, world.carrier, caller, "hello?") == 405
    allowed = dict(world.carrier.of(sip.ResponseReceived)[-1].headers)["Allow"]
    assert "INVITE" in allowed and "MESSAGE" not in allowed
    assert call.legs["c"].state == "up"


def test_too_long(world):
    caller, _, _, phone, leg = talking(world)
    assert say(world, phone, leg, "x" * 1_301) == 413 and not heard(world.carrier)


def test_a_reader_that_refuses_keeps_his_call(world):
    caller, call, _, phone, leg = talking(world)
    say(world, world.carrier, caller, "hello")
    (event,) = [e for e in phone.of(sip.InDialogRequest) if e.request.method == "MESSAGE"]
    phone.sip.respond(event.txn, 415, world.now)
    world.settle()
    assert {item.state for item in call.living()} == {"up"}


def test_what_a_node_writes_goes_to_its_phone(world):
    _, call, node, phone, leg = talking(world)
    (half,) = [key for key, token in node.tokens.items() if token.call == call.call]
    assert say(world, node, half, "from Asterisk") == 202
    assert heard(world.carrier)[-1][2] == b"from Asterisk"


def test_outside_a_call(world):
    phone = world.register("1001")
    arguments: dict[str, Any] = {
        "flow": world.carrier_flow(), "target": f"sip:1002@{EDGE_PUBLIC[0]}", "from_": "<sip:1001@test>",
        "to": "<sip:1002@test>", "now": world.now,
    }  # fmt: skip
    phone.sip.request("m", "MESSAGE", body=b"hi", content_type="text/plain", **arguments)
    world.settle()
    (answer,) = [e for e in phone.of(sip.ResponseReceived) if e.key == "m"]
    assert answer.status == 405 and "MESSAGE" not in dict(answer.headers)["Allow"]


class Slow(EdgeWorld):
    """An etcd that can be slow."""

    def __init__(self) -> None:
        self.late = False
        super().__init__()

    def perform(self, effect: Effect) -> None:
        if not (self.late and isinstance(effect, StoreTxn)):
            super().perform(effect)


@pytest.mark.parametrize(
    ("kind", "body"),
    [("application/dtmf-relay", b"Signal=5\r\nDuration=160\r\n"), ("application/dtmf", b"5\r\n"),
     ("application/DTMF; charset=x", b" 5")],
)  # fmt: skip
@pytest.mark.parametrize("gap", [False, True])
def test_a_digit_by_info_reaches_the_other_and_the_node(world, kind, body, gap):
    """As it came, and also while nothing serves the call; the node is told the digit."""
    caller, call, node, phone, leg = talking(world)
    if gap:
        for other in world.nodes.values():
            kill(world, other.name)
    phone.sip.info(leg, kind, body, world.now)
    world.settle()
    (info,) = world.carrier.of(sip.InfoReceived)
    assert (info.leg, info.content_type, info.body) == (caller, kind, body)
    if not gap:
        (digit,) = node.got(link.LegDigit)
        assert (digit.leg, digit.digit) == ("a1", "5")
    world.carrier.sip.info(caller, kind, body, world.now)
    world.settle()
    assert [(i.leg, i.body) for i in phone.of(sip.InfoReceived)] == [(leg, body)]


def test_while_the_answer_is_being_written_down():
    """A phone that answers at once without ringing: its caller has no dialog yet."""
    world = Slow().with_users("1001")
    phone = world.register("1001")
    for node in world.nodes.values():
        node.auto_answer_new = False
    _, call = world.call_in()
    world.dial(world.nodes[call.owner.name], call, "a1", "1001")
    world.late = True
    (invite,) = phone.of(sip.InviteReceived)
    phone.sip.answer(invite.leg, phone.sdp(), world.now)
    world.settle()
    assert call.legs["c"].state == "up" and not world.carrier.of(sip.LegAnswered)
    assert say(world, phone, invite.leg, "hello") == 480
    phone.sip.info(invite.leg, "application/dtmf-relay", b"Signal=5", world.now)
    world.settle()
    world.run(1.0)  # etcd is not waited for any longer
    assert world.carrier.of(sip.LegAnswered) and not world.carrier.of(sip.InfoReceived)
    assert say(world, phone, invite.leg, "hello") == 202
