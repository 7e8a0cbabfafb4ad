"""``ari-ha demo``: a minute in the lab. People talk, the busiest Asterisk is killed, and the far ends say
what they noticed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, SettingsFile, clock, fail, say, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ari_ha.cli.chaos_judge import Pair, Verdict
    from ari_ha.cli.chaos_run import Run
    from ari_ha.cli.chaos_stage import Stage

TALKING, THROUGH, QUEUED = 8, 2, 2
"""Calls of the demonstration, by state."""
FRAME_S = 0.25
BEFORE_S = 4.0
READY_LIMIT_S = 40.0
INSIDE_LINES_MAX = 12
INSIDE_FACTS = ("why", "epoch", "took_ms")


def register(parent: typer.Typer) -> None:
    """Adds ``demo`` to the command line."""
    parent.command("demo")(demo)


def demo(settings: SettingsFile = DEFAULT_SETTINGS) -> None:
    """Calls, a killed Asterisk, and what people on the phone noticed. Takes under a minute."""
    from ari_ha.cli.chaos_stage import Stage, StageError
    from ari_ha.cli.cluster import ClusterError
    from ari_ha.cli.lab import Lab, LabError
    from ari_ha.farend.client import FarEndError

    if why := Lab.available():
        fail(f"the lab cannot run here: {why}\nthe same story in the simulator: ari-ha simulate --demo")
    try:
        stage = Stage(settings)
        if not stage.lab.running():
            fail("the lab is not up: make lab-up")
        survived = tell(stage)
    except (StageError, ClusterError, FarEndError, LabError) as error:
        fail(f"the demonstration stopped: {error}\nlook with: ari-ha lab status, docker/lab logs")
    raise typer.Exit(0 if survived else 1)


def tell(stage: Stage) -> bool:
    """The whole demonstration on a stage; whether every call survived."""
    return _Story(stage).tell()


class _Story:
    """One telling."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.pairs: list[Pair] = []
        self.begin = time.monotonic()

    def note(self, text: str) -> None:
        """A line of the story, with the seconds since its beginning."""
        say(f"[{time.monotonic() - self.begin:4.1f} s] {text}")

    def tell(self) -> bool:
        """The whole demonstration; whether every call survived."""
        self._set_the_stage()
        self._place_calls()
        with _Screen(self._picture) as screen:
            screen.show(BEFORE_S)
        run, victim, at = self._kill_the_busiest()
        self._ladder(run.pairs[0])
        self._inside(run.pairs[0], at)
        self._result(run)
        self.stage.far.hang_up_everything()
        survived = all(not verdict.against for verdict in run.verdicts.values())
        self.note(f"done; {victim} is back and takes calls again")
        say("")
        say("look around:    ari-ha status · ari-ha calls · ari-ha agents · ari-ha lab status")
        say("break more:     ari-ha chaos run --fault asterisk-freeze --state talking --calls 10")
        say("stop the lab:   make lab-down")
        return survived

    # --- acts ---

    def _set_the_stage(self) -> None:
        from ari_ha.cli.chaos_stage import SUPPORT
        from ari_ha.cli.status import pairs

        stage = self.stage
        stage.check()
        stage.clean()
        health = stage.far.health()
        nodes = stage.usable_nodes()
        self.note(f"the lab serves: nodes {', '.join(nodes)}; {health['registered']} phones are registered")
        for pair in pairs(stage.view()):
            roles = ", ".join(f"{member['name']} {member['role']}" for member in pair["members"])
            self.note(f"databases: {roles}; a clerk writes each ended call there, once")
        stage.agents_in(SUPPORT[: TALKING + THROUGH])
        self.note(f"{TALKING + THROUGH} agents are logged in; two of them dialled *21 on their phones")

    def _place_calls(self) -> None:
        from ari_ha.cli.chaos_judge import Pair
        from ari_ha.cli.chaos_stage import until

        stage = self.stage
        stage.far.manner(mode="answer", after_s=0.5)
        for state, did, count in (
            ("talking", "6000", TALKING),
            ("through", "6001", THROUGH),
            ("queued", "6000", QUEUED),
        ):
            first = {"talking": "1555100", "through": "1555200", "queued": "1555300"}[state]
            codec = "pcmu" if state == "through" else "pcma"
            idents = stage.far.place(did, first, count, spacing_ms=60, codec=codec)
            self.pairs += [Pair(ident, f"{first}{n:03}", state) for n, ident in enumerate(idents)]
            until(f"calls are {state}", READY_LIMIT_S, lambda: stage.reached(self.pairs), 0.2)
        self.note(
            f"{len(self.pairs)} customers called: {TALKING} talk with an agent directly, {THROUGH} through "
            f"Asterisk, {QUEUED} wait in the queue and hear music"
        )

    def _kill_the_busiest(self) -> tuple[Run, str, float]:
        from ari_ha.cli.chaos_judge import Verdict
        from ari_ha.cli.chaos_run import Run
        from ari_ha.cli.chaos_stage import until

        stage = self.stage
        stage.refresh(self.pairs)
        victim, busy = Counter(pair.node for pair in self.pairs).most_common(1)[0]
        hit = [pair for pair in self.pairs if pair.node == victim]
        run = Run(stage, "asterisk-kill", "talking", len(hit), 0, pairs=hit)
        run.verdicts = {pair.customer: Verdict(pair) for pair in hit}
        say("")
        struck = stage.lab.asterisk_kill(victim)
        self.note(f"kill -9: Asterisk on {victim} is gone in the middle of {busy} calls")
        with _Screen(self._picture) as screen:
            screen.show_while(lambda: run.watch(struck))
        self._tell_moves(hit, struck.at)
        until(f"{victim} is back", READY_LIMIT_S, lambda: victim in stage.usable_nodes(), 0.1)
        return run, victim, struck.at

    def _tell_moves(self, hit: Sequence[Pair], at: float) -> None:
        stage = self.stage
        before = {pair.call: pair.node for pair in hit}
        stage.refresh(self.pairs)
        went = Counter(pair.node for pair in hit)
        times = [
            v for v in (_moved_after_ms(stage.edge_call(pair.call), at) for pair in hit) if v is not None
        ]
        text = ", ".join(f"{count} to {node}" for node, count in went.most_common())
        if times:
            text += f"; the first after {min(times):.0f} ms, the last after {max(times):.0f} ms"
        self.note(f"{len(before)} calls moved: {text}")

    def _picture(self) -> RenderableType:
        """Who serves what, now."""
        from rich.table import Table

        rows = self.stage.edge_calls()
        view = Table(title="calls", header_style="bold", box=None, pad_edge=False, title_justify="left")
        for column in ("call", "node", "epoch", "media", "customer", "agent", "for"):
            view.add_column(column)
        for pair in self.pairs:
            row = rows.get(pair.caller)
            if row:
                seconds = f"{time.time() - row['started']:.0f}s"
                agent = pair.agent or "waiting"
                view.add_row(
                    row["call"], row["node"], row["epoch"], row["media"], pair.caller, agent, seconds
                )
        return view

    def _ladder(self, pair: Pair) -> None:
        """Every SIP message of one call, as its two ends saw it."""
        messages: list[tuple[float, str]] = []
        for side, ident in enumerate((pair.customer, pair.agent_call)):
            for message in self.stage.far.call(ident)["messages"]:
                messages.append((message["at"], _rung(message["what"], message["way"] == "received", side)))
        say("")
        say(f"call {pair.call}: all the SIP its ends ever saw")
        say(f"{'':13}{'customer':<26}{'edge':^8}{'agent ' + pair.agent:>26}")
        for at, line in sorted(messages):
            say(f"{clock(at)} {line}")

    def _inside(self, pair: Pair, at: float) -> None:
        """What edge and nodes did for the call meanwhile."""
        from ari_ha.cli import view as views
        from ari_ha.cli.explain import gather, merge

        cluster = self.stage.cluster
        lines, _ = gather(cluster, views.read(cluster), pair.call)
        say("")
        say(
            f"call {pair.call}: what happened behind the edge, ms after the kill (ari-ha explain {pair.call})"
        )
        for line in [line for line in merge(lines) if line["at"] >= at][:INSIDE_LINES_MAX]:
            why = "".join(f"  {name}={line[name]}" for name in INSIDE_FACTS if line.get(name))
            say(f"{(line['at'] - at) * 1000:8.0f}  {line['by']:<6} {line['text']}{why}")

    def _result(self, run: Run) -> None:
        say("")
        rows = [_row(verdict) for verdict in run.verdicts.values()]
        columns = (
            "call",
            "state",
            "agent",
            "survived",
            "lost ms",
            "longest gap ms",
            "SIP messages",
            "heard again ms",
        )
        table("what the far ends measured (lost and gap: to the customer / to the agent)", columns, rows)
        survived = sum(not verdict.against for verdict in run.verdicts.values())
        for verdict in run.verdicts.values():
            if verdict.against:
                say(f"{verdict.pair.call}: {'; '.join(verdict.against)}", "bad")
        text = f"{survived} of {len(rows)} calls of the killed Asterisk survived"
        say(text, "ok" if survived == len(rows) else "bad")


def _row(verdict: Verdict) -> tuple[Any, ...]:
    pair = verdict.pair
    resumed = "" if verdict.resumed_ms is None else f"{verdict.resumed_ms:.0f}"
    lost, gap = (_both(figures, bool(pair.agent)) for figures in (verdict.lost_ms, verdict.gap_ms))
    return (
        pair.call,
        pair.state,
        pair.agent or "-",
        "no" if verdict.against else "yes",
        lost,
        gap,
        (verdict.carrier_messages or 0) + (verdict.phone_messages or 0),
        resumed,
    )


def _both(figures: Mapping[str, float | None], voices: bool) -> str:
    """To the customer and to the agent; who waits hears music only."""
    customer, agent = (figures[name] for name in ("to_customer", "to_agent"))
    if customer is None or agent is None:
        return "not measured"
    return f"{customer:.0f} / {agent:.0f}" if voices else f"music {customer:.0f}"


def _rung(what: str, received: bool, side: int) -> str:
    """One message between an end and the edge as a line of the ladder."""
    width = 24
    to_edge = not received
    right = to_edge == (side == 0)
    body = f" {what} ".center(width, "-")
    arrow = f"{body[:-1]}>" if right else f"<{body[1:]}"
    return f"|{arrow}|{'':{width}}|" if side == 0 else f"|{'':{width}}|{arrow}|"


def _moved_after_ms(row: dict[str, Any], at: float) -> float | None:
    """When the call's newest move was done, in milliseconds after ``at``."""
    done = [move["at_utc"] for move in row.get("moves", []) if move["at_utc"] > at]
    return (done[-1] - at) * 1000 if done else None


class _Screen:
    """A picture drawn again and again on a terminal, and once elsewhere."""

    def __init__(self, picture: Callable[[], RenderableType]) -> None:
        self._picture = picture
        self._live: Any = None

    def __enter__(self) -> _Screen:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(self._picture(), auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, seconds: float) -> None:
        """Shows the picture for a while."""
        if self._live is None:
            from rich.console import Console

            Console().print(self._picture())
            return
        end = time.monotonic() + seconds
        self._draw_until(lambda: time.monotonic() >= end)

    def show_while(self, act: Callable[[], None]) -> None:
        """Shows the picture while something is done, and once more when it is."""
        if self._live is None:
            act()
            self.show(0)
            return
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(act)
            self._draw_until(doing.done)
            self._live.update(self._picture(), refresh=True)
            doing.result()

    def _draw_until(self, over: Callable[[], bool]) -> None:
        while not over():
            self._live.update(self._picture(), refresh=True)
            time.sleep(FRAME_S)
