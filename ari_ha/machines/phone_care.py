"""Whether phones are still there: OPTIONS (RFC 3261 §11) to every binding of this pair.

Off unless asked for: a registration that runs out says the same, later. What is asked keeps
the way through a NAT open too. A phone that answers nothing keeps its binding and is called
all the same; it is marked, and the ACD rings nobody there until it answers or registers anew.
"""

from __future__ import annotations

from ari_ha.machines import options
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.registrar import Registrar

LOOK_S = 1.0
"""Bindings are looked through this often: a phone may be asked that much late."""
KEY = "phone/"
Contact = tuple[str, str]
"""Address of record and the contact's hash"""


class PhoneCare:
    """Asks phones, counts what they miss."""

    def __init__(self, context: EdgeContext, registrar: Registrar) -> None:
        self._context = context
        self._registrar = registrar
        self._due: dict[Contact, float] = {}
        self._missed: dict[Contact, int] = {}
        self._asked: dict[str, Contact] = {}
        """SIP key of an OPTIONS that is out -> whom it asks"""
        registrar.on_registered = self._registered

    def start(self) -> None:
        """Begins to ask."""
        if self._context.timings.phone_options_s > 0:
            self._context.at("phones", self._context.now, self._look)

    def owns(self, key: str) -> bool:
        """Whether an answer of the SIP engine is for us."""
        return key.startswith(KEY)

    def _look(self) -> None:
        context, interval = self._context, self._context.timings.phone_options_s
        ours = set(self._registrar.contacts())
        # a new one at any moment of its first interval, lest all are asked at once
        self._due = {who: self._due.get(who, context.now + context.rand() * interval) for who in ours}
        self._missed = {who: count for who, count in self._missed.items() if who in ours}
        for who, when in self._due.items():
            if when <= context.now:
                self._due[who] = context.now + interval
                self._ask(who)
        context.at("phones", context.now + LOOK_S, self._look)

    def _ask(self, who: Contact) -> None:
        context, value = self._context, self._registrar.contact(*who)
        if value is None:
            return
        flow, target, routes = self._registrar.route(value)
        key = f"{KEY}{context.serial()}"
        self._asked[key] = who
        realm = context.config.realm
        options.ask(context, key, flow, target, realm, f"sip:{value.aor}@{realm}", routes)
        context.at(f"{key}/missed", context.now + options.ANSWER_LIMIT_S, lambda: self.heard(key, False))

    def heard(self, key: str, answered: bool) -> None:
        """An answer, whatever it says, or the lack of one."""
        who = self._asked.pop(key, None)
        if who is None:
            return  # counted as missed already
        self._context.cancel(f"{key}/missed")
        if answered:
            self._missed.pop(who, None)
            self._mark(who, 0.0)
            return
        self._missed[who] = self._missed.get(who, 0) + 1
        if self._missed[who] >= self._context.timings.phone_options_missed_max:
            self._mark(who, self._context.utc)

    def _mark(self, who: Contact, since: float) -> None:
        value = self._registrar.contact(*who)
        if value is None or bool(value.unreachable) == bool(since):
            return
        context = self._context
        text = "phone answers no OPTIONS" if since else "phone answers again"
        context.note("edge", text, level="warning" if since else "info", aor=value.aor, contact=value.contact)
        context.count("edge_phone_reach_changes", to="unreachable" if since else "reachable")
        self._registrar.mark(*who, unreachable=since)

    def _registered(self, aor: str, ident: str) -> None:
        """A REGISTER is an answer as well."""
        self._missed.pop((aor, ident), None)
