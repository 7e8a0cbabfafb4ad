"""Bodies of event packages: message-summary (RFC 3842) and dialog (RFC 4235)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

MESSAGE_SUMMARY, DIALOG = "message-summary", "dialog"
CONTENT_TYPES = {
    MESSAGE_SUMMARY: "application/simple-message-summary",
    DIALOG: "application/dialog-info+xml",
}


def message_summary(account: str, new: int, old: int, urgent_new: int = 0, urgent_old: int = 0) -> bytes:
    """What waits in a mailbox (RFC 3842 section 5.2)."""
    lines = [
        f"Messages-Waiting: {'yes' if new else 'no'}",
        f"Message-Account: {account}",
        f"Voice-Message: {new}/{old} ({urgent_new}/{urgent_old})",
    ]
    return "".join(f"{line}\r\n" for line in lines).encode()


@dataclass(frozen=True, slots=True)
class DialogState:
    """One dialog of a watched phone (RFC 4235 section 4.1)."""

    ident: str
    state: str
    """trying, early, confirmed"""
    initiator: bool
    remote: str = ""
    name: tuple[str, str, str] | None = None
    """Call-ID, the phone's tag and the other one; None: not for everybody to know"""


def dialog_info(entity: str, version: int, dialogs: Sequence[DialogState]) -> bytes:
    """Every dialog of a phone, as a full document; a phone without any has an empty one."""
    rows = []
    for item in dialogs:
        direction = "initiator" if item.initiator else "recipient"
        remote = f"<remote><identity>{_text(item.remote)}</identity></remote>" if item.remote else ""
        named = ""
        if item.name is not None:
            pairs = zip(("call-id", "local-tag", "remote-tag"), item.name, strict=True)
            named = "".join(f" {name}={quoteattr(value)}" for name, value in pairs)
        rows.append(
            f"<dialog id={quoteattr(item.ident)}{named} direction={quoteattr(direction)}>"
            f"<state>{item.state}</state>{remote}</dialog>"
        )
    return (
        '<?xml version="1.0"?>\n'
        f'<dialog-info xmlns="urn:ietf:params:xml:ns:dialog-info" version="{version}" state="full"'
        f" entity={quoteattr(entity)}>{''.join(rows)}</dialog-info>\n"
    ).encode()


def _text(value: str) -> str:
    return value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
