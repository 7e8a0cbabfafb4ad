"""A sans-IO SIP engine: bytes, time and ids go in; bytes, events and a deadline come out.

`Endpoint` is what others use; the modules below it (message, uri, sdp, transaction, dialog, auth, timers) can
be
used on their own. Nothing here opens a socket, reads a clock or draws a random number.
"""

from ari_ha.sip.auth import Credentials
from ari_ha.sip.endpoint import Endpoint
from ari_ha.sip.events import LocalError, SipEvent
from ari_ha.sip.flow import Flow, Listener
from ari_ha.sip.message import Request, Response, SipParseError, parse_message
from ari_ha.sip.settings import EndpointSettings

__all__ = [
    "Credentials",
    "Endpoint",
    "EndpointSettings",
    "Flow",
    "Listener",
    "LocalError",
    "Request",
    "Response",
    "SipEvent",
    "SipParseError",
    "parse_message",
]
