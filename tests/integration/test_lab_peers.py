"""Asterisk's own pjsip as a carrier and as a phone: registration, digest, TLS, SRTP, calls both ways.

Needs the overlay ``peer`` (``ARI_HA_OVERLAYS=peer docker/lab up``)."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES, NETWORK, PREFIX
from tests.support.foreign_asterisk import EDGE, SELF, Peer, etcd

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
USER, PASSWORD = "1060", "peer password 7"
SUITE = "AES_CM_128_HMAC_SHA1_80"
TRUNKS = ("acme", "acme-tls", "deaf")


def password_of(user: str) -> str:
    return json.loads((ROOT / ".lab/shared/passwords.json").read_text())[user]


@pytest.fixture
def carrier(stage: Stage) -> Iterator[Peer]:
    if "carrier" not in stage.lab.running():
        pytest.skip("the lab has no overlay 'peer'")
    peer = Peer(stage, "carrier")
    peer.start(PASSWORD=PASSWORD, ENCRYPTION="sdes", RELIABLE="no")
    yield peer
    for name in TRUNKS:
        etcd(stage, "del", f"/ari-ha/lab/v1/trunks/{name}")
        etcd(stage, "del", f"/ari-ha/lab/v1/secret/trunks/{name}")
    peer.stop()


@pytest.fixture
def phone(stage: Stage) -> Iterator[Peer]:
    if "phone" not in stage.lab.running():
        pytest.skip("the lab has no overlay 'peer'")
    stage.far.phone_order(USER, "unregister")
    until("1060 is out", 30, lambda: stage.far.phone(USER)["registration"]["state"] == "out")
    peer = Peer(stage, "phone")
    peer.start(USER=USER, PASSWORD=password_of(USER))
    yield peer
    peer.stop()
    stage.far.phone_order(USER, "register", password=password_of(USER))
    until("1060 is back", 30, lambda: stage.far.phone(USER)["registration"]["state"] == "in")


def trunk(stage: Stage, name: str, **fields: Any) -> None:
    """Writes a trunk as an operator does."""
    entry = {"trunk": name, "user": "acme", "password": PASSWORD, "prefixes": ["+49"],
             "address": f"{SELF['carrier']}:5060", "options_interval_s": 5, **fields}  # fmt: skip
    stage.lab.run("ast1", "ari-ha", "config", "load", "/dev/stdin", given=json.dumps({"trunks": [entry]}))


def trunks(stage: Stage) -> dict[str, dict[str, Any]]:
    rows = stage.cluster.http(stage.cluster.settings.processes[EDGES[0]], "/v1/trunks")
    return {row["trunk"]: row for row in rows}


def hears_itself(stage: Stage, ident: str, window_s: float = 1.0) -> bool:
    """Whether a far end got its own numbered packets back."""
    end = stage.far.now() - 0.1
    rows = stage.far.measure(end - window_s, end, [ident])["calls"]
    return bool(rows) and any(
        heard["call"] == ident and heard["received"] > 40 * window_s for heard in rows[0]["hears"]
    )


def test_we_register_at_an_asterisk_and_it_calls_us(stage: Stage, carrier: Peer) -> None:
    trunk(stage, "acme", register=True, domain="acme.example")
    until("registered and alive", 30, lambda: (t := trunks(stage).get("acme")) and t["registration"] == "in"
          and t["reach"] == "up", 0.2)  # fmt: skip
    assert f"acme@{EDGE}:5060" in carrier.cli("pjsip show contacts")
    stage.agents_in(["1001"])
    carrier.cli(f"channel originate PJSIP/acme/sip:6000@{EDGE}:5060 application Echo")
    call = until("an agent has the call", 30, lambda: agent_up(stage), 0.2)
    (ident,) = [c["call"] for c in stage.far.calls(living="1") if c["way"] == "in"]
    until("the agent hears himself from the carrier's Echo", 30, lambda: hears_itself(stage, ident), 0.3)
    assert call["trunk"] == "acme"
    carrier.cli("channel request hangup all")
    until("the call is over", 30, lambda: not stage.edge_calls())


def agent_up(stage: Stage) -> dict[str, Any] | None:
    for row in stage.edge_calls().values():
        if any(leg["role"] == "agent" and leg["state"] == "up" for leg in row["legs"].values()):
            return row
    return None


def test_an_asterisk_is_a_phone_over_tls_with_srtp(stage: Stage, phone: Peer) -> None:
    """The customer speaks plain RTP, the phone SRTP; a new certificate disturbs neither."""
    until("registered over TLS", 30, lambda: "Registered" in phone.cli("pjsip show registrations"), 0.3)
    bindings = stage.cluster.http(stage.cluster.settings.processes[EDGES[0]], "/v1/bindings")
    assert any(row["aor"] == USER for row in bindings)
    stage.agents_out()
    ask_a_node(stage.cluster, stage.view(), USER, "login", {"device": USER})
    (ident,) = stage.far.place("6100", "15551070")
    until("the phone has answered", 30, lambda: agent_up(stage), 0.2)
    (row,) = stage.edge_calls().values()
    assert [leg["srtp"] for leg in row["legs"].values() if leg["role"] == "agent"] == [SUITE]
    until("the customer hears himself", 30, lambda: hears_itself(stage, ident), 0.3)
    # the certificate is renewed: the call and its connection stay, a new connection sees the new one
    served = lambda: stage.lab.docker(  # noqa: E731
        "exec", PREFIX + "phone", "sh", "-c",
        f"echo | openssl s_client -connect {EDGE}:5061 2>/dev/null | openssl x509 -noout -serial",
    )  # fmt: skip
    before = served()
    renew_certificate()
    until("the new certificate is served", 30, lambda: served() != before, 0.5)
    since = stage.far.now()
    time.sleep(2)
    rows = stage.far.measure(since, stage.far.now() - 0.1, [ident])["calls"]
    assert sum(heard["lost_packets"] for heard in rows[0]["hears"]) == 0
    stage.far.order(ident, "hangup")
    until("the phone was hung up on", 30, lambda: "0 active" in phone.cli("core show channels"), 0.2)
    # and the phone calls: an agent's call to a feature number
    phone.cli(f"channel originate PJSIP/edge/sip:6000@{EDGE}:5061\\;transport=tls application Echo")
    kinds = lambda: [row["kind"] for row in stage.edge_calls().values()]  # noqa: E731
    until("its call is there", 30, lambda: "agent" in kinds(), 0.2)
    phone.cli("channel request hangup all")
    until("and over", 30, lambda: not stage.edge_calls())


def out_call(stage: Stage, number: str) -> str:
    """An agent's phone dials a number outside; the phone's call."""
    return str(stage.far.phone_order("1001", "dial", number=number)["call"])


def digit_comes_back(stage: Stage, ident: str, digit: str) -> None:
    """RFC 4733 there and back through the carrier's Echo."""
    since = stage.far.now()
    stage.far.order(ident, "dtmf", digits=digit)
    until("the digit comes back", 30, lambda: any(
        d["digit"] == digit for d in stage.far.measure(since, None, [ident])["calls"][0]["digits"]
    ), 0.2)  # fmt: skip


def test_we_call_an_asterisk_past_a_dead_trunk_with_a_digest(stage: Stage, carrier: Peer) -> None:
    trunk(stage, "deaf", address=f"{NETWORK}.1.99:5060", priority=1, options_interval_s=0)
    trunk(stage, "acme", priority=2, trusted=True, reliable=True, outbound_rules={"+49": "0049"})
    until("alive", 30, lambda: trunks(stage).get("acme", {}).get("reach") == "up", 0.2)
    ident = out_call(stage, "+49301")
    until("the agent hears himself", 30, lambda: hears_itself(stage, ident), 0.3)
    assert "0049301" in carrier.run("cat", "/tmp/log")
    digit_comes_back(stage, ident, "7")
    (row,) = stage.edge_calls().values()
    assert any(leg["trunk"] == "acme" for leg in row["legs"].values())
    stage.far.order(ident, "hangup")
    until("over", 30, lambda: not stage.edge_calls())
    # busy is the number's own answer: nobody else is asked
    ident = out_call(stage, "+49303")
    until("busy", 30, lambda: stage.far_calls()[ident]["state"] == "ended", 0.2)
    assert stage.far.call(ident)["status"] == 486, stage.far.call(ident)


def test_early_media_of_a_carrier_is_heard_before_the_answer(stage: Stage, carrier: Peer) -> None:
    carrier.start(PASSWORD=PASSWORD, ENCRYPTION="sdes", RELIABLE="required")
    trunk(stage, "acme", reliable=True)
    until("alive", 30, lambda: trunks(stage).get("acme", {}).get("reach") == "up", 0.2)
    since = stage.far.now()
    ident = out_call(stage, "+49302")
    until("the tone is heard while it rings", 30, lambda: stage.far_calls()[ident]["state"] == "ringing"
          and stage.far.measure(since, None, [ident])["calls"][0]["packets"] > 25, 0.2)  # fmt: skip
    until("then it is answered", 30, lambda: hears_itself(stage, ident), 0.3)
    assert "PRACK" in carrier.run("cat", "/tmp/log")
    stage.far.order(ident, "hangup")
    until("over", 30, lambda: not stage.edge_calls())


def test_a_trunk_over_tls_with_srtp(stage: Stage, carrier: Peer) -> None:
    trunk(stage, "acme-tls", address=f"{SELF['carrier']}:5061", transport="tls", srtp="sdes",
          domain="carrier")  # fmt: skip
    until("alive over TLS", 30, lambda: trunks(stage).get("acme-tls", {}).get("reach") == "up", 0.2)
    ident = out_call(stage, "+49301")
    until("the agent hears himself", 30, lambda: hears_itself(stage, ident), 0.3)
    digit_comes_back(stage, ident, "4")
    assert "acme" in carrier.cli("core show channels concise")
    stage.far.order(ident, "hangup")
    until("over", 30, lambda: not stage.edge_calls())


def renew_certificate() -> None:
    """What a certificate tool does on the edge's host: new files by the lab's authority."""
    (ROOT / ".lab/hosts/edge1/secrets/cert.names").unlink()
    subprocess.run([ROOT / "docker/labs/make-credentials"], check=True, capture_output=True)
