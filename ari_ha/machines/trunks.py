"""Trunks: which carriers there are, who may call, and which one a call leaves by.

Choice is a function of the table and of what is known of each carrier: the longest
prefix, then the lowest priority, then chance by weight. A carrier that is down, full
or too busy is not among the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ari_ha.core.ports.store import KeyValue
from ari_ha.machines.edge_context import EdgeContext
from ari_ha.machines.edge_pairs import Pairs, Route
from ari_ha.machines.identity import number_of, user_part
from ari_ha.machines.names import Names, Place, Question, is_name
from ari_ha.machines.trunk_targets import (
    DOWN,
    UNKNOWN,
    Target,
    address_of,
    kept,
    pick,
    question_of,
)
from ari_ha.sip.auth import Credentials
from ari_ha.sip.flow import Flow
from ari_ha.sip.message import Request
from ari_ha.sip.nexthop import ROUTE, SOURCE
from ari_ha.sip.timers import parse_delta
from ari_ha.wire.keyspace import BadValue, decode
from ari_ha.wire.sip_values import SecretTrunkValue, TrunkValue

RESTS_S = 15.0
"""A carrier that failed a call (5xx, timeout) is tried last for this long, or for its Retry-After."""
RESTS_MAX_S = 300.0


@dataclass(slots=True)
class TrunkState:
    """What this edge knows of a carrier's health and of its own use of it."""

    reach: str = UNKNOWN
    targets: list[Target] = field(default_factory=list)
    """Where it is; none: its name is not known, or it cannot be spoken to from here"""
    nowhere: str = ""
    """Why it has no place"""
    registered_at: str = ""
    """The place our registration is at"""
    registration: str = ""
    """empty (not wanted), asking, in, refused, unreachable"""
    why: str = ""
    expires_utc: float = 0.0
    service_route: tuple[str, ...] = ()
    rests_until: float = 0.0
    tokens: float = -1.0
    """Calls that may begin now; below 0: nothing has been counted yet"""
    tokens_at: float = 0.0


def rewritten(number: str, rules: Mapping[str, str]) -> str:
    """The number with its longest prefix that has a rule replaced, once."""
    best = max((prefix for prefix in rules if number.startswith(prefix)), key=len, default=None)
    return number if best is None else rules[best] + number[len(best) :]


class Trunks:
    """The table of carriers and the choice among them."""

    def __init__(self, context: EdgeContext, pairs: Pairs) -> None:
        self._context = context
        self._pairs = pairs
        self.table: dict[str, TrunkValue] = {}
        self._secrets: dict[str, SecretTrunkValue] = {}
        self._states: dict[str, TrunkState] = {}
        self.on_changed: Callable[[str], None] = lambda name: None
        """Called with a trunk's name when its settings or its secret changed."""
        self.load: Callable[[str], int] = lambda name: 0
        """Calls of a trunk at the moment."""
        self._by_host: dict[str, str] = {}
        """Address a carrier's requests come from -> trunk"""
        self._names = Names(context, self._name_changed)
        for name in context.config.trunks:
            self._from_config(name)
        self._locate()

    def _from_config(self, name: str) -> None:
        trunk = self._context.config.trunks[name]
        hosts, dids = list(trunk.get("hosts", [])), list(trunk.get("dids", []))  # type: ignore[call-overload]
        self.table[name] = TrunkValue(trunk=name, hosts=hosts, dids=dids)

    # --- what etcd says ------------------------------------------------------------

    def stored(self, key: str, item: KeyValue | None) -> None:
        """A key of trunks/ or secret/trunks/ as it is now."""
        parts = self._context.keys.split(key)
        try:
            if parts[:1] == ("trunks",):
                name = parts[1]
                if item is not None:
                    self.table[name] = decode(item.value, TrunkValue, key)
                elif name in self._context.config.trunks:
                    self._from_config(name)
                else:
                    self.table.pop(name, None)
            elif parts[:2] == ("secret", "trunks"):
                name = parts[2]
                if item is None:
                    self._secrets.pop(name, None)
                else:
                    self._secrets[name] = decode(item.value, SecretTrunkValue, key)
            else:
                return
        except BadValue as error:
            self._context.note("edge", "unreadable trunk kept out", level="error", error=error)
            return
        if parts[:1] == ("trunks",):
            self._locate()
        self.on_changed(name)

    def begin_snapshot(self, family: str, items: Mapping[str, KeyValue]) -> None:
        """Forgets what a snapshot no longer has."""
        keys = self._context.keys
        if family == "trunks":
            for name in [n for n in self.table if keys.trunk(n) not in items]:
                self.stored(keys.trunk(name), None)
        elif family == "secret":
            for name in [n for n in self._secrets if keys.secret_trunk(n) not in items]:
                self.stored(keys.secret_trunk(name), None)

    # --- where they are ------------------------------------------------------------

    def _locate(self) -> None:
        """The table changed: names are asked for, addresses are taken as they are."""
        questions = [question_of(trunk) for trunk in self.table.values() if trunk.address]
        hosts = [Question(host) for trunk in self.table.values() for host in trunk.hosts if is_name(host)]
        self._names.want([question for question in (*questions, *hosts) if question is not None])
        self._places()

    def _name_changed(self, question: Question) -> None:
        """A name leads somewhere else, or nowhere; who has it is cared for anew."""
        self._places()
        for name, trunk in list(self.table.items()):
            if trunk.address and question_of(trunk) == question:
                self.on_changed(name)

    def _places(self) -> None:
        self._by_host = {}
        for name, trunk in self.table.items():
            state, question = self.state(name), question_of(trunk) if trunk.address else None
            if question is not None:
                entry = self._names.known(question)
                places, state.nowhere = list(entry.places), "" if entry.places else entry.why
            else:
                places, state.nowhere = [Place(*address_of(trunk))] if trunk.address else [], ""
            hosts = [place.host for place in places]
            if trunk.address and not self._context.sip.has_listener(f"public-{trunk.transport}"):
                places, state.nowhere = [], f"this edge does not speak {trunk.transport}"
            state.targets = kept(state.targets, places)
            for host in trunk.hosts:
                places_of = self._names.known(Question(host)).places if is_name(host) else ()
                hosts += [place.host for place in places_of] if is_name(host) else [host]
            for host in hosts:
                self._by_host.setdefault(host, name)

    def pick(self, name: str, leave_out: Collection[str] = ()) -> Target | None:
        """The place of a carrier for the next request; None when there is none left."""
        state, context = self.state(name), self._context
        return pick(state.targets, leave_out, state.registered_at, context.now, context.rand)

    def next_hop(self, name: str) -> str:
        """How requests within a call of the carrier's find it (`nexthop.ROUTE` or `SOURCE`)."""
        trunk = self.table.get(name)
        return ROUTE if trunk is None or trunk.next_hop != SOURCE else SOURCE

    def next_hop_out(self, name: str) -> str:
        """The same for a call we make: the pair it goes through knows the way."""
        return self.next_hop(name) if self.mine(self.table[name]) else SOURCE

    # --- who calls us --------------------------------------------------------------

    def of_host(self, host: str) -> str | None:
        """The trunk whose carrier has this address."""
        return self._by_host.get(host)

    def of_user(self, user: str) -> str | None:
        """The trunk whose carrier authenticates with this user."""
        return next((name for name, trunk in self.table.items() if trunk.inbound_user == user), None)

    def accepts(self, name: str, number: str) -> bool:
        """Whether the trunk's numbers include this one; an empty list is all."""
        trunk = self.table.get(name)
        return trunk is not None and (not trunk.dids or number in trunk.dids)

    def called(self, name: str, request: Request) -> str:
        """The number a carrier calls. One we register at may use our contact's name as
        the target and leave the number in To."""
        trunk, number = self.table[name], user_part(request.uri)
        if trunk.register and number == (trunk.user or name):
            number = number_of(request.get("To")) or number
        return self.inbound(name, number)

    def inbound(self, name: str, number: str) -> str:
        """A number from the carrier in the form used here."""
        return rewritten(number, self.table[name].inbound_rules)

    # --- limits --------------------------------------------------------------------

    def state(self, name: str) -> TrunkState:
        """What is known of a trunk."""
        return self._states.setdefault(name, TrunkState())

    def refusal(self, name: str) -> str:
        """Why no further call may begin on the trunk; empty when one may, and then it is
        counted."""
        trunk, state = self.table[name], self.state(name)
        if self.load(name) >= trunk.max_calls:
            return "trunk_full"
        if not self._has_token(trunk, state):
            return "trunk_too_fast"
        state.tokens -= 1
        return ""

    def _has_token(self, trunk: TrunkValue, state: TrunkState) -> bool:
        rate, now = float(trunk.calls_per_second), self._context.now
        if state.tokens < 0:
            state.tokens = rate
        state.tokens = min(rate, state.tokens + rate * (now - state.tokens_at))
        state.tokens_at = now
        return state.tokens >= 1

    # --- calls to carriers ---------------------------------------------------------

    def candidates(self, number: str, leave_out: frozenset[str] | set[str] = frozenset()) -> list[str]:
        """Trunks that may carry a call to the number, the first to be tried first. Those
        that failed a moment ago come last, of equally long prefixes those of other pairs;
        those that are down, full or unregistered are not there."""
        found: list[tuple[tuple[bool, int, bool, int, float], str]] = []
        now = self._context.now
        for name, trunk in self.table.items():
            if name in leave_out or not trunk.address:
                continue
            lengths = [len(prefix) for prefix in trunk.prefixes if number.startswith(prefix)]
            if not lengths or not self._usable(name, trunk):
                continue
            # Efraimidis and Spirakis: ordering by u^(1/w) draws without replacement by weight
            chance = self._context.rand() ** (1.0 / trunk.weight) if trunk.weight > 0 else 0.0
            rests = self.state(name).rests_until > now
            away = not self.mine(trunk)
            found.append(((rests, -max(lengths), away, trunk.priority, -chance), name))
        return [name for _, name in sorted(found)]

    def _usable(self, name: str, trunk: TrunkValue) -> bool:
        state = self.state(name)
        if not self.mine(trunk) and not self._pairs.first_of(trunk.pairs):
            return False
        registered = state.registration == "in" or not trunk.register or not self.mine(trunk)
        if not state.targets or state.reach == DOWN or not registered:
            return False
        return self.load(name) < trunk.max_calls and self._has_token(trunk, state)

    def failed(self, name: str, place: str, retry_after: str = "") -> None:
        """A call through the trunk failed for a reason of the carrier's; of several places
        that one rests, and the trunk when all do."""
        asked = parse_delta(retry_after.partition("(")[0])
        seconds = RESTS_S if asked is None else min(float(asked), RESTS_MAX_S)
        state, now = self.state(name), self._context.now
        for target in state.targets:
            if target.place.text == place:
                target.rests_until = now + seconds
        if all(target.rests_until > now for target in state.targets):
            state.rests_until = min((t.rests_until for t in state.targets), default=now + seconds)
        self._context.count("edge_trunk_failures", trunk=name)

    def worked(self, name: str) -> None:
        """The carrier took a call: nothing is held against it any more."""
        self.state(name).rests_until = 0.0

    def mine(self, trunk: TrunkValue) -> bool:
        """Whether this pair speaks to the carrier itself."""
        return not trunk.pairs or self._context.config.vip in trunk.pairs

    @staticmethod
    def flow(trunk: TrunkValue, target: Target) -> Flow:
        """The way from a pair that speaks to the carrier to one place of it."""
        return Flow(f"public-{trunk.transport}", trunk.transport, target.place.host, target.place.port)

    def way(self, trunk: TrunkValue, target: Target) -> tuple[Flow, Route]:
        """The way from here, through another pair where it has to be, and the Route for it. Raises
        LookupError when there is none."""
        flow = self.flow(trunk, target)
        if self.mine(trunk):
            return flow, ()
        return self._pairs.way(self._pairs.first_of(trunk.pairs), flow, ident=trunk.trunk)

    def name_at(self, flow: Flow) -> str:
        """Whose certificate a carrier at the end of this flow must show: the name we know it by,
        not one DNS led us to (RFC 5922 §4); empty: its address's."""
        at = f"{flow.host}:{flow.port}"
        for name, trunk in self.table.items():
            if trunk.transport == flow.transport and any(
                t.place.text == at for t in self.state(name).targets
            ):
                return trunk.domain or (address_of(trunk)[0] if question_of(trunk) else "")
        return ""

    def uri(self, trunk: TrunkValue, user: str) -> str:
        """A URI at the carrier."""
        host, port = address_of(trunk)
        question = question_of(trunk)
        where = host if question and question.service else f"{host}:{port}"
        transport = "" if trunk.transport == "udp" else f";transport={trunk.transport}"
        return f"sip:{user}{'@' if user else ''}{where}{transport}"

    def domain(self, trunk: TrunkValue) -> str:
        """The host part of names we use there."""
        return trunk.domain or address_of(trunk)[0]

    def credentials(self, name: str) -> Credentials | None:
        """Who we are when the carrier challenges us."""
        trunk, secret = self.table.get(name), self._secrets.get(name)
        if trunk is None or secret is None or not trunk.user:
            return None
        pairs = (("MD5", secret.ha1_md5), ("SHA-256", secret.ha1_sha256))
        return Credentials(trunk.user, secret.password, {name: value for name, value in pairs if value})

    # --- for people ----------------------------------------------------------------

    def view(self) -> list[dict[str, object]]:
        """Trunks as people and tools see them."""
        rows: list[dict[str, object]] = []
        for name, trunk in sorted(self.table.items()):
            state = self.state(name)
            rows.append(
                {
                    "trunk": name,
                    "address": trunk.address,
                    "transport": trunk.transport,
                    "through": "" if self.mine(trunk) else self._pairs.first_of(trunk.pairs),
                    "reach": DOWN if state.nowhere else state.reach,
                    "at": {target.place.text: target.reach for target in state.targets},
                    "registration": state.registration,
                    "why": state.nowhere or state.why,
                    "calls": self.load(name),
                    "max_calls": trunk.max_calls,
                    "resting": state.rests_until > self._context.now,
                }
            )
        return rows
