"""``ari-ha db-chaos``: break the database pair while writers write, and count what they were told yes for.

Judged at the writers: a confirmed row that is missing afterwards is lost; the gap is the longest time one of
them was without a confirmation. A run ends when both servers are well again without a person."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import DEFAULT_SETTINGS, GOOD, SettingsFile, fail, say, table

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster
    from ari_ha.cli.database_writers import Target, Writers
    from ari_ha.cli.lab import Lab

BASELINE_S = 2.0
AFTER_S = 1.0
WRITES_AGAIN_LIMIT_S = 90.0
WELL_LIMIT_S = 180.0
ROWS_LIMIT_S = 30.0
LOOK_EVERY_S = 0.1
MOVED_LIMIT_S = 15.0
"""A switchover that has not come to pass by then did not."""
LAG_MAX_MS = 3_000
"""A standby further behind would make the next promotion slow."""
BROKEN_FOR_S = {
    "primary-freeze": 12.0, "primary-cut-etcd": 12.0, "primary-cut-peer": 8.0, "primary-cut-both": 12.0,
    "primary-cut-one-way": 12.0, "watcher-stop": 12.0, "replica-freeze": 10.0, "db-etcd-leader-kill": 5.0,
    "tail-kill": 4.0, "db-etcd-quorum-loss": 60.0, "db-etcd-and-standby-loss": 15.0,
}  # fmt: skip
"""How long a fault stays that does not mend itself."""
SWITCHOVER, CONFLICT, TAIL, ERRANT = "switchover", "conflict", "tail-kill", "replica-errant"
DIE_TRIES_MAX = 4
"""A step is not taken each time: a replica that is back at once is not certified anew."""


def register(app: typer.Typer) -> None:
    """Adds ``db-chaos`` to the command line."""
    app.command("db-chaos")(run)


def run(
    fault: Annotated[str, typer.Option("--fault", help="What breaks; `list` prints the words.")],
    repeat: Annotated[int, typer.Option("--repeat", help="How often.")] = 1,
    die: Annotated[
        str,
        typer.Option("--die", help="'after promote/open': who takes that step dies there; 'all': each."),
    ] = "",
    report: Annotated[str, typer.Option("--json", help="Where the report goes.")] = "",
    settings: SettingsFile = DEFAULT_SETTINGS,
) -> None:
    """Break the lab's databases while writers write. Exit status 0 only when no confirmed write was lost,
    nobody confirmed beside the primary, and both servers were well again each time."""
    from ari_ha.cli.chaos import machine
    from ari_ha.cli.cluster import Cluster, ClusterError, load_settings
    from ari_ha.cli.database_conflict import conflict
    from ari_ha.cli.lab import Lab, LabError
    from ari_ha.cli.lab_database import FAULTS, STEPS

    words = [*FAULTS, SWITCHOVER, CONFLICT]
    if fault not in words:
        fail(f"faults: {', '.join(words)}", False)
    points = STEPS.get(fault, ()) if die == "all" else (die,)
    if not points:
        fail(f"steps are known of: {', '.join(STEPS)}", False)
    stage = Stage(Cluster(load_settings(settings)), Lab())
    rows = []
    try:
        for turn, point in enumerate(point for _ in range(repeat) for point in points):
            rows.append(conflict(stage) if fault == CONFLICT else stage.until_taken(fault, point))
            what = f"{fault}{', dies ' if point else ''}{point} {turn + 1} of {repeat * len(points)}"
            say(f"{what}: {sentence(rows[-1])}", GOOD if good(rows[-1]) else "bad")
    except (ClusterError, LabError, OSError) as error:
        rows.append({"fault": fault, "failed": str(error)})
        say(f"{fault}: {error}", "bad")
    found = {
        "fault": fault, "flavour": stage.flavour(), "shape": stage.target.shape, "machine": machine(),
        "day": time.strftime("%Y-%m-%d", time.gmtime()), "runs": rows, "summary": summary(rows),
    }  # fmt: skip
    if report:
        Path(report).parent.mkdir(parents=True, exist_ok=True)
        Path(report).write_text(json.dumps(found, indent=2) + "\n")
    show = found["summary"]
    table(fault, list(show), [[str(value) for value in show.values()]])
    raise typer.Exit(0 if all(good(row) for row in rows) else 1)


def good(row: dict[str, Any]) -> bool:
    """Whether a run shows nothing wrong."""
    if row.get("failed") or row["lost"] or row["two_at_once"] or not row["equal"]:
        return False
    if row["die"]:
        return bool(row["died"])
    if row["fault"] == TAIL and not row["tail"]:
        return False
    return row["fault"] != SWITCHOVER or row["primary"] != row["primary_after"]


def sentence(row: dict[str, Any]) -> str:
    """One run in a line."""
    return (
        f"{row['lost']} of {row['confirmed']} confirmed writes lost, gap {row['gap_ms']} ms,"
        f" {row['primary']} then {row['primary_after']}, well again after {row['well_ms']} ms"
        + (f" ({row['rebuilt']} rebuilt)" if row["rebuilt"] else "")
        + (f", {row['tail']} of them on the dead server only" if row["tail"] else "")
        + (f", died: {', '.join(row['died']) or 'nobody'}" if row["die"] else "")
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs together."""
    whole = [row for row in rows if not row.get("failed")]
    gaps, well = (sorted(row[key] for row in whole) for key in ("gap_ms", "well_ms"))
    return {
        "runs": len(rows), "failed": len(rows) - len(whole), "confirmed": sum(r["confirmed"] for r in whole),
        "good": sum(map(good, rows)), "lost": sum(r["lost"] for r in whole),
        "two_at_once": sum(r["two_at_once"] for r in whole),
        "gap_ms": _spread(gaps), "well_ms": _spread(well), "rebuilt": sum(r["rebuilt"] for r in whole),
        "moved": sum(r["primary"] != r["primary_after"] for r in whole),
    }  # fmt: skip


def _spread(values: list[int]) -> dict[str, int]:
    if not values:
        return {}
    at = [values[min(len(values) - 1, int(len(values) * share))] for share in (0.5, 0.95)]
    return {"p50": at[0], "p95": at[1], "max": values[-1]}


class Stage:
    """The lab's pair, well before and after each run."""

    def __init__(self, cluster: Cluster, lab: Lab) -> None:
        from ari_ha.cli.database_writers import Target

        self.cluster, self.lab = cluster, lab
        file = Path(cluster.settings.source)
        self.target: Target = Target.of(json.loads(file.read_text())["application"], file.parent)

    def pair(self) -> dict[str, Any]:
        """What etcd says of the pair. Raises ClusterError."""
        from ari_ha.cli.db import document, read_pairs

        pairs = document(read_pairs(self.cluster))["clusters"]
        return next((pair for pair in pairs if pair["name"] == self.target.database), {})

    def flavour(self) -> str:
        """Flavour and version of the servers."""
        try:
            return ", ".join(sorted({str(member["version"]) for member in self.pair()["members"]}))
        except (OSError, KeyError):
            return "unknown"

    def wait(self, what: str, limit_s: float, look: Callable[[], Any]) -> Any:
        """The first true answer. Raises LabError at the limit."""
        from ari_ha.cli.cluster import ClusterError
        from ari_ha.cli.lab import LabError

        until, why = time.monotonic() + limit_s, ""
        while time.monotonic() < until:
            try:
                if found := look():
                    return found
            except (ClusterError, LabError, OSError) as error:
                why = f" ({error})"
            time.sleep(LOOK_EVERY_S)
        raise LabError(f"gave up after {limit_s:.0f} s waiting until {what}{why}")

    def well(self) -> dict[str, Any] | None:
        """The pair, when a primary is writable and its standby certified and close behind; where both follow,
        both do."""
        from ari_ha.cli.database_writers import REPLICA, TWO_WRITERS
        from ari_ha.cli.db import judge

        pair, shape = self.pair(), self.target.shape
        members = pair.get("members", ())
        names = {member["name"] for member in members}
        close = all((member["lag_ms"] or 0) <= LAG_MAX_MS for member in members)
        follows = shape == REPLICA or all(m["io"] == "yes" and m["applying"] for m in members)
        ready = close and follows and names == set(self.target.servers) and judge(pair)[0] == GOOD
        if shape == TWO_WRITERS:
            first, second = self.target.servers
            both = [self.target.writable(turn) for turn in range(2)] == [first, second]
            return {**pair, "primary": first, "standby": second} if ready and both else None
        ready = ready and not pair["order"]
        return pair if ready and self.target.writable() == pair["primary"] else None

    def until_taken(self, fault: str, die: str) -> dict[str, Any]:
        """The last of at most `DIE_TRIES_MAX` runs: until the step was taken, or something is wrong."""
        for _ in range(DIE_TRIES_MAX):
            row = self.one(fault, die)
            if not die or row["died"] or not good({**row, "die": ""}):
                break
        return row

    def one(self, fault: str, die: str = "") -> dict[str, Any]:
        """One run; with ``die`` a watcher ends itself at that step of it."""
        from ari_ha.cli.database_writers import Writers
        from ari_ha.cli.lab_database import arm, disarm

        before = self.wait("the pair is well", WELL_LIMIT_S, self.well)
        rebuilds = self.rebuilt()
        writers = Writers(self.target, secrets.token_hex(4))
        writers.start()
        try:
            time.sleep(BASELINE_S)
            if die:
                arm(self.lab, die)
            struck_at, again_ms, well, tail = self._strike(fault, before, writers, rebuilds)
        finally:
            writers.stop()
            died = disarm(self.lab) if die else []
        end = time.time()
        return {
            "fault": fault, "die": die, "died": died, "run": writers.run, "primary": before["primary"],
            "primary_after": well["primary"], "again_ms": again_ms,
            "gap_ms": round(writers.gap_s(struck_at - BASELINE_S / 2, end - AFTER_S / 2) * 1000),
            "well_ms": round((end - struck_at) * 1000), "errors": writers.errors,
            "tail": tail, "two_at_once": writers.two_at_once(), "rebuilt": self.rebuilt() - rebuilds,
            **self._count(writers, well),
        }  # fmt: skip

    def _strike(
        self, fault: str, before: dict[str, Any], writers: Writers, rebuilds: int
    ) -> tuple[float, int, dict[str, Any], int]:
        from ari_ha.cli.lab_database import FAULTS

        if fault == SWITCHOVER:
            struck_at, mend = time.time(), None
            leader = next(m for m in before["members"] if m["name"] == before["leader"])
            self._order(leader["http"])
        else:
            struck = FAULTS[fault](self.lab, before["primary"])
            struck_at, mend = struck.at, struck.mend
        tail = self._tail(writers, before) if fault == TAIL else 0
        if fault == ERRANT:  # nobody else feels it: well again is not yet ill
            self.wait("it is archived", WELL_LIMIT_S, lambda: self.rebuilt() > rebuilds)
        if mend is not None:
            left = struck_at + BROKEN_FOR_S.get(fault, 10.0) - time.time()
            time.sleep(max(0.0, left))
            mend()
        everybody = len(writers._threads)
        settled = time.time() if mend is not None else struck_at
        self.wait("all write again", WRITES_AGAIN_LIMIT_S, lambda: len(writers.since(settled)) == everybody)
        again_ms = round((time.time() - struck_at) * 1000)
        well = self.wait("the pair is well again", WELL_LIMIT_S, self.well)
        time.sleep(AFTER_S)
        return struck_at, again_ms, well, tail

    def _tail(self, writers: Writers, before: dict[str, Any]) -> int:
        """Confirmed rows that only the dead primary has."""
        confirmed = {(ack.writer, ack.n) for ack in writers.acks if ack.server == before["primary"]}
        other = next(name for name in self.target.servers if name != before["primary"])
        return len(confirmed - self.target.rows(other, writers.run))

    def _order(self, http: str) -> None:
        """Asks for a switchover, and waits for it: one whose watcher dies on the way may not come to pass."""
        term = self.pair()["term"]
        self.cluster.http(http, "/v1/switchover", "POST", {})
        until = time.monotonic() + MOVED_LIMIT_S
        while time.monotonic() < until and (pair := self.pair())["order"] and pair["term"] == term:
            time.sleep(LOOK_EVERY_S)

    def _count(self, writers: Writers, well: dict[str, Any]) -> dict[str, Any]:
        """What became of the confirmed rows, on both servers."""
        confirmed = {(ack.writer, ack.n) for ack in writers.acks}
        primary = well["primary"]
        standby = next(name for name in self.target.servers if name != primary)
        (rows,) = self.wait(
            "the primary's rows are read", ROWS_LIMIT_S, lambda: (self.target.rows(primary, writers.run),)
        )
        equal = self._same(standby, writers.run, rows)
        return {"confirmed": len(confirmed), "lost": len(confirmed - rows), "equal": equal}

    def _same(self, standby: str, run: str, rows: set[tuple[int, int]]) -> bool:
        from ari_ha.cli.lab import LabError

        def equal() -> bool:
            return self.target.rows(standby, run) == rows

        try:
            return bool(self.wait("the standby has it all", ROWS_LIMIT_S, equal))
        except LabError:
            return False

    def rebuilt(self) -> int:
        """Copies the watchers made so far in this life of theirs, archived transactions included."""
        from ari_ha.cli.db import read_pairs

        keys = read_pairs(self.cluster).get(self.target.database, {})
        return sum(1 for path in keys if path.startswith("errant/"))
