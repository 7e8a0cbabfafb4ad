"""What a call needs of the node it is on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from ari_ha.machines.node_context import NodeContext
from ari_ha.machines.node_desk import AcdDesk
from ari_ha.machines.node_records import Records
from ari_ha.wire.ivr import IvrMenuValue
from ari_ha.wire.keyspace import QueueConfigValue

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall
    from ari_ha.machines.node_supervisors import Supervisors


class Parts(Protocol):
    """The node, as its calls see it."""

    context: NodeContext
    records: Records
    acd: AcdDesk
    draining: bool
    """It is to be empty: every call may be on its way elsewhere"""

    def queue(self, name: str) -> QueueConfigValue | None:
        """The queue's configuration, when it is known."""
        ...

    def ivr(self, menu: str) -> IvrMenuValue | None:
        """The menu, when it is known."""
        ...

    def carry_out(self, call: NodeCall, verb: tuple[str, ...], user: str = "") -> None:
        """What the dialplan, or a step of an IVR, asks for; ``user``: of the phone that called."""
        ...

    supervisors: Supervisors

    def device_of(self, user: str) -> str:
        """The address of record of an authenticated user's phone."""
        ...

    def queue_of_number(self, number: str) -> str:
        """The queue into which callers are transferred by this number; empty: none."""
        ...

    def dial_target(self, number: str) -> str:
        """What a dialled number means: ``device:<aor>`` of a user here, else ``number:``."""
        ...

    def agent_of(self, user: str) -> str:
        """The agent logged in at this account's phone; empty: none."""
        ...

    def agent_at(self, target: str) -> str:
        """The agent logged in at a dialled ``device:``; empty: none."""
        ...

    def edge_sip(self, call: NodeCall) -> str:
        """Where a leg of the call is dialled: host:port of its edge; empty: no edge."""
        ...

    def edge_has(self, call: NodeCall, leg: str, since: float) -> bool | None:
        """Whether the call's edge has listed the leg since then; None: no edge is there that could say."""
        ...

    def touch(self, call: NodeCall) -> None:
        """The call changed: it is settled at the end of this event."""
        ...

    def index(self, channel: str, call: NodeCall, leg: str) -> None:
        """Makes the call findable by a channel."""
        ...

    def unindex(self, channel: str) -> None:
        """The channel is gone."""
        ...

    def give_up(self, call: NodeCall, leg: str, why: str) -> None:
        """We cannot serve the call (any more): the edge is asked to make it again."""
        ...

    def finished(self, call: NodeCall) -> None:
        """The call is over and nothing of it is left here."""
        ...
