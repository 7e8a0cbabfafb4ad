"""A phone's registration (RFC 3261 section 10) with digest, refreshed before it expires."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ari_ha.sip import Credentials, Flow, events
from ari_ha.sip.auth import authorization

if TYPE_CHECKING:
    from ari_ha.farend.useragent import UserAgent

EXPIRES_S = 120
REFRESH_SHARE = 0.7
RETRY_S = 3.0
CHALLENGES_MAX = 2
"""Challenges answered per registration: the second may say the nonce is stale."""


class Registration:
    """One contact at one registrar."""

    def __init__(
        self,
        aor: str,
        credentials: Credentials,
        new_id: Callable[[], str],
        *,
        registrar: str,
        expires_s: int = EXPIRES_S,
        wanted: bool = True,
    ) -> None:
        self.aor = aor
        self.credentials = credentials
        self.registrar = registrar
        self.expires_s = expires_s
        self.orders = 0
        self.state = "out"
        """out, asking, in, refused"""
        self.status = 0
        self.registered_at = 0.0
        self.successes = 0
        self.wanted = wanted
        self.due: float | None = 0.0 if wanted else None
        self._call_id = new_id()
        self._new_id = new_id
        self._cseq = 0
        self._challenges = 0
        self._authorization = ""

    @property
    def key(self) -> str:
        """Names the requests of the newest order: an answer to an older one is nobody's."""
        return f"register-{self.aor}-{self.orders}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "state": self.state,
            "status": self.status,
            "registered_at": self.registered_at,
            "successes": self.successes,
        }

    def want(self, wanted: bool, now: float) -> None:
        """Register, or take the registration away, now."""
        self.wanted = wanted
        self.orders += 1
        self._challenges = 0
        self._authorization = ""
        self.due = now

    def send(self, agent: UserAgent, now: float) -> None:
        """Sends REGISTER; the answer comes to `on`."""
        self._cseq += 1
        self.state = "asking"
        self.due = None
        flow: Flow = agent.proxy
        transport = "" if flow.transport == "udp" else f";transport={flow.transport}"
        contact = f"<sip:{self.aor}@{agent.listener.host}:{agent.listener.port}{transport}>"
        headers = [("Contact", contact), ("Expires", str(self.expires_s if self.wanted else 0))]
        if self._authorization:
            headers.append(("Authorization", self._authorization))
        agent.endpoint.request(
            self.key,
            "REGISTER",
            flow=flow,
            target=self.registrar,
            from_=f"<sip:{self.aor}@{agent.domain}>",
            to=f"<sip:{self.aor}@{agent.domain}>",
            headers=headers,
            now=now,
            call_id=self._call_id,
            cseq=self._cseq,
        )

    def on(self, event: events.ResponseReceived | events.RequestFailed, agent: UserAgent, now: float) -> None:
        """The registrar's answer, or its silence."""
        if isinstance(event, events.RequestFailed):
            self.state, self.status = "out", 0
            self.due = now + RETRY_S
            return
        if event.status < 200:
            return
        self.status = event.status
        if event.status == 401 and self._challenges < CHALLENGES_MAX:
            self._challenges += 1
            challenges = [value for name, value in event.headers if name.lower() == "www-authenticate"]
            value = authorization(self.credentials, challenges, "REGISTER", self.registrar, self._new_id())
            if value is not None:
                self._authorization = value
                self.send(agent, now)
                self._authorization = ""
                return
        if 200 <= event.status < 300:
            self._challenges = 0
            self.successes += 1
            self.state = "in" if self.wanted else "out"
            self.registered_at = now if self.wanted else 0.0
            self.due = now + self.expires_s * REFRESH_SHARE if self.wanted else None
            return
        self.state = "refused"
        self._challenges = 0
        # a phone that was refused asks again: its account may only just have been made
        self._authorization = ""
        self.due = now + RETRY_S
