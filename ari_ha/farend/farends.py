"""All far ends of one process: the carrier and the phones, with their media and their measurements."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ari_ha.farend import rtp
from ari_ha.farend.call import Call
from ari_ha.farend.edge_watch import Address, EdgeWatch
from ari_ha.farend.media import Media
from ari_ha.farend.network import Driver, driver_for
from ari_ha.farend.registration import Registration
from ari_ha.farend.settings import FarEndSettings
from ari_ha.farend.useragent import Manner, UserAgent
from ari_ha.sip import Credentials, Flow, Listener

CARRIER = "carrier"
CARRIER_CALLS_MAX = 2_000
REGISTER_SPACING_S = 0.02
GOODBYE_S = 1.0
"""Time for BYE to be sent again where it got lost."""


def _new_id() -> str:
    return secrets.token_hex(8)


class FarEnds:
    """The carrier (`drivers["carrier"]`) and each phone (`drivers["1001"]` …)."""

    def __init__(self, settings: FarEndSettings) -> None:
        self.settings = settings
        self.media = Media(settings.media_workers, settings.rtp_port_first, settings.rtp_port_last)
        self.drivers: dict[str, Driver] = {}
        self.marks: dict[str, float] = {}
        hosts = (settings.edge_host, *settings.edge_others)
        edges = [(host, settings.edge_port) for host in hosts]
        self.watch = EdgeWatch(settings.carrier_host, edges, self._edge_moved) if len(edges) > 1 else None

    async def open(self) -> None:
        """Opens every socket; phones start to register."""
        carrier = self._agent(
            CARRIER,
            Listener("udp", "udp", self.settings.carrier_host, self.settings.carrier_port),
            rtp.CARRIER_HERTZ,
            Manner(after_s=0.2, calls_max=CARRIER_CALLS_MAX),
            user=self.settings.carrier_user,
            domain=self.settings.carrier_host,
        )
        self.drivers[CARRIER] = driver_for(carrier)
        for index, user in enumerate(self.settings.phones):
            self.drivers[user] = driver_for(self._phone(index, user))
        await asyncio.gather(*(driver.open() for driver in self.drivers.values()))
        if self.watch:
            await self.watch.open()

    async def hang_up(self) -> None:
        """Ends every living call politely, so that nobody else has to find out that we are gone."""
        living = [(driver, call) for driver, call in self.calls() if call.living]
        for driver, call in living:
            driver.agent.hangup(call, driver.now)
            driver.flush()
        if living:
            await asyncio.sleep(GOODBYE_S)

    def close(self) -> None:
        """Closes everything."""
        if self.watch:
            self.watch.close()
        for driver in self.drivers.values():
            driver.close()
        self.media.close()

    def _edge_moved(self, edge: Address) -> None:
        """New calls and registrations go to another edge; calls go where their dialogs say."""
        for index, driver in enumerate(self.drivers.values()):
            driver.use(*edge, register_at=driver.now + index * REGISTER_SPACING_S)

    def _phone(self, index: int, user: str) -> UserAgent:
        settings = self.settings
        transport = "tcp" if user in settings.tcp_phones else "udp"
        registration = Registration(
            user,
            Credentials(user, settings.passwords.get(user, "")),
            _new_id,
            registrar=f"sip:{settings.domain}",
            expires_s=settings.register_expires_s,
            wanted=settings.register,
        )
        if settings.register:
            registration.due = asyncio.get_running_loop().time() + index * REGISTER_SPACING_S
        listener = Listener(transport, transport, settings.phones_host, settings.phones_base_port + index)
        return self._agent(user, listener, rtp.PHONE_HERTZ, Manner(), user=user, registration=registration)

    def _agent(
        self,
        name: str,
        listener: Listener,
        hertz: int,
        manner: Manner,
        *,
        user: str = "",
        domain: str = "",
        registration: Registration | None = None,
    ) -> UserAgent:
        settings = self.settings
        edge_host = settings.phones_at.get(name, settings.edge_host)
        return UserAgent(
            name,
            listener,
            Flow(listener.name, listener.transport, edge_host, settings.edge_port),
            self.media,
            new_id=_new_id,
            utc=time.time,
            domain=domain or settings.domain,
            hertz=hertz,
            manner=manner,
            credentials=Credentials(user, settings.passwords.get(user, "")) if user else None,
            registration=registration,
        )

    # --- looking ---

    def calls(self) -> Iterator[tuple[Driver, Call]]:
        """Every call known, with its driver."""
        for driver in self.drivers.values():
            for call in driver.agent.calls.values():
                yield driver, call

    def find(self, ident: str) -> tuple[Driver, Call] | None:
        """The call of that id."""
        driver = self.drivers.get(ident.rpartition("-")[0])
        call = driver.agent.calls.get(ident) if driver else None
        return (driver, call) if driver and call else None

    def measure(
        self,
        since: float,
        until: float,
        only: frozenset[str] = frozenset(),
        ears: Mapping[str, Collection[str]] = {},
    ) -> dict[str, Any]:
        """What every stream heard in the window; streams of calls that ended before it are left out.
        ``ears``: calls that should hear any of several others."""
        rows: list[tuple[Call, dict[str, Any]]] = []
        for _, call in list(self.calls()):
            if only and call.id not in only:
                continue
            if not call.living and call.ended_at < since:
                continue
            voices = (self.find(ident) for ident in ears.get(call.id, ()))
            report = self.media.report(
                call.stream.id, since, until, [found[1].stream.id for found in voices if found]
            )
            if report is None:
                continue
            received = sum(1 for m in list(call.messages) if m.way == "received" and since <= m.at < until)
            rows.append((call, {**call.to_dict(), "sip_received_in_window": received, **report.to_dict()}))
        owner_of = {call.stream.id: call.id for _, call in list(self.calls())}
        for _, row in rows:
            for heard in row["hears"]:
                heard["call"] = owner_of.get(heard["source"], "")
        return {"since": since, "until": until, "calls": [row for _, row in rows]}
