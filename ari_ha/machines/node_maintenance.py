"""Endpoint maintenance: a cordoned or drained Asterisk refuses new calls by itself.

Edges send none anyway. This is for whoever does not know of the cordon: an edge that is
cut off, a carrier or a phone that calls this Asterisk directly. Asterisk forgets it when
it restarts, and the app what it asked for when *it* does, so the two are compared.
"""

from __future__ import annotations

from ari_ha.core.machine import Done, Outcome, Refused
from ari_ha.core.ports.ari import NO_COMMAND, NO_ENDPOINT, SetMaintenance
from ari_ha.machines.node_core import NodeCore

LANE = "maintenance"
LIMIT_S = 2.0
RETRY_S = 1.0
REFUSED_RETRY_S = 30.0
"""A module may be loaded, a permission given: asked again this much later."""
ASKED = "asked for"
NO_SUCH_COMMAND = (
    "this Asterisk cannot: load res_pjsip_maintenance.so (since 20.20, 22.10 and 23.4); the app and the"
    " edges refuse new calls"
)


class Maintenance:
    """What is wanted, what Asterisk confirmed, and the way from one to the other."""

    def __init__(self, core: NodeCore) -> None:
        self._core = core
        self._context = core.context
        self._there: bool | None = None
        """What Asterisk confirmed in this life of it; None: not known"""
        self._life = ""
        self._busy = False
        self.trouble = ""
        """Why Asterisk last did not do it; said once"""
        self._endpoints = core.config.new_call_endpoints

    @property
    def word(self) -> str:
        """For people: empty while new calls are welcome and taken, ``on`` when Asterisk is to
        refuse them and does, else why it is not as wanted (yet)."""
        there = bool(self._there) and self._context.ari_state.up
        if not self._endpoints or (not there and not self._core.closed):
            return ""
        if self._core.closed:
            return "on" if there else self.trouble or ASKED
        return f"still on: {self.trouble or ASKED}"

    def connected(self) -> None:
        """Asterisk was reached (again). A new life of it refuses nothing; in the old one
        a module may have been loaded anew meanwhile: what is wanted is asked for again."""
        life = self._context.ari_state.incarnation
        if life != self._life:
            self._is(False if self._life else None)
            self._life, self.trouble = life, ""
        elif self._there:
            self._there = None
        self._context.cancel(LANE)

    def _is(self, there: bool | None) -> None:
        self._there = there
        self._core.refusing = bool(there)

    def update(self, wish_known: bool) -> None:
        """Called at the end of every event. After our own start nothing is taken away
        before etcd has said whether this node is cordoned."""
        wanted = self._core.closed
        if self._busy or not self._endpoints or not self._context.ari_state.up or self._there == wanted:
            return
        if self._context.armed(LANE) or not (wanted or wish_known):
            return
        self._busy = True
        life = self._life
        self._context.command(
            SetMaintenance(lane=LANE, limit_s=LIMIT_S, endpoints=self._endpoints, on=wanted),
            lambda outcome: self._told(outcome, wanted, life),
        )

    def _told(self, outcome: Outcome, on: bool, life: str) -> None:
        self._busy = False
        if life != self._life:
            return
        if isinstance(outcome, Done):
            if self._there or on:
                text = "Asterisk refuses new calls" if on else "Asterisk takes new calls again"
                self._context.note("node", text, endpoints=",".join(self._endpoints))
            self._is(on)
            self.trouble = ""
            return
        refused = isinstance(outcome, Refused)
        if not on and isinstance(outcome, Refused) and outcome.code in (NO_COMMAND, NO_ENDPOINT):
            self._is(False)  # what cannot be there need not be taken away
            return
        trouble = NO_SUCH_COMMAND if refused and outcome.code == NO_COMMAND else outcome.reason
        if trouble != self.trouble:
            self.trouble = trouble
            stuck = not on and self._there
            text = (
                "endpoint maintenance is not taken away" if stuck else "endpoint maintenance is not to be had"
            )
            self._context.note("node", text, level="error" if stuck else "warning", why=trouble)
            self._context.count("node_maintenance_refused")
        self._context.after(LANE, REFUSED_RETRY_S if refused else RETRY_S, lambda: None)
