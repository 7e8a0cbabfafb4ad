"""Lamps: MWI and busy lamps served by the edge, over refreshes, loss and a new process."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ari_ha.core.ports.sip import SipBytes
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request, Response, parse_message
from ari_ha.wire.sip_values import MailboxValue
from tests.support.edge_world import EDGE_PUBLIC, EdgeWorld, Party, digest_header
from tests.unit.test_edge_trunks import invites, put, served

DIALOG, MESSAGES = "dialog", "message-summary"


class Lamp:
    """One subscription of a phone."""

    def __init__(self, world: EdgeWorld, user: str, package: str, watched: str) -> None:
        self.world, self.user, self.package, self.watched = world, user, package, watched
        self.phone = world.phones.get(user) or world.register(user)
        self.call_id, self.cseq, self.to_tag = world.new_id(), 0, ""
        self.status = 0
        self.contact = f"{self.phone.host}:{self.phone.port}"
        self.source_port = self.phone.port
        self.headers: dict[str, str] = {}

    def ask(self, expires: int = 600, authenticate: bool = True) -> int:
        uri = f"sip:{self.watched}@test"
        reply = self._send(uri, expires, ())
        if reply.status == 401 and authenticate:
            digest = digest_header(reply, self.user, "pw", "SUBSCRIBE", uri)
            reply = self._send(uri, expires, (("Authorization", digest),))
        self.headers = {name.lower(): value for name, value in reply.headers}
        if 200 <= reply.status < 300:
            self.to_tag = re.search(r"tag=([^;]+)", self.headers["to"]).group(1)  # type: ignore[union-attr]
        return int(reply.status)

    def _send(self, uri: str, expires: int, more: tuple[tuple[str, str], ...]) -> Any:
        self.cseq += 1
        tag = f";tag={self.to_tag}" if self.to_tag else ""
        at = f"{self.phone.host}:{self.phone.port}"
        text = (
            f"SUBSCRIBE {uri} SIP/2.0\r\n"
            f"Via: SIP/2.0/UDP {at};branch=z9hG4bK{self.call_id}{self.cseq}\r\n"
            f"From: <sip:{self.user}@test>;tag=phone\r\nTo: <{uri}>{tag}\r\nCall-ID: {self.call_id}\r\n"
            f"CSeq: {self.cseq} SUBSCRIBE\r\nContact: <sip:{self.user}@{self.contact}>\r\n"
            f"Max-Forwards: 70\r\nEvent: {self.package};id=7\r\nExpires: {expires}\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in more)
            + "Content-Length: 0\r\n\r\n"
        )
        before = len(self.world.sip_log)
        flow = Flow("public-udp", "udp", self.phone.host, self.source_port)
        self.world.post(SipBytes(data=text.encode(), flow=flow))
        for _, _, _, data in self.world.sip_log[before:]:
            message = parse_message(data)
            if isinstance(message, Response) and message.cseq == (self.cseq, "SUBSCRIBE"):
                self.answer_notifies()
                return message
        raise AssertionError("no answer to SUBSCRIBE")

    def answer_notifies(self, status: int = 200) -> list[Request]:
        """What the phone was told since the last look; it answers."""
        self.world.settle()
        asked = [e for e in self.phone.heard if isinstance(e, sip.RequestReceived)]
        found = [e for e in asked if e.request.method == "NOTIFY"]
        for event in found:
            self.phone.heard.remove(event)
            self.phone.sip.respond(event.txn, status, self.world.now)
        self.world.settle()
        self.told = getattr(self, "told", []) + [event.request for event in found]
        return [event.request for event in found]

    def last(self) -> Request:
        self.answer_notifies()
        return self.told[-1]


def test_a_lamp_needs_a_password() -> None:
    world = EdgeWorld().with_users("1001", "1002")
    lamp = Lamp(world, "1001", DIALOG, "1002")
    assert lamp.ask(authenticate=False) == 401
    assert lamp.ask() == 200
    assert lamp.headers["expires"] == "600"


@pytest.mark.parametrize(("package", "status"), [("presence", 489), ("", 489)])
def test_other_packages_are_refused_by_name(package: str, status: int) -> None:
    lamp = Lamp(EdgeWorld().with_users("1001"), "1001", package, "1001")
    assert lamp.ask() == status
    assert lamp.headers["allow-events"] == "dialog, message-summary"


def test_messages_of_others_are_nobodys_business() -> None:
    assert Lamp(EdgeWorld().with_users("1001", "1002"), "1001", MESSAGES, "1002").ask() == 403


@pytest.mark.parametrize("registered", [True, False])
def test_a_notify_goes_over_the_registered_flow_or_to_the_contact(registered: bool) -> None:
    """RFC 3261 §12.2.1.1; the flow a phone registered over is open, whatever it believes of itself."""
    world = EdgeWorld().with_users("1001")
    lamp = Lamp(world, "1001", MESSAGES, "1001")
    if registered:
        lamp.contact = "10.0.1.77:9"
    else:
        lamp.source_port += 500
    assert lamp.ask() == 200
    assert len(lamp.told) == 1


def test_a_short_interval_is_refused() -> None:
    lamp = Lamp(EdgeWorld().with_users("1001"), "1001", MESSAGES, "1001")
    assert lamp.ask(expires=5) == 423
    assert lamp.headers["min-expires"] == "60"


def test_messages_are_told_at_once_and_when_they_change() -> None:
    world = EdgeWorld().with_users("1001")
    lamp = Lamp(world, "1001", MESSAGES, "1001")
    assert lamp.ask() == 200
    first = lamp.last()
    assert first.get("Subscription-State").startswith("active;expires=")
    assert first.get("Event") == "message-summary;id=7"
    assert first.to_tag == "phone" and first.from_tag == lamp.to_tag and first.call_id == lamp.call_id
    assert b"Messages-Waiting: no" in first.body
    world.run(1)
    put(world, world.keys.mailbox("1001"), MailboxValue(mailbox="1001", new=2, old=1))
    world.run(0.5)
    second = lamp.last()
    lines = [b"Messages-Waiting: yes", b"Message-Account: sip:1001@test", b"Voice-Message: 2/1 (0/0)"]
    assert second.body.splitlines() == lines
    assert second.cseq[0] > first.cseq[0]
    count = len(lamp.told)
    put(world, world.keys.mailbox("1001"), MailboxValue(mailbox="1001", new=2, old=1))
    world.run(1)
    lamp.answer_notifies()
    assert len(lamp.told) == count, "the same again is not told"


def state_of(request: Request) -> list[tuple[str, str]]:
    text = request.body.decode()
    assert 'state="full"' in text
    return re.findall(r'direction="(\w+)"><state>(\w+)</state>', text)


def test_a_busy_lamp_follows_a_call() -> None:
    world = EdgeWorld().with_users("1001", "1002")
    lamp = Lamp(world, "1001", DIALOG, "1002")
    lamp.ask()
    assert state_of(lamp.last()) == []
    watched = world.register("1002")
    call, node = served(world)
    world.dial(node, call, "a1", "1002")
    world.run(0.5)
    assert state_of(lamp.last()) == [("recipient", "early")]
    watched.sip.answer(invites(watched)[0].leg, watched.sdp(), world.now)
    world.run(0.5)
    assert state_of(lamp.last()) == [("recipient", "confirmed")]
    watched.sip.hangup(invites(watched)[0].leg, world.now)
    world.run(0.5)
    assert state_of(lamp.last()) == []
    versions = [int(re.search(rb'version="(\d+)"', r.body).group(1)) for r in lamp.told]  # type: ignore[union-attr]
    assert versions == sorted(versions)


@pytest.mark.parametrize("attempt", ["", "t1"])
def test_a_lamp_names_what_may_be_picked_up(attempt: str) -> None:
    world = EdgeWorld().with_users("1001", "1002")
    lamp = Lamp(world, "1001", DIALOG, "1002")
    lamp.ask()
    watched = world.register("1002")
    call, node = served(world)
    world.dial(node, call, "a1", "1002", attempt=attempt)
    (invite,) = invites(watched)
    watched.sip.ring(invite.leg, world.now)
    world.run(0.5)
    call_id, local, remote = watched.sip.dialog_of(invite.leg)
    wanted = [("call-id", call_id), ("local-tag", local), ("remote-tag", remote)]
    found = re.findall(r'(call-id|local-tag|remote-tag)="([^"]+)"', lamp.last().body.decode())
    assert found == ([] if attempt else wanted)
    watched.sip.answer(invite.leg, watched.sdp(), world.now)
    world.run(0.5)
    assert b"call-id" not in lamp.last().body


def test_a_refresh_tells_again_and_the_end_is_told() -> None:
    world = EdgeWorld().with_users("1001")
    lamp = Lamp(world, "1001", MESSAGES, "1001")
    lamp.ask()
    count = len(lamp.told)
    world.run(1)
    assert lamp.ask() == 200
    assert len(lamp.told) == count + 1
    assert lamp.ask(expires=0) == 200
    assert lamp.last().get("Subscription-State") == "terminated;reason=timeout"
    assert not [key for key in world.store if "/subscriptions/" in key]
    assert lamp.ask() == 481


def test_nobody_refreshes_and_it_is_over() -> None:
    world = EdgeWorld().with_users("1001")
    lamp = Lamp(world, "1001", MESSAGES, "1001")
    lamp.ask(expires=60)
    world.run(70, step=0.5)
    assert lamp.last().get("Subscription-State") == "terminated;reason=timeout"


def test_a_phone_that_knows_nothing_of_it_is_forgotten() -> None:
    world = EdgeWorld().with_users("1001")
    lamp = Lamp(world, "1001", MESSAGES, "1001")
    lamp.ask()
    world.run(1)
    put(world, world.keys.mailbox("1001"), MailboxValue(mailbox="1001", new=1))
    world.run(0.5)
    lamp.answer_notifies(481)
    assert not [key for key in world.store if "/subscriptions/" in key]


def test_somebody_else_cannot_refresh_it() -> None:
    world = EdgeWorld().with_users("1001", "1002")
    lamp = Lamp(world, "1001", MESSAGES, "1001")
    lamp.ask()
    thief = Lamp(world, "1002", MESSAGES, "1001")
    thief.call_id, thief.to_tag, thief.cseq = lamp.call_id, lamp.to_tag, 50
    assert thief.ask() == 481


def test_a_new_process_tells_everybody_and_goes_on() -> None:
    world = EdgeWorld().with_users("1001", "1002")
    lamp = Lamp(world, "1001", DIALOG, "1002")
    lamp.ask()
    before = lamp.last()
    world.run(2)
    world.boot()
    world.run(1)
    after = lamp.last()
    assert after is not before and after.cseq[0] > before.cseq[0]
    assert after.call_id == lamp.call_id and after.from_tag == lamp.to_tag
    assert lamp.ask() == 200, "and it is refreshed there"


def test_limits() -> None:
    world = EdgeWorld().with_users("1001")
    statuses = {Lamp(world, "1001", DIALOG, f"{n}").ask() for n in range(65)}
    assert statuses == {200, 503}
    assert isinstance(world.phones["1001"], Party) and EDGE_PUBLIC
