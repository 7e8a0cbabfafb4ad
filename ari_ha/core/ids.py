"""Identifiers and orderings every part shares.

A *call* is one customer contact and keeps its id for life, whichever node or
edge serves it. A *leg* is one side of a call at the edge. An *epoch* says which
decision about "who serves this call" is the newer one.
"""

from __future__ import annotations

from typing import NamedTuple

#: The leg that caused the call: the customer on an inbound call.
PRIMARY_LEG = "c"

#: First letter of the leg of somebody who supervises: heard by some, counted by nobody.
SUPERVISOR_LEG = "s"

EPOCH_TEXT_MAX_CHARS = 48


def is_supervisor(leg: str) -> bool:
    """Whether the leg is a supervisor's: the people's media does not depend on it."""
    return leg[:1] == SUPERVISOR_LEG and leg[1:].isdigit()


class Epoch(NamedTuple):
    """Order of decisions about who serves a call (design: authority).

    ``edge_revision`` is the etcd mod_revision of the vip key under which the
    deciding edge is active; ``n`` counts that edge's decisions for the call.
    Compared in that order, so a newly active edge always outranks an old one.
    """

    edge_revision: int
    n: int

    def next(self, edge_revision: int) -> Epoch:
        """The epoch of the next decision, taken by the edge at ``edge_revision``."""
        if edge_revision > self.edge_revision:
            return Epoch(edge_revision, 1)
        return Epoch(self.edge_revision, self.n + 1)

    def __str__(self) -> str:
        return f"{self.edge_revision}.{self.n}"

    @classmethod
    def parse(cls, text: str) -> Epoch:
        """The epoch written as ``<revision>.<n>``. Raises ValueError on anything else."""
        if len(text) > EPOCH_TEXT_MAX_CHARS:
            raise ValueError("epoch text too long")
        revision, dot, n = text.partition(".")
        if not dot or not revision.isascii() or not n.isascii():
            raise ValueError(f"not an epoch: {text!r}")
        if not revision.isdigit() or not n.isdigit():
            raise ValueError(f"not an epoch: {text!r}")
        return cls(int(revision), int(n))


NO_EPOCH = Epoch(0, 0)


class NodeId(NamedTuple):
    """One life of one Asterisk: its name and its incarnation (boot id + start)."""

    name: str
    incarnation: str

    def __str__(self) -> str:
        return f"{self.name}#{self.incarnation}"

    @classmethod
    def parse(cls, text: str) -> NodeId:
        """Reads ``name#incarnation``; a bare name has an empty incarnation."""
        name, _, incarnation = text.partition("#")
        return cls(name, incarnation)
