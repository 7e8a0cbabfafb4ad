"""Settings of a SIP endpoint, each with its unit, default and reason."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_ALLOW: tuple[str, ...] = (
    "INVITE",
    "ACK",
    "CANCEL",
    "BYE",
    "PRACK",
    "OPTIONS",
    "INFO",
    "UPDATE",
    "REFER",
    "NOTIFY",
    "SUBSCRIBE",
    "MESSAGE",
    "REGISTER",
)
"""Methods served."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """What an `Endpoint` may be told; the defaults are the standard's."""

    t1_s: float = 0.5
    """RFC 3261 section 17.1.1.1: estimate of the round trip; every retransmission timer derives from it."""
    t2_s: float = 4.0
    """RFC 3261 section 17.1.2.2: longest wait between two retransmissions."""
    t4_s: float = 5.0
    """RFC 3261 section 17.1.2.2: longest life of a message in the network."""
    min_session_expires_s: int = 90
    """RFC 4028 section 5: the smallest session interval accepted; smaller ones get a 422."""
    max_forwards: int = 70
    """RFC 3261 section 8.1.1.6."""
    ring_reminder_s: float = 60.0
    """RFC 3261 section 13.3.1.1: an unanswered INVITE gets its provisional response again this often."""
    reinvite_attempts_max: int = 4
    """How often one re-INVITE is tried against 491 (section 14.1) before the owner hears it failed."""
    reinvite_limit_s: float = 60.0
    """A re-INVITE that got a provisional response and then nothing has failed after this (the standard
    knows no limit); the leg goes on, and a late 2xx is still ACKed."""
    reinvite_retry_s: float = 10.0
    """Longest Retry-After of a 500 to an early re-INVITE (section 14.2 asks for 0 to 10 seconds)."""
    legs_max: int = 20_000
    """Legs held at once; an INVITE beyond it gets 503."""
    transactions_max: int = 100_000
    """Server transactions held at once, within calls a fourth more; a request beyond gets a stateless 503."""
    streams_max: int = 10_000
    """TCP connections framed at once; bytes of further ones are dropped and the stream reported broken."""
    stray_answers_max: int = 256
    """BYEs under way at once for answers to INVITEs nobody here remembers; beyond it they are only ACKed."""
    past_dialogs_max: int = 1_000
    """Names of ended dialogs kept: a Replaces (RFC 3891) that names one is declined, not unknown."""
    early_dialogs_max: int = 12
    """Forks of one INVITE that are told apart; answers beyond it still get ACK and BYE."""
    symmetric_responses: bool = True
    """Responses go to the request's source even without rport (RFC 3581 section 4 asks it only with rport):
    phones behind NAT that do not ask for it are common, phones that listen elsewhere are not."""
    extensions: tuple[str, ...] = ("timer",)
    """Option tags offered in Supported."""
    understood: tuple[str, ...] = ("timer", "100rel")
    """Option tags served when a request requires them. 100rel (RFC 3262) is offered call by call, by a
    Supported among the headers of `invite`: offered to everybody, every phone would make work of it."""
    owner_dialog_methods: tuple[str, ...] = ()
    """Methods that go to the owner as RequestReceived when they carry a To tag of no leg (an owner that keeps
    subscriptions sets SUBSCRIBE and NOTIFY); all others get 481."""
    owner_answers_bye: bool = False
    """A BYE of the far side is answered by the owner, with `respond` to what `LegEnded` names: until then
    it comes again, to whoever has taken the leg over."""
    usage_methods: tuple[str, ...] = ("NOTIFY", "SUBSCRIBE")
    """In-dialog methods whose 481 speaks of a subscription, not of the call (RFC 5057 section 5.1)."""
    timeout_ends_methods: tuple[str, ...] = ("INVITE", "UPDATE")
    """In-dialog methods whose 408 or timeout ends the leg (section 12.2.1.2). INFO and the like are left out
    on
    purpose: a phone that ignores one is not gone, and losing certainty never drops a live call."""
