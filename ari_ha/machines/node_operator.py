"""What people and tools ask of a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ari_ha.core.ports.operator import OperatorReply, OperatorRequest
from ari_ha.machines.acd_orders import VerbResult
from ari_ha.machines.node_call import NodeCall
from ari_ha.machines.node_core import NodeCore
from ari_ha.machines.node_links import Links
from ari_ha.machines.node_maintenance import Maintenance

AGENT_VERBS = ("login", "logout", "available", "not-ready", "toggle", "acw-done", "acw-extend", "force")
SECRET_FIELDS = ("pin_hash",)


class Operator:
    """Answers each `OperatorRequest` with exactly one `OperatorReply`."""

    def __init__(self, core: NodeCore, links: Links, maintenance: Maintenance) -> None:
        self._core = core
        self._links = links
        self._maintenance = maintenance
        self._context = core.context
        self._waiting: set[str] = set()

    def request(self, event: OperatorRequest) -> None:
        """One verb."""
        if event.verb in AGENT_VERBS:
            self._agent_verb(event)
            return
        if event.verb == "supervise":
            self._supervise(event)
            return
        if event.verb in ("cordon", "uncordon"):
            self._core.cordoned = event.verb == "cordon"
            self._reply(event.request, 200, {"cordoned": self._core.cordoned})
            return
        answers = {
            "status": self._status,
            "agents": self._agents,
            "calls": self._calls,
            "call": self._call,
            "queues": self._queues,
        }
        answer = answers.get(event.verb)
        if answer is None:
            self._reply(event.request, 404, {"error": f"no verb {event.verb!r}"})
            return
        status, body = answer(event.args)
        self._reply(event.request, status, body)

    def _reply(self, request: str, status: int, body: Any) -> None:
        self._context.emit(OperatorReply(request=request, status=status, body=body))

    # --- agents --------------------------------------------------------------------

    def _agent_verb(self, event: OperatorRequest) -> None:
        agent = str(event.args.get("agent", ""))
        if not agent:
            self._reply(event.request, 422, {"error": "which agent?"})
            return
        args = {name: value for name, value in event.args.items() if name != "agent"}
        args.setdefault("by", "operator")
        self._waiting.add(event.request)
        limit_s = self._context.timings.verb_limit_s
        self._context.after(f"verb/{event.request}", limit_s, lambda: self._no_answer(event.request))
        self._core.acd.agent_verb(event.request, event.verb, args, agent=agent)

    def _supervise(self, event: OperatorRequest) -> None:
        args = {name: str(event.args.get(name, "")) for name in ("agent", "mode", "device", "by")}
        args["by"] = args["by"] or "operator"

        def answer(status: int, text: str) -> None:
            body = {"text": text} if status < 400 else {"error": text}
            self._reply(event.request, status, {**body, "agent": args["agent"]})

        self._core.supervisors.give(**args, answer=answer)

    def _no_answer(self, request: str) -> None:
        if request in self._waiting:
            self._waiting.discard(request)
            self._reply(request, 503, {"error": "no answer in time"})

    def verb_done(self, result: VerbResult) -> None:
        """The ACD's answer."""
        if result.request not in self._waiting:
            return
        self._waiting.discard(result.request)
        self._context.cancel(f"verb/{result.request}")
        body: dict[str, Any] = {"text": result.text, "agent": result.agent}
        if result.status >= 400:
            body["error"] = result.text
        if result.value is not None:
            body["value"] = _public(result.value)
        self._reply(result.request, result.status, body)

    def _agents(self, args: Mapping[str, Any]) -> tuple[int, Any]:
        agents = {name: _public(value) for name, value in self._core.acd.acd.agents().items()}
        wanted = str(args.get("agent", ""))
        if not wanted:
            return 200, {"agents": agents}
        if wanted not in agents:
            return 404, {"error": f"no agent {wanted!r}"}
        return 200, agents[wanted]

    # --- the node ------------------------------------------------------------------

    def _status(self, args: Mapping[str, Any]) -> tuple[int, Any]:
        state, config = self._context.ari_state, self._core.config
        return 200, {
            "node": config.node,
            "incarnation": state.incarnation,
            "version": config.version,
            "ready": self._links.ready,
            "reason": self._links.reason,
            "cordoned": self._core.cordoned,
            "draining": self._core.draining,
            "maintenance": self._maintenance.word,
            "maintenance_trouble": self._maintenance.trouble,
            "asterisk": state.word,
            "store": "up" if self._context.store_ok else "away",
            "calls": len(self._core.calls),
            "recordings": self._core.recorder.count,
            "taking_up": len(self._core.resumes.by_call),
            "edges": {
                peer: {
                    "vip": edge.vip,
                    "since_s": round(self._context.now - edge.opened, 1),
                    "lists": len(edge.calls.calls) if edge.calls else None,
                }
                for peer, edge in self._context.links.items()
            },
        }

    def _queues(self, args: Mapping[str, Any]) -> tuple[int, Any]:
        waiting: dict[str, list[Any]] = {name: [] for name in self._core.queue_names()}
        for entry in self._core.acd.acd.waiting():
            waiting.setdefault(entry.queue, []).append(msgspec.to_builtins(entry))
        return 200, {"queues": {name: {"waiting": entries} for name, entries in sorted(waiting.items())}}

    # --- calls ---------------------------------------------------------------------

    def _calls(self, args: Mapping[str, Any]) -> tuple[int, Any]:
        return 200, {"calls": {call.call: self._summary(call) for call in self._core.calls.values()}}

    def _call(self, args: Mapping[str, Any]) -> tuple[int, Any]:
        call = self._core.calls.get(str(args.get("call", "")))
        if call is None:
            return 404, {"error": "no such call here"}
        record = msgspec.to_builtins(call.record_value(call.stage))
        return 200, {**self._summary(call), "record": record}

    def _summary(self, call: NodeCall) -> dict[str, Any]:
        return {
            "call": call.call,
            "epoch": str(call.epoch),
            "stage": call.stage,
            "caller": call.caller,
            "did": call.facts.did,
            "queue": call.queue,
            "position": self._core.acd.acd.position(call.call),
            "media": {"wanted": call.media.want, "is": call.media.there},
            "bridge": call.asterisk.bridge() if call.asterisk.existing else "",
            "legs": {
                leg.leg: {
                    "role": leg.role,
                    "state": leg.state,
                    "agent": leg.agent,
                    "held": leg.held,
                    "channel": leg.channel.id if leg.channel else "",
                    "bridged": bool(leg.channel and leg.channel.bridge),
                    "music": leg.channel.music if leg.channel else "",
                }
                for leg in call.legs.values()
            },
        }


def _public(value: Any) -> Any:
    """A stored value as JSON, without what nobody need see."""
    plain = msgspec.to_builtins(value)
    for name in SECRET_FIELDS:
        plain.pop(name, None)
    return plain
