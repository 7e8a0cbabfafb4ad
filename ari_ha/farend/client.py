"""Talks to the far ends' HTTP interface."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

LIMIT_S = 15.0
ANSWER_MAX_BYTES = 64 * 1024 * 1024


class FarEndError(Exception):
    """The far ends refused, or could not be reached."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class FarEndClient:
    """One far-end process."""

    def __init__(self, base: str, token: str) -> None:
        self.base = base.rstrip("/")
        self._token = token
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path: str, method: str = "GET", body: Mapping[str, Any] | None = None) -> Any:
        """One request. Raises FarEndError."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data=data, headers=headers, method=method)
        try:
            with self._opener.open(request, timeout=LIMIT_S) as reply:
                return json.loads(reply.read(ANSWER_MAX_BYTES))
        except urllib.error.HTTPError as error:
            raise FarEndError(f"{method} {path}: {error.code} {error.read(400)!r}", error.code) from error
        except (OSError, ValueError) as error:
            raise FarEndError(f"{method} {path}: {error}") from error

    def health(self) -> dict[str, Any]:
        """Who is there."""
        return self.ask("/health")

    # --- calls ---

    def place(self, did: str, caller: str, n: int = 1, **more: Any) -> list[str]:
        """Customers call ``did``; caller numbers are ``caller`` with three digits added when n > 1."""
        return self.ask("/calls", "POST", {"did": did, "from": caller, "n": n, **more})["calls"]

    def calls(self, **query: str) -> list[dict[str, Any]]:
        """Calls of all far ends: state=, owner=, living=1."""
        return self.ask("/calls?" + urllib.parse.urlencode(query))["calls"]

    def call(self, ident: str) -> dict[str, Any]:
        """One call with its messages."""
        return self.ask(f"/calls/{ident}")

    def order(self, ident: str, order: str, /, **body: Any) -> dict[str, Any]:
        """An order to a call: hangup, hold, unhold, dtmf, info, answer, reject."""
        return self.ask(f"/calls/{ident}/{order}", "POST", body)

    def digits(self, digits: Mapping[str, str]) -> list[str]:
        """Digits on many calls at once; returns those that are not up."""
        return self.ask("/digits", "POST", {"digits": dict(digits)})["skipped"]

    # --- phones ---

    def phones(self) -> list[dict[str, Any]]:
        """All phones."""
        return self.ask("/phones")["phones"]

    def phone(self, user: str) -> dict[str, Any]:
        """One phone with its calls."""
        return self.ask(f"/phones/{user}")

    def phone_order(self, phone: str, order: str, /, **body: Any) -> dict[str, Any]:
        """An order to a phone: register, unregister, power, dial, answer, hangup, hold, ..."""
        return self.ask(f"/phones/{phone}/{order}", "POST", body)

    def manner(self, users: Iterable[str] = (), **manner: Any) -> None:
        """What phones do with calls; all phones when none is named."""
        self.ask("/phones/manner", "POST", {"users": list(users), **manner})

    # --- measuring ---

    def measure(
        self,
        since: float,
        until: float | None = None,
        calls: Iterable[str] = (),
        ears: Mapping[str, Iterable[str]] = {},
    ) -> dict[str, Any]:
        """What was heard between two instants. ``ears``: calls that should hear any of several others; their
        rows have `any_voice`."""
        query: list[tuple[str, str]] = [("since", repr(since))]
        if until is not None:
            query.append(("until", repr(until)))
        query += [("call", ident) for ident in calls]
        query += [("ear", f"{ear}:{','.join(voices)}") for ear, voices in ears.items()]
        return self.ask("/measure?" + urllib.parse.urlencode(query))

    def now(self) -> float:
        """The far ends' clock."""
        return self.ask("/measure/mark", "POST", {})["now"]

    def hang_up_everything(self) -> int:
        """Ends every living call; returns how many there were."""
        living = self.calls(living="1")
        for call in living:
            try:
                self.order(call["call"], "hangup")
            except FarEndError as error:
                if error.status not in (404, 409):
                    raise
        return len(living)
