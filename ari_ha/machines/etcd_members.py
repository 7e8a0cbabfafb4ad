"""Which etcd member to use, and whether the cluster can commit at all.

Every member is asked at once for a linearizable read: an answer proves a leader
and a majority behind that member, so a frozen or cut-off member is never chosen.
While one is in use, a read each ``pulse_s`` (skipped when other calls succeed)
notices its loss on an idle process too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from ari_ha.core.machine import Effect, Event, Instant, Note
from ari_ha.core.ports.store import StoreReach
from ari_ha.wire import etcd as wire
from ari_ha.wire.etcd import Failure, Trouble
from ari_ha.wire.etcd_proto import messages as pb

#: Any key does: what counts is that the read had to ask the leader.
PROBE_KEY = "/ari-ha"
#: Assumed number of voting members until etcd has told: never fewer, because a
#: minority that answers "no leader" proves nothing about the others.
VOTERS_ASSUMED_MIN = 3
_AUTH_IS_OFF = "authentication is not enabled"


class Random(Protocol):
    """The part of random.Random used here."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


@dataclass(frozen=True, slots=True)
class EtcdTimings:
    """How patient the client is. Seconds, unless the name says otherwise."""

    #: one attempt of a transaction or read: a member that needs longer is not used
    call_s: float = 1.0
    #: one probe of a member
    probe_s: float = 1.0
    #: pause between rounds of probes while no member is usable (varied by a quarter)
    retry_s: float = 0.25
    #: an idle process proves its member this often
    pulse_s: float = 1.0
    #: silence of the watch stream before it is asked for progress ...
    watch_silence_s: float = 1.0
    #: ... and how long the answer may take before the member is left
    watch_patience_s: float = 1.0
    #: authority of a lease ends this much before etcd may expire it
    lease_margin_s: float = 0.5
    #: renewals in one time to live
    lease_renewals_per_ttl: int = 4
    #: keys per page when a prefix is read whole
    list_page_keys: int = 2_000
    #: pause before a mirror is read again after the process had no room for it
    repost_s: float = 1.0


class Calls:
    """Numbers the calls under way and remembers who wants which answer."""

    def __init__(self) -> None:
        self.out: list[Effect] = []
        self._then: dict[int, Callable[[Any, Instant], None]] = {}
        self._last = 0

    def call(
        self,
        endpoint: str,
        method: str,
        request: Any,
        limit_s: float,
        then: Callable[[Any, Instant], None],
        token: str = "",
    ) -> None:
        """Asks ``endpoint``; ``then`` gets the message or the `Failure`."""
        self._last += 1
        self._then[self._last] = then
        self.out.append(
            wire.EtcdCall(
                call=self._last,
                endpoint=endpoint,
                method=method,
                request=request,
                limit_s=limit_s,
                token=token,
            )
        )

    def answered(self, event: wire.EtcdAnswer, now: Instant) -> None:
        """Hands an answer to whoever asked."""
        then = self._then.pop(event.call, None)
        if then is not None:
            then(event.result, now)

    def deliver(self, event: Event) -> None:
        """Tells the process's machine."""
        self.out.append(wire.Deliver(event=event))

    def note(self, text: str, **facts: str) -> None:
        """A line of the story."""
        self.out.append(Note(subject="etcd", text=text, facts=tuple(facts.items())))


class Members:
    """Finds a member that works, keeps proving it, and says when none does."""

    def __init__(
        self,
        calls: Calls,
        endpoints: Sequence[str],
        timings: EtcdTimings,
        rng: Random,
        login: tuple[str, str] | None,
    ) -> None:
        if not endpoints:
            raise ValueError("no etcd endpoints")
        self._calls = calls
        self._timings = timings
        self._rng = rng
        self._login = login
        turn = int(rng.random() * len(endpoints))
        self.endpoints = [*endpoints[turn:], *endpoints[:turn]]
        self.current: str | None = None
        self.token = ""
        self.version = ""
        self.voters = max(len(endpoints), VOTERS_ASSUMED_MIN)
        self.full = False
        self.verdict: StoreReach | None = None
        self.on_adopt: Callable[[Any, Instant], None] = lambda header, now: None
        self.on_leave: Callable[[Instant], None] = lambda now: None
        self.on_away: Callable[[Instant], None] = lambda now: None
        self._round = 0
        self._results: dict[str, Failure] = {}
        self._twice: set[str] = set()
        self._spare: tuple[str, Any] | None = None
        self._avoid = ""
        self._logging_in = False
        self._round_at: Instant | None = None
        self._pulse_at: Instant | None = None
        self._repost_at: Instant | None = None
        self._stopped = False

    # -- finding one

    def start(self, now: Instant) -> None:
        """Begins to look."""
        self._seek(now)

    def stop(self) -> None:
        """Looks no more."""
        self._stopped = True
        self._round += 1
        self._round_at = self._pulse_at = self._repost_at = None

    def _seek(self, now: Instant) -> None:
        if self._stopped:
            return
        self._round += 1
        self._round_at = None
        self._results = {}
        self._twice = set()
        self._spare = None
        for endpoint in self.endpoints:
            self._probe(endpoint, partial(self._probed, self._round, endpoint))

    def _probe(self, endpoint: str, then: Callable[[Any, Instant], None]) -> None:
        request = wire.range_request(PROBE_KEY, count_only=True)
        self._calls.call(endpoint, "Range", request, self._timings.probe_s, then, self.token)

    def _probed(self, round_: int, endpoint: str, result: Any, now: Instant) -> None:
        if round_ != self._round or self.current is not None:
            return
        answers = not isinstance(result, Failure) or "permission denied" in result.detail
        refused_token = isinstance(result, Failure) and result.trouble is Trouble.TOKEN
        if self._login and (refused_token or (answers and not self.token)):
            self.token = ""
            self._authenticate(endpoint, partial(self._logged_in, round_, endpoint))
            return
        if answers:
            header = getattr(result, "header", None)
            if endpoint == self._avoid and len(self._results) + 1 < len(self.endpoints):
                self._spare = (endpoint, header)
            else:
                self._adopt(endpoint, header, now)
            return
        if result.trouble is Trouble.LOST and endpoint not in self._twice:
            # The probe met a connection that had just broken: the next one is new.
            self._twice.add(endpoint)
            self._probe(endpoint, partial(self._probed, round_, endpoint))
            return
        self._results[endpoint] = result
        if result.trouble is Trouble.TIMED_OUT:
            self._calls.out.append(wire.MemberReset(endpoint=endpoint))
        if self._spare and len(self._results) + 1 == len(self.endpoints):
            self._adopt(*self._spare, now)
        elif len(self._results) == len(self.endpoints):
            self._nobody(now)

    def _authenticate(self, endpoint: str, then: Callable[[Any, Instant], None]) -> None:
        assert self._login is not None
        request = pb.AuthenticateRequest(name=self._login[0], password=self._login[1])
        self._calls.call(endpoint, "Authenticate", request, self._timings.probe_s, then)

    def _logged_in(self, round_: int, endpoint: str, result: Any, now: Instant) -> None:
        if isinstance(result, Failure):
            if _AUTH_IS_OFF in result.detail:
                self._calls.note("a user is set, but authentication is off in etcd")
                self._login = None
                self._probe(endpoint, partial(self._probed, round_, endpoint))
                return
            self._probed(round_, endpoint, Failure(Trouble.REFUSED, f"login: {result.detail}"), now)
            return
        self.token = result.token
        self._probed(round_, endpoint, result, now)

    def _adopt(self, endpoint: str, header: Any, now: Instant) -> None:
        self.current = endpoint
        self._round += 1
        self._pulse_at = now + self._timings.pulse_s
        self._calls.note("using member", endpoint=endpoint)
        self._ask_status(endpoint)
        members = pb.MemberListRequest()
        self._calls.call(endpoint, "MemberList", members, self._timings.probe_s, self._listed, self.token)
        self._post_verdict()
        self.on_adopt(header, now)

    def _ask_status(self, endpoint: str) -> None:
        then = partial(self._status, endpoint)
        self._calls.call(endpoint, "Status", pb.StatusRequest(), self._timings.probe_s, then, self.token)

    def _listed(self, result: Any, now: Instant) -> None:
        if not isinstance(result, Failure):
            voters = sum(1 for member in result.members if not member.isLearner)
            self.voters = max(voters, 1)

    def _status(self, endpoint: str, result: Any, now: Instant) -> None:
        if isinstance(result, Failure) or endpoint != self.current:
            return
        self.version = result.version
        full = any("NOSPACE" in error or "space exceeded" in error for error in result.errors)
        if full != self.full:
            self.full = full
            self._post_verdict()

    def nameless(self) -> bool:
        """Whether a call now would go out without the user it should be made for."""
        return self._login is not None and not self.token

    # -- losing it

    def leave(self, why: str, now: Instant, *, reset: bool = False) -> None:
        """Gives the member in use up and looks for another."""
        if self.current is None:
            return
        self._calls.note("leaving member", endpoint=self.current, why=why)
        self._avoid, self.current = self.current, None
        self._pulse_at = None
        if reset:
            self._calls.out.append(wire.MemberReset(endpoint=self._avoid))
        self.on_leave(now)
        self._seek(now)

    def trouble(self, endpoint: str, failure: Failure, now: Instant) -> None:
        """Some call to ``endpoint`` failed: draw the conclusions for the member."""
        if failure.trouble is Trouble.NO_SPACE:
            self.full = True
            self._post_verdict()
        elif endpoint != self.current:
            return
        elif failure.trouble is Trouble.TOKEN:
            self._renew_token(endpoint)
        elif failure.trouble is Trouble.TIMED_OUT:
            self._pulse_at = min(now, self._pulse_at) if self._pulse_at is not None else None
        elif failure.trouble in (
            Trouble.REFUSED_CONNECTION,
            Trouble.NOT_SENT,
            Trouble.NO_LEADER,
            Trouble.LOST,
        ):
            self.leave(str(failure), now)

    def well(self, endpoint: str, now: Instant) -> None:
        """A call that needed the leader succeeded: no pulse needed for a while."""
        if endpoint == self.current and self._pulse_at is not None:
            self._pulse_at = now + self._timings.pulse_s

    def _renew_token(self, endpoint: str) -> None:
        if self._login and not self._logging_in:
            self._logging_in = True
            self._authenticate(endpoint, partial(self._token_renewed, endpoint))

    def _token_renewed(self, endpoint: str, result: Any, now: Instant) -> None:
        self._logging_in = False
        if isinstance(result, Failure):
            if endpoint == self.current:
                self.leave(f"login: {result}", now)
            return
        self.token = result.token
        if endpoint == self.current:
            # Begin anew with the token: the watch was opened with the old one.
            self.on_leave(now)
            self.on_adopt(None, now)

    # -- the verdict

    def _nobody(self, now: Instant) -> None:
        self._round_at = now + self._timings.retry_s * (0.75 + 0.5 * self._rng.random())
        down = (Trouble.NO_LEADER, Trouble.REFUSED_CONNECTION)
        without = sum(1 for failure in self._results.values() if failure.trouble in down)
        majority = self.voters // 2 + 1
        words = sorted({f"{failure.trouble.value}" for failure in self._results.values()})
        refusals = [f.detail for f in self._results.values() if f.trouble is Trouble.REFUSED]
        why = ", ".join([*words, *refusals[:1]])
        self._say(StoreReach(reachable=False, no_leader=self.voters - without < majority, why=why))
        self.on_away(now)

    def _post_verdict(self) -> None:
        if self.full:
            self._say(StoreReach(reachable=False, why=Trouble.NO_SPACE.value))
        elif self.current is not None:
            self._say(StoreReach(reachable=True))

    def _say(self, reach: StoreReach) -> None:
        """Tells a change of the verdict once."""
        said = self.verdict
        if said is None or (said.reachable, said.no_leader) != (reach.reachable, reach.no_leader):
            self._calls.deliver(reach)
        self.verdict = reach

    def not_taken(self, now: Instant) -> None:
        """The process had no room for the verdict: say it again later."""
        self._repost_at = now + self._timings.repost_s

    # -- time

    def deadline(self) -> Instant | None:
        """When `tick` is needed next."""
        times = [at for at in (self._round_at, self._pulse_at, self._repost_at) if at is not None]
        return min(times) if times else None

    def tick(self, now: Instant) -> None:
        """Does what is due."""
        if self._repost_at is not None and now >= self._repost_at:
            self._repost_at = None
            if self.verdict is not None:
                self._calls.deliver(self.verdict)
        if self._round_at is not None and now >= self._round_at:
            self._seek(now)
        if self._pulse_at is not None and now >= self._pulse_at and self.current is not None:
            # Not before this one is answered; the answer arrives within probe_s.
            self._pulse_at = now + self._timings.probe_s + self._timings.pulse_s
            self._probe(self.current, partial(self._pulsed, self.current))
            if self.full:
                self._ask_status(self.current)

    def _pulsed(self, endpoint: str, result: Any, now: Instant) -> None:
        if endpoint != self.current:
            return
        if not isinstance(result, Failure) or "permission denied" in result.detail:
            self.well(endpoint, now)
        elif result.trouble is Trouble.TOKEN:
            self._renew_token(endpoint)
        else:
            self.leave(f"pulse: {result}", now, reset=result.trouble is Trouble.TIMED_OUT)
