"""Keeping carriers: registration with refresh and retry (RFC 3261 §10), OPTIONS (§11).

Only an edge that serves does either. A registration is not stored: whoever serves the
address next registers anew with the same contact, which replaces nothing and loses
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.machines import options
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.trunk_targets import DOWN, UNKNOWN, UP, Target, reach_of
from ari_ha.machines.trunks import RESTS_S, Trunks
from ari_ha.sip.auth import authorization
from ari_ha.sip.events import RequestFailed, ResponseReceived
from ari_ha.sip.message import Response, SipParseError
from ari_ha.sip.timers import parse_delta
from ari_ha.sip.uri import NameAddr
from ari_ha.wire.sip_values import TrunkValue

REFRESH_SHARE = 0.8
"""A registration is renewed when this much of its time has passed."""
RETRY_FIRST_S = 5.0
RETRY_MAX_S = 600.0
"""RFC 5626 §4.5: waits double from the first to this, each cut by up to half by chance."""
AUTH_TRIES_MAX = 3
"""Challenges answered in one round: one, a stale nonce, and one more."""
EXPIRES_MIN_S, EXPIRES_MAX_S = 10, 86_400
OPTIONS_MISSED_MAX = 2
DEAD_STATUSES = frozenset((408, 502, 503, 504))
"""Answers to OPTIONS that say that nobody is there to serve."""
KEY = "trunk/"


@dataclass(slots=True)
class Round:
    """One registration under way or held."""

    call_id: str
    cseq: int = 0
    tries: int = 0
    failures: int = 0
    expires_s: int = 0
    """What the carrier asked for by 423; 0: nothing."""
    wanted: TrunkValue | None = None
    target: Target | None = None
    """Where it goes: a challenge is answered at the place it came from."""


class TrunkCare:
    """Registers at carriers and asks whether they live."""

    def __init__(self, context: EdgeContext, trunks: Trunks) -> None:
        self._context = context
        self._trunks = trunks
        self._rounds: dict[str, Round] = {}
        self._asked: dict[str, tuple[str, Target]] = {}
        """Number of an OPTIONS whose answer is still to be counted -> trunk, and its place"""
        self._started = False
        trunks.on_changed = self._changed

    def start(self) -> None:
        """Begins to serve: every carrier is cared for from now."""
        self._started = True
        for name in self._trunks.table:
            self._changed(name)

    def _changed(self, name: str) -> None:
        if not self._started:
            return
        context, trunk = self._context, self._trunks.table.get(name)
        held = self._rounds.get(name)
        ours = trunk is not None and bool(trunk.address) and self._trunks.mine(trunk)
        if trunk is None or not ours or not trunk.register:
            self._rounds.pop(name, None)
            context.cancel(f"{KEY}{name}/register")
            self._trunks.state(name).registration = ""
        elif held is None or held.wanted != trunk or self._trunks.state(name).registration != "in":
            self._rounds[name] = held or Round(context.new_id())
            context.at(f"{KEY}{name}/register", context.now, lambda: self._register(name))
        if trunk is not None and ours and trunk.options_interval_s > 0:
            context.at(f"{KEY}{name}/options", context.now, lambda: self._ask(name))
        else:
            context.cancel(f"{KEY}{name}/options")
            self._trunks.state(name).reach = UNKNOWN
            for target in self._trunks.state(name).targets:
                target.reach, target.missed = UNKNOWN, 0

    def owns(self, key: str) -> bool:
        """Whether an answer of the SIP engine is for us."""
        return key.startswith(KEY)

    def answered(self, event: ResponseReceived) -> None:
        """A carrier answered a REGISTER or OPTIONS."""
        _, name, what = event.key.split("/", 2)
        if name not in self._trunks.table:
            return
        if what.startswith("options"):
            self._lives(what.partition("/")[2], event.status not in DEAD_STATUSES, str(event.status))
        else:
            self._registered(name, event)

    def unanswered(self, event: RequestFailed) -> None:
        """A request to a carrier came to nothing."""
        _, name, what = event.key.split("/", 2)
        if name not in self._trunks.table:
            return
        if what.startswith("options"):
            self._lives(what.partition("/")[2], False, event.reason)
        elif name in self._rounds:
            self._again(name, "unreachable", event.reason)

    # --- OPTIONS -------------------------------------------------------------------

    def _ask(self, name: str) -> None:
        context, trunk = self._context, self._trunks.table.get(name)
        if (
            trunk is None
            or not self._trunks.mine(trunk)
            or not trunk.address
            or trunk.options_interval_s <= 0
        ):
            return
        self._asked = {number: asked for number, asked in self._asked.items() if asked[0] != name}
        for target in self._trunks.state(name).targets:
            self._ask_one(name, trunk, target)
        context.at(f"{KEY}{name}/options", context.now + trunk.options_interval_s, lambda: self._ask(name))

    def _ask_one(self, name: str, trunk: TrunkValue, target: Target) -> None:
        context, number = self._context, str(self._context.serial())
        self._asked[number] = (name, target)
        flow = self._trunks.flow(trunk, target)
        uri = self._trunks.uri(trunk, "")
        options.ask(context, f"{KEY}{name}/options/{number}", flow, uri, context.config.public_host, uri)
        limit = min(options.ANSWER_LIMIT_S, trunk.options_interval_s)
        context.at(f"{KEY}{number}/missed", context.now + limit,
                   lambda: self._lives(number, False, "no answer"))  # fmt: skip

    def _lives(self, number: str, alive: bool, why: str) -> None:
        """What an OPTIONS says of its place, and that of the carrier: counted once."""
        context, asked = self._context, self._asked.pop(number, None)
        if asked is None:
            return
        name, target = asked
        context.cancel(f"{KEY}{number}/missed")
        target.missed = 0 if alive else target.missed + 1
        target.reach = UP if alive else (DOWN if target.missed >= OPTIONS_MISSED_MAX else target.reach)
        state = self._trunks.state(name)
        reach = reach_of(state.targets, state.reach)
        if reach != state.reach:
            level = "info" if reach == UP else "warning"
            context.note(f"trunk/{name}", f"trunk is {reach}", level=level, why=why, at=target.place.text)
            context.count("edge_trunk_reach_changes", trunk=name, to=reach)
        state.reach = reach

    # --- REGISTER ------------------------------------------------------------------

    def _register(self, name: str, extra: tuple[tuple[str, str], ...] = (), first: bool = True) -> None:
        """``first``: not the answer to a challenge or to a 423."""
        context, trunk, held = self._context, self._trunks.table.get(name), self._rounds.get(name)
        if trunk is None or held is None:
            return
        held.wanted = trunk
        state = self._trunks.state(name)
        if first:
            held.tries, held.target = 0, self._trunks.pick(name)
        if held.target is None:  # its name leads nowhere: tried when it does again
            state.registration = "unreachable"
            return
        state.registration = state.registration or "asking"
        held.cseq += 1
        flow = self._trunks.flow(trunk, held.target)
        domain, user = self._trunks.domain(trunk), trunk.user or name
        context.sip.request(
            f"{KEY}{name}/register",
            "REGISTER",
            flow=flow,
            target=f"sip:{domain}",
            from_=f"<sip:{user}@{domain}>",
            to=f"<sip:{user}@{domain}>",
            headers=(
                ("Contact", context.sip.contact(flow, user)),
                ("Expires", str(held.expires_s or trunk.register_expires_s)),
                *extra,
            ),
            call_id=held.call_id,
            cseq=held.cseq,
            now=context.now,
        )
        # the SIP timeout answers in any case; this renews even when it should not
        context.at(f"{KEY}{name}/register", context.now + RETRY_MAX_S, lambda: self._register(name))

    def _registered(self, name: str, event: ResponseReceived) -> None:
        held, trunk = self._rounds.get(name), self._trunks.table[name]
        if held is None:
            return
        response = Response(event.status, event.reason, list(event.headers), event.body)
        if event.status in (401, 407):
            extra = self._credentials(name, trunk, held, response)
            if extra:
                self._register(name, (extra,), first=False)
            else:
                self._again(name, "refused", f"{event.status} {event.reason}")
        elif event.status == 423 and held.tries < AUTH_TRIES_MAX:
            held.tries += 1
            asked = parse_delta(response.get("Min-Expires"))
            held.expires_s = EXPIRES_MAX_S if asked is None else min(asked, EXPIRES_MAX_S)
            self._register(name, first=False)
        elif 200 <= event.status < 300:
            self._in(name, trunk, held, response)
        else:
            self._again(name, "refused", f"{event.status} {event.reason}")

    def _credentials(
        self, name: str, trunk: TrunkValue, held: Round, response: Response
    ) -> tuple[str, str] | None:
        """The header that answers a challenge; None when that will not help."""
        credentials = self._trunks.credentials(name)
        if credentials is None or held.tries >= AUTH_TRIES_MAX:
            return None
        held.tries += 1
        proxy = response.status == 407
        challenges = response.get_all("Proxy-Authenticate" if proxy else "WWW-Authenticate")
        uri, cnonce = f"sip:{self._trunks.domain(trunk)}", self._context.new_id()
        value = authorization(credentials, challenges, "REGISTER", uri, cnonce)
        return ("Proxy-Authorization" if proxy else "Authorization", value) if value else None

    def _in(self, name: str, trunk: TrunkValue, held: Round, response: Response) -> None:
        context, state = self._context, self._trunks.state(name)
        granted = self._granted(trunk, held, response)
        if state.registration != "in":
            context.note(f"trunk/{name}", "registered", expires_s=granted)
        held.failures = held.tries = 0
        state.registration, state.why = "in", ""
        state.expires_utc = context.utc + granted
        state.registered_at = held.target.place.text if held.target else ""
        state.service_route = tuple(response.values("Service-Route")) if trunk.service_route else ()
        context.count("edge_trunk_registrations", trunk=name, result="in")
        when = context.now + max(EXPIRES_MIN_S / 2, granted * REFRESH_SHARE)
        context.at(f"{KEY}{name}/register", when, lambda: self._register(name))

    def _granted(self, trunk: TrunkValue, held: Round, response: Response) -> int:
        """The interval of our own contact (§10.2.4), within reason."""
        asked = held.expires_s or trunk.register_expires_s
        if held.target is None:
            return asked
        ours = self._context.sip.contact(self._trunks.flow(trunk, held.target), trunk.user or trunk.trunk)
        found = response.get("Expires").strip() or str(asked)
        for value in response.values("Contact"):
            try:
                contact = NameAddr.parse(value)
            except SipParseError:
                continue
            if f"<{contact.uri}>" == ours and contact.params.get("expires"):
                found = str(contact.params["expires"])
        seconds = parse_delta(found)
        return min(max(asked if seconds is None else seconds, EXPIRES_MIN_S), EXPIRES_MAX_S)

    def _again(self, name: str, state_word: str, why: str) -> None:
        """Not registered: later again, waits doubling, each with chance in it."""
        context, state, held = self._context, self._trunks.state(name), self._rounds[name]
        held.failures += 1
        if held.target is not None:  # another place next, where there is one
            held.target.rests_until = context.now + RESTS_S
        if state.registration != state_word:
            context.note(f"trunk/{name}", "not registered", level="error", state=state_word, why=why)
        if state.registration == "in" and state.expires_utc > context.utc:
            state.why = why  # what is granted counts until its end
        else:
            state.registration, state.why = state_word, why
        context.count("edge_trunk_registrations", trunk=name, result=state_word)
        wait = min(RETRY_FIRST_S * 2 ** min(held.failures - 1, 10), RETRY_MAX_S)
        wait *= 0.5 + context.rand() / 2
        context.at(f"{KEY}{name}/register", context.now + wait, lambda: self._register(name))
