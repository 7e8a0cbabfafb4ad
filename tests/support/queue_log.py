"""Reading the queue log out of a simulated store, and whether it tells one story."""

from __future__ import annotations

from ari_ha.checkers.queue_log import contradictions
from ari_ha.machines.acd_agents import IN_CALL
from ari_ha.simulation.acd_cluster import Cluster
from ari_ha.wire.keyspace import decode
from ari_ha.wire.outbox import QueueLine, QueueLogValue


def told(c: Cluster) -> list[QueueLine]:
    """Every line in the order of the transactions, as the clerk writes them."""
    prefix = c.keys.queue_log("")
    entries = [kv for key, kv in c.store.items.items() if key.startswith(prefix)]
    entries.sort(key=lambda kv: (kv.mod_revision, kv.key))  # written once: also when it was created
    return [line for kv in entries for line in decode(kv.value, QueueLogValue, kv.key).lines]


def events(c: Cluster) -> list[tuple[str, ...]]:
    """Event, agent and call of each line, without what nobody asked for."""
    names = ((line.event, line.agent.removeprefix("Agent/"), line.call) for line in told(c))
    return [tuple(word for word in name if word != "NONE") for name in names]


def wrong_in_log(c: Cluster) -> list[str]:
    """Contradictions of the log, and with what is so at the end: those are open who wait or talk."""
    rows = [{"callid": line.call, "agent": line.agent, "event": line.event} for line in told(c)]
    wrong, waiting, talking = contradictions(rows)
    now = c.picture()
    open_now = {
        (f"Agent/{name}", agent.attempt.call)
        for name, agent in now.agents.items()
        if agent.work in IN_CALL and agent.attempt is not None and agent.attempt.queue
    }
    wrong += [f"open at the end: {talking}, really {open_now}"] if talking != open_now else []
    really = {entry.call for entry in now.entries.values()}
    return wrong + ([f"waiting at the end: {waiting}, really {really}"] if waiting != really else [])
