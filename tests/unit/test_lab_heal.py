"""Whatever a fault left behind in a host of the lab is mended, and nothing else is touched."""

from __future__ import annotations

import pytest

from ari_ha.cli.lab import CUT_TABLE, DATABASE_CUT_TABLE, PREFIX, Lab
from ari_ha.cli.lab_clock import OWN_CLOCK
from ari_ha.cli.lab_pair import BEATS_TABLE
from ari_ha.cli.lab_patience import PATIENT
from ari_ha.cli.lab_versions import OTHER_VERSION


class Told(Lab):
    """A lab that has these things in the directory /run and the tables of one host."""

    def __init__(self, host: str, found: str) -> None:
        self.host, self.found = host, found
        self.asked: list[tuple[str, str]] = []

    def docker(self, *arguments: str, limit_s: float = 0.0, given: str | None = None) -> str:
        if arguments[0] == "ps":
            return "".join(f"{PREFIX}{host} running\n" for host in ("ast1", "ast2", "edge1", "db1", "etcd1"))
        host, words = arguments[1].removeprefix(PREFIX), " ".join(arguments[2:])
        if "nft list tables" in words:
            return self.found if host == self.host else "asterisk\nsecrets\n"
        self.asked.append((host, words))
        return "1.0"


@pytest.mark.parametrize(
    ("host", "found", "mended", "by"),
    [
        ("ast1", "asterisk\n", [], ""),
        ("ast1", f"table inet {CUT_TABLE}\n", ["ast1 connected"], f"delete table inet {CUT_TABLE}"),
        ("db1", f"table inet {DATABASE_CUT_TABLE}\n", ["db1 connected"], DATABASE_CUT_TABLE),
        ("edge1", f"table inet {BEATS_TABLE}\n", ["edge1 connected"], BEATS_TABLE),
        ("edge1", OTHER_VERSION[5:], ["edge1 runs its own version"], "sv term /service/edge"),
        ("edge1", f"{OTHER_VERSION[5:]}-guard", ["edge1 runs its own version"], "sv term /service/guard"),
        ("ast2", OTHER_VERSION[5:], ["ast2 runs its own version"], "sv term /service/app"),
        ("ast2", OWN_CLOCK[5:], ["ast2 has the machine's clock"], "force-restart asterisk app"),
        (
            "edge1",
            f"{PATIENT[5:]}-edge",
            ["edge1 has the timings of its settings"],
            "force-restart guard edge",
        ),
        ("edge1", OWN_CLOCK[5:], ["edge1 has the machine's clock"], "force-restart edge guard"),
    ],
)
def test_what_is_broken_is_mended(host: str, found: str, mended: list[str], by: str) -> None:
    lab = Told(host, found)
    assert lab.heal() == mended
    assert {where for where, _ in lab.asked} <= {host}
    assert bool(lab.asked) is bool(mended) and (not by or any(by in words for _, words in lab.asked))
