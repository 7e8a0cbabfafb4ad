"""Values of etcd keys only the edge's SIP needs: carriers, subscriptions, mailboxes."""

from __future__ import annotations

from typing import Any

import msgspec

from ari_ha.wire.keyspace import Value


class TrunkValue(Value):
    """``trunks/<trunk>``: a carrier, and what it may do. Numbers are written as
    people dial them here; rules turn them into the carrier's form and back."""

    trunk: str
    hosts: list[str] = msgspec.field(default_factory=list)
    """Addresses its requests come from, or names that have them."""
    dids: list[str] = msgspec.field(default_factory=list)
    """Numbers accepted from this trunk; empty accepts all."""
    user: str = ""
    """Who we are when the carrier asks for a digest; the secret is in ``secret/trunks/``."""
    max_calls: int = 1000
    """Calls at once, both ways together."""
    calls_per_second: int = 1000
    """New calls a second, both ways together; also the largest burst."""
    inbound_user: str = ""
    """A user whose digest makes a call one of this trunk's, from whatever address."""
    address: str = ""
    """host:port where calls, registrations and OPTIONS go; a name without a port is looked up as
    a service (SRV); empty: inbound only."""
    transport: str = "udp"
    """udp, tcp or tls"""
    srtp: str = "off"
    """off, or sdes: audio to this trunk is encrypted (RFC 4568)."""
    t38: bool = False
    """Fax by T.38 is passed through between two trunks that both have it on; else 488."""
    domain: str = ""
    """Host part of From and of the registered name; empty: the address's."""
    prefixes: list[str] = msgspec.field(default_factory=list)
    """Numbers that may leave here begin with one of these; an empty string is every
    number. The longest prefix decides, whatever the priority."""
    priority: int = 100
    """Lower is tried first among equally long prefixes."""
    weight: int = 1
    """Share of the calls among trunks of one priority."""
    outbound_rules: dict[str, str] = msgspec.field(default_factory=dict)
    """Prefix -> what takes its place in numbers sent to the carrier; the longest wins."""
    inbound_rules: dict[str, str] = msgspec.field(default_factory=dict)
    """The same for called and calling numbers that come from it."""
    caller: str = ""
    """Number shown on calls to it; empty: the caller's own."""
    register: bool = False
    """Whether we register there (RFC 3261 §10)."""
    register_expires_s: int = 300
    options_interval_s: int = 30
    """OPTIONS are sent this often to see whether it lives (§11); 0: never."""
    redirects: str = "pass"
    """pass: a 3xx ends the attempt. follow: the first contact is tried through the trunk."""
    next_hop: str = "route"
    """route: requests within a call (BYE, re-INVITE, ACK, …) go where its Record-Route or Contact leads
    (RFC 3261 §12.2.1.1). source: where the carrier was last heard from, whatever it says."""
    trusted: bool = False
    """RFC 3325: P-Asserted-Identity and Privacy are believed and sent; else stripped."""
    diversion: bool = False
    """Diversion (RFC 5806) is passed on; else stripped."""
    history: bool = False
    """History-Info (RFC 7044) is passed on as it came; else stripped. Of somebody who asked for privacy
    only to a trusted trunk."""
    service_route: bool = True
    """The Service-Route of our registration (RFC 3608) is used for calls."""
    reliable: bool = False
    """We offer reliable provisional responses (RFC 3262) to it."""
    pairs: list[str] = msgspec.field(default_factory=list)
    """Pairs (`vip` of their edges) that speak to it; the others reach it through the first of
    these that is there. Empty: each pair speaks to it itself."""


class SecretTrunkValue(Value):
    """``secret/trunks/<trunk>``: our digest secret at a carrier: HA1s where its realm is
    known, the password where it is not."""

    trunk: str
    realm: str = ""
    ha1_md5: str = ""
    ha1_sha256: str = ""
    password: str = ""


class SubscriptionValue(Value):
    """``subscriptions/<pair>/<id>``: a phone that wants to be told (RFC 6665)."""

    user: str
    package: str
    """message-summary or dialog"""
    event: str
    """The Event header as the phone gave it"""
    watched: str
    """The mailbox or address of record"""
    dialog: dict[str, Any] = msgspec.field(default_factory=dict)
    flow: dict[str, Any] = msgspec.field(default_factory=dict)
    expires: float = 0.0


class MailboxValue(Value):
    """``mailboxes/<mailbox>``: how many messages wait, written by whoever counts them."""

    mailbox: str
    new: int = 0
    old: int = 0
    urgent_new: int = 0
    urgent_old: int = 0
