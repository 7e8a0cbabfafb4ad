"""The IVR of one call: prompts, digits, steps.

Where the caller is (`IvrPlace`) is written before anything is done about it, so that
another node goes on from there: digits typed so far are kept, a menu is said again, a
step with effects outside is not run again but looked up, or the caller is led to the
step's ``unsure``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from ari_ha.core.ids import PRIMARY_LEG
from ari_ha.core.machine import Done, Outcome, Refused, Unreachable
from ari_ha.core.ports.web import WebAnswer
from ari_ha.machines.node_call_base import CONTINUE
from ari_ha.machines.node_model import DIALING, DIALPLAN, ENDED, IVR, NORMAL, QUEUED
from ari_ha.machines.node_parts import Parts
from ari_ha.wire import ivr
from ari_ha.wire.ivr import IvrMenuValue, IvrStep
from ari_ha.wire.keyspace import IvrPlace, RecordValue

if TYPE_CHECKING:
    from ari_ha.machines.node_call import NodeCall

STEPS_MAX = 100
"""A caller who has taken so many steps goes in circles."""
PROMPT_LIMIT_S = 300.0
"""A prompt whose end Asterisk has not reported by then is over."""
LOOKUP_TRIES_MAX = 3
SENDS_MAX = 3
"""A harmless request whose outcome stays unknown is sent so often."""
NEXT_NODE_LIMIT_S = 2.0
"""A step left to the node the call moves to has failed when the call is here still."""
LOOKUP_PAUSE_S = 0.5
VARIABLES_MAX = 32
VALUE_MAX_CHARS = 256


class CallIvr:
    """See the module."""

    def __init__(self, parts: Parts, call: NodeCall) -> None:
        self._parts = parts
        self._call = call
        self.place: IvrPlace | None = None
        self._due = False
        """The prompt is to be said as soon as the caller hears us."""
        self._before: list[str] = []
        """What is said before the prompt."""
        self._playing = ""
        self._told_seen = 0
        """Digits by INFO so far, those outside an IVR too."""
        self._sends = 0
        """Requests of the step under way sent from here."""
        self._begun = 0
        """Counts steps begun here: an act that waited for its intent must still be wanted."""
        self._doubt = False
        """The step under way may have happened already."""

    # --- coming and going ----------------------------------------------------------

    def begin(self, menu: str) -> None:
        """A caller for this menu."""
        call = self._call
        call.stage = IVR
        call.answered = call.answered or self._parts.context.utc
        self._enter(menu)

    def resume(self) -> None:
        """The call was taken up: it goes on where its record says."""
        place, call = self.place, self._call
        if place is None or not place.menu:
            call.to_dialplan("no IVR place")
            return
        call.note("IVR goes on", menu=place.menu, typed=len(place.typed), step=place.step)
        self._playing = self._ident()  # of an app that was here before; else there is none
        self._hush()
        menu = self._menu()
        if menu is None:
            self._away(f"no menu {place.menu}")
        elif place.step:
            self._doubt, self._sends = True, 0
            self._settle_step(menu)
        elif place.typed and (self._complete(menu) or menu.interruptible):
            self._decide(menu)
        else:
            self._say_prompt([])
            call.save()

    def _enter(self, name: str) -> None:
        old = self.place
        self.place = IvrPlace(
            name, steps=old.steps + 1 if old else 1, heard=old.heard if old else 0,
            told=max(old.told if old else 0, self._told_seen), plays=old.plays if old else 0,
        )  # fmt: skip
        if self._menu() is None:
            self._call.note(f"there is no menu {name!r}", level="error")
            self._away("no such menu")
            return
        if self.place.steps > STEPS_MAX:
            self._call.note("the caller goes in circles", level="warning", steps=self.place.steps)
            self._away("too many steps")
            return
        self._call.note("menu", menu=name)
        self._parts.context.count("node_ivr_menus", menu=name)
        self._say_prompt([])
        self._call.save()

    def _menu(self) -> IvrMenuValue | None:
        return self._parts.ivr(self.place.menu) if self.place else None

    def _away(self, why: str) -> None:
        """The IVR cannot go on: the dialplan serves the caller."""
        self.leave()
        self._call.to_dialplan(why)

    def leave(self) -> None:
        """The caller is in the IVR no longer."""
        old = self.place
        if old is not None:  # what is counted goes on counting
            self.place = IvrPlace("", steps=old.steps, heard=old.heard, told=old.told, plays=old.plays)
        self._due = False
        self._hush()
        self._parts.context.cancel(f"ivr/{self._call.call}")

    # --- prompts -------------------------------------------------------------------

    def _say_prompt(self, before: list[str]) -> None:
        if self.place is not None:
            self.place.plays += 1
        self._due, self._before = True, before
        self._parts.context.cancel(f"ivr/{self._call.call}")
        self._call.touch()

    def settled(self) -> None:
        """Asterisk and, it may be, the edge are where the caller hears us."""
        menu, leg = self._menu(), self._call.legs.get(PRIMARY_LEG)
        if not self._due or menu is None or leg is None or leg.channel is None:
            return
        if not self._call.media.heard():
            return
        self._due = False
        self._hush()
        media = [*self._before, *menu.prompts]
        if not media:
            self._wait(menu)
            return
        self._playing = ident = self._ident()
        context = self._parts.context
        params = {"channelId": leg.channel.id, "media": ",".join(media), "playbackId": ident}

        def told(outcome: Outcome) -> None:
            if not isinstance(outcome, Done) and self._playing == ident:
                self._call.note("prompt not played", level="warning", outcome=outcome)
                self.played(ident)

        context.after(f"ivr/{self._call.call}", PROMPT_LIMIT_S, lambda: self.played(ident))
        context.ari(f"call/{self._call.call}", "channels.play", params, told)

    def played(self, ident: str) -> None:
        """A prompt is over."""
        menu = self._menu()
        if ident == self._playing and menu is not None:
            self._playing = ""
            self._wait(menu)

    def look_again(self) -> None:
        """The connection to Asterisk is new: the end of a prompt may have been missed."""
        if self._playing:
            self._say_prompt([])
            self._call.save()

    def _ident(self) -> str:
        plays = self.place.plays if self.place else 0
        return f"{self._call.call}.{self._call.epoch}.p{plays}"

    def _hush(self) -> None:
        if self._playing:
            ident, self._playing = self._playing, ""
            self._parts.context.ari(f"prompt/{ident}", "playbacks.stop", {"playbackId": ident})

    def _wait(self, menu: IvrMenuValue) -> None:
        """Nothing is said: the caller's turn."""
        place = self.place
        assert place is not None
        typing = bool(place.typed)
        limit_s = (menu.between_ms if typing else menu.wait_ms) / 1000
        self._parts.context.after(f"ivr/{self._call.call}", limit_s, lambda: self._silence(place.steps))

    def _silence(self, steps: int) -> None:
        menu, place = self._menu(), self.place
        if menu is None or place is None or place.steps != steps:
            return
        if place.typed:
            self._decide(menu, over=True)
        else:
            self._once_more(menu, [])

    # --- digits --------------------------------------------------------------------

    def digit(self, leg: str, digit: str, heard: int = 0, told: int = 0) -> int:
        """The caller pressed a key; returns its number if Asterisk heard it just now
        (``heard`` and ``told`` 0). One the edge tells of has its number of that kind: one
        taken before is not taken again."""
        place = self.place
        self._told_seen = max(self._told_seen, told)
        if place is None or self._call.stage != IVR or leg != PRIMARY_LEG:
            return 0
        if told:
            if told <= place.told:
                return 0
            place.told = told
        else:
            if heard and heard <= place.heard:
                return 0
            place.heard = heard or place.heard + 1
        number = place.heard
        menu = self._menu()
        if place.step or menu is None or digit not in ivr.DIGITS:
            self._call.note("digit ignored", step=place.step, menu=place.menu)
            self._call.save()
            return number
        if menu.interruptible:
            self._due = False
            self._hush()
        place.typed = (place.typed + digit)[-ivr.TYPED_MAX_CHARS :]
        self._decide(menu)
        return number

    def _complete(self, menu: IvrMenuValue) -> bool:
        typed = self.place.typed if self.place else ""
        if menu.collect:
            return len(typed) >= menu.digits_max or typed.endswith(menu.end_digit)
        longer = any(digits != typed and digits.startswith(typed) for digits in menu.choices)
        return not longer

    def _decide(self, menu: IvrMenuValue, over: bool = False) -> None:
        """What the digits typed so far mean. ``over``: no more are coming."""
        place, call = self.place, self._call
        assert place is not None
        if not over and not self._complete(menu):
            call.save()
            if not self._playing and not self._due:
                self._wait(menu)
            return
        if menu.collect:
            ended = place.typed.endswith(menu.end_digit)
            typed = place.typed[: -len(menu.end_digit)] if ended else place.typed
            if typed:
                self._set({menu.collect: typed})
                self._take(menu, "collected")
                return
        elif place.typed in menu.choices:
            self._take(menu, f"choice:{place.typed}")
            return
        call.note("what was typed leads nowhere", menu=menu.menu, digits=len(place.typed))
        self._once_more(menu, menu.invalid_prompts)

    def _once_more(self, menu: IvrMenuValue, before: list[str]) -> None:
        """A try is used up."""
        place = self.place
        assert place is not None
        place.tries, place.typed = place.tries + 1, ""
        if place.tries < menu.tries_max:
            self._say_prompt(list(before))
            self._call.save()
        elif menu.otherwise is not None:
            self._take(menu, "otherwise")
        else:
            self._away("no choice made")

    def _set(self, variables: dict[str, str]) -> None:
        """Variables of the call; a bounded number of bounded texts."""
        for name, value in variables.items():
            if name in self._call.variables or len(self._call.variables) < VARIABLES_MAX:
                self._call.variables[name] = str(value)[:VALUE_MAX_CHARS]

    # --- steps ---------------------------------------------------------------------

    def _take(self, menu: IvrMenuValue, path: str) -> None:
        """One step of the menu."""
        place, call, step = self.place, self._call, ivr.step_at(menu, path)
        assert place is not None
        self._due = False
        self._hush()
        self._parts.context.cancel(f"ivr/{call.call}")
        if step is None:
            self._enter(menu.menu)
            return
        self._set(step.variables)
        call.note("IVR step", menu=menu.menu, step=path, do=step.do, to=step.to)
        match step.do:
            case ivr.MENU:
                self._enter(step.to)
            case ivr.REPEAT:
                self._enter(menu.menu)
            case ivr.QUEUE:
                self.leave()
                call.stage = "setup"
                call.enter_queue(step.to, "")
            case ivr.DIAL:
                self.leave()
                call.stage = "setup"
                self._parts.carry_out(call, (ivr.DIAL, step.to))
            case ivr.DIALPLAN:
                self._to_dialplan(step, path)
            case ivr.REQUEST:
                place.steps += 1
                place.step = path
                self._doubt, self._sends, self._begun = False, 0, self._begun + 1
                steps, begun = place.steps, self._begun
                call.save(lambda: self._begin(begun, steps, step))
            case _:
                self.leave()
                call.end_leg(call.legs[PRIMARY_LEG], step.to or NORMAL, "end of the IVR")
                call.over("ended by the IVR")

    def _to_dialplan(self, step: IvrStep, path: str) -> None:
        context, _, rest = step.to.partition(",")
        extension = rest.partition(",")[0] or self._call.facts.extension or self._call.facts.did
        place = self.place
        self.leave()
        if step.effects and place is not None:
            place.step = path
            self.place = place  # kept: if the node is lost meanwhile, it is not done again
        context = context or self._call.context_name
        self._call.to_dialplan("IVR", context, extension)

    # --- steps with effects --------------------------------------------------------

    def _key(self, steps: int) -> str:
        """The same for every try of one step, whichever node tries."""
        return f"{self._call.call}.{steps}"

    def _asked(self, steps: int) -> bool:
        """Whether the step asked for is still the one under way, here."""
        return self.place is not None and self.place.steps == steps and self._call.stage == IVR

    def record_came(self, record: RecordValue) -> None:
        """The node that had the call before us wrote more than we began with: a step it began is begun, and
        where it led the caller he is."""
        place, theirs, call = self.place, record.ivr, self._call
        if place is None or theirs is None or call.stage != IVR:
            return
        if record.epoch == str(call.epoch) or theirs.steps < place.steps:
            return
        if theirs.menu and not theirs.step and theirs.steps == place.steps:
            return
        call.note("the node before us had gone on", menu=theirs.menu, step=theirs.step, on=record.node)
        self._begun += 1
        self.leave()
        self.place = msgspec.structs.replace(theirs)
        if theirs.menu:
            call.save()
            self.resume()
        else:
            self._led_out(record)

    def _led_out(self, record: RecordValue) -> None:
        """He was out of the IVR before the call was taken up: he goes on there."""
        call = self._call
        call.legs_used.update(record.legs)
        call.variables |= record.variables
        if call.head in record.ending:
            call.end_leg(call.legs[call.head], record.ending[call.head], "announced before")
            call.over("ended meanwhile")
            return
        if record.stage == DIALPLAN:
            extension = record.extension if record.variables.get(CONTINUE) == "extension" else ""
            call.to_dialplan("resumed", record.context, extension)
            return
        if record.stage == DIALING or not record.queue:
            call.stage, call.transfers.now = record.stage, record.transfer
            call.outbound.resumed(call.over_before, record)
            call.transfers.resumed(record, call.over_before)
        else:
            self._waits(record)
        call.save()
        call.touch()

    def _waits(self, record: RecordValue) -> None:
        call, acd, config = self._call, self._parts.acd, self._parts.queue(record.queue)
        call.stage, call.queue, call.entered = QUEUED, record.queue, record.entered
        call.queue_priority, call.media_policy = record.queue_priority, record.want_media
        call.music = config.moh if config else call.music
        ended = [attempt.attempt for attempt in record.attempts.values() if attempt.state == ENDED]
        acd.caller_resumed(
            call.call, call.queue, call.entered, call.queue_priority, call.caller, ended=ended,
            from_node=record.node, alive={}, talking=(),
        )  # fmt: skip
        acd.call_recovered(call.call)

    def _begin(self, begun: int, steps: int, step: IvrStep, last: bool = False) -> None:
        """The intent is stored: now the act. Where it could not be stored only a harmless
        one is carried out: after a takeover nobody would know of it."""
        menu, call = self._menu(), self._call
        if menu is None or begun != self._begun or not self._asked(steps):
            return
        if not step.idempotent and not self._intended(steps):
            if self._moving() and not last:
                call.note("left to the node the call moves to", steps=steps)
                later = partial(self._begin, begun, steps, step, last=True)
                self._parts.context.after(f"ivr/{call.call}", NEXT_NODE_LIMIT_S, later)
                return
            call.note("not asked for: the intent is not stored", level="warning")
            self._go_on(menu, "failed")
            return
        self._request(steps, step)

    def _request(self, steps: int, step: IvrStep) -> None:
        self._sends += 1
        call = self._call
        shown = {name: value for name, value in call.variables.items() if not name.startswith("_")}
        body = {"call": call.call, "key": self._key(steps), "caller": call.caller, "did": call.facts.did,
                "variables": shown}  # fmt: skip
        self._parts.context.count("node_ivr_requests")
        self._parts.context.web(
            f"ivr/{call.call}", step.to, self._key(steps), msgspec.json.encode(body),
            step.timeout_ms / 1000, lambda outcome: self._requested(steps, outcome),
        )  # fmt: skip

    def _intended(self, steps: int) -> bool:
        stored = self._parts.records.record(self._call.call)
        place = stored.ivr if stored is not None else None
        ours = stored is not None and stored.epoch == str(self._call.epoch)
        return ours and place is not None and place.steps == steps and bool(place.step)

    def _moving(self) -> bool:
        """Whether the next node has taken the call up already: it moves on purpose, and is heard from here
        until its edge says so. Of a node that is to be empty every call may, and etcd tells it late."""
        return self._parts.draining or self._parts.records.newest(self._call.call) > self._call.epoch

    def _requested(self, steps: int, outcome: Outcome) -> None:
        menu = self._menu()
        if menu is None or not self._asked(steps):
            return
        match outcome:
            case Done(value=WebAnswer(body=body)):
                self._learn(body)
                self._go_on(menu, "done")
            case Refused(code=code) if 400 <= code < 500:
                self._go_on(menu, "failed")
            case Unreachable() if not self._doubt:
                self._go_on(menu, "failed")
            case _:
                self._doubt = True
                self._call.note("step's outcome not known", level="warning", outcome=outcome)
                self._settle_step(menu)

    def _learn(self, body: bytes) -> None:
        """An answer may set variables: ``{"variables": {name: value}}``."""
        try:
            answer: Any = msgspec.json.decode(body) if body else {}
        except msgspec.DecodeError:
            answer = {}
        found = answer.get("variables") if isinstance(answer, dict) else None
        if isinstance(found, dict):
            self._set({str(name): str(value) for name, value in found.items()})

    def _settle_step(self, menu: IvrMenuValue, tried: int = 0) -> None:
        """A step was begun, and nobody here knows whether it happened: asked for where
        that can be, sent again where that is harmless, else the caller is led on."""
        place = self.place
        assert place is not None
        step, steps, call = ivr.step_at(menu, place.step), place.steps, self._call
        if step is None:
            self._go_on(menu, "unsure")
        elif step.do == ivr.REQUEST and step.lookup and tried < LOOKUP_TRIES_MAX:
            mark = "&" if "?" in step.lookup else "?"
            url = f"{step.lookup}{mark}key={self._key(steps)}"

            def told(outcome: Outcome) -> None:
                self._looked_up(steps, tried, outcome)

            self._parts.context.web(
                f"ivr/{call.call}", url, self._key(steps), b"", step.timeout_ms / 1000, told
            )
        elif step.do == ivr.REQUEST and step.idempotent and self._sends < SENDS_MAX:
            self._request(steps, step)
        else:
            self._go_on(menu, "unsure")

    def _looked_up(self, steps: int, tried: int, outcome: Outcome) -> None:
        menu, place = self._menu(), self.place
        if menu is None or place is None or not self._asked(steps):
            return
        step = ivr.step_at(menu, place.step)
        self._call.note("step looked up", step=place.step, outcome=outcome)
        if isinstance(outcome, Done):
            self._learn(outcome.value.body)
            self._go_on(menu, "done")
        elif isinstance(outcome, Refused) and outcome.code == 404 and step is not None:
            # not yet: what was sent may still be on its way, so only a harmless one is repeated
            if step.idempotent and self._sends < SENDS_MAX:
                self._request(steps, step)
            else:
                self._go_on(menu, "unsure")
        else:
            again = f"ivr/{self._call.call}"
            pause_s = LOOKUP_PAUSE_S * (tried + 1)
            self._parts.context.after(again, pause_s, lambda: self._look_up_again(steps, tried + 1))

    def _look_up_again(self, steps: int, tried: int) -> None:
        menu = self._menu()
        if menu is not None and self._asked(steps):
            self._settle_step(menu, tried)

    def _go_on(self, menu: IvrMenuValue, how: str) -> None:
        """The step is over, one way or the other: the branch for it."""
        place = self.place
        assert place is not None
        path, place.step, place.typed = f"{place.step}{ivr.PATH_SEPARATOR}{how}", "", ""
        self._parts.context.count("node_ivr_outcomes", how=how)
        self._take(menu, path)
