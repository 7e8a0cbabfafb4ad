"""A page faxed by T.38 from one carrier's machine to another's, through the edge (ITU-T T.38 Annex D).

Both carriers are Asterisks with res_fax_spandsp: a T.30 machine that shares none of our code. Needs the
overlay ``peer`` (``ARI_HA_OVERLAYS=peer docker/lab up``)."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from ari_ha.cli.chaos_stage import Stage, until
from ari_ha.cli.lab import EDGES
from tests.support.foreign_asterisk import EDGE, SELF, Peer, etcd

pytestmark = pytest.mark.lab

NUMBER = "+49309"
WIDTH, HEIGHT, BLOCKS = 1728, 2200, 9_000
"""A line of a fax (ITU-T T.4), a page in fine resolution, and enough on it for about half a minute"""
DENSITY = (204, 196)
FAX_LIMIT_S = 150
TRUNKS = ("fax-from", "fax-to")


def page(seed: int) -> Image.Image:
    """A page nobody has by chance: blocks of black at places drawn from a seed."""
    drawn, image = random.Random(seed), Image.new("1", (WIDTH, HEIGHT), 1)
    for _ in range(BLOCKS):
        x, y = drawn.randrange(WIDTH - 40), drawn.randrange(HEIGHT - 8)
        image.paste(0, (x, y, x + drawn.randrange(4, 40), y + drawn.randrange(2, 8)))
    return image


@pytest.fixture
def machines(stage: Stage) -> Iterator[tuple[Peer, Peer]]:
    """Two carriers, each with a fax machine; the second one has the numbers in +49."""
    if "carrier" not in stage.lab.running():
        pytest.skip("the lab has no overlay 'peer'")
    pair = Peer(stage, "carrier", "fax"), Peer(stage, "phone", "fax")
    for peer in pair:
        peer.start()
        peer.run("sh", "-c", "rm -f /tmp/fax.result /tmp/received.tif /tmp/page.tif")
    entries = [
        {"trunk": name, "address": f"{SELF[peer.host]}:5060", "t38": True, "options_interval_s": 0,
         "prefixes": ["+49"] if name == "fax-to" else []}
        for name, peer in zip(TRUNKS, pair, strict=True)
    ]  # fmt: skip
    stage.lab.run("ast1", "ari-ha", "config", "load", "/dev/stdin", given=json.dumps({"trunks": entries}))
    yield pair
    for name in TRUNKS:
        etcd(stage, "del", f"/ari-ha/lab/v1/trunks/{name}")
    for peer in pair:
        peer.stop()


def result(peer: Peer) -> list[str]:
    """Status, pages and so on, as the machine says after the call; empty before."""
    return peer.run("sh", "-c", "cat /tmp/fax.result 2>/dev/null || true").split()


def faxes(stage: Stage) -> dict[str, Any] | None:
    """The call in which both legs are at T.38."""
    for row in stage.edge_calls().values():
        if len(row["legs"]) == 2 and all(leg.get("fax") for leg in row["legs"].values()):
            return row
    return None


def received(peer: Peer) -> Image.Image:
    data = base64.b64decode(peer.run("base64", "/tmp/received.tif"))
    return Image.open(io.BytesIO(data)).convert("1")


@pytest.mark.parametrize(("fault", "seed"), [("none", 1), ("asterisk-kill", 2), ("edge-process-kill", 3)])
def test_a_page_goes_from_one_carrier_to_the_other(
    stage: Stage, machines: tuple[Peer, Peer], fault: str, seed: int
) -> None:
    sender, receiver = machines
    sent, data = page(seed), io.BytesIO()
    sent.save(data, "TIFF", compression="group4", dpi=DENSITY)
    given = base64.b64encode(data.getvalue()).decode()
    sender.run("sh", "-c", "base64 -d > /tmp/page.tif", given=given)
    sender.cli(f"channel originate PJSIP/edge/sip:{NUMBER}@{EDGE}:5060 extension send@fax")
    call = until("both ends are at T.38", 40, lambda: faxes(stage), 0.2)
    assert not result(sender)
    if fault == "asterisk-kill":
        stage.lab.asterisk_kill(call["node"])
        until("the call moved", 30, lambda: (row := faxes(stage)) and row["epoch"] != call["epoch"], 0.3)
        assert not result(sender), "the fax was over before the node's death mattered"
    elif fault == "edge-process-kill":
        stage.lab.edge_process_kill(EDGES[0])
    done = until("the machines are done", FAX_LIMIT_S, lambda: result(sender) and result(receiver), 0.5)
    assert done[:2] == result(sender)[:2] == ["SUCCESS", "1"], (result(sender), result(receiver))
    assert "m=image" in receiver.run("cat", "/tmp/log"), "it was a fax in audio"
    came = received(receiver)
    assert came.size == (WIDTH, HEIGHT) and came.tobytes() == sent.tobytes(), "not the page that was sent"
    until("the call is over", 30, lambda: not stage.edge_calls())
