"""The Replaces header (RFC 3891): which dialog a new one is to take the place of."""

from __future__ import annotations

from dataclasses import dataclass

from ari_ha.sip.fields import SipParseError


@dataclass(frozen=True, slots=True)
class Replaces:
    """A dialog by its name, as whoever wants to replace it writes it."""

    call_id: str
    to_tag: str
    from_tag: str
    early_only: bool = False
    """Only while it rings (section 6.1)."""

    @classmethod
    def parse(cls, text: str) -> Replaces:
        """The header's value. Raises SipParseError where a part of the name is missing."""
        call_id, *params = [part.strip() for part in text.split(";")]
        pairs = [param.partition("=") for param in params]
        given = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
        tags = dict(given)
        to_tag, from_tag = tags.get("to-tag", ""), tags.get("from-tag", "")
        if not (call_id and to_tag and from_tag) or len(tags) != len(given):
            raise SipParseError("replaces", 400)
        return cls(call_id, to_tag, from_tag, "early-only" in tags)
