"""etcd for a process: the adapter with its machine, and two calls for tools."""

from __future__ import annotations

import random
from collections.abc import Callable

from ari_ha.adapters.etcd import EtcdSettings, EtcdStore
from ari_ha.core.machine import Event, Note, Outcome
from ari_ha.core.ports.store import StoreRead, StoreTxn
from ari_ha.machines.etcd_client import EtcdClient, EtcdTimings

__all__ = ["EtcdSettings", "EtcdStore", "EtcdTimings", "get_prefix", "open_store", "txn"]

TOOL_LIMIT_S = 5.0


def open_store(
    settings: EtcdSettings,
    post: Callable[[Event], bool | None],
    *,
    timings: EtcdTimings | None = None,
    note: Callable[[Note], None] | None = None,
) -> EtcdStore:
    """An `EtcdStore`, not yet started. ``note``: usually `Shell.note`."""
    client = EtcdClient(settings.targets(), random.Random(), timings, settings.login())
    return EtcdStore(settings, post, client, note=note)


async def get_prefix(settings: EtcdSettings, prefix: str, limit_s: float = TOOL_LIMIT_S) -> Outcome:
    """Reads a prefix once: Done(tuple of KeyValue), or why not."""
    return await _once(settings, StoreRead(key=prefix, prefix=True, limit_s=limit_s))


async def txn(settings: EtcdSettings, effect: StoreTxn) -> Outcome:
    """One transaction: Done(TxnResult), or why not."""
    return await _once(settings, effect)


async def _once(settings: EtcdSettings, effect: StoreRead | StoreTxn) -> Outcome:
    store = open_store(settings, lambda event: None)
    store.start()
    try:
        return await store.perform(effect)
    finally:
        await store.close()
