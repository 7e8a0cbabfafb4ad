"""The command line against a small stand-in for etcd's JSON gateway and the
processes' HTTP APIs, on a real socket."""

from __future__ import annotations

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ari_ha.cli.config import BadDirectory, read_directory
from ari_ha.cli.doctor import fsync_p99, metric, not_after
from ari_ha.cli.explain import merge
from ari_ha.cli.main import app
from ari_ha.wire.keyspace import (
    AgentValue,
    EdgeValue,
    Keys,
    LegValue,
    MediaValue,
    NodeValue,
    OwnerValue,
    QueueConfigValue,
    RecordValue,
    VipValue,
    WaitingValue,
    decode,
    encode,
)

KEYS = Keys("t")
TOKEN = "secret-token"


class Stand:
    """Keys with revisions behind etcd's gateway, and canned answers behind /v1."""

    def __init__(self) -> None:
        self.revision = 1
        self.items: dict[str, tuple[bytes, int]] = {}
        self.answers: dict[str, object] = {}
        self.asked: list[tuple[str, str, object, str]] = []
        self.away = False
        stand = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
                if self.path.startswith("/v3/"):
                    status, answer = (503, {}) if stand.away else (200, stand.gateway(self.path[4:], body))
                else:
                    status, answer = stand.api("POST", self.path, body, self.headers)
                self.reply(status, answer)

            def do_GET(self) -> None:
                self.reply(*stand.api("GET", self.path, None, self.headers))

            def reply(self, status: int, answer: object) -> None:
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self.thread.start()

    def put(self, key: str, value: object) -> None:
        self.revision += 1
        self.items[key] = (value if isinstance(value, bytes) else encode(value), self.revision)

    def gateway(self, method: str, body: dict) -> dict:
        def text(b64: str) -> str:
            return base64.b64decode(b64).decode()

        def kv(key: str) -> dict:
            value, revision = self.items[key]
            return {
                "key": base64.b64encode(key.encode()).decode(),
                "value": base64.b64encode(value).decode(),
                "mod_revision": str(revision),
            }

        header = {"revision": str(self.revision), "member_id": "7"}
        if method == "kv/range":
            first, last = text(body["key"]), text(body.get("range_end", ""))
            found = [k for k in sorted(self.items) if (first <= k < last if last else k == first)]
            return {"header": header, "kvs": [kv(k) for k in found]}
        if method == "kv/txn":
            held = all(
                self.items.get(text(c["key"]), (b"", 0))[1] == int(c["mod_revision"]) for c in body["compare"]
            )
            if held:
                for operation in body["success"]:
                    if gone := operation.get("request_delete_range"):
                        self.items.pop(text(gone["key"]), None)
                        continue
                    put = operation["request_put"]
                    self.put(text(put["key"]), base64.b64decode(put["value"]))
                return {"header": header, "succeeded": True}
            kept = [text(c["key"]) for c in body["compare"]]
            return {
                "header": header,
                "responses": [{"response_range": {"kvs": [kv(k)]}} for k in kept if k in self.items],
            }
        if method == "maintenance/status":
            return {"header": header, "leader": "7", "version": "3.5.0", "dbSize": "1000", "raftTerm": "2"}
        return {"header": header}

    def api(self, method: str, path: str, body: object, headers: object) -> tuple[int, object]:
        self.asked.append((method, path, body, headers["Authorization"] or ""))  # type: ignore[index]
        answer = self.answers.get(path)
        if isinstance(answer, tuple):
            return answer
        return (404, {"error": "unknown"}) if answer is None else (200, answer)


@pytest.fixture
def stand(tmp_path: Path):
    stand = Stand()
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "settings.json").write_text(
        json.dumps(
            {"cluster": "t", "etcd": {"endpoints": [stand.address]}, "http": {"token_file": "token"},
             "nodes": {"ast1": {"http": f"http://{stand.address}"}}}
        )
    )  # fmt: skip
    yield stand
    stand.server.shutdown()
    stand.server.server_close()


@pytest.fixture
def ari_ha(stand: Stand, tmp_path: Path):
    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, [*words, "--settings", str(tmp_path / "settings.json")])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def populate(stand: Stand) -> None:
    now = time.time()
    for name in ("ast1", "ast2"):
        stand.put(
            KEYS.node(name),
            NodeValue(node=name, incarnation="i", sip="s", link="l", http=stand.address, ready=True),
        )
    for name in ("edge1", "edge2"):
        stand.put(KEYS.edge(name), EdgeValue(edge=name, vip="pair1", sip="s", http=stand.address))
    stand.put(KEYS.vip("pair1"), VipValue(edge="edge1", since=now))
    stand.put(
        KEYS.owner("k1"),
        OwnerValue(call="k1", node="ast1#i", epoch="9.1", edge="edge1", vip="pair1", since=now),
    )
    legs = {
        "c": LegValue(leg="c", role="customer"),
        "a1": LegValue(leg="a1", role="agent", agent="alice", state="ended"),
        "a2": LegValue(leg="a2", role="agent", agent="bob"),
    }
    stand.put(
        KEYS.record("k1"),
        RecordValue(call="k1", epoch="9.1", node="ast1", stage="talking", queue="support", legs=legs),
    )
    stand.put(KEYS.media("k1"), MediaValue(call="k1", ng_call="k1", state="hitless"))
    stand.put(KEYS.agent("alice"), AgentValue(agent="alice", intent="available", queues={"support": 0}))
    stand.put(KEYS.agent("bob"), AgentValue(agent="bob", intent="available", work="talking", pin_hash="x"))
    stand.put(KEYS.queue_config("support"), QueueConfigValue(queue="support"))
    stand.put(KEYS.waiting("support", "k2"), WaitingValue(call="k2", queue="support", entered=now))


def test_status_counts_and_judges(stand: Stand, ari_ha) -> None:
    populate(stand)
    status, text = ari_ha("status", "--json")
    document = json.loads(text)
    assert document["nodes"]["ast1"]["calls_owned"] == 1
    assert document["edges"]["edge1"]["active"] and not document["edges"]["edge2"]["active"]
    assert document["agents"] == {"available": 1, "talking": 1}
    assert document["waiting"] == {"support": 1}
    assert (status, document["verdict"]) == (0, "warn")
    assert document["reasons"] == ["etcd: 1 of at least 3 members configured here"]


def test_status_is_bad_when_no_node_takes_calls(stand: Stand, ari_ha) -> None:
    populate(stand)
    for name in ("ast1", "ast2"):
        del stand.items[KEYS.node(name)]
    status, text = ari_ha("status", "--json")
    assert status == 1
    assert json.loads(text)["reasons"][:2] == [
        "no node takes calls",
        "1 calls belong to a node that is not registered",
    ]


def test_status_without_etcd_asks_the_processes(stand: Stand, ari_ha) -> None:
    stand.away = True
    stand.answers["/v1/status"] = {"ready": True}
    status, text = ari_ha("status", "--json")
    assert status == 1
    assert json.loads(text)["processes"] == {"ast1": {"ready": True}}


@pytest.mark.parametrize(
    "verb", [("status",), ("calls",), ("agents",), ("queues",), ("call", "k1"), ("agent", "show", "bob")]
)
def test_every_reading_verb_prints_text_and_json(stand: Stand, ari_ha, verb: tuple[str, ...]) -> None:
    populate(stand)
    status, text = ari_ha(*verb)
    assert status == 0 and text
    status, text = ari_ha(*verb, "--json")
    assert status == 0 and isinstance(json.loads(text), dict)


def test_calls_name_the_living_agent_leg(stand: Stand, ari_ha) -> None:
    populate(stand)
    (call,) = json.loads(ari_ha("calls", "--json")[1])["calls"]
    assert (call["node"], call["epoch"], call["agent"], call["media"]) == ("ast1", "9.1", "bob", "hitless")


def test_call_shows_the_edges_facts(stand: Stand, ari_ha) -> None:
    populate(stand)
    stand.answers["/v1/calls/k1"] = {"call": "k1", "legs": {"c": {"state": "up"}}, "digits": ["5"]}
    document = json.loads(ari_ha("call", "k1", "--json")[1])
    assert document["edge"]["digits"] == ["5"]
    assert stand.asked[-1][3] == f"Bearer {TOKEN}"
    assert ari_ha("call", "nobody")[0] == 2


@pytest.mark.parametrize("options", [(), ("--off",)])
def test_a_leg_is_muted_at_the_edge_that_serves_now(stand: Stand, ari_ha, options: tuple[str, ...]) -> None:
    """The owner key names the edge that wrote it, which may have died since."""
    populate(stand)
    stand.put(KEYS.edge("edge1"), EdgeValue(edge="edge1", vip="pair1", sip="s", http="127.0.0.1:9"))
    stand.put(KEYS.vip("pair1"), VipValue(edge="edge2", since=time.time()))
    stand.answers["/v1/calls/k1/mute"] = {"call": "k1"}
    status, text = ari_ha("mute", "k1", "a2", *options)
    assert status == 0, text
    assert stand.asked[-1][:3] == ("POST", "/v1/calls/k1/mute", {"leg": "a2", "muted": not options})
    assert ari_ha("mute", "nobody", "c")[0] == 2


def test_secrets_are_not_shown(stand: Stand, ari_ha) -> None:
    populate(stand)
    for verb in (("agent", "show", "bob"), ("agents",), ("config", "show")):
        assert "pin_hash" not in ari_ha(*verb, "--json")[1]


def test_agent_verbs_go_to_the_node_that_has_the_agents_call(stand: Stand, ari_ha) -> None:
    populate(stand)
    stand.answers["/v1/agents/alice/not-ready"] = {"ok": True}
    status, text = ari_ha("agent", "not-ready", "alice", "lunch", "--json")
    assert status == 0 and json.loads(text)["node"] == "ast1"
    assert stand.asked[-1][:3] == ("POST", "/v1/agents/alice/not-ready", {"reason": "lunch"})


def test_a_refused_agent_verb_is_final_and_a_broken_node_is_not(stand: Stand, ari_ha) -> None:
    populate(stand)
    stand.answers["/v1/agents/alice/logout"] = (409, {"error": "not logged in"})
    status, text = ari_ha("agent", "logout", "alice")
    assert status == 2 and "not logged in" in text and len(stand.asked) == 1
    stand.answers["/v1/agents/alice/logout"] = (503, {"error": "starting"})
    status, text = ari_ha("agent", "logout", "alice")
    assert status == 1 and "ast2" in text and len(stand.asked) == 3


def test_explain_merges_stories_by_time(stand: Stand, ari_ha) -> None:
    populate(stand)
    stand.answers["/v1/explain/k1"] = {
        "lines": [{"at": 2.0, "text": "b"}, {"at": 1.0, "text": "a", "leg": "c"}]
    }
    document = json.loads(ari_ha("explain", "k1", "--json")[1])
    assert [line["text"] for line in document["lines"]] == ["a"] * 4 + ["b"] * 4
    assert "leg=c" in ari_ha("explain", "k1")[1]
    assert merge([{"at": 3, "text": "y"}, {"text": "x"}])[0]["text"] == "x"


def test_doctor_has_advice(stand: Stand, ari_ha) -> None:
    populate(stand)
    stand.answers["/v1/status"] = {
        "ready": False, "reason": "ARI away", "rtpengine": False, "maintenance_trouble": "no permission",
    }  # fmt: skip
    status, text = ari_ha("doctor", "--json")
    findings = json.loads(text)["findings"]
    assert status == 1
    texts = {"not ready: ARI away", "rtpengine does not answer it", "no endpoint maintenance: no permission"}
    assert texts <= {f["text"] for f in findings}
    assert all(f["level"] in ("ok", "warn", "bad") for f in findings)


def test_doctor_reads_etcds_metrics() -> None:
    text = "a 1\netcd_server_quota_backend_bytes 2e+09\n" + "".join(
        f'etcd_disk_wal_fsync_duration_seconds_bucket{{le="{bound}"}} {count}\n'
        for bound, count in (("0.001", 50), ("0.064", 99), ("+Inf", 100))
    )
    assert metric(text, "etcd_server_quota_backend_bytes") == 2e9
    assert fsync_p99(text) == 0.064
    assert fsync_p99("") is None


def test_doctor_reads_a_certificates_end() -> None:
    # The two validity times of a certificate skeleton: UTCTime and GeneralizedTime.
    def der(tag: int, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return bytes([tag, len(body)]) + body

    for tag, when in ((0x17, b"301231235959Z"), (0x18, b"20301231235959Z")):
        validity = der(0x30, der(0x17, b"200101000000Z"), der(tag, when))
        tbs = der(
            0x30, der(0xA0, der(0x02, b"\2")), der(0x02, b"\1"), der(0x30), der(0x30), validity, der(0x30)
        )
        pem = base64.b64encode(der(0x30, tbs)).decode()
        assert not_after(f"-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n") == 1924991999.0
    with pytest.raises(ValueError):
        not_after("nothing")


DIRECTORY = {
    "realm": "lab",
    "agents": [{"agent": "1001", "name": "Agent 1001", "aor": "1001", "queues": ["support"], "pin": "1"}],
    "users": {"1001": {"password": "x"}, "carrier1": {"ha1_md5": "0" * 32}},
    "queues": {"support": {"wrapup_ms": 1}},
    "trunks": {"carrier1": {"hosts": ["192.0.2.1"], "dids": {"6000": "queue,support"}}},
}


def test_config_load_is_idempotent(stand: Stand, ari_ha, tmp_path: Path) -> None:
    file = tmp_path / "directory.json"
    file.write_text(json.dumps(DIRECTORY))
    assert json.loads(ari_ha("config", "load", str(file), "--dry-run", "--json")[1])["created"] == 7
    assert not stand.items
    assert json.loads(ari_ha("config", "load", str(file), "--json")[1])["created"] == 7
    before = dict(stand.items)
    assert json.loads(ari_ha("config", "load", str(file), "--json")[1])["unchanged"] == 7
    assert stand.items == before
    assert b'"agent":"1001"' in stand.items[KEYS.user("1001")][0]
    assert b"password" not in stand.items[KEYS.secret_user("1001")][0]


def test_config_load_leaves_what_an_agent_is_doing(stand: Stand, ari_ha, tmp_path: Path) -> None:
    file = tmp_path / "directory.json"
    file.write_text(json.dumps(DIRECTORY))
    busy = AgentValue(agent="1001", intent="available", work="talking", handled=5, device="1001", seq=9)
    stand.put(KEYS.agent("1001"), busy)
    assert json.loads(ari_ha("config", "load", str(file), "--json")[1])["updated"] == 1
    after = decode(stand.items[KEYS.agent("1001")][0], AgentValue)
    assert (after.work, after.handled, after.device, after.seq) == ("talking", 5, "1001", 9)
    assert (after.name, after.queues) == ("Agent 1001", {"support": 0})


@pytest.mark.parametrize(
    "bad",
    [
        [],
        {"agents": {"a/b": {}}},
        {"agents": {"a": {"work": "talking"}}},
        {"queues": {"q": {"wrapup_ms": "long"}}},
        {"queues": {"q": {"colour": 1}}},
        {"users": [{}]},
        {"users": {"u": 3}},
    ],
)
def test_a_bad_directory_says_so(bad: object) -> None:
    with pytest.raises(BadDirectory):
        list(read_directory(bad))


def test_no_settings_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["status", "--settings", str(tmp_path / "none.json")])
    assert result.exit_code == 1 and "no settings at" in result.output
