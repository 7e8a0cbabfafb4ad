"""A transfer as a call's record has it: all a survivor needs to go on with it."""

from __future__ import annotations

import msgspec


class TransferValue(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A transfer under way: intent, and how far it is."""

    transfer: str
    leg: str
    """Who asked for it"""
    number: str = ""
    other: str = ""
    """The consulting leg whose partner is the target, in an attended one"""
    party: str = ""
    """The leg rung for it"""
    state: str = "asked"
    """asked, ringing, back (whoever asked is rung again), over"""
    device: str = ""
    """The phone of whoever asked, to ring it again"""
    left: bool = False
    """Whoever asked has left"""
