"""Who calls, as far as it may be said: P-Asserted-Identity, Privacy (RFC 3325, 3323),
Diversion (RFC 5806) and History-Info (RFC 7044), believed, passed on or stripped by the policy of a trunk."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote

from ari_ha.sip.message import Request, SipParseError
from ari_ha.sip.uri import NameAddr, SipUri
from ari_ha.wire.sip_values import TrunkValue

NUMBER_MAX_CHARS = 64
DIVERSIONS_MAX, HISTORY_MAX = 4, 8
"""Diversion and History-Info values kept of one call."""
VALUE_MAX_CHARS = 256
ANONYMOUS = "anonymous"
ANONYMOUS_FROM = '"Anonymous" <sip:anonymous@anonymous.invalid>'
"""RFC 3323 §4.1.1.3."""
ASSERTED, PRIVACY, DIVERSION, HISTORY = "asserted", "privacy", "diversion", "history"


def user_part(uri: str) -> str:
    """The number in a URI, empty when there is none that can be read."""
    try:
        return (SipUri.parse(uri).user or "")[:NUMBER_MAX_CHARS]
    except SipParseError:
        return ""


def number_of(value: str) -> str:
    """The number in a From, To or P-Asserted-Identity value, sip or tel (RFC 3966)."""
    try:
        address = NameAddr.parse(value)
        if address.uri.lower().startswith("tel:"):
            return address.uri[4:].partition(";")[0][:NUMBER_MAX_CHARS]
        return (address.sip_uri.user or "")[:NUMBER_MAX_CHARS]
    except SipParseError:
        return ""


def heard(request: Request, trunk: TrunkValue | None) -> tuple[str, dict[str, str]]:
    """The caller's number, and what is kept of the identity headers, of an INVITE that
    came from ``trunk`` (None: from one of our own phones, whose identity is its digest)."""
    kept: dict[str, str] = {}
    number = number_of(request.get("From")) or ANONYMOUS
    if trunk is None or trunk.trusted:
        wish = request.get("Privacy").strip().lower()
        if wish and wish != "none":
            kept[PRIVACY] = wish[:VALUE_MAX_CHARS]
    if trunk is not None and trunk.trusted:
        asserted = [number_of(value) for value in request.values("P-Asserted-Identity")]
        found = next((value for value in asserted if value), "")
        if found:
            kept[ASSERTED] = found
            number = found
    if trunk is not None and trunk.diversion:
        _keep(kept, DIVERSION, request.values("Diversion"), DIVERSIONS_MAX)
    if trunk is not None and trunk.history:
        _keep(kept, HISTORY, request.values("History-Info"), HISTORY_MAX)
    return number, kept


def _keep(kept: dict[str, str], name: str, values: list[str], most: int) -> None:
    short = [value for value in values if len(value) <= VALUE_MAX_CHARS]
    if short:
        kept[name] = ", ".join(short[:most])


def hidden(identity: Mapping[str, str]) -> bool:
    """Whether the caller asked not to be named (RFC 3325 §9.3: ``id``; RFC 3323: the rest)."""
    wishes = {wish.strip() for wish in identity.get(PRIVACY, "").split(";")}
    return bool(wishes & {"id", "user", "header"})


def _history_hidden(identity: Mapping[str, str]) -> bool:
    """Whether somebody the call was for wants not to be named (RFC 7044 §10.1): in Privacy of the request,
    or in an entry, where it is part of the URI."""
    wishes = {wish.strip() for wish in identity.get(PRIVACY, "").split(";")}
    return "history" in wishes or "privacy=history" in unquote(identity.get(HISTORY, "")).lower()


def shown_to_phone(caller: str, identity: Mapping[str, str]) -> str:
    """The number a phone may see."""
    return ANONYMOUS if hidden(identity) else caller or ANONYMOUS


def shown_to_trunk(
    number: str, identity: Mapping[str, str], trunk: TrunkValue, domain: str
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """From and the identity headers of an INVITE to a carrier. A carrier that is not
    trusted never learns the number of somebody who asked not to be named."""
    headers: list[tuple[str, str]] = []
    private = hidden(identity) or not number or number == ANONYMOUS
    if trunk.trusted and number and number != ANONYMOUS:
        headers.append(("P-Asserted-Identity", f"<sip:{number}@{domain}>"))
    if trunk.trusted and private:
        headers.append(("Privacy", identity.get(PRIVACY) or "id"))
    if trunk.diversion and identity.get(DIVERSION):
        headers.append(("Diversion", identity[DIVERSION]))
    if (
        trunk.history
        and identity.get(HISTORY)
        and (trunk.trusted or not (private or _history_hidden(identity)))
    ):
        headers.append(("History-Info", identity[HISTORY]))
    from_ = ANONYMOUS_FROM if private else f"<sip:{number}@{domain}>"
    return from_, tuple(headers)
