"""``ari-ha config``: the directory (agents, users, queues, menus, trunks) into and out of etcd.

Loading is idempotent. Of an agent that exists only name, queues, skills and PIN are
set: what the agent is doing belongs to the agent and to the ACD.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ari_ha.cli.output import (
    DEFAULT_SETTINGS,
    JsonFlag,
    SettingsFile,
    fail,
    print_json,
    say,
    table,
)

if TYPE_CHECKING:
    from ari_ha.cli.cluster import Cluster

COMPARE_TRIES_MAX = 5
RETRY_S = 0.5
PIN_ROUNDS = 100_000
AGENT_FIELDS = ("name", "queues", "skills", "pin_hash")
TRUNK_SECRETS = ("password", "realm", "ha1_md5", "ha1_sha256")
FAMILIES = {"agents": "agent", "users": "user", "queues": "queue", "ivrs": "menu", "trunks": "trunk"}

_app = typer.Typer(no_args_is_help=True, help="The directory: agents, users, queues, menus, trunks.")


def register(app: typer.Typer) -> None:
    """Adds ``config`` to the command line."""
    app.add_typer(_app, name="config")


class BadDirectory(ValueError):
    """The file is not a directory; the text says where."""


@_app.command("load")
def load(
    file: Annotated[Path, typer.Argument(help="JSON file with agents, users, queues, menus and trunks.")],
    settings: SettingsFile = DEFAULT_SETTINGS,
    wait_s: Annotated[float, typer.Option("--wait", help="Seconds to wait for etcd to answer.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, write nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write a directory file into etcd. Running it again changes nothing."""
    from ari_ha.cli.cluster import Cluster, ClusterError, EtcdAway

    try:
        wanted = list(read_directory(json.loads(file.read_text())))
    except (OSError, ValueError) as error:
        fail(f"{file}: {error}", as_json)
    give_up_at = time.monotonic() + wait_s
    done: dict[str, str] = {}
    try:
        cluster = Cluster.open(settings)
        while True:
            try:
                done = {path: _write(cluster, path, fields, dry_run) for path, fields in wanted}
                break
            except EtcdAway:
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(RETRY_S)
    except ClusterError as error:
        fail(str(error), as_json)
    counts = {word: sum(did == word for did in done.values()) for word in ("created", "updated", "unchanged")}
    if as_json:
        print_json({"dry_run": dry_run, **counts, "keys": done})
        return
    for path, did in done.items():
        if did != "unchanged":
            say(f"{did}  {path}")
    verb = "would be " if dry_run else ""
    say(", ".join(f"{count} {verb}{word}" for word, count in counts.items()), "ok")


@_app.command("show")
def show(settings: SettingsFile = DEFAULT_SETTINGS, as_json: JsonFlag = False) -> None:
    """The directory as it is in etcd (never secrets)."""
    from ari_ha.cli.cluster import Cluster, ClusterError, decode_json

    try:
        cluster = Cluster.open(settings)
        document: dict[str, Any] = {"cluster": cluster.settings.cluster}
        for family in FAMILIES:
            found = document[family] = {}
            for item in cluster.family(family):
                parts = cluster.keys.split(item.key)[1:]
                if family == "queues":
                    if len(parts) == 2 and parts[1] == "config":
                        found[parts[0]] = decode_json(item)
                elif len(parts) == 1:
                    value = decode_json(item)
                    if family == "agents":
                        value = {k: value[k] for k in ("name", "queues", "skills") if k in value}
                    found[parts[0]] = value
    except ClusterError as error:
        fail(str(error), as_json)
    if as_json:
        print_json(document)
        return
    for family in FAMILIES:
        rows = [
            (name, json.dumps(_brief(value, FAMILIES[family]))) for name, value in document[family].items()
        ]
        table(family, ("name", "value"), rows)
        say("")


def read_directory(document: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(path below the cluster's root, fields)`` of everything in the file. Raises
    BadDirectory. A family is an object by name, or a list of objects with their name."""
    if not isinstance(document, dict):
        raise BadDirectory("the file must hold one JSON object")
    realm = str(document.get("realm", "ari-ha"))
    families = {
        family: dict(_entries(document.get(family) or {}, family, name_field))
        for family, name_field in FAMILIES.items()
    }
    for agent, entry in families["agents"].items():
        phone = entry.pop("aor", None)  # the phone an agent has of its own: a field of that user
        if phone is not None:
            families["users"].setdefault(phone, {"user": phone}).setdefault("agent", agent)
    _complain(families["ivrs"])
    for family, entries in families.items():
        for name, entry in entries.items():
            yield from _ENTRY[family](name, entry, realm)


def _entries(part: Any, family: str, name_field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    pairs = part.items() if isinstance(part, dict) else ((None, entry) for entry in part)
    for name, entry in pairs:
        if not isinstance(entry, dict):
            raise BadDirectory(f"{family}: {name or entry!r} is not an object")
        name = str(name or entry.get(name_field) or "")
        if not name or "/" in name:
            raise BadDirectory(f"{family}: an entry needs a {name_field} without '/': {entry!r}")
        yield name, {**entry, name_field: name}


def _agent(name: str, entry: dict[str, Any], _realm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from ari_ha.wire.keyspace import AgentValue

    fields = dict(entry)
    pin = fields.pop("pin", None)
    if pin is not None:
        fields["pin_hash"] = hash_pin(str(pin), name)
    if isinstance(fields.get("queues"), list):
        fields["queues"] = {queue: 0 for queue in fields["queues"]}
    live = set(fields) - {"agent", *AGENT_FIELDS}
    if live:
        raise BadDirectory(f"agents: {name}: not for a directory: {', '.join(sorted(live))}")
    yield f"agents/{name}", _checked(fields, AgentValue, f"agents: {name}")


def _user(name: str, entry: dict[str, Any], realm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from ari_ha.wire.keyspace import SecretUserValue, UserValue

    fields = dict(entry)
    fields.setdefault("aor", name)
    secret = dict(fields.pop("secret", None) or {})
    for field in ("realm", "ha1_md5", "ha1_sha256"):
        if field in fields:
            secret[field] = fields.pop(field)
    secret.setdefault("realm", realm)
    password = fields.pop("password", None)
    if password is not None:
        secret |= _ha1s(name, secret["realm"], str(password))
    if digest := fields.pop("digest", None):  # "md5": a phone that gives up at any other challenge
        secret = {field: value for field, value in secret.items() if field in ("realm", f"ha1_{digest}")}
    yield f"users/{name}", _checked(fields, UserValue, f"users: {name}")
    if secret.get("ha1_md5") or secret.get("ha1_sha256"):
        yield (
            f"secret/users/{name}",
            _checked({"user": name, **secret}, SecretUserValue, f"users: {name}"),
        )


def _queue(name: str, entry: dict[str, Any], _realm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from ari_ha.wire.keyspace import QueueConfigValue

    yield f"queues/{name}/config", _checked(entry, QueueConfigValue, f"queues: {name}")


def _ivr(name: str, entry: dict[str, Any], _realm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from ari_ha.wire.ivr import IvrMenuValue

    yield f"ivrs/{name}", _checked(entry, IvrMenuValue, f"ivrs: {name}")


def _complain(menus: Mapping[str, dict[str, Any]]) -> None:
    """Menus are judged together: they lead to each other."""
    import msgspec

    from ari_ha.wire.ivr import IvrMenuValue, complaints

    try:
        found = complaints({name: msgspec.convert(entry, IvrMenuValue) for name, entry in menus.items()})
    except msgspec.ValidationError:
        return  # said with its place when the entry is read
    if found:
        raise BadDirectory("ivrs: " + "; ".join(found))


def _trunk(name: str, entry: dict[str, Any], _realm: str) -> Iterator[tuple[str, dict[str, Any]]]:
    from ari_ha.wire.sip_values import SecretTrunkValue, TrunkValue

    fields = dict(entry)
    if isinstance(fields.get("dids"), dict):  # number -> what the dialplan does with it
        fields["dids"] = sorted(fields["dids"])
    secret = {field: fields.pop(field) for field in TRUNK_SECRETS if field in fields}
    if secret.get("password") and secret.get("realm"):
        secret |= _ha1s(str(fields.get("user", "")), secret["realm"], secret.pop("password"))
    yield f"trunks/{name}", _checked(fields, TrunkValue, f"trunks: {name}")
    if secret:
        secret = {"trunk": name, **secret}
        yield f"secret/trunks/{name}", _checked(secret, SecretTrunkValue, f"trunks: {name}")


def _ha1s(user: str, realm: str, password: str) -> dict[str, str]:
    """What is stored in place of a password (RFC 7616 §3.4.2)."""
    text = f"{user}:{realm}:{password}".encode()
    return {"ha1_md5": hashlib.md5(text).hexdigest(), "ha1_sha256": hashlib.sha256(text).hexdigest()}


_ENTRY = {"agents": _agent, "users": _user, "queues": _queue, "ivrs": _ivr, "trunks": _trunk}


def _checked(fields: Mapping[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """``fields``, known to decode as ``kind``."""
    import msgspec

    try:
        msgspec.convert(dict(fields), type=kind)
    except msgspec.ValidationError as error:
        raise BadDirectory(f"{where}: {error}") from error
    unknown = set(fields) - set(kind.__struct_fields__)
    if unknown:
        raise BadDirectory(f"{where}: unknown field {', '.join(sorted(unknown))}")
    return dict(fields)


def hash_pin(pin: str, agent: str) -> str:
    """How a PIN is stored: PBKDF2 with the agent's name as salt, so that loading the
    same file twice stores the same value."""
    digest = hashlib.pbkdf2_hmac("sha256", pin.encode(), agent.encode(), PIN_ROUNDS)
    return f"pbkdf2-sha256${PIN_ROUNDS}${digest.hex()}"


def _write(cluster: Cluster, path: str, fields: Mapping[str, Any], dry_run: bool) -> str:
    """Brings one key to ``fields``; says ``created``, ``updated`` or ``unchanged``."""
    from ari_ha.cli.cluster import ClusterError, decode_json
    from ari_ha.core.ports.store import Compare, Put
    from ari_ha.wire.keyspace import SCHEMA

    key = cluster.keys.root + path
    item = cluster.get(key)
    for _ in range(COMPARE_TRIES_MAX):
        before = decode_json(item) if item else {}
        after = {"schema": SCHEMA, **before, **fields}
        if item is not None and {"schema": SCHEMA, **before} == after:
            return "unchanged"
        word = "updated" if item else "created"
        if dry_run:
            return word
        value = json.dumps(after, separators=(",", ":")).encode()
        result = cluster.txn([Compare(key, item.mod_revision if item else 0)], [Put(key, value)])
        if result.succeeded:
            return word
        item = result.current[0] if result.current else None
    raise ClusterError(f"{path} keeps changing; nothing written")


def _brief(value: Mapping[str, Any], name_field: str) -> dict[str, Any]:
    return {k: v for k, v in value.items() if k not in ("schema", name_field)}
