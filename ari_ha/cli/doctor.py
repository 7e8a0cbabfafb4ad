"""``ari-ha doctor``: everything that is known to go wrong one day, looked at today.

Each check answers with lines: ok, warn or bad, what was seen, and what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ari_ha.cli.output import BAD, DEFAULT_SETTINGS, GOOD, WARN, JsonFlag, SettingsFile, fail, print_json, say

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster
    from ari_ha.cli.view import View

CLOCK_APART_MAX_S = 2.0
"""HTTP dates are whole seconds; below this nothing can be said."""
CERTIFICATE_WARN_DAYS = 30
READS_TRIED = 10
READ_SLOW_S = 0.05
FSYNC_SLOW_S = 0.05
DB_FULL_WARN_SHARE = 0.6
NONLOCAL_BIND = Path("/proc/sys/net/ipv4/ip_nonlocal_bind")
WORST = {GOOD: 0, WARN: 1, BAD: 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: how it is, of what, what was seen and what to do about it."""

    level: str
    subject: str
    text: str
    advice: str = ""


def register(app: typer.Typer) -> None:
    """Adds ``doctor`` to the command line."""
    app.command("doctor")(doctor)


def doctor(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """Check etcd, clocks, nodes, edges, certificates and settings, with advice. Exit
    status 1 when anything is bad."""
    from ari_ha.cli import view as views
    from ari_ha.cli.cluster import Cluster, ClusterError

    try:
        cluster = Cluster.open(settings)
    except ClusterError as error:
        fail(str(error), as_json)
    findings = [*certificates(cluster), *local_host(settings), *etcd(cluster)]
    try:
        view = views.read(cluster)
    except ClusterError as error:
        findings.append(Finding(BAD, "etcd", str(error), "bring back a majority of the members"))
    else:
        findings += [*processes(cluster, view), *directory(view)]
    worst = max((finding.level for finding in findings), key=WORST.__getitem__, default=GOOD)
    if as_json:
        lines = [
            {"level": f.level, "subject": f.subject, "text": f.text, "advice": f.advice} for f in findings
        ]
        print_json({"verdict": worst, "findings": lines})
    else:
        for f in findings:
            say(f"{f.level:4}  {f.subject:<14} {f.text}" + (f": {f.advice}" if f.advice else ""), f.level)
    raise typer.Exit(1 if worst == BAD else 0)


# -- this host


def local_host(settings: str) -> Iterator[Finding]:
    """What only the host itself can tell; silent where it does not apply."""
    import json

    try:
        document = json.loads(Path(settings).read_text())
    except (OSError, ValueError):
        return
    if "rtpengine" in document and NONLOCAL_BIND.exists():
        if NONLOCAL_BIND.read_text().strip() == "1":
            yield Finding(GOOD, "this host", "ip_nonlocal_bind is 1")
        else:
            yield Finding(
                BAD,
                "this host",
                "ip_nonlocal_bind is 0: a standby cannot bind the pair's address",
                "sysctl net.ipv4.ip_nonlocal_bind=1",
            )
    yield from timing_budget(document)


def timing_budget(document: dict[str, Any]) -> Iterator[Finding]:
    """Whether the limits in this settings file add up (the processes refuse to start
    when they do not)."""
    try:
        from ari_ha.runtime.settings import budget_problems
    except ImportError:
        return
    problems = list(budget_problems(document))
    for problem in problems:
        yield Finding(BAD, "settings", problem, "change the limits so that they add up")
    if not problems:
        yield Finding(GOOD, "settings", "the timing budget adds up")


def certificates(cluster: Cluster) -> Iterator[Finding]:
    """How long the files named in the settings stay valid."""
    settings = cluster.settings
    if not settings.ca:
        yield Finding(WARN, "certificates", "etcd is asked without TLS", "only for a test on one machine")
        return
    for path in filter(None, (settings.ca, settings.cert)):
        try:
            ends = not_after(Path(path).read_text())
        except (OSError, ValueError) as error:
            yield Finding(BAD, "certificates", f"{path}: {error}")
            continue
        days = int((ends - time.time()) / 86_400)
        if days < 0:
            yield Finding(BAD, "certificates", f"{path} expired {-days} days ago", "renew it now")
        elif days < CERTIFICATE_WARN_DAYS:
            yield Finding(WARN, "certificates", f"{path} expires in {days} days", "renew it")
        else:
            yield Finding(GOOD, "certificates", f"{path} is valid for {days} days")


def not_after(pem: str) -> float:
    """When the first certificate in ``pem`` ends, UTC seconds. Raises ValueError."""
    import base64
    import calendar

    _, begin, rest = pem.partition("-----BEGIN CERTIFICATE-----")
    body, end, _ = rest.partition("-----END CERTIFICATE-----")
    if not begin or not end:
        raise ValueError("no certificate in it")
    # RFC 5280 section 4.1: Certificate { TBSCertificate { [0] version, serial,
    # signature, issuer, validity { notBefore, notAfter } ... } ... }
    _, certificate, _ = _der(base64.b64decode(body))
    _, tbs, _ = _der(certificate)
    tag, _, rest_of_tbs = _der(tbs)
    fields = 3 if tag == 0xA0 else 2
    for _ in range(fields):
        _, _, rest_of_tbs = _der(rest_of_tbs)
    _, validity, _ = _der(rest_of_tbs)
    _, _, rest_of_validity = _der(validity)
    tag, when, _ = _der(rest_of_validity)
    pattern = "%y%m%d%H%M%SZ" if tag == 0x17 else "%Y%m%d%H%M%SZ"
    return float(calendar.timegm(time.strptime(when.decode(), pattern)))


def _der(data: bytes) -> tuple[int, bytes, bytes]:
    """The first DER element of ``data``: its tag, its content, and what follows it."""
    if len(data) < 2:
        raise ValueError("not a certificate")
    length, start = data[1], 2
    if length & 0x80:
        count = length & 0x7F
        length, start = int.from_bytes(data[2 : 2 + count]), 2 + count
    if len(data) < start + length:
        raise ValueError("not a certificate")
    return data[0], data[start : start + length], data[start + length :]


# -- etcd


def etcd(cluster: Cluster) -> Iterator[Finding]:
    """Members, agreement, latency, room."""
    from ari_ha.cli.status import ETCD_MEMBERS_WANTED, etcd_members

    members = etcd_members(cluster)
    healthy = [member for member in members if member["healthy"]]
    for member in members:
        if member["healthy"]:
            role = "leads" if member["leader"] else "follows"
            yield Finding(GOOD, "etcd", f"{member['endpoint']} {role}, {member['version']}")
        else:
            yield Finding(
                WARN,
                "etcd",
                f"{member['endpoint']}: {member['why']}",
                "bring it back: one more loss may count",
            )
    if len(members) < ETCD_MEMBERS_WANTED:
        yield Finding(WARN, "etcd", f"{len(members)} members in the settings", "three or five survive a loss")
    if len({member["version"] for member in healthy}) > 1:
        yield Finding(WARN, "etcd", "members run different versions", "finish the upgrade")
    if not healthy:
        return
    yield from _alarms(cluster)
    yield from _latency(cluster)
    for member in healthy:
        yield from _metrics(cluster, member)


def _alarms(cluster: Cluster) -> Iterator[Finding]:
    from ari_ha.cli.cluster import ClusterError

    try:
        alarms = cluster.ask("maintenance/alarm", {"action": "GET"}).get("alarms", [])
    except ClusterError as error:
        yield Finding(WARN, "etcd", f"alarms cannot be read: {error}")
        return
    for alarm in alarms:
        yield Finding(
            BAD, "etcd", f"alarm {alarm.get('alarm')}", "compact, defragment, then `etcdctl alarm disarm`"
        )


def _latency(cluster: Cluster) -> Iterator[Finding]:
    from ari_ha.cli.cluster import ClusterError

    took = []
    try:
        for _ in range(READS_TRIED):
            began = time.monotonic()
            cluster.get(cluster.keys.root)
            took.append(time.monotonic() - began)
    except ClusterError as error:
        yield Finding(BAD, "etcd", f"linearizable reads fail: {error}", "there is no majority")
        return
    median = sorted(took)[len(took) // 2]
    text = f"agreed reads take {median * 1000:.0f} ms (longest {max(took) * 1000:.0f} ms)"
    if median > READ_SLOW_S:
        yield Finding(WARN, "etcd", text, "members belong on one LAN, on quiet disks")
    else:
        yield Finding(GOOD, "etcd", text)


def _metrics(cluster: Cluster, member: dict[str, Any]) -> Iterator[Finding]:
    """Room and disk of one member, where its metrics can be read."""
    from ari_ha.cli.cluster import ClusterError

    scheme = "https" if cluster.settings.ca else "http"
    endpoint = member["endpoint"]
    base = endpoint if "://" in endpoint else f"{scheme}://{endpoint}"
    try:
        text = cluster.http(base, "/metrics")
    except ClusterError:
        return
    if not isinstance(text, str):
        return
    quota = metric(text, "etcd_server_quota_backend_bytes")
    if quota and member["db_bytes"] > DB_FULL_WARN_SHARE * quota:
        share = int(100 * member["db_bytes"] / quota)
        yield Finding(
            WARN, "etcd", f"{endpoint}: {share} % of its quota used", "check auto-compaction, defragment"
        )
    slow = fsync_p99(text)
    if slow is not None and slow > FSYNC_SLOW_S:
        yield Finding(
            WARN,
            "etcd",
            f"{endpoint}: 1 in 100 disk syncs takes over {slow * 1000:.0f} ms",
            "give it its own disk",
        )


def metric(text: str, name: str) -> float | None:
    """The value of a metric without labels in Prometheus text."""
    for line in text.splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    return None


def fsync_p99(text: str) -> float | None:
    """The bucket that holds the 99th percentile of etcd's disk syncs, seconds."""
    prefix = 'etcd_disk_wal_fsync_duration_seconds_bucket{le="'
    buckets = [
        (float(bound), float(count))
        for line in text.splitlines()
        if line.startswith(prefix)
        for bound, _, count in [line[len(prefix) :].partition('"} ')]
    ]
    total = max((count for _, count in buckets), default=0.0)
    if not total:
        return None
    return min(bound for bound, count in buckets if count >= 0.99 * total)


# -- the processes


def processes(cluster: Cluster, view: View) -> Iterator[Finding]:
    """Nodes and edges: do they answer, are they ready, whose clock is it."""
    from ari_ha.cli.status import judge

    _, reasons = judge(view, etcd_members_unjudged())
    for reason in reasons:
        level = GOOD if "nodes ready" in reason else WARN
        yield Finding(level, "cluster", reason)
    checks: list[tuple[str, dict[str, Any], Callable[[dict[str, Any]], Iterator[Finding]]]] = [
        *((name, value, _node_says) for name, value in sorted(view.nodes.items())),
        *((name, value, _edge_says) for name, value in sorted(view.edges.items())),
    ]
    for name, value, check in checks:
        yield from _process(cluster, name, value, check)
    versions = {value.get("version", "") for value in (*view.nodes.values(), *view.edges.values())}
    if len(versions) > 1:
        yield Finding(WARN, "versions", f"processes run {', '.join(sorted(versions))}", "finish the upgrade")


def etcd_members_unjudged() -> list[dict[str, Any]]:
    """Members that give the verdict nothing to say: `etcd` has said it already."""
    from ari_ha.cli.status import ETCD_MEMBERS_WANTED

    return [{"endpoint": "", "healthy": True}] * ETCD_MEMBERS_WANTED


def _process(
    cluster: Cluster,
    name: str,
    value: dict[str, Any],
    check: Callable[[dict[str, Any]], Iterator[Finding]],
) -> Iterator[Finding]:
    from ari_ha.cli.cluster import ClusterError

    began = time.time()
    try:
        answer = cluster.probe(value.get("http", ""), "/v1/status")
    except ClusterError as error:
        yield Finding(
            WARN, name, f"its API does not answer: {error}", "check http.listen and the token of its settings"
        )
        return
    apart = answer.at_utc_s - (began + time.time()) / 2
    if answer.at_utc_s and abs(apart) > CLOCK_APART_MAX_S:
        yield Finding(WARN, name, f"its clock is {apart:+.0f} s from here", "run NTP on every host")
    else:
        yield Finding(GOOD, name, "answers, its clock agrees")
    if isinstance(answer.document, dict):
        yield from (Finding(f.level, name, f.text, f.advice) for f in check(answer.document))


def _node_says(status: dict[str, Any]) -> Iterator[Finding]:
    if status.get("ready") is False:
        yield Finding(WARN, "", f"not ready: {status.get('reason', '')}", "see `ari-ha explain <node>`")
    for module in status.get("missing_modules") or ():
        yield Finding(BAD, "", f"Asterisk lacks {module}", "load it in modules.conf")

    if trouble := status.get("maintenance_trouble"):
        advice = "a cordon holds, but whoever does not know of it reaches this Asterisk"
        yield Finding(WARN, "", f"no endpoint maintenance: {trouble}", advice)


def _edge_says(status: dict[str, Any]) -> Iterator[Finding]:
    reachable = status.get("rtpengine")
    if reachable is False:
        yield Finding(BAD, "", "rtpengine does not answer it", "check rtpengine and its NG port")
    elif reachable:
        yield Finding(GOOD, "", "rtpengine answers it")
    if status.get("etcd") is False:
        yield Finding(BAD, "", "it does not reach etcd", "calls go on; do not restart it now")
    if status.get("waiting_for_a_node"):
        yield Finding(BAD, "", f"{status['waiting_for_a_node']} calls wait for a node", "bring a node back")


def directory(view: View) -> Iterator[Finding]:
    """Queues nobody serves, agents in queues that do not exist."""
    for row in view.queue_rows():
        if row["queue"] not in view.queues:
            yield Finding(WARN, "directory", f"queue {row['queue']} has callers and no configuration")
        elif not row["members"]:
            yield Finding(
                WARN, "directory", f"queue {row['queue']} has no members", "add it to agents' queues"
            )
    for agent, value in sorted(view.agents.items()):
        for queue in value.get("queues", {}):
            if queue not in view.queues:
                yield Finding(WARN, "directory", f"agent {agent} is in {queue}, which does not exist")
