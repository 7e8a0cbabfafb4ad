"""How many packets rtpengine has had from each party of a call, counted when somebody asks.

Nobody looks in between: who sends now, or did the last time, is taken to have sent all the time.
So a silence is seen late, never early.
"""

from __future__ import annotations

from ari_ha.simulation.ears import Ears
from ari_ha.simulation.fake_rtpengine import FakeRtpengine

PACKETS_PER_S = 50.0


def count(relay: FakeRtpengine, ears: Ears, ident: str, now: float) -> None:
    """Brings the counters of a call up to ``now``."""
    call = relay.calls.get(ident)
    for tag in call.tags.values() if call else ():
        sends = ears.sends(relay, call, tag)
        since, sent = tag.counted or (now, False)
        packets = int((now - since) * PACKETS_PER_S)
        if sends or sent:
            relay.received(ident, tag.name, packets)
            since += packets / PACKETS_PER_S
        else:
            since = now
        tag.counted = (since, sends)
