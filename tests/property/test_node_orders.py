"""Any order of events, with replies lost, links and stores away, apps and Asterisks
dying: the node never raises, keeps its invariants, and comes together afterwards."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ari_ha.core.machine import Refused, Unreachable
from ari_ha.core.ports.ari import AriDown
from ari_ha.wire import link
from tests.support.node_bench import LOST, Bench

CALLS = ("k1", "k2", "k3")
OUTCOMES = {
    "lost": LOST,
    "gone": Refused("not found", 404),
    "odd": Refused("odd", 500),
    "away": Unreachable("away"),
}
FRAMES = [link.LegRinging, link.LegAnswered, link.LegGone, link.Relinquish, link.MediaIs]
REST_S = 60.0


class NodeOrders(RuleBasedStateMachine):
    """Knows what a true edge would know: legs and epochs; everything else is chance."""

    @initialize(media=st.sampled_from(["hitless", "through"]))
    def begin(self, media: str) -> None:
        self.bench = Bench(media=media)
        self.bench.device_busy = self._busy
        self.epochs = dict.fromkeys(CALLS, 0)
        self.legs: dict[str, dict[str, str]] = {}
        """call -> leg -> ringing, up, held: living legs, as the edge has them"""
        self.ended: dict[str, dict[str, str]] = {}
        self.devices: dict[tuple[str, str], str] = {}

    def teardown(self) -> None:
        if hasattr(self, "bench"):
            self._mend()

    def _epoch(self, call: str) -> str:
        return f"7.{self.epochs[call]}"

    def _busy(self, device: str) -> bool:
        """One call at a time for each device: the edge sees to that."""
        return any(d == device for (call, leg), d in self.devices.items() if leg in self.legs.get(call, {}))

    def _learn(self) -> None:
        """The edge learns legs the node dialled and legs the node ended."""
        for frame in self.bench.sent:
            if isinstance(frame, link.EndLeg) and frame.epoch == self._epoch(frame.call):
                if self.legs.get(frame.call, {}).pop(frame.leg, None):
                    self.ended.setdefault(frame.call, {})[frame.leg] = "app"
        self.bench.sent.clear()
        for channel in self.bench.dialled():
            call, leg, *_ = channel.split(".")
            if not channel.endswith("." + self._epoch(call)) or leg in self.ended.get(call, {}):
                continue
            if leg not in self.legs.get(call, {}) and self._busy(self.bench.target(channel)):
                self.bench.post(*self.bench.asterisk.destroy(channel, 17, 486))
            elif call in self.legs:
                self.legs[call].setdefault(leg, "ringing")
                self.devices[call, leg] = self.bench.target(channel)
        for call in [c for c, legs in self.legs.items() if "c" not in legs]:
            del self.legs[call]

    # --- what may happen -----------------------------------------------------------

    @rule(
        call=st.sampled_from(CALLS), own=st.booleans(), queue=st.sampled_from(["support", "support", "none"])
    )
    def comes(self, call: str, own: bool, queue: str) -> None:
        if call in self.legs or not self.bench.link_up:
            return
        self.epochs[call] += 1
        self.legs[call], self.ended[call] = {"c": "up"}, {}
        self.devices = {key: device for key, device in self.devices.items() if key[0] != call}
        self.bench.trunk(call, f"queue,{queue}", self._epoch(call), own)

    @rule(
        call=st.sampled_from(CALLS),
        how=st.sampled_from(["ring", "answer", "quiet answer", "decline", "busy"]),
    )
    def phone(self, call: str, how: str) -> None:
        self._learn()
        ringing = [leg for leg, state in self.legs.get(call, {}).items() if state == "ringing"]
        for leg in ringing[:1]:
            epoch = self._epoch(call)
            channel = f"{call}.{leg}.{epoch}"
            if how == "ring":
                self.bench.frame(link.LegRinging(call, leg, epoch))
            elif "answer" in how:
                self.legs[call][leg] = "up"
                self.bench.post(*self.bench.asterisk.up(channel))
                if how == "answer" and self.bench.link_up:
                    self.bench.frame(link.LegAnswered(call, leg, epoch))
            else:
                self._gone(call, leg, "failed", 603 if how == "decline" else 486)

    def _gone(self, call: str, leg: str, by: str, status: int = 0) -> None:
        self.legs[call].pop(leg, None)
        self.ended[call][leg] = by
        epoch = self._epoch(call)
        channels = self.bench.channels_of(call, leg, epoch)
        if self.bench.link_up:
            self.bench.frame(link.LegGone(call, leg, epoch, cause="16", status=status, by=by))
        for channel in channels:
            self.bench.post(*self.bench.asterisk.destroy(channel, 16, status))
        if leg == "c":
            for other in list(self.legs[call]):
                self._gone(call, other, "edge")
            del self.legs[call]
            self.bench.disown(call)

    @rule(call=st.sampled_from(CALLS), which=st.integers(0, 3))
    def hangs_up(self, call: str, which: int) -> None:
        self._learn()
        legs = [leg for leg, state in self.legs.get(call, {}).items() if state != "ringing"]
        if legs:
            self._gone(call, legs[which % len(legs)], "phone")

    @rule(call=st.sampled_from(CALLS), which=st.integers(0, 1), held=st.booleans())
    def holds(self, call: str, which: int, held: bool) -> None:
        self._learn()
        legs = [leg for leg, state in self.legs.get(call, {}).items() if state != "ringing"]
        if legs and self.bench.link_up:
            leg = legs[which % len(legs)]
            self.legs[call][leg] = "held" if held else "up"
            self.bench.frame(link.LegHeld(call, leg, self._epoch(call), held))

    @rule(call=st.sampled_from(CALLS), some=st.booleans())
    def is_taken_over(self, call: str, some: bool) -> None:
        self._learn()
        legs = self.legs.get(call)
        if not legs or not self.bench.link_up or not self.bench.asterisk_up:
            return
        self.epochs[call] += 1
        self.bench.own(call, epoch=self._epoch(call))
        arriving = list(legs)[:1] if some else list(legs)
        self.bench.resume(call, self._epoch(call), dict(legs), arriving, dict(self.ended[call]))

    @rule(call=st.sampled_from(CALLS))
    def goes_elsewhere(self, call: str) -> None:
        self._learn()
        if call in self.legs and self.bench.link_up:
            self.epochs[call] += 1
            self.bench.frame(link.CallMoved(call, self._epoch(call), "ast2"))
            self.bench.own(call, "ast2#x", self._epoch(call))

    @rule(which=st.integers(0, 9))
    def channel_dies(self, which: int) -> None:
        channels = sorted(self.bench.asterisk.channels)
        if channels:
            self.bench.post(*self.bench.asterisk.destroy(channels[which % len(channels)], 0))

    @rule(outcomes=st.lists(st.sampled_from(sorted(OUTCOMES)), min_size=1, max_size=4))
    def asterisk_fails(self, outcomes: list[str]) -> None:
        self.bench.asterisk.fail.extend(OUTCOMES[name] for name in outcomes)

    @rule(seconds=st.sampled_from([0.05, 0.4, 1.1, 3.5, 12.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.sleep(seconds)

    @rule(back=st.booleans())
    def store_goes(self, back: bool) -> None:
        if back:
            self.bench.store_back()
        else:
            self.bench.store_away()

    @rule(back=st.booleans())
    def link_goes(self, back: bool) -> None:
        if back:
            self._link()
        elif self.bench.link_up:
            self.bench.link_down()

    def _link(self) -> None:
        self._learn()
        state = {"ringing": "ringing", "up": "answered", "held": "answered"}
        calls = {
            call: link.CallAtEdge(
                self._epoch(call),
                {leg: link.LegAtEdge(state[s], held=s == "held") for leg, s in legs.items()},
            )
            for call, legs in self.legs.items()
        }
        self.bench.link(calls)

    @rule(gone=st.booleans())
    def asterisk_goes(self, gone: bool) -> None:
        if gone:
            self.bench.asterisk_dies()
        else:
            self.bench.post(AriDown(reason="silent", process_gone=False))

    @rule()
    def asterisk_comes(self) -> None:
        self.bench.asterisk_back()

    @rule()
    def app_restarts(self) -> None:
        self.bench.restart_app()

    @rule(kind=st.sampled_from(FRAMES), call=st.sampled_from([*CALLS, "k9"]), n=st.integers(0, 3))
    def stale_word(self, kind: type, call: str, n: int) -> None:
        if self.bench.link_up and n < self.epochs.get(call, 9):
            self.bench.frame(kind(call=call, epoch=f"7.{n}"))

    @rule(
        verb=st.sampled_from(["logout", "login", "available", "not-ready"]),
        agent=st.sampled_from(["1001", "1002"]),
    )
    def agent_says(self, verb: str, agent: str) -> None:
        assert self.bench.ask_later(verb, agent=agent, device=agent)

    # --- what must be true ---------------------------------------------------------

    @invariant()
    def nothing_is_contradictory(self) -> None:
        if hasattr(self, "bench"):
            self.bench.machine.check()

    def _mend(self) -> None:
        """Faults stop, everybody hangs up: nothing may be left."""
        bench = self.bench
        bench.asterisk.fail.clear()
        bench.asterisk_back()
        bench.store_back()
        self._link()
        bench.sleep(8.0)
        self._learn()
        for call, legs in list(self.legs.items()):
            if call not in bench.machine.core.calls:  # a true edge never leaves a call unserved
                self.epochs[call] += 1
                bench.own(call, epoch=self._epoch(call))
                bench.resume(call, self._epoch(call), dict(legs), None, dict(self.ended[call]))
        bench.sleep(1.0)
        self._learn()
        for call in list(self.legs):
            self._gone(call, "c", "phone")
        bench.store_back()
        bench.link({})
        bench.sleep(REST_S)
        assert not bench.machine.core.calls, bench.machine.core.calls
        assert not bench.machine.core.resumes.by_call and not bench.machine.core.by_channel
        assert not bench.asterisk.channels, bench.asterisk.channels
        assert not bench.asterisk.bridges, bench.asterisk.bridges
        assert not bench.waiting(), bench.waiting()
        busy = [a for a in ("1001", "1002") if bench.agent(a).work not in ("idle", "acw")]
        assert not busy, [bench.agent(a) for a in busy]


def test_any_order_of_events_comes_together() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        NodeOrders,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        ),
    )
