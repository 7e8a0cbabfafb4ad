"""Random lives of calls at an edge: nothing raises, every invariant holds after
every event, and once the faults stop every call has a home or an end."""

from __future__ import annotations

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ari_ha.core.ports.link import LinkDown
from ari_ha.core.ports.sip import SipBytes
from ari_ha.core.ports.store import StoreReach
from ari_ha.sip import events as sip
from ari_ha.sip.flow import Flow
from ari_ha.wire import link
from tests.support.edge_world import CARRIER, EdgeWorld

TIMER_F_S = 33.0
"""RFC 3261 section 17.1.2.2, and what is left of the half second before a restart."""
ACTS = [
    "call", "dial", "answer", "want-hitless", "want-through", "hold", "unhold", "bye-caller", "bye-agent",
    "kill", "revive", "silence", "thaw", "app-away", "app-back", "end-agent", "node-bye", "etcd-away",
    "etcd-back", "restart", "rehome", "relay-lost", "time", "garbage", "refuse-resume",
]  # fmt: skip


class Life:
    """Acts on a world by name; acts that make no sense now do nothing."""

    def __init__(self) -> None:
        self.world = EdgeWorld()
        for user in ("1001", "1002"):
            self.world.add_user(user)
        self.world.snapshots()
        for user in ("1001", "1002"):
            self.world.register(user)
        self.callers: list[str] = []

    def act(self, name: str, which: int) -> None:
        getattr(self, name.replace("-", "_"))(which)
        self.world.settle()
        self.world.run(0.06)

    def _call(self, which: int):
        calls = list(self.world.edge.calls.by_id.values())
        return calls[which % len(calls)] if calls else None

    def _node(self, which: int):
        return list(self.world.nodes.values())[which % 3]

    def _serving(self, which: int):
        call = self._call(which)
        node = self.world.nodes.get(call.owner.name) if call and call.owner else None
        return (call, node) if node and node.reachable else (None, None)

    def call(self, which: int) -> None:
        key, _ = self.world.call_in()
        self.callers.append(key)

    def dial(self, which: int) -> None:
        call, node = self._serving(which)
        if call and call.primary and call.primary.state == "up":
            leg = f"a{len(call.tombstones) + len(call.legs)}"
            self.world.dial(node, call, leg, ("1001", "1002")[which % 2])

    def answer(self, which: int) -> None:
        for phone in self.world.phones.values():
            for event in phone.of(sip.InviteReceived):
                if event.leg in phone.sip.legs() and phone.sip.leg_state(event.leg) in ("calling", "early"):
                    phone.sip.answer(event.leg, phone.sdp(), self.world.now)
                    return

    def _want(self, which: int, state: str) -> None:
        call, node = self._serving(which)
        if call:
            frame = link.WantMedia(call=call.call, epoch=str(call.epoch), state=state, request=1)
            self.world.say(node, frame)

    def want_hitless(self, which: int) -> None:
        self._want(which, "hitless")

    def want_through(self, which: int) -> None:
        self._want(which, "through")

    def _reinvite(self, direction: str) -> None:
        for phone in self.world.phones.values():
            for key in list(phone.sip.legs()):
                if phone.sip.leg_state(key) == "confirmed":
                    try:
                        phone.sip.reinvite(key, phone.sdp(direction=direction), self.world.now)
                    except Exception as error:  # the phone's own state forbids it now
                        assert type(error).__name__ == "LocalError"

    def hold(self, which: int) -> None:
        self._reinvite("sendonly")

    def unhold(self, which: int) -> None:
        self._reinvite("sendrecv")

    def bye_caller(self, which: int) -> None:
        if self.callers:
            self.world.carrier.sip.hangup(self.callers[which % len(self.callers)], self.world.now)

    def bye_agent(self, which: int) -> None:
        phone = list(self.world.phones.values())[which % 2]
        for key in list(phone.sip.legs()):
            phone.sip.hangup(key, self.world.now)

    def kill(self, which: int) -> None:
        node = self._node(which)
        if not node.gone:
            node.gone = True
            self.world.post(LinkDown(peer=node.name, reason="closed"))

    def revive(self, which: int) -> None:
        node = self._node(which)
        if node.gone:
            node.gone = False
            node.life = getattr(node, "life", 1) + 1
            self.world.post_link(node, f"{node.name}-{node.life}")

    def silence(self, which: int) -> None:
        node = self._node(which)
        if not node.gone:
            node.silent = True
            self.world.post(LinkDown(peer=node.name, reason="silent", clean=False))

    def thaw(self, which: int) -> None:
        node = self._node(which)
        if node.silent:
            node.silent = False
            self.world.post_link(node, f"{node.name}-{getattr(node, 'life', 1)}")

    def app_away(self, which: int) -> None:
        self.world.post(LinkDown(peer=self._node(which).name, reason="app killed"))

    def app_back(self, which: int) -> None:
        node = self._node(which)
        if node.reachable:
            self.world.post_link(node, f"{node.name}-{getattr(node, 'life', 1)}")

    def end_agent(self, which: int) -> None:
        call, node = self._serving(which)
        if call:
            legs = sorted(call.legs)
            leg = legs[which % len(legs)]
            self.world.say(node, link.EndLeg(call=call.call, leg=leg, epoch=str(call.epoch), cause="16"))

    def node_bye(self, which: int) -> None:
        node = self._node(which)
        for key in list(node.tokens):
            node.sip.hangup(key, self.world.now)

    def etcd_away(self, which: int) -> None:
        self.world.etcd = False
        self.world.post(StoreReach(reachable=False))

    def etcd_back(self, which: int) -> None:
        self.world.etcd = True
        self.world.post(StoreReach(reachable=True))

    def restart(self, which: int) -> None:
        if self.world.etcd:
            self.world.now += 0.5
            self.world.boot()

    def rehome(self, which: int) -> None:
        if self.world.etcd:
            self.world.now += 0.3
            self.world.rehome()

    def relay_lost(self, which: int) -> None:
        self.world.relay_begins_anew()

    def time(self, which: int) -> None:
        self.world.run(0.2 * (which % 8))

    def garbage(self, which: int) -> None:
        data = bytes((which * 7 + i) % 256 for i in range(which % 50))
        self.world.post(SipBytes(data=data, flow=Flow("public-udp", "udp", *CARRIER)))

    def refuse_resume(self, which: int) -> None:
        call = self._call(which)
        if call and call.move:
            frame = link.ResumeRefused(call=call.call, epoch=str(call.move.epoch), reason="test")
            self.world.say(self.world.nodes[call.move.to.name], frame)


@example([("dial", 1), ("bye-caller", 1), ("restart", 0)])
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 40)), min_size=3, max_size=25))
def test_random_lives(acts):
    life = Life()
    for name in ("call", "dial", "answer", "want-hitless", "call"):
        life.act(name, 0)
    for name, which in acts:
        life.act(name, which)
    for which in range(3):
        life.revive(which)
        life.thaw(which)
        life.app_back(which)
    life.etcd_back(0)
    life.world.run(9.0, step=0.05)
    for call in life.world.edge.calls.by_id.values():
        assert call.move is None and not call.lost, f"{call.call} has no home: {call.lost}"
        assert call.primary is not None
        for leg in call.up():
            assert leg.leg in call.halves, f"{call.call}/{leg.leg} has no half at its node"
        sides = [side for side in (*call.living(), *call.halves.values()) if side.state == "up"]
        assert not [side for side in sides if side.elsewhere]
    if _stored(life) != set(
        life.world.edge.calls.by_id
    ):  # a restarted edge says goodbye again, until timer F
        life.world.run(TIMER_F_S, step=0.2)
    assert _stored(life) == set(life.world.edge.calls.by_id)


def _stored(life: Life) -> set[str]:
    return {key.split("/")[-1] for key in life.world.store if "/dialogs/" in key}
