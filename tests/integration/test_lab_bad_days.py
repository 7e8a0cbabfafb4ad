"""Bad days of one part, on the real ones: what is said, who serves meanwhile, and that mending is enough."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from ari_ha.cli.agents import ask_a_node
from ari_ha.cli.chaos_judge import Pair
from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES, NODES

pytestmark = pytest.mark.lab

SICK = NODES[0]
ARI_CONF = "/etc/asterisk/ari.conf"
MODULE = "res_ari_playbacks.so"
"""No other module uses it, so it can be unloaded at any time."""
TCP_PHONE = "1058"
LIMIT_S = 60.0


def reason(stage: Stage) -> str:
    return stage.node_http(SICK, "/v1/status")["reason"]


def talk(stage: Stage, agent: str, caller: str, did: str) -> Pair:
    """A customer reaches that agent, and both hear each other."""
    stage.agents_in([agent])
    stage.far.manner(mode="answer", after_s=0.1)
    (ident,) = stage.far.place(did, caller)
    pair = Pair(ident, caller, "talking", queue="sales" if did.startswith("61") else "support")
    until("they are connected", LIMIT_S, lambda: stage.reached([pair]), 0.2)
    until("they talk", LIMIT_S, lambda: stage.talking([pair]), 0.1)
    return pair


@contextmanager
def out_of_service(stage: Stage, word: str) -> Iterator[None]:
    """The node says why it takes no calls, naming ``word``, and another one serves a new call."""
    until(f"{SICK} is not used", LIMIT_S, lambda: SICK not in stage.usable_nodes(), 0.2)
    until(f"it says why: {word}", LIMIT_S, lambda: word in reason(stage), 0.2)
    assert talk(stage, "1001", "15558001", "6000").node != SICK
    yield
    until(f"{SICK} serves again", LIMIT_S, lambda: SICK in stage.usable_nodes(), 0.2)


def test_a_wrong_ari_password(stage: Stage) -> None:
    change = f"cp {ARI_CONF} /tmp/ari.conf && sed -i 's/^password = .*/password = wrong/' {ARI_CONF}"
    stage.lab.run(SICK, "sh", "-c", f"{change} && asterisk -rx 'module reload res_ari.so'")
    try:
        stage.lab.app_kill(SICK)  # a connection that is open is not asked for the password again
        with out_of_service(stage, "make the password here and in ari.conf the same"):
            _restore(stage)
    finally:
        _restore(stage)


def _restore(stage: Stage) -> None:
    reload = "asterisk -rx 'module reload res_ari.so'"
    stage.lab.run(SICK, "sh", "-c", f"cat /tmp/ari.conf > {ARI_CONF} && {reload}")


def test_a_module_that_is_missing(stage: Stage) -> None:
    stage.lab.run(SICK, "asterisk", "-rx", f"module unload {MODULE}")
    try:
        stage.lab.app_kill(SICK)  # looks at once when it connects
        with out_of_service(stage, MODULE):
            stage.lab.run(SICK, "asterisk", "-rx", f"module load {MODULE}")
    finally:
        stage.lab.run(SICK, "asterisk", "-rx", f"module load {MODULE}")


def test_a_phone_over_tcp(stage: Stage) -> None:
    """It is registered, takes a call, keeps it when the Asterisk under it dies, and places one."""
    (binding,) = stage.cluster.family(f"bindings/{TCP_PHONE}")
    assert b"tcp" in binding.value
    pair = talk(stage, TCP_PHONE, "15558002", "6100")
    stage.lab.asterisk_kill(pair.node)
    before = pair.epoch

    def moved() -> bool:
        stage.refresh([pair])
        row = stage.edge_call(pair.call)
        return pair.epoch != before and not row["lost"] and not row["moving_to"]

    until("another node serves it", LIMIT_S, moved, 0.1)
    assert stage.far.call(pair.agent_call)["state"] == "up" and stage.talking([pair])
    stage.far.order(pair.agent_call, "hangup")
    until("the customer is ended", LIMIT_S, lambda: stage.far.call(pair.customer)["state"] == "ended", 0.1)
    stage.agents_in(["1001"])
    stage.far.phone_order(TCP_PHONE, "dial", number="1001")
    until("a colleague answers", LIMIT_S, lambda: _up(stage, "1001") and _up(stage, TCP_PHONE), 0.1)


def _up(stage: Stage, phone: str) -> bool:
    call = stage.far.phone(phone)["call"]
    return bool(call) and call["state"] == "up"


def test_a_media_relay_that_hangs(stage: Stage) -> None:
    """New calls are refused at once, living ones are kept and talk on when it is back."""
    pair = talk(stage, "1001", "15558003", "6000")
    stage.lab.signal(EDGES[0], "rtpengine", "STOP")
    try:
        until("the edge knows", LIMIT_S, lambda: not stage.edge_status()["rtpengine"], 0.1)
        began = time.monotonic()
        (refused,) = stage.far.place("6000", "15558004")
        until("a new call is refused", LIMIT_S, lambda: stage.far.call(refused)["state"] == "ended", 0.05)
        assert stage.far.call(refused)["status"] == 503
        assert time.monotonic() - began < 10, "an answer, not a time-out"
    finally:
        stage.lab.signal(EDGES[0], "rtpengine", "CONT")
    until("they talk on", LIMIT_S, lambda: stage.talking([pair]), 0.2)
    assert stage.far.call(pair.customer)["state"] == "up"
    until("new calls are served", LIMIT_S, lambda: stage.edge_status()["rtpengine"], 0.1)


@contextmanager
def apps_down(stage: Stage, nodes: Sequence[str]) -> Iterator[None]:
    """Their node apps are stopped and stay so."""
    for node in nodes:
        stage.lab.run(node, "sv", "down", "/service/app")
    until("they are gone", LIMIT_S, lambda: not set(stage.usable_nodes()) & set(nodes), 0.1)
    try:
        yield
    finally:
        for node in nodes:
            stage.lab.run(node, "sv", "up", "/service/app")
        until("all take calls again", LIMIT_S, lambda: set(stage.usable_nodes()) == set(NODES), 0.2)


def test_a_node_without_its_app(stage: Stage) -> None:
    """Its call goes on; new callers are served by the others."""
    stage.only(SICK)
    pair = talk(stage, "1001", "15558005", "6000")
    stage.uncordon(NODES)
    with apps_down(stage, [SICK]):
        for number, agent in enumerate(("1002", "1003", "1004")):
            ask_a_node(stage.cluster, stage.view(), agent, "login", {"device": agent})
            (ident,) = stage.far.place("6000", f"1555801{number}")
            new = Pair(ident, f"1555801{number}", "talking")
            until("a new caller is served", LIMIT_S, lambda new=new: stage.reached([new]), 0.2)  # type: ignore[misc]
            assert new.node != SICK
            until("and talks", LIMIT_S, lambda new=new: stage.talking([new]), 0.1)  # type: ignore[misc]
        assert stage.talking([pair])
    assert stage.edge_call(pair.call)["epoch"] == pair.epoch and stage.talking([pair])


def test_no_app_anywhere(stage: Stage) -> None:
    """A new caller hears the dialplan's apology to its end; who talks talks on."""
    pair = talk(stage, "1001", "15558006", "6000")
    with apps_down(stage, NODES):
        (ident,) = stage.far.place("6000", "15558007")
        new = Pair(ident, "15558007", "queued")
        until("the dialplan speaks", LIMIT_S, lambda: stage.hearing_music([new]), 0.1)
        until("and hangs up", LIMIT_S, lambda: stage.far.call(ident)["state"] == "ended", 0.2)
        assert stage.far.call(ident)["ended_by"] == "them"
        assert stage.talking([pair])
    until("they talk on", LIMIT_S, lambda: stage.talking([pair]), 0.1)
    assert stage.edge_call(pair.call)["epoch"] == pair.epoch
    ask_a_node(stage.cluster, stage.view(), "1002", "login", {"device": "1002"})
    (ident,) = stage.far.place("6000", "15558008")
    new = Pair(ident, "15558008", "talking")
    until("a new caller is served again", LIMIT_S, lambda: stage.reached([new]), 0.2)
    until("and talks", LIMIT_S, lambda: stage.talking([new]), 0.1)
