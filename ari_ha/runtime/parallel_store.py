"""One question to every etcd member at once: the first answer counts.

The ordinary client uses one member and notices within a second that it is gone. A guard
does not have that second: the member it uses may have died with its peer.
"""

from __future__ import annotations

import asyncio
import dataclasses

from ari_ha.core.machine import Done, Outcome, Unreachable
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.runtime.etcd import EtcdSettings, EtcdStore, open_store


class ParallelStore:
    """A client per member. A transaction may reach etcd several times; that is harmless
    for one that compares the key it writes: only the first can hold."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._stores: list[EtcdStore] = [
            open_store(dataclasses.replace(settings, endpoints=(endpoint,)), lambda event: None)
            for endpoint in settings.endpoints
        ]

    def start(self) -> None:
        """Connects to every member."""
        for store in self._stores:
            store.start()

    async def close(self) -> None:
        """Leaves them."""
        await asyncio.gather(*(store.close() for store in self._stores))

    async def perform(self, effect: StoreTxn | StoreRead) -> Outcome:
        """The first Done, else why not. The effect's limit is
        the caller's to keep; what is still under way when it ends is let go."""
        tasks = {asyncio.create_task(store.perform(effect)) for store in self._stores}
        outcome: Outcome = Unreachable("no etcd member is configured")
        try:
            while tasks:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    answer = task.result()
                    if isinstance(answer, Done):
                        return answer
                    outcome = answer
            return outcome
        finally:
            for task in tasks:
                task.cancel()
