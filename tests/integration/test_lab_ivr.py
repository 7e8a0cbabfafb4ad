"""An IVR on real containers: a step that must not happen twice, and the death of its node."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import NETWORK
from ari_ha.core.ports.store import Compare, Put

pytestmark = pytest.mark.lab

WORKS_S = 1.5
MENU = "main"
NUMBER = "6200"


class Site:
    """A system of the site, at the lab's gateway: takes its time, counts what it did."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.looked_up: list[str] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                site.begun.append(self.headers["Idempotency-Key"])
                time.sleep(WORKS_S)
                self._say(200)

            def do_GET(self) -> None:
                (key,) = parse_qs(urlsplit(self.path).query)["key"]
                site.looked_up.append(key)
                self._say(200 if key in site.begun else 404)

            def _say(self, status: int) -> None:
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                except OSError:
                    pass  # whoever asked is dead

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer((f"{NETWORK}.2.1", 0), Handler)
        self.url = f"http://{NETWORK}.2.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def site(stage: Stage) -> Iterator[Site]:
    """A site, and the lab's menu with a step that asks it for something."""
    site, cluster = Site(), stage.cluster
    key = cluster.keys.ivr(MENU)
    item = cluster.get(key)
    assert item is not None
    step = {
        "do": "request", "to": f"{site.url}/charge", "lookup": f"{site.url}/outcome",
        "done": {"do": "queue", "to": "support", "variables": {"CHARGED": "yes"}},
        "failed": {"do": "hangup"}, "unsure": {"do": "hangup"},
    }  # fmt: skip
    value = {**json.loads(item.value), "choices": {"3": step}}
    put = Put(key, json.dumps(value).encode())
    assert cluster.txn([Compare(key, item.mod_revision)], [put]).succeeded
    yield site
    changed = cluster.get(key)
    assert changed is not None
    cluster.txn([Compare(key, changed.mod_revision)], [Put(key, item.value)])
    site.server.shutdown()
    site.server.server_close()


@pytest.mark.parametrize("fault", ["", "asterisk_kill", "app_kill"])
def test_a_step_with_effects_happens_once(stage: Stage, site: Site, fault: str) -> None:
    stage.agents_in(["1001"])
    (customer,) = stage.far.place(NUMBER, "15554321")
    until("the caller hears the menu", 30, lambda: stage.far.call(customer)["state"] == "up", 0.1)
    time.sleep(0.5)
    stage.far.digits({customer: "3"})
    until("the request is there", 30, lambda: site.begun, 0.02)
    if fault:
        node = stage.edge_calls()["15554321"]["node"]
        getattr(stage.lab, fault)(node)
    there = lambda: (c := stage.far.phone("1001")["call"]) and c["state"] == "up"  # noqa: E731
    until("the agent has the caller", 30, there, 0.1)
    assert len(site.begun) == 1
    assert (set(site.looked_up) <= set(site.begun)) and bool(site.looked_up) == bool(fault)
    call = stage.edge_calls()["15554321"]
    record = stage.node_http(call["node"], f"/v1/calls/{call['call']}")["record"]
    assert record["variables"]["CHARGED"] == "yes"
