"""IVR menus as they are stored: what is said, which digits lead where.

A menu is data, read anew each time a caller enters it. A *step* is what follows:
another menu, a queue, a number, the dialplan, a request to a system of the site, or
the end. Only ``request`` and ``dialplan`` can have effects outside; neither is
carried out twice by a takeover (see docs/concepts/ivr.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from ari_ha.wire.keyspace import Value

MENU, QUEUE, DIAL, DIALPLAN, REQUEST, REPEAT, HANGUP = (
    "menu", "queue", "dial", "dialplan", "request", "repeat", "hangup",
)  # fmt: skip
STEPS = (MENU, QUEUE, DIAL, DIALPLAN, REQUEST, REPEAT, HANGUP)
DIGITS = "0123456789*#ABCD"
NESTING_MAX = 8
"""A step may lead to a step, not deeper than this."""
CHOICES_MAX = 64
TYPED_MAX_CHARS = 64
"""Digits kept of one entry."""
PATH_SEPARATOR = ">"


class IvrStep(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What is done next."""

    do: str
    """menu, queue, dial, dialplan, request, repeat (the same menu), hangup"""
    to: str = ""
    """The menu, the queue, the number; ``context,extension,priority`` of the dialplan; the
    http(s) address of the request; the Q.850 cause of the hangup."""
    variables: dict[str, str] = {}
    """Set on the call before the step; ``HA_PRIORITY`` and ``HA_SKILLS`` mean something to a queue."""
    effects: bool = False
    """dialplan: something happens there that must not happen twice."""
    lookup: str = ""
    """request: asked for the outcome when nobody knows it: 200 done, 404 not done."""
    idempotent: bool = False
    """request: the same key may be sent again, and the far end does it once."""
    timeout_ms: int = 5_000
    """request: after this its outcome is not known."""
    done: IvrStep | None = None
    """request: it was done. Left out: the menu again."""
    failed: IvrStep | None = None
    """request: it was certainly not done. Left out: the menu again."""
    unsure: IvrStep | None = None
    """request, or dialplan with effects: perhaps it was done."""


class IvrMenuValue(Value):
    """``ivrs/<menu>``."""

    menu: str
    prompts: list[str] = msgspec.field(default_factory=list)
    """Media URIs as ARI plays them, one after the other."""
    interruptible: bool = True
    """A digit ends the prompt."""
    choices: dict[str, IvrStep] = msgspec.field(default_factory=dict)
    """Digits typed -> step; the longest that fits wins."""
    collect: str = ""
    """Variable that takes digits freely typed; then ``collected`` follows."""
    digits_max: int = 1
    end_digit: str = "#"
    collected: IvrStep | None = None
    wait_ms: int = 5_000
    """Silence after the prompt counts as a try after this."""
    between_ms: int = 2_000
    """Between two digits of one entry."""
    tries_max: int = 3
    invalid_prompts: list[str] = msgspec.field(default_factory=list)
    """Said before the prompt when what was typed leads nowhere."""
    otherwise: IvrStep | None = None
    """After the last try. Left out: the dialplan's label for callers who cannot be served."""


def step_at(menu: IvrMenuValue, path: str) -> IvrStep | None:
    """The step a stored path names: ``choice:<digits>``, ``collected`` or ``otherwise``,
    then ``>done``, ``>failed`` or ``>unsure`` into it. None when it is not there any more."""
    root, *rest = path.split(PATH_SEPARATOR)
    kind, _, digits = root.partition(":")
    step = {"choice": menu.choices.get(digits), "collected": menu.collected, "otherwise": menu.otherwise}.get(
        kind
    )
    for word in rest:
        if step is None or word not in ("done", "failed", "unsure"):
            return None
        step = getattr(step, word)
    return step


def _walk(step: IvrStep | None, path: str, depth: int = 0) -> Iterator[tuple[str, IvrStep, int]]:
    if step is None or depth > NESTING_MAX:
        return
    yield path, step, depth
    for word in ("done", "failed", "unsure"):
        yield from _walk(getattr(step, word), f"{path}{PATH_SEPARATOR}{word}", depth + 1)


def steps_of(menu: IvrMenuValue) -> Iterator[tuple[str, IvrStep, int]]:
    """(path, step, depth) of every step of a menu."""
    for digits, step in menu.choices.items():
        yield from _walk(step, f"choice:{digits}")
    yield from _walk(menu.collected, "collected")
    yield from _walk(menu.otherwise, "otherwise")


def complaints(menus: Mapping[str, IvrMenuValue]) -> list[str]:
    """What is wrong with these menus, together; empty: nothing."""
    found = []
    for name, menu in menus.items():
        if len(menu.choices) > CHOICES_MAX:
            found.append(f"{name}: {len(menu.choices)} choices, limit {CHOICES_MAX}")
        for digits in menu.choices:
            if not digits or set(digits) - set(DIGITS):
                found.append(f"{name}: choice {digits!r} is not made of {DIGITS}")
        if bool(menu.collect) != (menu.collected is not None):
            found.append(f"{name}: collect and collected go together")
        if not 1 <= menu.digits_max <= TYPED_MAX_CHARS:
            found.append(f"{name}: digits_max must be 1 to {TYPED_MAX_CHARS}")
        found += [f"{name}: {path}: {why}" for path, why in _step_complaints(menu, menus)]
    return found


def _step_complaints(menu: IvrMenuValue, menus: Mapping[str, IvrMenuValue]) -> Iterator[tuple[str, str]]:
    for path, step, depth in steps_of(menu):
        if step.do not in STEPS:
            yield path, f"{step.do!r} is not one of {', '.join(STEPS)}"
        if depth == NESTING_MAX:
            yield path, f"nested deeper than {NESTING_MAX}"
        if step.do == MENU and step.to not in menus:
            yield path, f"there is no menu {step.to!r}"
        if step.do == REQUEST and not step.to.startswith(("http://", "https://")):
            yield path, "a request needs an http(s) address"
        if step.do == REQUEST and step.unsure is None and not step.idempotent:
            yield path, "a request needs a step `unsure`, or must be idempotent"
        if step.do == DIALPLAN and step.effects and step.unsure is None:
            yield path, "a dialplan step with effects needs a step `unsure`"
        if step.do in (QUEUE, DIAL) and not step.to:
            yield path, f"{step.do}: to what?"
