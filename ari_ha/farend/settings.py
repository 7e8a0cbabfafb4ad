"""Settings of the far ends, read from one JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SETTINGS_VARIABLE = "ARI_HA_SETTINGS"
DEFAULT_PATH = "/etc/ari-ha/settings.json"


class BadSettings(ValueError):
    """The file cannot be used; says which value and why."""


@dataclass(frozen=True, slots=True)
class FarEndSettings:
    """What the far-end process is told."""

    edge_host: str
    edge_port: int = 5060
    """Where calls and registrations go."""
    edge_others: tuple[str, ...] = ()
    """Other edges' addresses, same port: used when the one in use does not answer OPTIONS."""
    carrier_host: str = "127.0.0.1"
    carrier_port: int = 5060
    carrier_user: str = ""
    """Digest user of the trunk; empty when it is known by its address."""
    phones_host: str = "127.0.0.1"
    phones_base_port: int = 6001
    """UDP port of the first phone; the others follow."""
    phones: tuple[str, ...] = ()
    tcp_phones: frozenset[str] = frozenset()
    """Phones that use TCP instead."""
    phones_at: Mapping[str, str] = field(default_factory=dict)
    """Phone -> address of another edge, same port: it registers and calls there."""
    domain: str = "lab"
    """Realm of digests and domain of addresses of record."""
    register: bool = True
    """Whether phones register at start."""
    register_expires_s: int = 120
    passwords: Mapping[str, str] = field(default_factory=dict, repr=False)
    http_host: str = "0.0.0.0"
    http_port: int = 8090
    token: str = field(default="", repr=False)
    """Bearer token of the HTTP interface; empty: none asked (tests on loopback)."""
    media_workers: int = 1
    """Processes that handle RTP: one takes 50 calls in well under half a core."""
    rtp_port_first: int = 40_000
    rtp_port_last: int = 49_998


def load(path: str | None = None) -> FarEndSettings:
    """Settings from ``path``, else from where ``ARI_HA_SETTINGS`` points, else from `DEFAULT_PATH`."""
    chosen = Path(path or os.environ.get(SETTINGS_VARIABLE) or DEFAULT_PATH)
    try:
        values = json.loads(chosen.read_text())
        return _read(values)
    except (OSError, json.JSONDecodeError) as error:
        raise BadSettings(f"{chosen}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise BadSettings(f"{chosen}: {error!r}") from error


def _read(values: Mapping[str, Any]) -> FarEndSettings:
    edge, carrier, phones = values["edge"], values["carrier"], values["phones"]
    http = values.get("http", {})
    host, _, port = str(http.get("listen", "0.0.0.0:8090")).rpartition(":")
    users = phones.get("users", ())
    passwords = dict(users) if isinstance(users, Mapping) else {}
    if "passwords_file" in values:
        passwords.update(json.loads(Path(values["passwords_file"]).read_text()))
    token_file = http.get("token_file")
    return FarEndSettings(
        edge_host=edge["host"],
        edge_port=int(edge.get("port", 5060)),
        edge_others=tuple(str(host) for host in edge.get("others", ())),
        carrier_host=carrier["host"],
        carrier_port=int(carrier.get("port", 5060)),
        carrier_user=str(carrier.get("user", "")),
        phones_host=phones["host"],
        phones_base_port=int(phones.get("base_port", 6001)),
        phones=tuple(str(user) for user in users),
        tcp_phones=frozenset(str(user) for user in phones.get("tcp", ())),
        phones_at={str(user): str(host) for user, host in phones.get("at", {}).items()},
        domain=str(phones.get("realm", values.get("realm", "lab"))),
        register=bool(phones.get("register", True)),
        register_expires_s=int(phones.get("expires_s", 120)),
        passwords=passwords,
        http_host=host or "0.0.0.0",
        http_port=int(port),
        token=Path(token_file).read_text().strip() if token_file else str(http.get("token", "")),
        media_workers=int(values.get("media_workers", 1)),
        rtp_port_first=int(values.get("rtp_port_first", 40_000)),
        rtp_port_last=int(values.get("rtp_port_last", 49_998)),
    )
