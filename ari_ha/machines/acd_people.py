"""What agents and supervisors ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ari_ha.machines.acd_agents import Facts, Not, advance
from ari_ha.machines.acd_desk import Desk
from ari_ha.machines.acd_orders import VerbResult
from ari_ha.machines.acd_writes import Op, Plan, Result, Writes
from ari_ha.wire.keyspace import AgentValue, ReachValue, Value

REASON_MAX_CHARS = 64
INTENTS = ("available", "not_ready", "logged_out")

Change = Callable[[AgentValue], AgentValue | Not]


class BadRequest(ValueError):
    """The request makes no sense; its text tells the asker."""


class People:
    """The verbs; each is one transition of one agent and one `VerbResult`."""

    def __init__(self, desk: Desk, writes: Writes) -> None:
        self.desk = desk
        self.writes = writes

    def ask(self, request: str, verb: str, args: Mapping[str, Any], agent: str, user: str) -> None:
        name, text = self._find(agent, user)
        if not name:
            self._answer(request, 404, text)
            return
        try:
            change, words = self._change(verb, args, name, user)
        except BadRequest as error:
            self._answer(request, 422, str(error), name)
            return
        self._submit(request, verb, name, change, words)

    def _answer(self, request: str, status: int, text: str, agent: str = "") -> None:
        value = self.desk.view.agent(agent) if agent else None
        self.desk.order(VerbResult(request=request, status=status, text=text, agent=agent, value=value))

    def _find(self, agent: str, user: str) -> tuple[str, str]:
        """The agent meant, or why there is none."""
        view = self.desk.view
        if not view.seen("agents"):
            return "", "the agents are not known yet; try again"
        if agent:
            return (agent, "") if view.agent(agent) else ("", f"there is no agent {agent}")
        account = view.user(user)
        if account is None:
            return "", f"there is no user {user}"
        if account.agent:
            if view.agent(account.agent) is None:
                return "", f"user {user} is agent {account.agent}, who does not exist"
            return account.agent, ""
        here = view.device_users(account.aor or user)
        return (here[0], "") if here else ("", f"no agent belongs to user {user}")

    # --- verbs -------------------------------------------------------------------------

    def _change(self, verb: str, args: Mapping[str, Any], name: str, user: str) -> tuple[Change, str]:
        """What the verb does to the agent, and the words for it."""
        match verb:
            case "login":
                return self._login(args, user), "logged in"
            case "logout":
                return self._intend("logged_out", "", args, name), "logged out"
            case "available":
                return self._intend("available", "", args, name), "available"
            case "not-ready":
                return self._intend("not_ready", self._reason(args), args, name), "not ready"
            case "toggle":
                return self._toggle(args, name), "toggled"
            case "force":
                return self._force(args, name), "forced"
            case "acw-done":
                return self._apply("acw-done", Facts()), "wrap-up ended"
            case "acw-extend":
                settings = self.desk.settings
                facts = Facts(extend_s=settings.acw_extend_s, acw_max_s=settings.acw_max_s)
                return self._apply("acw-extend", facts), "wrap-up extended"
        raise BadRequest(f"unknown verb {verb}")

    def _apply(self, rule: str, facts: Facts) -> Change:
        return lambda agent: advance(agent, rule, facts, self.desk.utc)

    def _reason(self, args: Mapping[str, Any]) -> str:
        reason = str(args.get("reason") or "")
        if len(reason) > REASON_MAX_CHARS:
            raise BadRequest(f"a reason has at most {REASON_MAX_CHARS} characters")
        if reason.isdigit() and reason not in self.desk.settings.reasons:
            raise BadRequest(f"there is no reason {reason}")
        return self.desk.settings.reasons.get(reason, reason)

    def _intend(self, intent: str, reason: str, args: Mapping[str, Any], name: str) -> Change:
        return self._apply("intend", Facts(intent=intent, reason=reason, by=str(args.get("by") or name)))

    def _toggle(self, args: Mapping[str, Any], name: str) -> Change:
        reason = self._reason(args)

        def change(agent: AgentValue) -> AgentValue | Not:
            rest = (agent.next_intent or agent.intent) == "available"
            intent, why = ("not_ready", reason) if rest else ("available", "")
            return self._intend(intent, why, args, name)(agent)

        return change

    def _force(self, args: Mapping[str, Any], name: str) -> Change:
        """A supervisor's word: reason and name are needed, and no call is cut by it."""
        intent, by = str(args.get("intent") or ""), str(args.get("by") or "")
        reason = self._reason(args)
        if intent not in INTENTS:
            raise BadRequest(f"intent is one of {', '.join(INTENTS)}")
        if not by or not reason:
            raise BadRequest("a forced state needs by and reason")
        self.desk.note(name, f"forced to {intent}", by=by, reason=reason)
        kept = reason if intent == "not_ready" else ""
        return self._apply("intend", Facts(intent=intent, reason=kept, by=by))

    def _login(self, args: Mapping[str, Any], user: str) -> Change:
        view, desk = self.desk.view, self.desk
        account = view.user(user)
        device = str(args.get("device") or (account.aor if account is not None else "") or user)
        available = args.get("available", desk.settings.login_available)
        if not device:
            raise BadRequest("a device is needed to log in")

        def change(agent: AgentValue) -> AgentValue | Not:
            others = [other for other in view.device_users(device) if other != agent.agent]
            if others:
                return Not(f"device {device} is used by agent {others[0]}")
            if view.seen("bindings") and not desk.device_ok(device):
                return Not(f"device {device} is not registered")
            facts = Facts(
                device=device, intent="available" if available else "not_ready",
                reason="" if available else "login", by=agent.agent, take_over=bool(args.get("take_over")),
            )  # fmt: skip
            return advance(agent, "login", facts, desk.utc)

        return change

    # --- writing -----------------------------------------------------------------------

    def _submit(self, request: str, verb: str, name: str, change: Change, words: str) -> None:
        desk = self.desk
        key = desk.keys.agent(name)

        def decide() -> Plan | Not:
            agent = desk.view.agent(name)
            new = change(agent) if agent is not None else Not("the agent was removed")
            if isinstance(new, Not):
                return new
            writes: dict[str, Value | None] = {key: new}
            if new.device and agent is not None and new.device != agent.device and not desk.away:
                reach = desk.view.reach(name) or ReachValue(agent=name)
                desktop = {"desktop": reach.desktop, "desktop_since": reach.desktop_since}
                writes[desk.keys.reach(name)] = ReachValue(
                    agent=name, device="ok", device_since=desk.utc, **desktop
                )
            return Plan(writes, verb)

        def done(result: Result) -> None:
            self._answer(request, *self._status(result, words, name), name)

        op = Op(
            name=f"verb/{verb}", lock=(key,), decide=decide, done=done,
            give_up=desk.now + desk.settings.verb_limit_s,
        )  # fmt: skip
        if not self.writes.submit(op):
            self._answer(request, 503, "too much is going on; try again", name)

    def _status(self, result: Result, words: str, name: str) -> tuple[int, str]:
        if result.already:
            return 200, result.why
        if not result.ok:
            return (503 if result.why == "the store does not answer" else 409), result.why
        agent = self.desk.view.agent(name)
        if agent is not None and agent.next_intent:
            words = f"{agent.next_intent} after this call"
        return (202 if result.local else 200), words
