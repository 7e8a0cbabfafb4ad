"""SIPp and baresip as customers and phones: programs that share none of our code."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pytest

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES, FAREND, NETWORK, LabError
from ari_ha.wire.token import LegToken, sign

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "docker/scenarios"
EDGE, CARRIER, PHONES = (f"{NETWORK}.1.{host}" for host in (11, 50, 60))
BORROWED = "1060"
"""The phone whose account the other programs use while our own stays silent."""
BARESIP_USER = "1059"
"""Another one: SIPp's binding outlives its test. The directory has an MD5 digest of it only."""
SIPP_PORT, REPLACED_PORT, LISTENER_PORT, ANSWERER_PORT, BARESIP_PORT = 5090, 5092, 5093, 5094, 5095
TELL_BARESIP = """
import json, socket
words = json.dumps({{"command": "{command}", "params": "{params}"}})
socket.create_connection(("127.0.0.1", 4444), 3).sendall(f"{{len(words)}}:{{words}},".encode())
"""
HEARD_MIN_BYTES = 16_000
"""One second of what baresip wrote down: 8000 samples of two bytes."""


def put(
    stage: Stage,
    source: str,
    target: str,
    *,
    changed: Mapping[str, str] = MappingProxyType({}),
    **values: str,
) -> None:
    """A scenario file into the far end's host, its names filled in, and some of its lines ``changed``."""
    text = (SCENARIOS / source).read_text()
    for old, new in changed.items():
        assert old in text, f"{source} has no {old}"
        text = text.replace(old, new)
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    stage.lab.run(FAREND, "sh", "-c", f"mkdir -p $(dirname {target}) && cat > {target}", given=text)


def sipp(stage: Stage, scenario: str, local: str, *more: str, limit_s: float = 60) -> None:
    """Runs a scenario to its end. Raises LabError, with SIPp's own words, when it failed."""
    command = (
        "rc() { c=$?; tail -n 60 sipp-screen.log >&2; head -c 3000 sipp-errors.log >&2; exit $c; }; "
        f"cd /tmp && rm -f sipp-errors.log && sipp {EDGE}:5060 -sf {scenario} -i {local} -mi {local} "
        f"-nostdin -trace_err -error_file sipp-errors.log -timeout 45 -timeout_error "
        f"-max_retrans 4 {' '.join(more)} "
        ">sipp-screen.log 2>&1 || rc"
    )
    stage.lab.run(FAREND, "sh", "-c", command, limit_s=limit_s)


def waiting_sipp(stage: Stage, name: str, local: str, *more: str) -> Callable[[], str]:
    """Starts ``/tmp/NAME.xml`` for one call, without waiting; tells SIPp's exit status once it has ended."""
    stage.lab.run(
        FAREND,
        "sh",
        "-c",
        f"cd /tmp && rm -f sipp-{name}.rc && (sipp -sf {name}.xml -i {local} -mi {local} -m 1 -nostdin "
        f"-timeout 40 -timeout_error {' '.join(more)} >sipp-{name}.log 2>&1; echo $? >sipp-{name}.rc) &",
    )
    return lambda: read(stage, f"/tmp/sipp-{name}.rc")


@contextmanager
def lent(stage: Stage, user: str) -> Iterator[str]:
    """Our own phone gives its account away; yields the password."""
    password = json.loads((ROOT / ".lab/shared/passwords.json").read_text())[user]
    stage.far.phone_order(user, "unregister")
    until(f"{user} is out", 30, lambda: stage.far.phone(user)["registration"]["state"] == "out")
    yield password
    stage.far.phone_order(user, "register", password=password)
    until(f"{user} is back", 30, lambda: stage.far.phone(user)["registration"]["state"] == "in")


@pytest.fixture
def borrowed(stage: Stage) -> Iterator[str]:
    """The password of SIPp's account."""
    with lent(stage, BORROWED) as password:
        yield password


def test_sipp_calls_and_is_answered(stage: Stage) -> None:
    stage.agents_in(["1001", "1002", "1003"])
    put(stage, "sipp/customer.xml", "/tmp/customer.xml")
    sipp(stage, "/tmp/customer.xml", CARRIER, f"-p {SIPP_PORT} -s 6000 -m 3 -l 3 -r 3 -d 3000")
    answered = [c for c in stage.far.calls() if c["way"] == "in" and c["answered_at"] > time.time() - 30]
    assert len(answered) >= 3
    until("every phone was hung up on", 30, lambda: not stage.far.calls(living="1"))


PLACES = (
    f"Contact: <sip:cluster@{CARRIER}:{LISTENER_PORT}>",
    f"Record-Route: <sip:{CARRIER}:{LISTENER_PORT};lr>\n      Contact: <sip:cluster@{CARRIER}:9>",
)


@pytest.mark.parametrize("names", PLACES, ids=["contact", "record-route"])
def test_a_cluster_is_hung_up_on_where_it_listens(stage: Stage, names: str) -> None:
    """It calls from another port than its Contact, or its Record-Route, names (RFC 3261 §12.2.1.1). The
    edge's process is replaced before the agent hangs up."""
    stage.agents_in(["1001"])
    put(stage, "sipp/cluster.xml", "/tmp/cluster.xml", NAMES=names)
    put(stage, "sipp/listener.xml", "/tmp/listener.xml")
    listener = waiting_sipp(stage, "listener", CARRIER, f"-p {LISTENER_PORT}")
    caller = waiting_sipp(stage, "cluster", CARRIER, f"{EDGE}:5060 -p {SIPP_PORT} -s 6000")
    until("an agent has the call", 20, lambda: _talks(stage), 0.1)
    (ident,) = [c["call"] for c in stage.far.calls(living="1") if c["way"] == "in"]
    stage.lab.edge_process_kill(EDGES[0])
    until("the edge goes on with it", 20, lambda: _talks(stage), 0.1)
    stage.far.order(ident, "hangup")
    assert until("the BYE was taken where it listens", 20, listener, 0.2) == "0", read(
        stage, "/tmp/sipp-listener.log"
    )
    assert until("and nowhere else", 30, caller, 0.2) == "0", read(stage, "/tmp/sipp-cluster.log")
    until("the call is over", 30, lambda: not stage.edge_calls())


def test_a_cluster_that_answers_gets_its_ack_and_bye_where_it_listens(stage: Stage) -> None:
    """SIPp takes no ACK of an INVITE it has not seen, but writes down what came."""
    stage.agents_in(["1001"])
    put(stage, "sipp/answerer.xml", "/tmp/answerer.xml", NAMES=PLACES[0])
    put(stage, "sipp/listener.xml", "/tmp/listener.xml")
    stage.lab.run(FAREND, "rm", "-f", "/tmp/listener.log")
    entry = {"trunk": "cluster", "address": f"{CARRIER}:{ANSWERER_PORT}", "prefixes": ["+48"]}
    given = json.dumps({"trunks": [{**entry, "options_interval_s": 0}]})
    stage.lab.run("ast1", "ari-ha", "config", "load", "/dev/stdin", given=given)
    try:
        log = "-m 2 -trace_msg -message_file listener.log"
        waiting_sipp(stage, "listener", CARRIER, f"-p {LISTENER_PORT} {log}")
        answerer = waiting_sipp(stage, "answerer", CARRIER, f"-p {ANSWERER_PORT}")
        ident = str(stage.far.phone_order("1001", "dial", number="+48221")["call"])
        until("it has answered", 20, lambda: stage.far_calls()[ident]["state"] == "up", 0.1)
        stage.far.order(ident, "hangup")
        heard = lambda method: f"{method} sip:cluster@" in read(stage, "/tmp/listener.log")  # noqa: E731
        until("ACK and BYE came there", 20, lambda: heard("ACK") and heard("BYE"), 0.2)
        assert until("and nowhere else", 30, answerer, 0.2) == "0", read(stage, "/tmp/sipp-answerer.log")
    finally:
        stage.lab.run("etcd1", "etcdctl", "del", "/ari-ha/lab/v1/trunks/cluster")
    until("the call is over", 30, lambda: not stage.edge_calls())


def _talks(stage: Stage) -> bool:
    try:
        rows = stage.edge_calls().values()
    except LabError:
        return False
    return any(
        leg["role"] == "agent" and leg["state"] == "up" for row in rows for leg in row["legs"].values()
    )


def test_sipp_moves_its_call_to_another_phone(stage: Stage) -> None:
    """INVITE with Replaces from the carrier: one call, and its agent notices nothing."""
    stage.agents_in(["1001"])
    put(stage, "sipp/replaced.xml", "/tmp/replaced.xml")
    put(stage, "sipp/replaces.xml", "/tmp/replaces.xml")
    stage.lab.run(FAREND, "rm", "-f", "/tmp/replaced.dialog")
    before = {c["call"] for c in stage.far.calls()}
    left = waiting_sipp(stage, "replaced", CARRIER, f"{EDGE}:5060 -p {REPLACED_PORT} -s 6000")
    dialog = until("the first phone talks", 30, lambda: read(stage, "/tmp/replaced.dialog").split(), 0.1)
    old = f"-key old_call_id {dialog[0]} -key old_tag {dialog[1]}"
    sipp(stage, "/tmp/replaces.xml", CARRIER, f"-p {SIPP_PORT} -s 6000 -m 1 -d 3000 {old}")
    assert until("the first phone was hung up on", 10, left, 0.2) == "0", read(
        stage, "/tmp/sipp-replaced.log"
    )
    rung = [c["call"] for c in stage.far.calls() if c["call"] not in before]
    assert len(rung) == 1, "the agent's phone noticed"
    until("the phone was hung up on", 30, lambda: not stage.far.calls(living="1"))


def test_sipp_may_not_fax(stage: Stage) -> None:
    stage.agents_in(["1001"])
    put(stage, "sipp/t38.xml", "/tmp/t38.xml")
    sipp(stage, "/tmp/t38.xml", CARRIER, f"-p {SIPP_PORT} -s 6000 -m 1 -d 1000")
    until("the phone was hung up on", 30, lambda: not stage.far.calls(living="1"))


def must_have(message: str, header: str, wanted: str) -> dict[str, str]:
    """SIPp takes this message only with that in one of its headers."""
    check = f'<ereg regexp="{wanted}" search_in="hdr" header="{header}:" check_it="true" assign_to="seen"/>'
    return {
        f"{message}/>": f"{message}><action>{check}</action></recv>",
        "</scenario>": '<Reference variables="seen"/></scenario>',
    }


@pytest.mark.parametrize("proxied", [False, True])
def test_sipp_registers_and_takes_a_call(stage: Stage, borrowed: str, proxied: bool) -> None:
    """As a phone, and as a proxy before one (Path, RFC 3327)."""
    path = f"sip:{PHONES}:{SIPP_PORT + 1};lr"
    register = {"Expires: 300": f"Path: <{path}>\n      Expires: 300"}
    register |= must_have('<recv response="200"', "Path", path)
    phone = must_have('<recv request="INVITE" crlf="true"', "Route", path)
    put(
        stage,
        "sipp/register.xml",
        "/tmp/register.xml",
        changed=register if proxied else {},
        USER=BORROWED,
        PASSWORD=borrowed,
    )
    put(stage, "sipp/phone.xml", "/tmp/phone.xml", changed=phone if proxied else {}, USER=BORROWED)
    sipp(stage, "/tmp/register.xml", PHONES, f"-p {SIPP_PORT + 1} -m 1")
    stage.agents_out()
    code = waiting_sipp(stage, "phone", PHONES, f"-p {SIPP_PORT + 1}")
    ask_a_node(stage.cluster, stage.view(), BORROWED, "login", {"device": BORROWED})
    (ident,) = stage.far.place("6100", "15551060")
    until("SIPp's phone has answered", 30, lambda: _agent_up(stage, "15551060"), 0.1)
    stage.far.order(ident, "hangup")
    assert until("SIPp's phone was hung up on", 30, code, 0.2) == "0", read(stage, "/tmp/sipp-phone.log")


def _agent_up(stage: Stage, caller: str) -> bool:
    row = stage.edge_calls().get(caller)
    return bool(row) and any(leg["role"] == "agent" and leg["state"] == "up" for leg in row["legs"].values())


def read(stage: Stage, path: str) -> str:
    try:
        return stage.lab.run(FAREND, "cat", path).strip()
    except LabError:
        return ""


def test_sipp_cannot_claim_to_be_the_inside(stage: Stage, borrowed: str) -> None:
    """The phone's password is right; its signed header is not, and says it is customer leg of a call."""
    token = sign(LegToken(kind="resume", call="forged", leg="c", epoch="999999.1", did="6000"), b"guess")
    put(
        stage,
        "sipp/forged-token.xml",
        "/tmp/forged.xml",
        USER=BORROWED,
        PASSWORD=borrowed,
        TOKEN=token,
    )
    sipp(stage, "/tmp/forged.xml", PHONES, f"-p {SIPP_PORT + 2} -m 1 -auth_uri '*99@{EDGE}:5060'")
    assert "forged" not in {row["call"] for row in stage.edge_calls().values()}
    assert "forged" not in stage.view().calls
    until("the call is over", 30, lambda: not stage.owned_calls())


@pytest.fixture
def baresip(stage: Stage) -> Iterator[Callable[[], None]]:
    """Starts baresip as the borrowed phone, and stops it.

    Its library gives up at a SHA-256 challenge, so the directory keeps only an MD5 digest of this user."""
    with lent(stage, BARESIP_USER) as password:
        yield from baresip_phone(stage, password)


def baresip_phone(stage: Stage, password: str) -> Iterator[Callable[[], None]]:
    values = {
        "USER": BARESIP_USER,
        "PASSWORD": password,
        "ADDRESS": PHONES,
        "PORT": str(BARESIP_PORT),
        "EDGE": EDGE,
    }
    put(stage, "baresip/config", "/tmp/baresip/config", **values)
    put(stage, "baresip/accounts", "/tmp/baresip/accounts", **values)
    put(stage, "baresip/contacts", "/tmp/baresip/contacts")
    pids: list[str] = []

    def start() -> None:
        script = "cd /tmp && nohup baresip -f /tmp/baresip -t 60 >baresip.log 2>&1 </dev/null & echo $!"
        pids.append(stage.lab.run(FAREND, "sh", "-c", script).strip())
        until("baresip is registered", 30, lambda: "200 OK" in read(stage, "/tmp/baresip.log"), 0.2)

    yield start
    for pid in pids:
        stop = f"kill {pid} 2>/dev/null; sleep 0.5; kill -9 {pid} 2>/dev/null; true"
        stage.lab.run(FAREND, "sh", "-c", stop)


def test_baresip_registers_and_takes_a_call(stage: Stage, baresip: Callable[[], None]) -> None:
    baresip()
    stage.agents_out()
    ask_a_node(stage.cluster, stage.view(), BARESIP_USER, "login", {"device": BARESIP_USER})
    (ident,) = stage.far.place("6100", "15551061")
    until("baresip has answered", 30, lambda: _agent_up(stage, "15551061"), 0.1)
    until("the customer hears baresip's tone", 30, lambda: stage.hearing_music([Pair(ident, "")]), 0.2)
    until("baresip hears the customer", 30, lambda: heard_bytes(stage) > HEARD_MIN_BYTES, 0.2)
    stage.far.order(ident, "hangup")
    until("baresip was hung up on", 30, lambda: not stage.edge_calls(), 0.1)


def test_baresip_places_a_call(stage: Stage, baresip: Callable[[], None]) -> None:
    baresip()
    stage.agents_out()
    ask_a_node(stage.cluster, stage.view(), BARESIP_USER, "login", {"device": BARESIP_USER})
    stage.lab.run(FAREND, "python3", "-c", TELL_BARESIP.format(command="dial", params="1002"))
    rows = until(
        "its colleague's phone has answered",
        30,
        lambda: [c for c in stage.far.calls(living="1") if c["owner"] == "1002" and c["state"] == "up"],
    )
    until("the colleague hears its tone", 30, lambda: stage.hearing_music([Pair(rows[0]["call"], "")]), 0.2)
    until("baresip hears the colleague", 30, lambda: heard_bytes(stage) > HEARD_MIN_BYTES, 0.2)
    stage.far.order(rows[0]["call"], "hangup")
    until("baresip was hung up on", 30, lambda: not stage.edge_calls(), 0.1)


def heard_bytes(stage: Stage) -> int:
    """What baresip has received, by its own count of the RTP payload it decoded."""
    size = stage.lab.run(
        FAREND, "sh", "-c", "stat -c %s /tmp/baresip-heard*.wav 2>/dev/null | sort -n | tail -n 1"
    )
    return int(size.strip() or 0)
